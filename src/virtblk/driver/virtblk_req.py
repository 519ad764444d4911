"""The driver's queue and its request pool: what submitters and reapers share (Linux: struct virtio_blk, virtblk_req).

The request's header, indirect table and status byte lie in the arena, where the device reads and writes them; all that
the driver believes is in the private records here. Filled by `driver.virtio_blk` (control), used on submitters, on
the completion thread and by pollers. What is changed by several threads is changed under the queue lock.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.block.request import RequestQueue
from virtblk.jit.atomics import store_i64, store_u8, store_u32
from virtblk.jit.by_type import by_type
from virtblk.jit.kernel import kernel
from virtblk.jit.table import Table
from virtblk.status import STATUS_SENTINEL
from virtblk.uapi.virtio_blk import OUTHDR_IOPRIO, OUTHDR_SECTOR, OUTHDR_SIZE, OUTHDR_TYPE
from virtblk.virtio.virtio_ring_split import (
    VringVirtqueue,
    virtqueue_add_direct,
    virtqueue_add_indirect,
    write_indirect,
)

PATH_REQUEST = 0
PATH_BIO = 1
PATH_MQ = 2

QUEUE_DTYPE = np.dtype(
    [
        # fixed for the queue's life
        ("handle", "i8"),  # address of the queue's handle (driver.handle)
        ("lock", "i8"),  # address of the queue lock
        ("queue_wait", "i8"),  # address of the wait queue for room in the ring (exclusive)
        ("request_wait", "i8"),  # address of the wait queue for a request of the block layer (exclusive)
        ("sleepers", "i8"),  # address of the count of submitters that block: interrupts are wanted while it is not 0
        ("turn", "i8"),  # address of the word that is 1 while one submitter polls for all
        ("stop", "i8"),  # address of the word that ends the completion thread
        ("done", "i8"),  # address of the word it sets last
        ("call_fd", "i8"),
        ("stop_fd", "i8"),
        ("timeout_ns", "i8"),
        ("poll_ns", "i8"),  # spin this long before blocking; -1: never block
        ("glance_ns", "i8"),  # where that is 0: how long to look all the same, as far as it helps (virtblk_glance)
        ("crowded", "i8"),  # 1 when there are more submitters than cores: no two of them spin at a time; 2 when more
        # virtqueues than cores are polled, too, so that it is a core's others who wait (changed as `path` is)
        ("can_flush", "i8"),
        ("max_segs", "i8"),  # limits of one request: data entries, bytes of each, bytes in all
        ("max_seg_len", "i8"),
        ("max_bytes", "i8"),
        ("sg_elems", "i8"),  # max_segs + 2
        ("done_size", "i8"),  # entries of a submitter's completion list, a power of two
        ("submitters", "i8"),
        # changed only while nothing is in flight
        ("path", "i8"),  # which path bios take: PATH_*
        # under the queue lock
        ("free_requests", "i8"),
        ("reaps", "i8"),  # passes that found something: marks who was noted in this pass
        ("ended", "i8"),  # requests that ended
        ("look_at", "i8"),  # when as many have, the path auto takes a look (driver.auto)
        ("interrupts", "i8"),
        ("error", "i8"),  # sticky: 0, or why the queue is over (positive errno)
        # fixed, and only looked at when the queue ends
        ("next_queue", "i8"),  # handle of the disk's next virtqueue, in a circle: its own where it is the only one
    ]
)

REQUEST_DTYPE = np.dtype(
    [
        ("header", "i8"),  # addresses in the arena; the indirect table is behind the header
        ("status", "i8"),
        ("bio", "i8"),  # whose it is: a bio's, or those from it to `bio_tail` (bi_next), which merged,
        ("bio_tail", "i8"),
        ("rq", "i8"),  # or a request's of the block layer; -1 for the other
        ("readable", "i8"),  # scatter list entries
        ("writable", "i8"),
        ("writable_bytes", "i8"),
    ]
)

SUBMITTER_DTYPE = np.dtype(
    [
        ("line", "i8"),  # address of the submitter's shared words, below
        ("tail", "i8"),  # completions taken from its list
        ("spare", "i8"),  # a request of the pool that the submitter holds ready, or -1
        ("tags", "i8"),  # how many more it holds ready for the mq path: none, or as many as its plug takes
        ("plugging", "i8"),  # 1 between blk_start_plug and blk_finish_plug
        ("mark", "i8"),  # the reap that last noted it
        ("blind", "i8"),  # waits that it goes to sleep in without a glance
        ("vain", "i8"),  # how many those were after its last glance, which was in vain; 0 after one that helped
        ("kicks", "i8"),
        ("ring_full_waits", "i8"),  # bios that found no room at first try
        ("request_waits", "i8"),  # bios that found the pool of requests empty
        ("merges", "i8"),  # bios that joined a request in its plug
        ("mergeable", "i8"),  # and that would have, but for the path auto, which had merging off
        ("waited_ns", "i8"),  # in those waits, reaping for others included
    ]
)
#: A submitter's shared words: completions put on its list (i64), then its wait queue.
LINE_HEAD = 0
LINE_WAIT = 8


class BothPaths(NamedTuple):
    """A queue whose bios may take any path, as `path` says."""

    unused: int = 0


class RequestPathOnly(NamedTuple):
    """A queue compiled without the others: what `use_bio` off is measured against."""

    unused: int = 0


#: 1 where the bio and mq paths are compiled in. Takes VirtblkQueue.paths.
has_bio_path = by_type({BothPaths: 1, RequestPathOnly: 0})


class VirtblkQueue(NamedTuple):
    """Everything one queue's compiled code needs."""

    vq: VringVirtqueue
    q: RequestQueue
    paths: BothPaths | RequestPathOnly
    queue: Table  # [1] QUEUE_DTYPE
    requests: Table  # [pool] REQUEST_DTYPE
    free: Table  # [pool] stack of free requests
    sg_addr: Table  # [pool * sg_elems] inline scatter tables
    sg_len: Table
    bios: Table  # [...] block.bio.BIO_DTYPE
    vec_addr: Table  # segments of bios
    vec_len: Table
    submitters: Table  # [submitters + 1] SUBMITTER_DTYPE; the last is the completion thread's
    cursors: Table  # [submitters + 1] block.blk_merge.CURSOR_DTYPE
    done_list: Table  # [submitters * done_size] bios that ended, per submitter
    noted: Table  # [(submitters + 1) * submitters] whom a reaper has to wake
    tags: Table  # [submitters * plug_size] requests that submitters hold ready for the mq path
    auto: Table  # [1] block.blk_auto.AUTO_DTYPE


@kernel
def virtblk_alloc_req(d):
    """Take a request of the pool, or -1. The pool holds one per ring entry and all that submitters may hold ready, so
    that whoever finds room in the ring finds a request too. Under the queue lock."""
    left = d.queue[0]["free_requests"]
    if left == 0:
        return -1
    d.queue[0]["free_requests"] = left - 1
    return d.free[left - 1]


@kernel
def virtblk_free_req(d, req):
    """Put a request back. Last in, first out: its cache lines are warm. Under the queue lock."""
    left = d.queue[0]["free_requests"]
    d.free[left] = req
    d.queue[0]["free_requests"] = left + 1


@kernel
def virtblk_setup_req(d, req, bio, rq, kind, sector, entries, data_writable, data_bytes):
    """Put header and status round the `entries` data entries of the scatter list. No lock: the request is the caller's.

    It belongs to `bio` alone (and `rq` is -1), or to request `rq` of the block layer (and `bio` is -1).
    The status byte is filled with a value no device writes.
    """
    header = d.requests[req]["header"]
    status = d.requests[req]["status"]
    store_u32(header + OUTHDR_TYPE, kind)
    store_u32(header + OUTHDR_IOPRIO, 0)
    store_i64(header + OUTHDR_SECTOR, sector)
    store_u8(status, STATUS_SENTINEL)
    first = req * d.queue[0]["sg_elems"]
    d.sg_addr[first] = header
    d.sg_len[first] = OUTHDR_SIZE
    d.sg_addr[first + 1 + entries] = status
    d.sg_len[first + 1 + entries] = 1
    readable = 1 if data_writable else 1 + entries
    writable = entries + 1 if data_writable else 1
    d.requests[req]["bio"] = bio
    d.requests[req]["bio_tail"] = bio
    d.requests[req]["rq"] = rq
    d.requests[req]["readable"] = readable
    d.requests[req]["writable"] = writable
    d.requests[req]["writable_bytes"] = data_bytes + 1 if data_writable else 1
    if d.vq.state[0]["indirect"]:
        write_indirect(header + OUTHDR_SIZE, d.sg_addr, d.sg_len, first, readable, writable)


@kernel
def virtblk_add_req(d, req):
    """Add a set-up request to the ring: 0, or -ENOSPC. Under the queue lock (Linux: virtblk_add_req)."""
    readable = d.requests[req]["readable"]
    writable = d.requests[req]["writable"]
    writable_bytes = d.requests[req]["writable_bytes"]
    if d.vq.state[0]["indirect"]:
        table = d.requests[req]["header"] + OUTHDR_SIZE
        return virtqueue_add_indirect(d.vq, table, readable + writable, req, writable_bytes)
    first = req * d.queue[0]["sg_elems"]
    return virtqueue_add_direct(d.vq, d.sg_addr, d.sg_len, first, readable, writable, req, writable_bytes)
