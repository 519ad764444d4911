"""Plug, merges, both elevators and switching between them, against the twin: same order, nothing lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from block.harness import BIOS, END, FLUSH, SET, START, SUBMIT, SWITCH, Block, Step, WithTwin, bios_of, steps_of
from naive.block_layer import Bio, NaiveBlockLayer

SETTINGS = [
    ("nomerges", 0),
    ("nomerges", 1),
    ("nomerges", 2),
    ("nr_requests", 4),
    ("nr_requests", 64),
    ("read_expire", 30),
    ("write_expire", 3),
    ("writes_starved", 0),
    ("writes_starved", 3),
    ("fifo_batch", 1),
    ("fifo_batch", 4),
    ("front_merges", 0),
    ("front_merges", 1),
]


class Both(WithTwin):
    """The block layer of the request path, with both elevators."""

    settings = SETTINGS

    def __init__(self, **limits: Any) -> None:
        super().__init__(Block(**limits), NaiveBlockLayer(submitters=2, nr_requests=64, **limits))
        self.set("nr_requests", 64)

    def submit(self, sub: int, op: int, sector: int, sectors: int, segs: int, plain: bool) -> None:
        sectors, segs = min(sectors, self.twin.max_bytes // 512), min(segs, self.twin.max_segs)
        bio = Bio(self.submitted, op, sector, sectors, segs)
        if self.twin.deadline and len(self.twin.front_candidates(bio)) > 1:
            return  # which of them a search tree finds is its own affair
        became = self.real.submit(sub, bio.number, op, sector, sectors, segs, self.now, plain)
        assert became == self.twin.submit(sub, bio, self.now, plain=plain)
        self.submitted += became != "full"

    def flush(self, sub: int) -> None:
        self.real.flush_plug(sub)
        self.twin.flush_plug(sub)

    def insert(self, *bios: tuple[int, int, int]) -> None:
        """Each bio (op, sector, sectors) submitted and flushed into the elevator by itself."""
        for op, sector, sectors in bios:
            self.submit(0, op, sector, sectors, 1, plain=True)
            self.step(FLUSH, 0, 0, 0, 1, 1)


@given(
    steps_of(SET, SWITCH),
    st.sampled_from([2, 5, 128]),
    st.sampled_from([2048, 1 << 20]),
    st.integers(0, len(SETTINGS) - 1),
)
@example(
    [(SWITCH, 1, 0, 0, 1, 1), (SUBMIT, 0, 0, 10, 4, 1), (FLUSH, 0, 0, 0, 1, 1), (SUBMIT, 0, 0, 7, 3, 1)], 5, 4096, 0
)
def test_the_block_layer_agrees_with_its_twin(steps: list[Step], max_segs: int, max_bytes: int, setting: int) -> None:
    both = Both(max_segs=max_segs, max_bytes=max_bytes)
    both.set(*SETTINGS[setting])
    for step in steps:
        both.step(*step)
    both.drain()


@pytest.mark.parametrize("deadline", [False, True])
def test_a_dense_mixture_agrees_with_the_twin_for_long(deadline: bool) -> None:
    """Many requests at a time in few sectors, so that every kind of merge happens: counted, so that it is known."""
    rng = np.random.default_rng(7)
    both = Both(max_segs=16, max_bytes=16 * 512)
    both.step(SWITCH, int(deadline), 0, 0, 1, 1)
    kinds = [SUBMIT] * 8 + [FLUSH] * 2 + [START] * 2 + [END] * 2
    while both.submitted < BIOS:
        kind = kinds[rng.integers(len(kinds))]
        both.step(kind, *(int(n) for n in rng.integers((0, 0, 0, 1, 1), (2, 2, 40, 4, 3))))
    both.drain()
    state = both.real.q.state[0]
    assert state["merges"] > 5
    assert state["rq_merges"] > 0


# Merges one by one.


def blocked(elevator: bool, *bios: tuple[int, int, int], **settings: int) -> Both:
    """A queue with these bios, each inserted by itself."""
    both = Both()
    both.step(SWITCH, int(elevator), 0, 0, 1, 1)
    for name, value in settings.items():
        both.set(name, value)
    both.insert(*bios)
    return both


def order(both: Both) -> list[list[int]]:
    """The bios of each request, in order of dispatch."""
    dispatched = []
    while (rq := both.real.start(both.now)) >= 0:
        dispatched.append(bios_of(both.real.q, rq))
    return dispatched


BACK = [(0, 8, 2), (0, 30, 2), (0, 10, 2)]
FRONT = [(0, 8, 2), (0, 30, 2), (0, 28, 2)]
GAP = [(0, 8, 2), (0, 12, 2), (0, 10, 2)]


@pytest.mark.parametrize(
    ("deadline", "bios", "settings", "expected"),
    [
        (False, BACK, {}, [[0, 2], [1]]),
        (False, BACK, {"nomerges": 1}, [[0, 2], [1]]),  # the last merged is the first that was inserted
        (False, BACK, {"nomerges": 2}, [[0], [1], [2]]),
        (False, FRONT, {}, [[0], [1], [2]]),  # noop finds no front but that of the last merged
        (True, FRONT, {}, [[0], [2, 1]]),
        (True, FRONT, {"front_merges": 0}, [[0], [2], [1]]),
        (True, FRONT, {"nomerges": 1}, [[0], [2], [1]]),
        (False, GAP, {}, [[0, 2, 1]]),  # a bio that closes the gap joins both
        (True, GAP, {}, [[0, 2, 1]]),
        (True, [(0, 8, 2), (1, 10, 2)], {}, [[0], [1]]),
        (True, [(1, 8, 2), (1, 10, 2), (0, 12, 2)], {}, [[2], [0, 1]]),
    ],
)
def test_who_merges(
    deadline: bool, bios: list[tuple[int, int, int]], settings: dict[str, int], expected: list[list[int]]
) -> None:
    assert order(blocked(deadline, *bios, **settings)) == expected


def test_a_switch_keeps_the_order_of_the_old_elevator_and_what_comes_later_behind_it() -> None:
    both = blocked(True, (0, 50, 1), (0, 20, 1), (0, 80, 1))
    both.step(SWITCH, 0, 0, 0, 1, 1)
    both.submit(0, 0, 0, 1, 1, plain=True)
    both.step(FLUSH, 0, 0, 0, 1, 1)
    assert order(both) == [[0], [2], [1], [3]]


def test_a_request_that_is_swallowed_leaves_its_deadline_and_the_batch_goes_on_behind_it() -> None:
    """It was next, and older than the one that took it over."""
    both = blocked(True, (0, 0, 1), (0, 10, 2), (0, 17, 1))
    both.step(START, 0, 0, 0, 1, 1)
    both.insert((0, 3, 5), (0, 8, 2))
    assert both.real.q.state[0]["rq_merges"] == 1
    both.insert((0, 1, 1))
    both.drain()
    assert both.ended[0] == 0
    assert sorted(both.ended) == list(range(6))


def test_a_request_that_grows_to_its_front_joins_the_one_before() -> None:
    """The last that took a bio is asked first: it meets its neighbour with the bio in between."""
    both = blocked(True, (0, 3, 2), (0, 9, 2), (0, 11, 1), (0, 5, 4))
    assert both.real.q.state[0]["rq_merges"] == 1
    both.drain()
    assert both.ended == [0, 3, 1, 2]
