"""A guest that breaks the rules, and the verdict of both devices on what it put in the ring."""

from __future__ import annotations

from naive.ring import Broken, Buffer, NaiveDevice
from virtblk.virtio.vringh_split import NOTHING_AVAILABLE, RING_BROKEN, vringh_getdesc
from virtio.halves import DATA, SENTINEL, TABLES, CompiledDevice, World

NUM = 8
#: Ring and tables; then a hole of a page; then data in two regions that touch; then nothing until the end.
REGIONS = [(0, TABLES + 8192), (TABLES + 12288, DATA + 1001), (DATA + 1001, DATA + 65536)]
HOLE = TABLES + 8192

Desc = tuple[int, int, int, int]  # addr, len, flags, next


class Guest:
    """A guest that writes what it likes; addresses are offsets in the arena."""

    def __init__(self, world: World, *, indirect: bool = True, base: int = 0) -> None:
        self.world, self.ring, self.idx = world, world.ring, base
        self.start = world.arena.address
        self.device = CompiledDevice(world, indirect=indirect, base=base)
        self.judge = NaiveDevice(world.ring, world.regions, indirect=indirect, base=base)
        self.heads: list[int] = []

    def write(self, index: int, desc: Desc, table: int | None = None) -> None:
        address, length, flags, following = desc
        at = self.ring.desc if table is None else self.start + table
        self.ring.write_desc(at, index, (self.start + address) % (1 << 64), length, flags, following)

    def table(self, *descs: Desc, at: int = TABLES) -> tuple[int, int]:
        """An indirect table at `at`: what the descriptor that names it has as addr and len."""
        for index, desc in enumerate(descs):
            self.write(index, desc, at)
        return at, 16 * len(descs)

    def offer(self, head: int, moved: int = 1) -> None:
        self.ring.set_avail_head(self.idx, head)
        self.idx += moved
        self.ring.set_avail_idx(self.idx)

    def chain(self, *descs: Desc) -> None:
        """Descriptors from 0 on, and the head 0."""
        for index, desc in enumerate(descs):
            self.write(index, desc)
        self.offer(0)

    def verdict(self) -> tuple[int, list[Buffer]] | tuple[str, int]:
        """Both devices take the next chain: (head, pieces), or why not. Afterwards a broken ring stays broken."""
        try:
            found = self.judge.take()
            expected = found if found is not None else (NOTHING_AVAILABLE, [])
        except Broken as broken:
            expected = broken.rule, broken.value % (1 << 64)
        head = int(vringh_getdesc(self.device.vr, self.device.mem, self.device.first))
        if head == RING_BROKEN:
            assert self.device.broken == expected
            self.check_sticky()
        else:
            assert (head, self.device.pieces() if head >= 0 else []) == expected
        assert list(self.device.vr.piece_addr[: self.device.first]) == [SENTINEL] * self.device.first
        assert self.world.guest.violations == 0
        return expected

    def check_sticky(self) -> None:
        """A ring that was repaired meanwhile is still broken, and for the first reason."""
        reason = self.device.broken
        idx = self.ring.avail_idx
        for idx_now in (self.device.state["last_avail"] + 1, idx):
            self.ring.set_avail_idx(int(idx_now))
            assert vringh_getdesc(self.device.vr, self.device.mem, self.device.first) == RING_BROKEN
            assert self.device.broken == reason


def data(length: int, flags: int = 0, following: int = 0, at: int = DATA) -> Desc:
    return at, length, flags, following
