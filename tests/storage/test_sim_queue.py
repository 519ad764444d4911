"""Queues at a simulated disk: what goes in comes out once, at its queue, when its time has come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.sim_harness import model
from virtblk.mem.shm import Words
from virtblk.storage.request import OP_READ
from virtblk.storage.sim.profiles import make_queue
from virtblk.storage.sim.queue import (
    NOTHING_DUE,
    heap_pop,
    heap_push,
    model_time,
    real_ns,
    sim_queue_due,
    sim_queue_poll,
    sim_queue_submit,
)
from virtblk.storage.sim.state import SimModel, SimQueue

MS = 1_000_000
PROFILES = ("sata", "fusion-io")


class Disk:
    """A model and two queues at it, in the model's time."""

    def __init__(self, profile: str, **keys: object) -> None:
        self.m = model(profile, **keys)
        self._words = Words(1)
        self.m.state[0]["lock"] = self._words.address(0)
        self.queues = [make_queue(number, 64) for number in (0, 1)]

    def submit(self, queue: int, slot: int, offset: int, now: int) -> None:
        sim_queue_submit(self.m, self.queues[queue], slot, OP_READ, offset, 4096, 0, now)

    def due(self, queue: int) -> int:
        return int(sim_queue_due(self.m, self.queues[queue]))

    def poll(self, queue: int, now: int) -> list[int]:
        q = self.queues[queue]
        sim_queue_poll(self.m, q, now)
        slots = q.ended[: q.state[0]["ended"]].tolist()
        q.state[0]["ended"] = 0
        return [int(slot) for slot in slots]


@given(st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=80))
def test_the_heap_against_a_sorted_list(steps: list[int | None]) -> None:
    """None takes the earliest out; a number puts one in."""
    q = make_queue(0, 64)
    held: list[tuple[int, int]] = []
    free = list(range(64))
    for due in steps:
        if due is None and held:
            first = min(due for due, _ in held)
            assert q.due[0] == first
            slot = int(heap_pop(q, len(held)))
            assert (first, slot) in held
            held.remove((first, slot))
            free.append(slot)
        elif due is not None and free:
            slot = free.pop()
            heap_push(q, len(held), due, slot)
            held.append((due, slot))


@pytest.mark.parametrize("profile", PROFILES)
def test_what_goes_in_comes_out_when_it_is_due(profile: str) -> None:
    disk = Disk(profile, size="1g")
    assert disk.due(0) == NOTHING_DUE
    assert disk.poll(0, 5) == []
    for slot in range(20):
        disk.submit(0, slot, slot * 4096 * 1000, 5)
    seen = []
    now = 5
    while (due := disk.due(0)) != NOTHING_DUE:
        assert disk.poll(0, due - 1) == []
        now = max(now, due)
        ended = disk.poll(0, now)
        assert ended
        seen += ended
    assert sorted(seen) == list(range(20))
    assert now > 5


@pytest.mark.parametrize("profile", PROFILES)
def test_two_queues_share_a_disk(profile: str) -> None:
    """Each gets its own back; whoever polls first, the other's wait for it and are due at once."""
    disk = Disk(profile, size="1g")
    for slot in range(8):
        for queue in (0, 1):
            disk.submit(queue, slot, slot * 10**6 // 4096 * 4096, 0)
    one = disk.poll(0, 1000 * MS)
    assert disk.due(1) <= 1000 * MS
    two = disk.poll(1, 1000 * MS)
    assert sorted(one) == sorted(two) == list(range(8))
    assert disk.due(0) == disk.due(1) == NOTHING_DUE


@pytest.mark.parametrize("profile", PROFILES)
def test_two_queues_take_longer_than_one(profile: str) -> None:
    def took(queues: int) -> int:
        disk = Disk(profile, size="1g", **({"channels": 1} if profile == "fusion-io" else {"read_ahead": 0}))
        for slot in range(8):
            for queue in range(queues):
                disk.submit(queue, slot, (2 * slot + queue) * 2**25, 0)
        last = 0
        for queue in range(queues):
            while (due := disk.due(queue)) != NOTHING_DUE:
                last = max(last, due)
                disk.poll(queue, due)
        return last

    assert took(2) > 1.5 * took(1)


@pytest.mark.parametrize("profile", PROFILES)
def test_time_does_not_go_back(profile: str) -> None:
    """A queue whose clock was read before another queue's."""
    disk = Disk(profile, size="1g")
    disk.submit(0, 0, 0, 50 * MS)
    disk.submit(1, 0, 4096, 49 * MS)
    assert disk.due(1) > 50 * MS or profile == "fusion-io"
    assert disk.poll(0, 1000 * MS) == disk.poll(1, 1000 * MS) == [0]


def test_the_models_time_runs_speed_times_as_fast() -> None:
    m: SimModel = model("sata", speed=20)
    m.state[0]["base_ns"] = 1000
    assert model_time(m, 1000) == 0
    assert model_time(m, 1500) == 10_000
    assert real_ns(m, 10_000, 0) == 500
    assert real_ns(m, 10_001, 0) == 501


def test_queues_know_their_number() -> None:
    q: SimQueue = make_queue(3, 4)
    assert q.state[0]["number"] == 3
    assert q.free.tolist() == [3, 2, 1, 0]
