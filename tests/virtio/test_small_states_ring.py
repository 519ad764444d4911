"""Free list, in-flight table and index wrap of both halves, in every order of steps on rings of 1, 2 and 4: a proof.

The states of a ring and of both halves' private tables are explored breadth first: from each state every step that a
driver and a device may take, on the real functions, checked against what the specification says of it. A state is the
bytes of it all, so that what was seen is known again. The indices begin before 65536 and end after.
"""

from __future__ import annotations

from collections import deque
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from virtblk.jit.kernel import registry
from virtblk.virtio import virtio_ring_split as driver_half
from virtblk.virtio import vringh_split as device_half
from virtio.halves import CompiledDevice, CompiledDriver, World, numbers
from virtio.wrong import Mistake, with_mistake

ENTRIES = 3  # the longest chain


class Seen(NamedTuple):
    """What the specification knows of a ring: requests as (token, descriptors), in the order of their stage."""

    added: int
    available: tuple[tuple[int, int], ...] = ()
    taken: tuple[tuple[int, int, int], ...] = ()  # and the head
    used: tuple[tuple[int, int], ...] = ()
    published: tuple[tuple[int, int], ...] = ()

    @property
    def in_flight(self) -> int:
        return sum(each[1] for stage in self[1:] for each in stage)


class Explorer:
    """All states from an empty ring of `num` at index `base`, until `requests` were added."""

    def __init__(self, num: int, base: int, requests: int) -> None:
        self.num, self.requests, self.base = num, requests, base
        self.world = World(num, [(0, 2 << 20)], base=base)
        self.driver, self.device = CompiledDriver(self.world), CompiledDevice(self.world, base=base)
        self.addr = numbers(*(self.world.data + 16 * i for i in range(ENTRIES)))
        self.length = numbers(*(8 + i for i in range(ENTRIES)))
        ring = self.world.ring
        self.shared = self.world.arena.array(ring.desc, ring.used + 8 + 8 * num - ring.desc)
        vq, vr = self.driver.vq, self.device.vr
        self.private = [table.view() for table in (vq.state, vq.next, vq.token, vq.writable, vr.state)]
        self.finished = 0

    def __enter__(self) -> Explorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.world.close()

    def save(self) -> tuple[bytes, ...]:
        return self.shared.tobytes(), *(table.tobytes() for table in self.private)

    def restore(self, saved: tuple[bytes, ...]) -> None:
        self.shared[:] = list(saved[0])
        for table, content in zip(self.private, saved[1:], strict=True):
            table.view("u1")[:] = list(content)

    def explore(self) -> None:
        first = self.save(), Seen(0)
        known = {first}
        todo = deque([first])
        while todo:
            saved, seen = todo.popleft()
            self.finished += seen.added == self.requests and seen.in_flight == 0
            for step in self.possible(seen):
                self.restore(saved)
                after = getattr(self, step[0])(seen, *step[1:])
                self.check(after)
                state = self.save(), after
                if state not in known:
                    known.add(state)
                    todo.append(state)

    def possible(self, seen: Seen) -> list[tuple[Any, ...]]:
        steps: list[tuple[Any, ...]] = [("take",), ("get",)]
        if seen.added < self.requests:
            steps += [("add", entries) for entries in range(1, min(ENTRIES, self.num + 1) + 1)]
        steps += [("use", which) for which in range(len(seen.taken))]
        if seen.used:
            steps.append(("publish",))
        return steps

    def add(self, seen: Seen, entries: int) -> Seen:
        token = seen.added
        code = driver_half.virtqueue_add_direct(
            self.driver.vq, self.addr, self.length, 0, 0, entries, token, self.writable(entries)
        )
        if seen.in_flight + entries > self.num:
            assert code == -driver_half.ENOSPC
            return seen
        assert code == 0
        return seen._replace(added=token + 1, available=(*seen.available, (token, entries)))

    @staticmethod
    def writable(entries: int) -> int:
        return sum(8 + i for i in range(entries))

    def take(self, seen: Seen) -> Seen:
        found = self.device.take()
        if not seen.available:
            assert found is None
            return seen
        (token, entries), *rest = seen.available
        assert found is not None
        head, pieces = found
        assert [(p.address, p.length) for p in pieces] == [(self.addr[i], 8 + i) for i in range(entries)]
        assert head not in [each[2] for each in seen.taken]
        return seen._replace(available=tuple(rest), taken=(*seen.taken, (token, entries, head)))

    def use(self, seen: Seen, which: int) -> Seen:
        token, entries, head = seen.taken[which]
        self.device.use(head, self.writable(entries) - token % 2)
        rest = seen.taken[:which] + seen.taken[which + 1 :]
        return seen._replace(taken=rest, used=(*seen.used, (token, entries)))

    def publish(self, seen: Seen) -> Seen:
        self.device.publish()
        return seen._replace(used=(), published=seen.published + seen.used)

    def get(self, seen: Seen) -> Seen:
        found = self.driver.get()
        if not seen.published:
            assert found is None
            return seen
        (token, entries), *rest = seen.published
        assert found == (token, self.writable(entries) - token % 2)
        return seen._replace(published=tuple(rest))

    def check(self, seen: Seen) -> None:
        """What holds in every state: each descriptor is free or in one chain, and the indices count what happened."""
        free = self.driver.free_list()
        assert len(free) == self.num - seen.in_flight
        assert len(set(free)) == len(free)
        chains = []
        following, tokens = self.driver.vq.next.tolist(), self.driver.vq.token.tolist()
        for head in (i for i in range(self.num) if tokens[i] >= 0):
            chain = [head]
            while following[chain[-1]] >= 0:
                chain.append(following[chain[-1]])
                assert len(chain) <= self.num
            chains.append((tokens[head], chain))
        assert sorted(free + [index for _, chain in chains for index in chain]) == list(range(self.num))
        assert {token: len(chain) for token, chain in chains} == {e[0]: e[1] for stage in seen[1:] for e in stage}
        taken = seen.added - len(seen.available)
        used = taken - len(seen.taken)
        ring, state, device = self.world.ring, self.driver.vq.state[0], self.device.state
        assert ring.avail_idx == state["avail_idx"] == (self.base + seen.added) % 65536
        assert device["last_avail"] == (self.base + taken) % 65536
        assert device["used_idx"] == (self.base + used) % 65536
        assert ring.used_idx == (self.base + used - len(seen.used)) % 65536
        assert state["last_used"] == (self.base + used - len(seen.used) - len(seen.published)) % 65536
        assert state["bad"] == device["bad"] == 0


@pytest.mark.parametrize(("num", "requests"), [(1, 3), (2, 4), (4, 3)])
def test_every_order_of_steps(num: int, requests: int) -> None:
    with Explorer(num, 65535, requests) as explorer:
        explorer.explore()
        assert explorer.finished > 0


@pytest.mark.slow
@pytest.mark.parametrize(("num", "requests"), [(1, 70), (2, 5), (4, 4)])
def test_every_order_of_more_steps(num: int, requests: int) -> None:
    with Explorer(num, 65534, requests) as explorer:
        explorer.explore()
        assert explorer.finished > 0


# Halves with one mistake: an exploration finds each.

WRONG_DRIVERS = {
    "the available index does not wrap": Mistake("publish", "(idx + 1) & 0xFFFF", "idx + 1"),
    "the used index does not wrap": Mistake("virtqueue_get_buf", "(last + 1) & 0xFFFF", "last + 1"),
    "all that is in flight may not come at once": Mistake("look_at_used_idx", "moved > vq", "moved >= vq"),
    "one descriptor is counted as freed": Mistake("virtqueue_get_buf", '"num_free"] += freed', '"num_free"] += 1'),
    "only the head is freed": Mistake("virtqueue_get_buf", "while vq.next[tail] >= 0:", "while False:"),
    "the head stays in flight": Mistake("virtqueue_get_buf", "vq.token[head] = -1", "pass"),
    "the chain has no end": Mistake("virtqueue_add_direct", "vq.next[last] = -1", "pass"),
    "room for one less": Mistake("virtqueue_add_direct", '"num_free"] < total', '"num_free"] <= total'),
    "room for one more": Mistake("virtqueue_add_direct", '"num_free"] < total', '"num_free"] + 1 < total'),
    "the slot does not wrap": Mistake("publish", 'idx & (vq.state[0]["num"] - 1)', "idx & 3"),
}
WRONG_DEVICES = {
    "the used index does not wrap": Mistake("vringh_add_used", "(idx + 1) & 0xFFFF", "idx + 1"),
    "the available index does not wrap": Mistake("vringh_getdesc", "(last + 1) & 0xFFFF", "last + 1"),
    "a chain is taken twice": Mistake("vringh_getdesc", "(last + 1) & 0xFFFF", "last"),
    "the used slot is the available one": Mistake("vringh_add_used", '"used_idx"]\n', '"last_avail"]\n'),
    "shown one too early": Mistake("vringh_publish_used", 'vr.state[0]["used_idx"]', 'vr.state[0]["used_idx"] + 1'),
}


def finds(module: ModuleType, mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> bool:
    for name, function in with_mistake(module, mistake).items():
        if f"{module.__name__}.{name}" in registry:
            monkeypatch.setattr(module, name, function)
    try:
        test_every_order_of_steps(2, 4)
    except (AssertionError, IndexError, OverflowError):
        return True
    return False


@pytest.mark.once
@pytest.mark.parametrize("mistake", WRONG_DRIVERS)
def test_a_wrong_driver_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert finds(driver_half, WRONG_DRIVERS[mistake], monkeypatch)


@pytest.mark.once
@pytest.mark.parametrize("mistake", WRONG_DEVICES)
def test_a_wrong_device_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert finds(device_half, WRONG_DEVICES[mistake], monkeypatch)
