"""The way in for single calls from Python: a queue by the address of its handle, and one bio, to its end.

Numba looks at the type of every table of a VirtblkQueue each time Python calls a kernel with one: nothing for a loop
that runs for seconds, 80 us for a read. A handle is the tables' addresses and lengths as int64 pairs, in the order of
the fields below, so that a call passes integers only. Called by `disk` and by the probe, on the caller's thread.
"""

from __future__ import annotations

import numpy as np

from virtblk.block.bio import BIO_DTYPE, bio_init
from virtblk.block.blk_merge import CURSOR_DTYPE
from virtblk.driver.bio_path import submit_bio_wait
from virtblk.driver.virtblk_req import QUEUE_DTYPE, REQUEST_DTYPE, SUBMITTER_DTYPE, VirtblkQueue
from virtblk.jit.atomics import load_i64
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.libc import clock_ns
from virtblk.jit.table import table_at
from virtblk.virtio.virtio_ring_split import VRING_DTYPE, VringVirtqueue

INT64 = np.dtype(np.int64)


@kernel
def handle_table(handle, index, dtype):
    """Table `index` of the handle."""
    return table_at(load_i64(handle + 16 * index), load_i64(handle + 16 * index + 8), dtype)


@kernel
def queue_of(handle):
    """The queue whose handle lies at address `handle`. Partner: driver.queue.QueueSetup, which lays it down."""
    ring = VringVirtqueue(
        handle_table(handle, 0, VRING_DTYPE),
        handle_table(handle, 1, INT64),
        handle_table(handle, 2, INT64),
        handle_table(handle, 3, INT64),
    )
    return VirtblkQueue(
        ring,
        handle_table(handle, 4, QUEUE_DTYPE),
        handle_table(handle, 5, REQUEST_DTYPE),
        handle_table(handle, 6, INT64),
        handle_table(handle, 7, INT64),
        handle_table(handle, 8, INT64),
        handle_table(handle, 9, BIO_DTYPE),
        handle_table(handle, 10, INT64),
        handle_table(handle, 11, INT64),
        handle_table(handle, 12, SUBMITTER_DTYPE),
        handle_table(handle, 13, CURSOR_DTYPE),
        handle_table(handle, 14, INT64),
        handle_table(handle, 15, INT64),
    )


@cold_kernel
def do_bio(handle, caller, op, flags, sector, address, length):
    """Submit one bio of `length` bytes at `address` (in the arena) as submitter `caller`, and wait for its end.

    0, the bio's errno (positive), or -errno once the queue is over. The caller uses bio and segment number `caller`.
    """
    d = queue_of(handle)
    d.vec_addr[caller] = address
    d.vec_len[caller] = length
    bio_init(d.bios, caller, op, flags, sector, caller, 1 if length else 0, length, caller)
    return submit_bio_wait(d, caller, caller, clock_ns())
