"""What a job of a job file is told and what it tells: the tables between `bench.fio_runner` and `bench.fio_loop`.

Filled by control while no job runs, then a job's own until its run is over; control reads `ios` meanwhile.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.jit.table import Table
from virtblk.uapi.virtio_blk import DISCARD_WRITE_ZEROES

#: What an I/O is: fio's directions, and a flush, which fio counts apart.
READ = 0
WRITE = 1
TRIM = 2
SYNC = 3
KINDS = 4

#: What a trim's one segment holds.
RANGE_SIZE = DISCARD_WRITE_ZEROES.itemsize
RANGE_SECTORS = 8
RANGE_FLAGS = 12
#: A block that is read, and whose contents nobody looks at.
NOT_CHECKED = -3
#: Later than any time and more than any count.
NEVER = 1 << 62

FIO_JOB_DTYPE = np.dtype(
    [
        # what to do
        ("submitter", "i8"),
        ("first_bio", "i8"),
        ("depth", "i8"),  # 0: no part in this run
        ("batch", "i8"),  # I/Os submitted between two looks at completions
        ("complete_min", "i8"),  # once it has to wait: I/Os that must come back before the next is submitted
        ("bs", "i8"),  # bytes
        ("start", "i8"),  # first byte of its range, which is `blocks` blocks of `bs` bytes
        ("blocks", "i8"),
        ("kind", "i8"),  # READ, WRITE or TRIM
        ("read_share", "i8"),  # of a mixed job, per cent of reads; -1: not mixed
        ("random", "i8"),
        ("once", "i8"),  # 1: random, each block once per pass
        ("low_bits", "i8"),  # for the random map
        ("high_bits", "i8"),
        ("seed", "i8"),
        ("limit", "i8"),  # I/Os to do; NEVER: until told to stop
        ("rewinds", "i8"),  # 1: a sequential job starts again at its range's start with each pass
        ("ramp_ns", "i8"),  # load before anything counts
        ("runtime_ns", "i8"),  # after that; 0: to its limit
        ("rate", "i8"),  # I/Os per second; 0: as fast as they go
        ("phase_ns", "i8"),  # with a rate: its first I/O is due so long after its start
        ("think_ns", "i8"),  # pause after each I/O, with nothing in flight
        ("fsync", "i8"),  # a flush after so many writes; 0: none
        ("verify", "i8"),
        ("contents", "i8"),  # seed of what it writes
        ("generation", "i8"),  # that its first pass writes; no other job of this or an earlier run had it
        ("buffers", "i8"),  # address of depth * bs bytes in the arena
        ("stop", "i8"),  # address of the word that ends it
        # where it is
        ("position", "i8"),  # next block of a sequential job's reads or trims,
        ("write_position", "i8"),  # and of its writes, which go their own way
        ("ramping", "i8"),
        # what happened
        ("errno", "i8"),  # of the first failed I/O, which ended the job
        ("bad_block", "i8"),  # BAD_* of the first block that did not verify, which did too
        ("bad_offset", "i8"),
        ("started_ns", "i8"),
        ("counted_ns", "i8"),  # when the ramp ended
        ("ended_ns", "i8"),  # 0: it runs
        ("result", "i8"),  # 0, or -errno once the queue is over
    ]
)

#: Count, least, most, sum and sum of squares of some latency, in nanoseconds.
_LATENCY = [("min", "i8"), ("max", "i8"), ("sum", "i8"), ("squares", "f8")]
LATENCIES = ("slat", "clat", "lat")
FIO_STAT_DTYPE = np.dtype(
    [("ios", "i8")] + [(f"{name}_{field}", kind) for name in LATENCIES for field, kind in _LATENCY]
)

FIO_BIO_DTYPE = np.dtype(
    [
        ("kind", "i8"),
        ("offset", "i8"),
        ("generation", "i8"),  # what a block is written in; what one that is read was written in, or NOT_CHECKED
        ("began_ns", "i8"),  # when the job turned to it, or with a rate, when it was due
        ("issued_ns", "i8"),  # when the driver had it
    ]
)

#: fio's classes of depths (1, 2, 4, ... >=64), and of counts of I/Os submitted or reaped at a time (0, 4, ... >=64).
DEPTH_CLASSES = 7
#: Rows of `levels`: depths at submission, submitted and completed at a time.
LEVEL_DEPTH = 0
LEVEL_SUBMIT = 1
LEVEL_COMPLETE = 2
LEVELS = 3


class FioJobs(NamedTuple):
    """All jobs of a job file's run."""

    jobs: Table  # [jobs] FIO_JOB_DTYPE
    stats: Table  # [jobs * KINDS] FIO_STAT_DTYPE
    histogram: Table  # [jobs * KINDS * BUCKETS] completion latencies; of SYNC, the whole latency
    levels: Table  # [jobs * LEVELS * DEPTH_CLASSES]
    free: Table  # [bios] stacks of bios that are not in flight, a job's from first_bio on
    bios: Table  # [bios] FIO_BIO_DTYPE
