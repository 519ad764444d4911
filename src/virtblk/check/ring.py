"""A split ring written by hand (virtio 1.2, 2.7): any descriptors, any index, and an honest driver beside them.

`add` does what drivers do, and keeps the account: which heads are out, and which memory the device may write for them.
`describe` and `offer` write whatever a check wants. All addresses are guest addresses. One thread.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from virtblk.check.memory import Memory
from virtblk.check.requirement import Failed
from virtblk.uapi import virtio_ring
from virtblk.uapi.virtio_ring import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE

NEXT: Final = VRING_DESC_F_NEXT
WRITE: Final = VRING_DESC_F_WRITE
INDIRECT: Final = VRING_DESC_F_INDIRECT

_DESC: Final = struct.Struct("<QIHH")
_USED: Final = struct.Struct("<II")


class Desc(NamedTuple):
    """One descriptor, as it is in memory."""

    addr: int
    len: int
    flags: int = 0
    next: int = 0


class Buffer(NamedTuple):
    """Part of a request."""

    addr: int
    len: int
    writable: bool = False


@dataclass
class Chain:
    """A request that is out. `used_len` is None until it comes back."""

    head: int
    slots: list[int]
    buffers: list[Buffer]
    used_len: int | None = None


class Ring:
    """Ring `index` of `num` descriptors, to be started at `base` (the used index starts there too)."""

    def __init__(self, memory: Memory, index: int, num: int, base: int = 0) -> None:
        self.memory, self.index, self.num, self.base = memory, index, num, base
        self.desc = memory.alloc(virtio_ring.desc_table_size(num), 16)
        self.avail = memory.alloc(virtio_ring.avail_size(num), 2)
        self.used = memory.alloc(virtio_ring.used_size(num), 4)
        memory.write(self.desc, bytes(virtio_ring.desc_table_size(num)))
        memory.write(self.avail, bytes(virtio_ring.avail_size(num)))
        memory.write(self.used, bytes(virtio_ring.used_size(num)))
        self.free = list(range(num - 1, -1, -1))
        self.out: dict[int, Chain] = {}
        self.avail_idx = base
        self.seen = base  # of the used ring
        self.returned: list[int] = []  # all heads that came back, in order
        self.lost = False  # a check spoilt the ring: heads need not come back
        memory.store16(self.avail + 2, base)
        memory.store16(self.used + 2, base)
        # Once a ring has a past, the device of that time has asked for a kick at what comes next.
        memory.store16(self.used + 4 + 8 * num, base)
        memory.allow(self.used, virtio_ring.used_size(num))

    # By hand.

    def describe(self, slot: int, desc: Desc) -> None:
        self.memory.write(self.desc + 16 * slot, _DESC.pack(*desc))

    def table(self, descs: Sequence[Desc]) -> int:
        """An indirect table; its address."""
        at = self.memory.alloc(16 * len(descs), 16)
        self.memory.write(at, b"".join(_DESC.pack(*desc) for desc in descs))
        return at

    def put(self, head: int) -> None:
        """Write `head` into the available ring; the device sees it after `publish`."""
        self.memory.store16(self.avail + 4 + 2 * (self.avail_idx % self.num), head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF

    def publish(self) -> None:
        self.memory.store16(self.avail + 2, self.avail_idx)

    def offer(self, descs: Sequence[Desc], head: int = 0) -> None:
        """Write descriptors from slot 0 on and make `head` available. The account knows nothing of it."""
        self.lost = True
        for slot, desc in enumerate(descs):
            self.describe(slot, desc)
        self.put(head)
        self.publish()

    @property
    def used_idx(self) -> int:
        return self.memory.load16(self.used + 2)

    @property
    def used_flags(self) -> int:
        return self.memory.load16(self.used)

    def used_elem(self, index: int) -> tuple[int, int]:
        """(id, length)"""
        head, length = _USED.unpack(self.memory.read(self.used + 4 + 8 * (index % self.num), 8))
        return head, length

    @property
    def avail_event(self) -> int:
        return self.memory.load16(self.used + 4 + 8 * self.num)

    def set_used_event(self, value: int) -> None:
        self.memory.store16(self.avail + 4 + 2 * self.num, value)

    def set_avail_flags(self, value: int) -> None:
        self.memory.store16(self.avail, value)

    # As drivers do.

    def add(self, buffers: Sequence[Buffer], *, indirect: int | None = None, flags: int = 0) -> Chain:
        """Make a chain available, not published yet. From buffer `indirect` on, they go into an indirect table;
        `flags` are added to the descriptor that names it."""
        descs = [Desc(b.addr, b.len, WRITE if b.writable else 0) for b in buffers]
        if indirect is not None:
            rest = descs[indirect:]
            linked = [
                Desc(d.addr, d.len, d.flags | (NEXT if n + 1 < len(rest) else 0), n + 1) for n, d in enumerate(rest)
            ]
            descs = [*descs[:indirect], Desc(self.table(linked), 16 * len(rest), INDIRECT | flags)]
        slots = [self.free.pop() for _ in descs]
        for n, (slot, desc) in enumerate(zip(slots, descs, strict=True)):
            more = n + 1 < len(descs)
            following = slots[n + 1] if more else 0
            self.describe(slot, Desc(desc.addr, desc.len, desc.flags | (NEXT if more else 0), following))
        for buffer in buffers:
            if buffer.writable:
                self.memory.allow(buffer.addr, buffer.len)
        chain = Chain(slots[0], slots, list(buffers))
        self.out[chain.head] = chain
        self.put(chain.head)
        return chain

    def reap(self) -> list[Chain]:
        """All that came back since the last time. Failed for ids that are not out, and lengths that cannot be."""
        idx = self.used_idx
        count = (idx - self.seen) & 0xFFFF
        if count > self.num and not self.lost:
            raise Failed(f"the used index moved from {self.seen} to {idx}, in a ring of {self.num}")
        done = []
        for _ in range(min(count, self.num)):
            head, length = self.used_elem(self.seen)
            self.seen = (self.seen + 1) & 0xFFFF
            chain = self.out.pop(head, None)
            if chain is None:
                if self.lost:
                    continue
                raise Failed(
                    f"used element {(self.seen - 1) & 0xFFFF} has id {head}, which is not out (length {length})"
                )
            room = sum(b.len for b in chain.buffers if b.writable)
            if length > room:
                raise Failed(f"used length {length} of head {head}, whose writable buffers have {room} bytes")
            chain.used_len = length
            self.returned.append(head)
            for buffer in chain.buffers:
                if buffer.writable:
                    self.memory.settle(buffer.addr, buffer.len)
            self.free += reversed(chain.slots)
            done.append(chain)
        return done
