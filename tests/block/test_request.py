"""The pool of requests: nr_requests, changed while some are out, and which one comes next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from block.harness import CAPACITY, fresh, listed, queue
from virtblk.block.bio import REQ_FUA, REQ_OP_FLUSH, REQ_OP_GET_ID, REQ_OP_READ, REQ_OP_WRITE, REQ_PREFLUSH
from virtblk.block.request import (
    LIST_FIFO,
    RQ_FREE,
    blk_put_request,
    get_request,
    list_add,
    list_add_tail,
    list_del,
    list_first,
    list_head,
    rq_data_dir,
    rq_is_flush,
    rq_mergeable,
)

GET, PUT, LIMIT = range(3)
STEPS = st.lists(st.tuples(st.sampled_from([GET, GET, GET, PUT, PUT, LIMIT]), st.integers(0, CAPACITY)), max_size=150)


@given(STEPS)
def test_the_pool_is_a_stack_with_a_limit(steps: list[tuple[int, int]]) -> None:
    q = queue()
    free = list(range(CAPACITY))[::-1]
    out: list[int] = []
    limit = most = CAPACITY
    most = 0
    for step, number in steps:
        if step == LIMIT:
            limit = max(number, 4)
            q.state[0]["nr_requests"] = limit
        elif step == GET:
            got = int(get_request(q))
            assert got == (free.pop() if len(out) < limit else -1)
            if got >= 0:
                out.append(got)
        elif out:
            free.append(out.pop(number % len(out)))
            q.rq[free[-1]]["where"] = 9
            blk_put_request(q, free[-1])
            assert q.rq[free[-1]]["where"] == RQ_FREE
        most = max(most, len(out))
        assert q.state[0]["in_use"] == len(out)
        assert q.state[0]["most_used"] == most
        assert all(rq < most for rq in out)  # what the time-out looks through


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), max_size=40))
def test_lists(steps: list[tuple[int, int]]) -> None:
    q = queue()
    head = list_head(q, LIST_FIFO)
    line: list[int] = []
    for step, which in steps:
        if step == 2 and line:
            list_del(q, line.pop(which % len(line)))
        elif step < 2:
            rq = int(get_request(q))
            (list_add_tail if step else list_add)(q, head, rq)
            line.insert(len(line) if step else 0, rq)
        assert listed(q, LIST_FIFO) == line
        assert list_first(q, head) == (line[0] if line else -1)


def test_kinds() -> None:
    """Direction, what merges, and what the flush machinery takes."""
    seen = {}
    for op in (REQ_OP_READ, REQ_OP_WRITE, REQ_OP_FLUSH, REQ_OP_GET_ID):
        for flags in (0, REQ_FUA, REQ_PREFLUSH):
            q = queue()
            rq = fresh(q, op, 0, 512, flags=flags)
            seen[op, flags] = int(rq_data_dir(q, rq)), bool(rq_mergeable(q, rq)), bool(rq_is_flush(q, rq))
    plain = {key for key, (_, mergeable, _) in seen.items() if mergeable}
    assert plain == {(REQ_OP_READ, 0), (REQ_OP_WRITE, 0)}
    assert {key for key, (_, _, flush) in seen.items() if not flush} == {*plain, (REQ_OP_GET_ID, 0)}
    assert {op for (op, _), (direction, _, _) in seen.items() if direction == 0} == {REQ_OP_READ}
