"""The load generator: fio's options, in compiled loops, with the figures of both sides."""
