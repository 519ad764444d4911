"""Both halves of a ring in shared memory, compiled or naive, behind one interface.

`World` is an arena that the device maps elsewhere, in regions that meet at odd addresses. The naive halves are in
naive.ring; ours get the same methods here. `virtio.pair` runs one against the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from naive.ring import Buffer, Memory, Ring
from virtblk.jit.table import Table
from virtblk.mem.guest_memory import GuestMemory
from virtblk.mem.regions import MAX_REGIONS
from virtblk.mem.shm import Arena
from virtblk.virtio import virtio_ring_split as driver_half
from virtblk.virtio import vringh_split as device_half
from virtblk.virtio.virtio_ring_split import VringVirtqueue
from virtblk.virtio.virtqueue import SplitLayout, SplitVirtqueue
from virtblk.virtio.vringh_split import MAX_PIECES, VRINGH_DTYPE, Vringh

SIZES = (1, 2, 4, 128, 32768)
TABLES = 1 << 20  # where indirect tables and data begin: the largest ring ends below
DATA = TABLES + (1 << 18)
#: Where regions meet in data, by offset in the arena; odd, so that buffers cross them.
CUTS = (DATA, DATA + 1001, DATA + 1777, DATA + 300_003)
END = 2 << 20
SENTINEL = -0x5EA1


def numbers(*values: int) -> Table:
    """A table of these int64."""
    return Table.of(np.array(values, np.int64))


class World:
    """2 MiB that both halves share. The driver's addresses are guest addresses; the device maps them somewhere else."""

    def __init__(
        self, num: int, regions: Sequence[tuple[int, int]] | None = None, *, event_idx: bool = False, base: int = 0
    ) -> None:
        self.arena = Arena(END)
        self.memory = Memory(self.arena.array(self.arena.address, END), self.arena.address)
        self.guest = GuestMemory()
        start = self.arena.address
        edges = [0, *CUTS, END]
        self.regions = [(start + a, start + b) for a, b in (regions or itertools.pairwise(edges))]
        for first, last in self.regions:
            self.guest.map(first, last - first, first, first - start, self.arena.fd)
        self.queue = SplitVirtqueue(self.arena, num, event_idx=event_idx, indirect=True, base=base)
        self.ring = Ring(self.memory, num, self.queue.desc, self.queue.avail, self.queue.used)
        assert self.queue.used + 4 + 8 * num + 2 <= start + TABLES
        assert (self.queue.desc, SplitLayout.of(num).num) == (start, num)
        self.tables = start + TABLES
        self.data = start + DATA
        self.end = start + END

    def host(self, guest: int) -> int:
        """Where the device sees a guest address."""
        return self.guest.user_to_host(guest, 1)

    def guest_of(self, host: int) -> int:
        """The guest address that the device sees at `host`."""
        for row in self.guest.table.regions[: len(self.regions)]:
            if row["start"] <= host - row["delta"] < row["end"]:
                return int(host - row["delta"])
        raise AssertionError(f"{host:#x} is in no region")

    def close(self) -> None:
        self.guest.clear()
        self.arena.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class CompiledDriver:
    """Our driver half. The world has initialised it."""

    def __init__(self, world: World) -> None:
        self.queue = world.queue
        self.vq: VringVirtqueue = world.queue.vring

    @property
    def num_free(self) -> int:
        return int(self.vq.state[0]["num_free"])

    def add(self, buffers: Sequence[Buffer], token: int, table: int = 0, plain: int = 0, odd_flags: int = 0) -> bool:
        """`plain` and `odd_flags` are for drivers of another kind: ours puts all in the table, or nothing."""
        addr = numbers(SENTINEL, *(b.address for b in buffers))
        length = numbers(SENTINEL, *(b.length for b in buffers))
        readable = sum(not b.writable for b in buffers)
        writable = len(buffers) - readable
        limit = sum(b.length for b in buffers if b.writable)
        if table:
            driver_half.write_indirect(table, addr, length, 1, readable, writable)
            code = driver_half.virtqueue_add_indirect(self.vq, table, len(buffers), token, limit)
        else:
            code = driver_half.virtqueue_add_direct(self.vq, addr, length, 1, readable, writable, token, limit)
        assert code in (0, -driver_half.ENOSPC)
        return bool(code == 0)

    def kick(self) -> bool:
        return bool(driver_half.virtqueue_kick_prepare(self.vq))

    def get(self) -> tuple[int, int] | None:
        token, length = driver_half.virtqueue_get_buf(self.vq)
        assert token != driver_half.RING_BROKEN, self.queue.broken
        return None if token == driver_half.NOTHING_USED else (int(token), int(length))

    def enable(self) -> bool:
        return bool(driver_half.virtqueue_enable_cb(self.vq))

    def disable(self) -> None:
        driver_half.virtqueue_disable_cb(self.vq)

    def free_list(self) -> list[int]:
        """The free descriptors, in the order in which they will be used."""
        found: list[int] = []
        following = self.vq.next.tolist()
        index = int(self.vq.state[0]["free_head"])
        for _ in range(self.num_free):
            found.append(index)
            index = following[index]
        return found


class CompiledDevice:
    """Our device half on the world's regions. Pieces lie from `first` on, in arrays that are exactly large enough."""

    first = 3

    def __init__(self, world: World, *, event_idx: bool = False, indirect: bool = True, base: int = 0) -> None:
        self.world, self.mem = world, world.guest.table
        room = self.first + MAX_PIECES + MAX_REGIONS
        self.vr = Vringh(Table(1, VRINGH_DTYPE), Table(room), Table(room))
        self.vr.piece_addr[:] = self.vr.piece_len[:] = SENTINEL
        self.state = self.vr.state[0]
        ring = world.ring
        for name in ("desc", "avail", "used"):
            self.state[name] = world.host(getattr(ring, name))
        self.state["num"], self.state["event_idx"], self.state["indirect"] = ring.num, event_idx, indirect
        device_half.vringh_init(self.vr, base)

    def take(self) -> tuple[int, list[Buffer]] | None:
        head = int(device_half.vringh_getdesc(self.vr, self.mem, self.first))
        if head == device_half.NOTHING_AVAILABLE:
            return None
        assert head != device_half.RING_BROKEN, self.broken
        return head, self.pieces()

    def pieces(self) -> list[Buffer]:
        """The pieces of the chain taken last, in guest addresses."""
        found = []
        for place in range(int(self.state["pieces"])):
            host, length = (int(a[self.first + place]) for a in (self.vr.piece_addr, self.vr.piece_len))
            found.append(Buffer(self.world.guest_of(host), length, place >= self.state["readable"]))
        return found

    @property
    def broken(self) -> tuple[str, int] | None:
        """The name of the broken rule and the number that broke it, as in naive.ring.Broken; a u64 is unsigned."""
        if not self.state["bad"]:
            return None
        names = [name for name in dir(device_half) if name.startswith("BAD_") and name != "BAD_VRING_TEXT"]
        name = next(name for name in names if getattr(device_half, name) == self.state["bad"])
        return name, int(self.state["bad_value"]) % (1 << 64)

    def use(self, head: int, length: int) -> None:
        device_half.vringh_add_used(self.vr, head, length)

    def publish(self) -> None:
        device_half.vringh_publish_used(self.vr)

    def notify(self) -> bool:
        return bool(device_half.vringh_need_notify(self.vr))

    def enable(self) -> bool:
        return bool(device_half.vringh_notify_enable(self.vr))

    def disable(self) -> None:
        device_half.vringh_notify_disable(self.vr)
