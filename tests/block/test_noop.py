"""noop: first in, first out, and neighbours in that order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from block.harness import fresh, listed, queue
from virtblk.block.noop import noop_add_request, noop_dispatch, noop_neighbour
from virtblk.block.request import LIST_DISPATCH, LIST_FIFO, RQ_DISPATCH


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 1)), max_size=60))
def test_first_in_first_out_whatever_sector_and_direction(steps: list[tuple[bool, int, int]]) -> None:
    q = queue()
    waiting: list[int] = []
    dispatched: list[int] = []
    for add, sector, op in steps:
        if add:
            waiting.append(fresh(q, op, sector, 512))
            noop_add_request(q, waiting[-1])
        elif waiting:
            noop_dispatch(q)
            dispatched.append(waiting.pop(0))
        assert listed(q, LIST_FIFO) == waiting
        assert listed(q, LIST_DISPATCH) == dispatched
        for before, after in zip([-1, *waiting], [*waiting, -1], strict=True):
            assert before == -1 or noop_neighbour(q, before, True) == after
            assert after == -1 or noop_neighbour(q, after, False) == before
    assert all(q.rq[rq]["where"] == RQ_DISPATCH for rq in dispatched)
