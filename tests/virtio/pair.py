"""A model that watches one driver half and one device half, a step at a time.

After each step it checks what the specification promises: every token comes back once, in the order of the used ring,
with its length; chains arrive whole and in order; a notification is asked for exactly when the text says so, and always
when somebody sleeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from naive.ring import Buffer, NaiveDevice, NaiveDriver, passed
from virtio.halves import CompiledDevice, CompiledDriver, World


class Pair:
    """One driver half and one device half, and what must be true of them after every step."""

    def __init__(self, world: World, driver: str, device: str, *, event_idx: bool, base: int) -> None:
        self.world, self.ring, self.event_idx = world, world.ring, event_idx
        self.driver: Any = CompiledDriver(world)
        if driver == "naive":
            self.driver = NaiveDriver(world.ring, event_idx=event_idx, base=base)
        self.device: Any = (
            CompiledDevice(world, event_idx=event_idx, base=base)
            if device == "compiled"
            else NaiveDevice(world.ring, world.regions, event_idx=event_idx, base=base)
        )
        self.plain_too = driver == "naive"  # our own driver half never puts plain descriptors before an indirect one
        self.next_token = 1
        self.added = self.kicked = self.taken = self.used_up_to = self.published_up_to = self.notified = self.got = base
        self.available: deque[tuple[int, list[Buffer], int]] = deque()  # token, buffers, descriptors of the ring
        self.held: list[tuple[int, int, int, int]] = []  # token, head, descriptors, writable bytes
        self.used: deque[tuple[int, int, int]] = deque()  # token, length, descriptors
        self.published: deque[tuple[int, int, int]] = deque()
        self.driver_sleeps = self.device_sleeps = False

    # The driver's steps.

    def add(self, sizes: Sequence[int], writable: int, shape: int) -> None:
        """Add buffers of `sizes`, the last `writable` of them writable. `shape`: 0 direct, else behind a table."""
        at = self.world.data + (self.next_token * 97) % 1900  # round the places where regions meet
        buffers = []
        for place, size in enumerate(sizes):
            buffers.append(Buffer(at, size, place >= len(sizes) - writable))
            at += size + 3
        table = self.world.tables + 256 * (self.next_token % 1000) if shape else 0
        plain = min(shape - 1, len(sizes) - 1) if self.plain_too and shape else 0
        descriptors = plain + 1 if shape else len(sizes)
        room = self.driver.num_free
        if any(token == self.next_token - 1000 for token, *_ in self.available):
            return  # its table would be written over
        added = self.driver.add(buffers, self.next_token, table, plain, odd_flags=2 if shape == 2 else 0)
        assert added == (room >= descriptors)
        if added:
            self.available.append((self.next_token, buffers, descriptors))
            self.added += 1
            self.next_token += 1
        self.check_room()

    def check_room(self) -> None:
        in_flight = sum(a[2] for a in self.available) + sum(h[2] for h in self.held)
        in_flight += sum(u[2] for u in self.used) + sum(p[2] for p in self.published)
        assert self.driver.num_free == self.ring.num - in_flight

    def kick(self) -> bool:
        wanted = self.driver.kick()
        if self.event_idx:
            assert wanted == passed(self.ring.avail_event, self.added, self.kicked)
        else:
            assert wanted == (self.ring.used_flags == 0)
        if self.device_sleeps and self.available:
            assert wanted, "the device sleeps, and nobody wakes it"
            self.device_sleeps = False
        self.kicked = self.added
        return wanted

    def get(self) -> None:
        expected = self.published.popleft() if self.published else None
        found = self.driver.get()
        assert found == (expected[:2] if expected else None)
        if expected:
            self.got += 1
            self.driver_sleeps = False
        self.check_room()

    def enable_cb(self) -> None:
        quiet = self.driver.enable()
        assert quiet == (not self.published)
        assert self.ring.avail_flags == 0
        assert not self.event_idx or self.ring.used_event == self.got % 65536
        self.driver_sleeps = quiet

    def disable_cb(self) -> None:
        self.driver.disable()
        self.driver_sleeps = False
        if self.event_idx:
            assert self.ring.avail_flags == 0  # 2.7.7.1
            assert (self.ring.used_event - self.got) % 65536 >= self.ring.num  # none of the next `num` passes it
        else:
            assert self.ring.avail_flags == 1

    # The device's steps.

    def take(self) -> None:
        found = self.device.take()
        if not self.available:
            assert found is None
            return
        token, buffers, descriptors = self.available.popleft()
        assert found is not None
        head, pieces = found
        assert bytes_of(pieces) == bytes_of(buffers)
        assert all(any(a <= p.address and p.address + p.length <= b for a, b in self.world.regions) for p in pieces)
        assert head not in {h[1] for h in self.held}
        self.taken += 1
        self.device_sleeps = False
        self.held.append((token, head, descriptors, sum(b.length for b in buffers if b.writable)))

    def use(self, which: int, length: int) -> None:
        """Complete one of the chains held, in any order."""
        if self.held:
            token, head, descriptors, limit = self.held.pop(which % len(self.held))
            length = length % (limit + 1)
            self.device.use(head, length)
            self.used.append((token, length, descriptors))
            self.used_up_to += 1

    def publish(self) -> None:
        self.device.publish()
        self.published += self.used
        self.used.clear()
        self.published_up_to = self.used_up_to
        assert self.ring.used_idx == self.used_up_to % 65536

    def notify(self) -> bool:
        """Publish, and decide about an interrupt: the two belong together, as in the worker."""
        self.publish()
        wanted = self.device.notify()
        if self.event_idx:
            assert wanted == passed(self.ring.used_event, self.used_up_to, self.notified)
        else:
            assert wanted == (self.used_up_to != self.notified and self.ring.avail_flags == 0)
        if self.driver_sleeps and self.published:
            assert wanted, "the driver sleeps, and nobody wakes it"
            self.driver_sleeps = False
        self.notified = self.used_up_to
        return wanted

    def enable_notify(self) -> None:
        quiet = self.device.enable()
        assert quiet == (not self.available)
        assert self.ring.used_flags == 0
        assert not self.event_idx or self.ring.avail_event == self.taken % 65536
        self.device_sleeps = quiet

    def disable_notify(self) -> None:
        self.device.disable()
        self.device_sleeps = False
        assert self.ring.used_flags == (0 if self.event_idx else 1)  # 2.7.10.2

    def drain(self) -> None:
        """Finish everything: nothing is lost, and all descriptors are free again."""
        while self.available:
            self.take()
        while self.held:
            self.use(self.taken, 0)
        self.notify()
        while self.published:
            self.get()
        assert self.driver.num_free == self.ring.num
        if isinstance(self.driver, CompiledDriver):
            assert sorted(self.driver.free_list()) == list(range(self.ring.num))
        if isinstance(self.device, CompiledDevice):  # where a stop would say that it stopped
            indices = (self.device.state["last_avail"], self.device.state["used_idx"])
            assert indices == (self.taken % 65536, self.used_up_to % 65536)


def bytes_of(buffers: Sequence[Buffer]) -> list[tuple[int, int, bool]]:
    """Neighbours that touch become one, so that a buffer equals its pieces."""
    merged: list[tuple[int, int, bool]] = []
    for address, length, writable in buffers:
        if merged and merged[-1][1] == address and merged[-1][2] == writable:
            merged[-1] = (merged[-1][0], address + length, writable)
        elif length:
            merged.append((address, address + length, writable))
    return merged
