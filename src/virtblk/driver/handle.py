"""A queue by the address of its handle: how its kernels call each other, and how Python calls them, at little cost.

A VirtblkQueue is some thirty tables. Numba looks at the type of each whenever Python calls a kernel with one: nothing
for a loop that runs for seconds, 80 us for a read. Between kernels, inlining keeps them in registers, but a loop that
inlines both paths, waiting and reaping takes LLVM a minute, and the next loop another. So the large pieces (submission
on each path, waiting, reaping) are functions of their own that take a handle: the tables' addresses and lengths as
int64 pairs, in the order of the fields below, from which each reads what it uses. Called from kernels.
"""

from __future__ import annotations

import numpy as np

from virtblk.block.bio import BIO_DTYPE
from virtblk.block.blk_auto import AUTO_DTYPE
from virtblk.block.blk_merge import CURSOR_DTYPE
from virtblk.block.request import REQUEST_QUEUE_DTYPE, RQ_DTYPE, RequestQueue
from virtblk.driver.virtblk_req import QUEUE_DTYPE, REQUEST_DTYPE, SUBMITTER_DTYPE, VirtblkQueue
from virtblk.jit.atomics import load_i64
from virtblk.jit.kernel import inline_kernel, kernel
from virtblk.jit.table import table_at
from virtblk.virtio.virtio_ring_split import VRING_DTYPE, VringVirtqueue

INT64 = np.dtype(np.int64)


@inline_kernel
def handle_table(handle, index, dtype):
    """Table `index` of the handle."""
    return table_at(load_i64(handle + 16 * index), load_i64(handle + 16 * index + 8), dtype)


@kernel
def queue_of(handle, paths):
    """The queue whose handle lies at address `handle`. Partner: driver.queue.QueueSetup, which lays it down."""
    ring = VringVirtqueue(
        handle_table(handle, 0, VRING_DTYPE),
        handle_table(handle, 1, INT64),
        handle_table(handle, 2, INT64),
        handle_table(handle, 3, INT64),
    )
    block = RequestQueue(
        handle_table(handle, 4, REQUEST_QUEUE_DTYPE),
        handle_table(handle, 5, RQ_DTYPE),
        handle_table(handle, 6, INT64),
        handle_table(handle, 7, INT64),
        handle_table(handle, 8, INT64),
        handle_table(handle, 9, INT64),
        handle_table(handle, 10, INT64),
        handle_table(handle, 11, INT64),
        handle_table(handle, 12, BIO_DTYPE),
        handle_table(handle, 13, INT64),
        handle_table(handle, 14, INT64),
    )
    return VirtblkQueue(
        ring,
        block,
        paths,
        handle_table(handle, 15, QUEUE_DTYPE),
        handle_table(handle, 16, REQUEST_DTYPE),
        handle_table(handle, 17, INT64),
        handle_table(handle, 18, INT64),
        handle_table(handle, 19, INT64),
        handle_table(handle, 20, BIO_DTYPE),
        handle_table(handle, 21, INT64),
        handle_table(handle, 22, INT64),
        handle_table(handle, 23, SUBMITTER_DTYPE),
        handle_table(handle, 24, CURSOR_DTYPE),
        handle_table(handle, 25, INT64),
        handle_table(handle, 26, INT64),
        handle_table(handle, 27, INT64),
        handle_table(handle, 28, AUTO_DTYPE),
    )
