"""Devices with one deliberate defect each: they prove that each check of `virtblk check` can fail.

`python -m tests.mutants NAME SOCKET` serves one, `--list` names them all, `--table` prints docs/mutants.md.
"""
