"""Build what the driver's compiled code runs on: ring, request pool, submitters (Linux: init_vq, mempool_create).

Control context. `QueueSetup` lays everything out in one arena and hands out the `VirtblkQueue` of the kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from virtblk.block.bio import BIO_DTYPE
from virtblk.block.blk_merge import CURSOR_DTYPE
from virtblk.block.blk_mq import BLK_MQ_PLUG_LEAST, BLK_MQ_PLUG_MOST
from virtblk.block.request import RequestQueue
from virtblk.block.request_queue import blk_auto_record, blk_init_queue, example_request_queue
from virtblk.driver.auto import NEVER
from virtblk.driver.completion import GLANCE_NS
from virtblk.driver.virtblk_req import (
    PATH_BIO,
    PATH_REQUEST,
    QUEUE_DTYPE,
    REQUEST_DTYPE,
    SUBMITTER_DTYPE,
    BothPaths,
    RequestPathOnly,
    VirtblkQueue,
)
from virtblk.jit.table import Table
from virtblk.mem.shm import CACHE_LINE, Arena, Words, align_up
from virtblk.uapi.virtio_blk import OUTHDR_SIZE
from virtblk.uapi.virtio_ring import DESC_SIZE
from virtblk.virtio.virtio_ring_split import VRING_DTYPE, VringVirtqueue
from virtblk.virtio.virtqueue import SplitLayout, SplitVirtqueue

# Words shared by threads, after one line per submitter.
_LOCK, _QUEUE_WAIT, _REQUEST_WAIT, _SLEEPERS, _TURN, _STOP, _DONE, _SHARED_WORDS = range(8)


@dataclass(frozen=True)
class QueueLimits:
    """What one request may be (from config space and ring size), and what the queue is used for."""

    num: int  # ring entries
    max_segs: int  # data entries of a request
    max_seg_len: int  # bytes of one entry, a multiple of 512
    max_bytes: int  # bytes of one request, a multiple of 512
    event_idx: bool
    indirect: bool
    can_flush: bool
    submitters: int
    bios_each: int  # bios that one submitter has in flight at most
    segments_each: int  # segments of one bio at most
    data_bytes: int  # data memory to lay out besides

    @property
    def request_stride(self) -> int:
        """Arena bytes of a request: header and indirect table. With one segment both fill one cache line."""
        table = DESC_SIZE * (self.max_segs + 2) if self.indirect else 0
        return align_up(OUTHDR_SIZE + table, CACHE_LINE)

    @property
    def plug_size(self) -> int:
        """Requests in a submitter's plug on the mq path: no more than its bios can become, but for large ones."""
        return min(max(self.bios_each, BLK_MQ_PLUG_LEAST), BLK_MQ_PLUG_MOST)

    @property
    def pool(self) -> int:
        """Requests: one per ring entry, and those that submitters hold ready, one for bios and a plugful for mq."""
        return self.num + self.submitters * (1 + self.plug_size) + 1

    @property
    def arena_bytes(self) -> int:
        """Bytes of arena for all of it."""
        ring = SplitLayout.of(self.num).size + 4096
        return ring + self.pool * (self.request_stride + CACHE_LINE) + self.data_bytes + 8 * 4096


def example_queue() -> VirtblkQueue:
    """A queue of no use but for its types: what to compile kernels for before there is a device."""
    return VirtblkQueue(
        VringVirtqueue(Table(1, VRING_DTYPE), Table(1), Table(1), Table(1)),
        example_request_queue(),
        BothPaths(),
        Table(1, QUEUE_DTYPE),
        Table(1, REQUEST_DTYPE),
        Table(1),
        Table(1),
        Table(1),
        Table(1, BIO_DTYPE),
        Table(1),
        Table(1),
        Table(1, SUBMITTER_DTYPE),
        Table(1, CURSOR_DTYPE),
        Table(1),
        Table(1),
        Table(1),
        blk_auto_record(),
    )


def _tables(view: VirtblkQueue) -> Iterator[Table]:
    """All tables of a queue, in the order of the handle."""
    for field in view:
        if isinstance(field, Table):
            yield field
        elif isinstance(field, VringVirtqueue | RequestQueue):
            yield from field


def link_queues(queues: Sequence[QueueSetup]) -> None:
    """Make the queues those of one disk: what ends one of them ends all (virtblk_break)."""
    for queue, following in zip(queues, [*queues[1:], *queues[:1]], strict=True):
        queue.kernel_view.queue[0]["next_queue"] = following.handle


class QueueSetup:
    """One queue. `data` is the address of the data memory; `kick_fd` and `call_fd` are ours until `close`."""

    def __init__(
        self,
        arena: Arena,
        limits: QueueLimits,
        *,
        timeout_ns: int,
        poll_ns: int,
        crowded: int = 0,
        paths: BothPaths | RequestPathOnly = BothPaths(),  # noqa: B008  (a NamedTuple: nobody can change it)
    ) -> None:
        self.limits = limits
        self.kick_fd = self.call_fd = self.stop_fd = -1
        try:
            self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.ring = SplitVirtqueue(
                arena, limits.num, event_idx=limits.event_idx, indirect=limits.indirect, kick_fd=self.kick_fd
            )
            requests = arena.alloc(limits.pool * limits.request_stride, 4096)
            statuses = arena.alloc(limits.pool * CACHE_LINE, 4096)
            self.data = arena.alloc(limits.data_bytes, 4096) if limits.data_bytes else 0
        except BaseException:
            self.close()
            raise
        nsub = limits.submitters
        done_size = 1 << max(limits.bios_each - 1, 1).bit_length()
        sg_elems = limits.max_segs + 2
        self._words = Words(nsub + 1 + _SHARED_WORDS)
        queue = Table(1, QUEUE_DTYPE)
        shared = nsub + 1
        for name, index in (
            ("lock", _LOCK),
            ("queue_wait", _QUEUE_WAIT),
            ("request_wait", _REQUEST_WAIT),
            ("sleepers", _SLEEPERS),
            ("turn", _TURN),
            ("stop", _STOP),
            ("done", _DONE),
        ):
            queue[0][name] = self._words.address(shared + index)
        for name, value in (
            ("call_fd", self.call_fd),
            ("stop_fd", self.stop_fd),
            ("timeout_ns", timeout_ns),
            ("poll_ns", poll_ns),
            ("glance_ns", GLANCE_NS),
            ("crowded", crowded),
            ("can_flush", limits.can_flush),
            ("max_segs", limits.max_segs),
            ("max_seg_len", limits.max_seg_len),
            ("max_bytes", limits.max_bytes),
            ("sg_elems", sg_elems),
            ("done_size", done_size),
            ("submitters", nsub),
            ("path", PATH_BIO if isinstance(paths, BothPaths) else PATH_REQUEST),
            ("free_requests", limits.pool),
            ("look_at", NEVER),
        ):
            queue[0][name] = value
        pool = Table(limits.pool, REQUEST_DTYPE)
        numbers = np.arange(limits.pool)
        pool["header"] = requests + numbers * limits.request_stride
        pool["status"] = statuses + numbers * CACHE_LINE
        submitters = Table(nsub + 1, SUBMITTER_DTYPE)
        submitters["line"] = [self._words.address(index) for index in range(nsub + 1)]
        submitters["spare"] = -1
        count = limits.bios_each * nsub
        bios = Table(count, BIO_DTYPE)
        vec_addr, vec_len = Table(count * limits.segments_each), Table(count * limits.segments_each)
        block = blk_init_queue(
            bios,
            vec_addr,
            vec_len,
            submitters=nsub,
            max_segs=limits.max_segs,
            max_seg_len=limits.max_seg_len,
            max_bytes=limits.max_bytes,
            can_flush=limits.can_flush,
            plug_size=limits.plug_size,
        )
        self.kernel_view = VirtblkQueue(
            self.ring.vring,
            block,
            paths,
            queue,
            pool,
            Table.of(numbers[::-1].astype(np.int64)),
            Table(limits.pool * sg_elems),
            Table(limits.pool * sg_elems),
            bios,
            vec_addr,
            vec_len,
            submitters,
            Table(nsub + 1, CURSOR_DTYPE),
            Table(nsub * done_size),
            Table((nsub + 1) * nsub),
            Table(nsub * limits.plug_size),
            blk_auto_record(),
        )
        tables = list(_tables(self.kernel_view))
        self._handle = Table(2 * len(tables))
        self._handle[:] = [word for table in tables for word in (table.address, table.length)]
        queue[0]["handle"] = queue[0]["next_queue"] = self._handle.address

    @property
    def handle(self) -> int:
        """Address of the queue's handle (driver.handle)."""
        return self._handle.address

    @property
    def completion_reaper(self) -> int:
        """The submitter index that the completion thread uses."""
        return self.limits.submitters

    def close(self) -> None:
        """Close the fds. No kernel runs on the queue any more."""
        for name in ("kick_fd", "call_fd", "stop_fd"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)
