"""The split virtqueue as the specification tells it (virtio 1.2, section 2.7): both halves, slow and obvious.

Written from the text, not from the code under test: numbers are typed in once more, memory is a window on any buffer,
indices are Python integers modulo 65536, and whatever the text lets a peer do wrong raises `Broken`. What is our own
decision, not the text's, is in `MAX_TABLE` and `MAX_PIECES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

NEXT, WRITE, INDIRECT = 1, 2, 4
NO_NOTIFY = NO_INTERRUPT = 1

#: Entries of an indirect table, and pieces of a chain, that our device takes.
MAX_TABLE = 1024
MAX_PIECES = 1280


class Broken(Exception):
    """A peer broke a rule: the name of the rule, and the number that broke it."""

    def __init__(self, rule: str, value: int) -> None:
        super().__init__(rule, value)
        self.rule, self.value = rule, value


class Buffer(NamedTuple):
    """One element of a chain."""

    address: int
    length: int
    writable: bool


class Memory:
    """The bytes of any writable buffer, at addresses from `base` on; little-endian numbers."""

    def __init__(self, buffer: Any, base: int = 0) -> None:
        self._bytes = memoryview(buffer).cast("B")
        self.base = base

    def load(self, address: int, size: int) -> int:
        return int.from_bytes(self._at(address, size), "little")

    def store(self, address: int, size: int, value: int) -> None:
        self._at(address, size)[:] = value.to_bytes(size, "little")

    def _at(self, address: int, size: int) -> memoryview:
        start = address - self.base
        if not 0 <= start <= len(self._bytes) - size:
            raise IndexError(f"{size} bytes at {address:#x}")
        return self._bytes[start : start + size]


class Ring(NamedTuple):
    """Where a ring lies. Fields of 2.7.5 to 2.7.8, each read and written by its address."""

    memory: Memory
    num: int
    desc: int
    avail: int
    used: int

    def read_desc(self, table: int, index: int) -> tuple[int, int, int, int]:
        """(addr, len, flags, next)"""
        at = table + 16 * index
        load = self.memory.load
        return load(at, 8), load(at + 8, 4), load(at + 12, 2), load(at + 14, 2)

    def write_desc(self, table: int, index: int, addr: int, length: int, flags: int, following: int) -> None:
        at = table + 16 * index
        for offset, size, value in ((0, 8, addr), (8, 4, length), (12, 2, flags), (14, 2, following)):
            self.memory.store(at + offset, size, value)

    @property
    def avail_flags(self) -> int:
        return self.memory.load(self.avail, 2)

    @property
    def avail_idx(self) -> int:
        return self.memory.load(self.avail + 2, 2)

    @property
    def used_event(self) -> int:
        return self.memory.load(self.avail + 4 + 2 * self.num, 2)

    @property
    def used_flags(self) -> int:
        return self.memory.load(self.used, 2)

    @property
    def used_idx(self) -> int:
        return self.memory.load(self.used + 2, 2)

    @property
    def avail_event(self) -> int:
        return self.memory.load(self.used + 4 + 8 * self.num, 2)

    def avail_head(self, idx: int) -> int:
        return self.memory.load(self.avail + 4 + 2 * (idx % self.num), 2)

    def used_elem(self, idx: int) -> tuple[int, int]:
        at = self.used + 4 + 8 * (idx % self.num)
        return self.memory.load(at, 4), self.memory.load(at + 4, 4)

    def set_avail_flags(self, value: int) -> None:
        self.memory.store(self.avail, 2, value)

    def set_avail_idx(self, value: int) -> None:
        self.memory.store(self.avail + 2, 2, value % 65536)

    def set_avail_head(self, idx: int, head: int) -> None:
        self.memory.store(self.avail + 4 + 2 * (idx % self.num), 2, head)

    def set_used_event(self, value: int) -> None:
        self.memory.store(self.avail + 4 + 2 * self.num, 2, value % 65536)

    def set_used_flags(self, value: int) -> None:
        self.memory.store(self.used, 2, value)

    def set_used_idx(self, value: int) -> None:
        self.memory.store(self.used + 2, 2, value % 65536)

    def set_used_elem(self, idx: int, head: int, length: int) -> None:
        at = self.used + 4 + 8 * (idx % self.num)
        self.memory.store(at, 4, head)
        self.memory.store(at + 4, 4, length)

    def set_avail_event(self, value: int) -> None:
        self.memory.store(self.used + 4 + 8 * self.num, 2, value % 65536)


def passed(event: int, new: int, old: int) -> bool:
    """2.7.7.2, 2.7.10.1: notify if one of the entries from `old` up to, not including, `new` is number `event`."""
    while old % 65536 != new % 65536:
        if old % 65536 == event % 65536:
            return True
        old += 1
    return False


class NaiveDriver:
    """The driver's duties: 2.7.13 supplying buffers, 2.7.14 receiving used ones. Takes what was freed longest ago."""

    def __init__(self, ring: Ring, *, event_idx: bool = False, base: int = 0) -> None:
        self.ring, self.event_idx = ring, event_idx
        self.idx = self.kicked = self.last_used = base
        self.free = list(range(ring.num))
        self.in_flight: dict[int, tuple[int, list[int]]] = {}  # head -> token, its descriptors
        ring.set_used_idx(base)
        ring.set_avail_idx(base)
        self.disable()

    @property
    def num_free(self) -> int:
        return len(self.free)

    def add(self, buffers: Sequence[Buffer], token: int, table: int = 0, plain: int = 0, odd_flags: int = 0) -> bool:
        """Make a chain available. With `table`, an address: `plain` direct descriptors, the rest behind one INDIRECT,
        which gets `odd_flags` besides. False where too few descriptors are free."""
        direct = list(buffers[:plain] if table else buffers)
        rest = list(buffers[plain:] if table else ())
        if len(direct) + bool(table) > len(self.free):
            return False
        mine = [self.free.pop(0) for _ in range(len(direct) + bool(table))]
        for place, buffer in enumerate(direct):
            self._write(self.ring.desc, mine[place], buffer, mine[place + 1] if place + 1 < len(mine) else None)
        if table:
            for place, buffer in enumerate(rest):
                self._write(table, place, buffer, place + 1 if place + 1 < len(rest) else None)
            self.ring.write_desc(self.ring.desc, mine[-1], table, 16 * len(rest), INDIRECT | odd_flags, 0)
        self.in_flight[mine[0]] = token, mine
        self.ring.set_avail_head(self.idx, mine[0])
        self.idx += 1
        self.ring.set_avail_idx(self.idx)
        return True

    def _write(self, table: int, index: int, buffer: Buffer, following: int | None) -> None:
        flags = (WRITE if buffer.writable else 0) | (NEXT if following is not None else 0)
        self.ring.write_desc(table, index, buffer.address, buffer.length, flags, following or 0)

    def kick(self) -> bool:
        """True when what was added since the last call calls for a notification."""
        old, self.kicked = self.kicked, self.idx
        if self.event_idx:
            return passed(self.ring.avail_event, self.idx, old)
        return self.ring.used_flags & NO_NOTIFY == 0

    def get(self) -> tuple[int, int] | None:
        """The next used buffer: its token and its length."""
        moved = (self.ring.used_idx - self.last_used) % 65536
        if moved == 0:
            return None
        if moved > len(self.in_flight):
            raise Broken("BAD_USED_IDX", moved)
        head, length = self.ring.used_elem(self.last_used)
        if head not in self.in_flight:
            raise Broken("BAD_USED_NOT_IN_FLIGHT" if head < self.ring.num else "BAD_USED_ID", head)
        token, descriptors = self.in_flight.pop(head)
        self.free += descriptors
        self.last_used += 1
        return token, length

    def enable(self) -> bool:
        """Ask for an interrupt at the next used buffer: False when there is one already."""
        if self.event_idx:
            self.ring.set_used_event(self.last_used)
        else:
            self.ring.set_avail_flags(0)
        return self.ring.used_idx == self.last_used % 65536

    def disable(self) -> None:
        """Ask for none: 2.7.7.1 has flags 0 with EVENT_IDX, so the event goes where the used ring arrives last."""
        if self.event_idx:
            self.ring.set_used_event(self.last_used - 1)
        else:
            self.ring.set_avail_flags(NO_INTERRUPT)


class NaiveDevice:
    """The device's duties. `regions`: (start, end) of memory that it may touch."""

    def __init__(
        self,
        ring: Ring,
        regions: Iterable[tuple[int, int]],
        *,
        event_idx: bool = False,
        indirect: bool = True,
        base: int = 0,
    ) -> None:
        self.ring, self.event_idx, self.indirect = ring, event_idx, indirect
        self.regions = list(regions)
        self.last_avail = self.seen = base
        self.used_idx = self.signalled = ring.used_idx

    def take(self) -> tuple[int, list[Buffer]] | None:
        """The next chain: its head, and its bytes in order, in pieces that lie in one region each."""
        if self.seen % 65536 == self.last_avail % 65536:  # look again only when all that was seen is taken
            waiting = (self.ring.avail_idx - self.last_avail) % 65536
            if waiting == 0:
                return None
            if waiting > self.ring.num:
                raise Broken("BAD_AVAIL_IDX", waiting)
            self.seen = self.last_avail + waiting
        head = self.ring.avail_head(self.last_avail)
        if head >= self.ring.num:
            raise Broken("BAD_HEAD", head)
        pieces = self._walk(head)
        self.last_avail += 1
        return head, pieces

    def _walk(self, head: int) -> list[Buffer]:
        pieces: list[Buffer] = []
        total, writing, nested = 0, False, False
        table, size, index, steps = self.ring.desc, self.ring.num, head, 0
        while True:
            if steps == size:
                raise Broken("BAD_LOOP", size)
            steps += 1
            if nested and self._resolve(table + 16 * index, 16) is None:
                raise Broken("BAD_ADDRESS", table + 16 * index)
            address, length, flags, following = self.ring.read_desc(table, index)
            if flags & INDIRECT:
                self._check_indirect(nested, index, length, flags)
                table, size, index, steps, nested = address, length // 16, 0, 0, True
                continue
            if writing and not flags & WRITE:
                raise Broken("BAD_ORDER", index)
            writing = bool(flags & WRITE)
            total += length
            if total >= 1 << 32:
                raise Broken("BAD_LENGTH", total)
            for start, count in self._split(address, length):
                pieces.append(Buffer(start, count, writing))
            if len(pieces) >= MAX_PIECES:
                raise Broken("BAD_PIECES", len(pieces))
            if not flags & NEXT:
                return pieces
            if following >= size:
                raise Broken("BAD_NEXT", following)
            index = following

    def _check_indirect(self, nested: bool, index: int, length: int, flags: int) -> None:
        if nested:
            raise Broken("BAD_INDIRECT_NESTED", index)
        if not self.indirect:
            raise Broken("BAD_INDIRECT_OFF", index)
        if flags & NEXT:
            raise Broken("BAD_INDIRECT_NEXT", index)
        if length == 0 or length % 16 or length // 16 > MAX_TABLE:
            raise Broken("BAD_INDIRECT_LEN", length)

    def _resolve(self, address: int, length: int) -> int | None:
        """The end of the region that holds all of [address, address + length)."""
        return next((end for start, end in self.regions if start <= address and address + length <= end), None)

    def _split(self, address: int, length: int) -> list[tuple[int, int]]:
        parts = []
        while length:
            end = self._resolve(address, 1)
            if end is None:
                raise Broken("BAD_ADDRESS", address)
            count = min(length, end - address)
            parts.append((address, count))
            address += count
            length -= count
        return parts

    def use(self, head: int, length: int) -> None:
        """Put a chain in the used ring; `publish` shows it."""
        self.ring.set_used_elem(self.used_idx, head, length)
        self.used_idx += 1

    def publish(self) -> None:
        self.ring.set_used_idx(self.used_idx)

    def notify(self) -> bool:
        """True when what was used since the last call calls for an interrupt."""
        old, self.signalled = self.signalled, self.used_idx
        if self.event_idx:
            return passed(self.ring.used_event, self.used_idx, old)
        return self.used_idx != old and self.ring.avail_flags & NO_INTERRUPT == 0

    def enable(self) -> bool:
        """Ask for a kick at the next chain: False when there is one already."""
        if self.event_idx:
            self.ring.set_avail_event(self.last_avail)
        else:
            self.ring.set_used_flags(0)
        return self.ring.avail_idx == self.last_avail % 65536

    def disable(self) -> None:
        """Ask for none: 2.7.10.2 has flags 0 with EVENT_IDX, so the event stays where it was."""
        if not self.event_idx:
            self.ring.set_used_flags(NO_NOTIFY)
