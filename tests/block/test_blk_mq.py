"""The mq path's plug and its door to the scheduler, against the twin: same merges, same order, nothing lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from block.harness import FLUSH, SET, SUBMIT, BlockMq, Step, WithTwin, bios_of, steps_of
from naive.blk_mq import NaiveBlkMq
from naive.block_layer import Bio

SETTINGS = [
    ("nomerges", 0),
    ("nomerges", 1),
    ("nomerges", 2),
    ("nr_requests", 4),
    ("nr_requests", 64),
    ("fifo_batch", 1),
    ("front_merges", 0),
    ("front_merges", 1),
]
PLUG = 5


class Both(WithTwin):
    """The plug of the mq path, and what is behind it."""

    real: BlockMq
    twin: NaiveBlkMq
    settings = SETTINGS

    def __init__(self, *, deadline: bool = False, **limits: Any) -> None:
        twin = NaiveBlkMq(submitters=2, nr_requests=64, plug_size=PLUG, deadline=deadline, **limits)
        super().__init__(BlockMq(plug_size=PLUG, **limits), twin)
        self.real.switch(deadline, 0)

    def submit(self, sub: int, op: int, sector: int, sectors: int, segs: int, plain: bool) -> None:
        bio = Bio(self.submitted, op, sector, min(sectors, self.twin.max_bytes // 512), min(segs, self.twin.max_segs))
        became = self.real.submit(sub, bio.number, op, sector, bio.sectors, bio.segs, self.now, plain)
        assert became == self.twin.submit(sub, bio, self.now, plain=plain)
        self.submitted += became != "full"
        self.same_plug(sub)

    def same_plug(self, sub: int) -> None:
        plugged = self.real.plugged(sub)
        assert len(plugged) == len(self.twin.plugs[sub]) <= PLUG
        for rq, expected in zip(plugged, self.twin.plugs[sub], strict=True):
            self.same(rq, expected)

    def flush(self, sub: int) -> None:
        plugged = self.twin.plugs[sub]
        if not self.twin.deadline:
            self.ended += [number for rq in plugged for number in rq.numbers]
            self.twin.flush_plug(sub)
            self.twin.driver.clear()
        starts = [(rq.op, rq.sector) for rq in self.twin.fifo + plugged]
        before = self.twin.nomerges
        if len(set(starts)) < len(starts):  # which of several requests a search tree finds is its own affair
            self.set("nomerges", 2)
        done, count = 0, len(plugged)
        while plugged:  # what finds the pool empty goes on when a request came back
            self.twin.flush_plug(sub)
            done = self.real.insert(sub, done)
            assert done == count - len(plugged)
            if plugged:
                self.start()
                self.end(0)
        self.real.q.plugged[sub] = 0
        self.set("nomerges", before)

    def empty_plug(self, sub: int) -> None:
        while self.twin.plugs[sub]:
            self.serve_one()
            self.step(FLUSH, sub, 0, 0, 1, 1)


@given(steps_of(SET), st.booleans(), st.sampled_from([2, 5, 128]), st.sampled_from([2048, 1 << 20]))
@example([(SUBMIT, 0, 0, 10, 4, 1), (FLUSH, 0, 0, 0, 1, 1), (SUBMIT, 0, 0, 7, 3, 1)], True, 5, 4096)
@example(
    [(SET, 0, 0, 3, 1, 1)] + [(SUBMIT, 0, 0, 9 * n, 1, 1) for n in range(9)] + [(FLUSH, 0, 0, 0, 1, 1)], True, 5, 4096
)
def test_plug_and_scheduler_agree_with_their_twin(
    steps: list[Step], deadline: bool, max_segs: int, max_bytes: int
) -> None:
    both = Both(deadline=deadline, max_segs=max_segs, max_bytes=max_bytes)
    for step in steps:
        both.step(*step)
    both.drain()


def plugged(*sectors: int, **settings: int) -> list[list[int]]:
    """The bios of each request in a plug, of one-sector bios submitted in this order."""
    block = BlockMq(plug_size=PLUG)
    for name, value in settings.items():
        block.q.state[0][name] = value
    for bio, sector in enumerate(sectors):
        assert block.submit(0, bio, 0, sector, 1, 1, 0, True) != "full"
    return [bios_of(block.q, rq) for rq in block.plugged(0)]


@pytest.mark.parametrize(
    ("sectors", "settings", "expected"),
    [
        ((8, 9, 10), {}, [[0, 1, 2]]),
        ((10, 9, 8), {}, [[2, 1, 0]]),
        ((9, 8, 10), {}, [[1, 0, 2]]),
        ((8, 20, 9), {}, [[0], [1], [2]]),  # only the latest is tried
        ((8, 20, 21), {}, [[0], [1, 2]]),
        ((8, 9), {"nomerges": 1}, [[0, 1]]),
        ((8, 9), {"nomerges": 2}, [[0], [1]]),
        ((8, 9, 10), {"max_segs": 2}, [[0, 1], [2]]),
        ((8, 9, 10), {"max_bytes": 1024}, [[0, 1], [2]]),
    ],
)
def test_who_merges_in_the_plug(sectors: tuple[int, ...], settings: dict[str, int], expected: list[list[int]]) -> None:
    assert plugged(*sectors, **settings) == expected


def test_a_bio_of_another_kind_begins_a_request() -> None:
    block = BlockMq()
    assert [block.submit(0, bio, bio, 8 + bio, 1, 1, 0, True) for bio in range(2)] == ["new", "new"]


def test_plugs_do_not_see_each_other() -> None:
    block = BlockMq()
    assert [block.submit(sub, sub, 0, 8 + sub, 1, 1, 0, True) for sub in range(2)] == ["new", "new"]
    assert [bios_of(block.q, rq) for sub in range(2) for rq in block.plugged(sub)] == [[0], [1]]


def test_a_plug_meets_what_the_scheduler_holds() -> None:
    both = Both(deadline=True)
    for sectors in ((20,), (23,), (21, 30), (22, 40), (19, 50)):  # a back merge, one that closes a gap, a front merge
        for sector in sectors:
            both.submit(0, 0, sector, 1, 1, plain=True)
        both.flush(0)
    order = []
    while (rq := both.real.start(0)) >= 0:
        order.append(bios_of(both.real.q, rq))
    assert order == [[6, 0, 2, 4, 1], [3], [5], [7]]
