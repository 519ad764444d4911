"""A split virtqueue's place in memory, and the driver's control over it (virtio 2.7; vring_create_virtqueue).

Control context. The kernels in `virtio_ring_split` run on what `SplitVirtqueue.vring` holds.
"""

from __future__ import annotations

from typing import NamedTuple

from virtblk.errors import UsageError
from virtblk.jit.table import Table
from virtblk.mem.shm import CACHE_LINE, Arena, align_up
from virtblk.uapi.virtio_ring import VRING_MAX_NUM, avail_size, desc_table_size, used_size
from virtblk.virtio.virtio_ring_split import BAD_RING_TEXT, VRING_DTYPE, VringVirtqueue, virtqueue_init


class SplitLayout(NamedTuple):
    """Offsets and total size in bytes. Descriptors and avail are the driver's words, used the device's: the areas start
    on cache lines of their own, so that no line holds words of both."""

    num: int
    desc: int
    avail: int
    used: int
    size: int

    @classmethod
    def of(cls, num: int) -> SplitLayout:
        """The layout for `num` entries. Raises UsageError unless it is a power of two from 1 to 32768."""
        if not 1 <= num <= VRING_MAX_NUM or num & (num - 1):
            raise UsageError(f"queue size {num}: give a power of two from 1 to {VRING_MAX_NUM}")
        avail = align_up(desc_table_size(num), CACHE_LINE)
        used = align_up(avail + avail_size(num), CACHE_LINE)
        return cls(num, 0, avail, used, align_up(used + used_size(num), CACHE_LINE))


class SplitVirtqueue:
    """The driver's half of one ring, in `arena`. `base` is the index both sides start at (0 for a new ring)."""

    def __init__(self, arena: Arena, num: int, *, event_idx: bool, indirect: bool, kick_fd: int = -1, base: int = 0):
        layout = SplitLayout.of(num)
        start = arena.alloc(layout.size, 4096)
        self.num = num
        self.desc = start + layout.desc
        self.avail = start + layout.avail
        self.used = start + layout.used
        self.vring = VringVirtqueue(Table(1, VRING_DTYPE), Table(num), Table(num), Table(num))
        state = self.vring.state[0]
        state["desc"], state["avail"], state["used"] = self.desc, self.avail, self.used
        state["num"] = num
        state["event_idx"] = event_idx
        state["indirect"] = indirect
        state["kick_fd"] = kick_fd
        virtqueue_init(self.vring, base)

    @property
    def broken(self) -> str | None:
        """Why the ring is broken, with the offending value, or None."""
        state = self.vring.state[0]
        if not state["bad"]:
            return None
        return BAD_RING_TEXT[int(state["bad"])].format(value=int(state["bad_value"]), num=self.num)
