"""What a model knows: the records of `sim:` disks, filled by `storage.sim.disk`, changed by the model's kernels.

All times are the model's: nanoseconds since the disk was opened, `speed` of which pass in one of the clock's. Disk
addresses are sectors of 512 bytes. Everything here is shared by all queues of a disk, under `lock`; a model's kernels
are called with the lock held.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.jit.table import Table

PROFILE_SATA = 0
PROFILE_FUSION_IO = 1

#: Requests of one queue that the model holds at once. The others wait in the ring, where no host sees them.
QUEUE_OPS = 256
#: A device has no more queues than this (`device.virtio_blk`).
MAX_QUEUES = 256

# What the disk is doing: `SATA_DTYPE.current`, besides the index of an operation.
IDLE = -1
DESTAGING = -2

SIM_DTYPE = np.dtype(
    [
        ("profile", "i8"),
        ("lock", "i8"),  # address of a mutex
        ("base_ns", "i8"),  # what CLOCK_MONOTONIC showed at the model's 0
        ("speed", "i8"),
        ("time", "i8"),  # the latest time that the model was told
        ("done", "i8"),  # operations on the list of ended ones
    ]
)

#: One operation. Its index is its queue's number times QUEUE_OPS, plus its slot.
SIM_OP_DTYPE = np.dtype(
    [
        ("op", "i8"),  # OP_* of storage.request
        ("sector", "i8"),
        ("sectors", "i8"),  # those of the operations merged into it included, once it is in the drive
        ("fua", "i8"),
        ("sweep", "i8"),  # the host's sweep that it belongs to
        ("ready", "i8"),  # the drive has taken note of it and can begin
        ("entered", "i8"),  # commands that the drive had begun when it got this one
        ("through", "i8"),  # a flush: dirty ranges up to this number have to be on the disk
        ("merged", "i8"),  # the operation that the host put behind it, to be one command with it; -1: none
    ]
)

SATA_DTYPE = np.dtype(
    [
        # parameters
        ("revolution", "i8"),  # ns
        ("sector_ps", "i8"),  # picoseconds that a sector takes to pass under the head
        ("track", "i8"),  # sectors
        ("tracks", "i8"),
        ("seek_min", "f8"),  # ns to the next track
        ("seek_root", "f8"),  # ns by the square root of the part of all tracks that is crossed
        ("seek_linear", "f8"),  # ns by that part
        ("write_settle", "i8"),  # ns more before a write
        ("overhead", "i8"),  # ns until the drive has taken note of a command
        ("link_ps", "i8"),  # picoseconds that a sector takes from or to the cache
        ("read_ahead", "i8"),  # sectors
        ("segments", "i8"),  # of the track cache
        ("segment", "i8"),  # sectors that each of them holds
        ("depth", "i8"),  # commands that the drive knows
        ("reorder", "i8"),  # 1: the host sorts what it has before the drive gets it
        ("merge", "i8"),  # sectors that a command may have which the host makes of several operations
        ("max_skips", "i8"),  # commands that may overtake one in the drive
        ("write_cache", "i8"),  # sectors; 0: without
        ("ranges", "i8"),  # that the write cache holds at most
        # the host's queue and the drive's
        ("host", "i8"),  # operations in the host's queue
        ("sweep", "i8"),
        ("queued", "i8"),  # operations in the drive
        ("begun", "i8"),  # commands begun so far
        # the mechanics
        ("current", "i8"),  # the operation at hand, IDLE or DESTAGING
        ("due", "i8"),  # when that ends
        ("head", "i8"),  # the sector behind the last one read or written
        ("reading", "i8"),  # the segment that is being read ahead into, or -1
        ("since", "i8"),  # when the head was at the end of that segment, or of the last write; -1: neither
        ("limit", "i8"),  # the head reads on to here
        ("uses", "i8"),  # counts accesses to segments
        # the write cache
        ("dirty", "i8"),  # ranges in it
        ("dirty_sectors", "i8"),
        ("dirty_number", "i8"),  # of the last one that was added
        ("destaging", "i8"),  # the range that is being written
    ]
)

SEGMENT_DTYPE = np.dtype([("start", "i8"), ("end", "i8"), ("used", "i8")])
DIRTY_DTYPE = np.dtype([("start", "i8"), ("end", "i8"), ("number", "i8")])

FUSION_IO_DTYPE = np.dtype(
    [
        # parameters
        ("channels", "i8"),
        ("page", "i8"),  # bytes
        ("read", "i8"),  # ns
        ("program", "i8"),
        ("overhead", "i8"),
        ("places", "i8"),  # pages of the write buffer
        # state
        ("next_channel", "i8"),  # that the next page goes to
        ("programs", "i8"),  # pages in the write buffer: a list that goes round
        ("first", "i8"),  # the oldest of them
        ("accepted", "i8"),  # when the last write found room
    ]
)

#: What one queue has at the disk.
SIM_QUEUE_DTYPE = np.dtype(
    [
        ("number", "i8"),
        ("out", "i8"),  # operations of it that have not ended
        ("ended", "i8"),  # slots on the list of ended ones
        ("free", "i8"),  # slots on the stack of free ones
    ]
)


class SimModel(NamedTuple):
    """A disk's model. Of the two profiles' tables one is in use, the other has one empty record."""

    state: Table  # [1] SIM_DTYPE
    ops: Table  # [MAX_QUEUES * QUEUE_OPS] SIM_OP_DTYPE; sata alone uses it, as the two that follow
    done: Table  # [MAX_QUEUES * QUEUE_OPS] operations that ended, in that order
    sata: Table  # [1] SATA_DTYPE
    host: Table  # [MAX_QUEUES * QUEUE_OPS] operations in the host's queue, as they came
    queued: Table  # [depth] operations in the drive, as they came
    segments: Table  # [segments] SEGMENT_DTYPE, the track cache
    dirty: Table  # DIRTY_DTYPE, the write cache
    fusion: Table  # [1] FUSION_IO_DTYPE
    channels: Table  # [channels] when each is free
    programs: Table  # when each page ends that is on its way from the write buffer


class SimQueue(NamedTuple):
    """A queue's part, which its worker alone uses."""

    state: Table  # [1] SIM_QUEUE_DTYPE
    due: Table  # [slots] fusion-io: a heap of the times at which operations end
    slot: Table  # [slots] and their slots
    ended: Table  # [slots]
    free: Table  # [slots]
