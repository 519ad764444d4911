"""The flush machinery against its twin, and what any such machinery owes: order of steps, and FLUSHes that count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from block.harness import BIOS, bios_of, fresh, listed, queue
from naive.blk_flush import DATA, POST, PRE, NaiveFlush
from virtblk.block.bio import REQ_FUA, REQ_OP_FLUSH, REQ_OP_WRITE, REQ_PREFLUSH
from virtblk.block.blk_flush import FLUSH_PENDING_TIMEOUT_NS, blk_flush_end_io, blk_insert_flush
from virtblk.block.elevator import blk_peek_request, blk_start_request
from virtblk.block.request import LIST_DONE, RQ_DRIVER, RequestQueue, blk_put_request, list_del

#: op, flags, bytes, and the steps in order (the table of the merged patch).
KINDS: list[tuple[int, int, int, list[str]]] = [
    (REQ_OP_FLUSH, 0, 0, [PRE]),
    (REQ_OP_WRITE, REQ_PREFLUSH, 0, [PRE]),
    (REQ_OP_WRITE, REQ_PREFLUSH, 512, [PRE, DATA]),
    (REQ_OP_WRITE, REQ_FUA, 512, [DATA, POST]),
    (REQ_OP_WRITE, REQ_PREFLUSH | REQ_FUA, 512, [PRE, DATA, POST]),
]
FLUSH = "FLUSH"
INSERT, START, END, FAIL = range(4)


class Both:
    """The machinery and its twin, with a log of what the device would have seen: (time, began or ended, who, error)."""

    def __init__(self) -> None:
        self.q: RequestQueue = queue(capacity=BIOS)
        self.twin = NaiveFlush()
        self.now = 0
        self.inserted: dict[int, tuple[int, list[str]]] = {}
        self.out: list[tuple[int, Any]] = []
        self.log: list[tuple[str, str, int, int]] = []
        self.done: list[tuple[int, int]] = []
        self.ended_at: dict[int, int] = {}

    def insert(self, kind: int) -> None:
        op, flags, size, steps = KINDS[kind]
        number = len(self.inserted)
        self.inserted[number] = len(self.log), steps
        rq = fresh(self.q, op, number, size, bio=number, flags=flags, now=self.now)
        blk_insert_flush(self.q, rq, self.now)
        self.twin.insert(number, steps, self.now)

    def start(self) -> None:
        rq = int(blk_peek_request(self.q, self.now))
        if not self.twin.dispatch:
            assert rq == -1
            return
        expected = self.twin.dispatch.pop(0)
        blk_start_request(self.q, rq)
        if expected is None:
            assert rq == self.q.state[0]["flush_rq"]
            assert (self.q.rq[rq]["op"], self.q.rq[rq]["bytes"]) == (REQ_OP_FLUSH, 0)
            self.log.append(("began", FLUSH, -1, 0))
        else:
            assert bios_of(self.q, rq) == [expected.number]
            self.log.append(("began", DATA, expected.number, 0))
        self.out.append((rq, expected))

    def end(self, which: int, error: int) -> None:
        rq, expected = self.out.pop(which % len(self.out))
        self.log.append(("ended", DATA if expected else FLUSH, expected.number if expected else -1, error))
        blk_flush_end_io(self.q, rq, error, self.now)
        if expected is None:
            self.twin.flush_ended(error, self.now)
        else:
            self.twin.data_ended(expected, error, self.now)

    def check(self) -> None:
        for rq in listed(self.q, LIST_DONE):
            (number,) = bios_of(self.q, rq)
            self.done.append((number, int(self.q.rq[rq]["error"])))
            self.ended_at[number] = len(self.log)
            list_del(self.q, rq)
            blk_put_request(self.q, rq)
        assert self.done == self.twin.done
        assert self.q.state[0]["in_use"] == len(self.inserted) - len(self.done)
        # Only what the driver has counts as its own: the time-out looks at nothing else.
        with_driver = {rq for rq, _ in self.out}
        assert {int(rq) for rq in (self.q.rq["where"] == RQ_DRIVER).nonzero()[0]} == with_driver

    def step(self, kind: int, which: int, later: int) -> None:
        self.now += later
        if kind == INSERT and len(self.inserted) < BIOS:
            self.insert(which % len(KINDS))
        elif kind == START:
            self.start()
        elif kind in (END, FAIL) and self.out:
            self.end(which, 5 + which % 2 if kind == FAIL else 0)
        self.check()

    def drain(self) -> None:
        while len(self.done) < len(self.inserted):
            before = len(self.done), len(self.log)
            while self.twin.dispatch:
                self.step(START, 0, 0)
            if self.out:
                self.step(END, 0, 0)
            assert before != (len(self.done), len(self.log)), "stuck"

    def verify(self) -> None:
        """From the log alone: each sequence kept its order, and every FLUSH that it counts on began in time."""
        for number, error in self.done:
            at, steps = self.inserted[number]
            last = self.ended_at[number] - 1  # the end that ended it
            flushes = [i for i in range(last + 1) if self.log[i][:2] == ("began", FLUSH)]
            sent = [i for i in range(last + 1) if self.log[i][:3] == ("began", DATA, number)]
            assert len(sent) <= 1
            if PRE in steps and sent:  # a FLUSH began after it came, and ended well before its data was sent
                ends = [
                    self.log.index(entry, i)
                    for i in flushes
                    if i >= at
                    for entry in [("ended", FLUSH, -1, 0)]
                    if entry in self.log[i : sent[0]]
                ]
                assert ends
                assert min(ends) < sent[0]
            if self.log[last][1] == DATA:
                assert self.log[last][2] == number
                assert steps[-1] == DATA or error
            else:
                if POST in steps and sent:  # the FLUSH that vouches for its data began after that had ended
                    at = next(i for i, entry in enumerate(self.log) if entry[:3] == ("ended", DATA, number))
                assert flushes[-1] >= at
                assert sent or DATA not in steps or error
            assert error == self.log[last][3]


STEPS = st.lists(
    st.tuples(
        st.sampled_from([INSERT, INSERT, START, START, END, END, FAIL]),
        st.integers(0, 20),
        st.sampled_from([0, 1, 1, FLUSH_PENDING_TIMEOUT_NS // 2, FLUSH_PENDING_TIMEOUT_NS]),
    ),
    max_size=80,
)


@given(STEPS)
def test_the_machinery_agrees_with_its_twin(steps: list[tuple[int, int, int]]) -> None:
    both = Both()
    for step in steps:
        both.step(*step)
    both.drain()
    both.verify()
    assert both.q.state[0]["flushes"] == both.log.count(("began", FLUSH, -1, 0))


def test_one_flush_serves_all_that_wait_for_it() -> None:
    both = Both()
    for _ in range(20):  # the first goes out at once, the others collect
        both.step(INSERT, 0, 1)
    both.drain()
    assert both.q.state[0]["flushes"] == 2
    assert [number for number, _ in both.done] == list(range(20))


def test_data_that_is_out_holds_the_flush_back_for_a_bounded_time() -> None:
    both = Both()
    both.step(INSERT, 3, 1)
    both.step(INSERT, 3, 1)
    for _ in range(2):
        both.step(START, 0, 1)
    both.step(END, 0, 1)
    both.step(START, 0, 1)
    assert both.q.state[0]["flushes"] == 0  # the other's data will need one too
    both.step(INSERT, 0, FLUSH_PENDING_TIMEOUT_NS)
    both.step(START, 0, 1)
    assert both.q.state[0]["flushes"] == 1
    both.drain()
    both.verify()


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_an_error_is_the_last_step(kind: int) -> None:
    steps = KINDS[kind][3]
    for failing in range(len(steps)):
        both = Both()
        both.step(INSERT, kind, 1)
        for index in range(failing + 1):
            both.step(START, 0, 1)
            both.step(FAIL if index == failing else END, 0, 1)
        both.step(START, 0, 1)
        assert both.done == [(0, 5)]
        assert len(both.log) == 2 * (failing + 1)


def test_regression_what_waits_for_its_flush_is_not_with_the_driver() -> None:
    """The time-out counted from the last FLUSH's start, though it had ended: a slow but live device was given up."""
    both = Both()
    both.step(INSERT, 3, 1)
    both.step(START, 0, 1)
    both.step(END, 0, 1)
    assert not (both.q.rq["where"] == RQ_DRIVER).any()
    both.step(START, 0, 1)
    both.step(END, 0, 1)
    assert both.done == [(0, 0)]
    assert not (both.q.rq["where"] == RQ_DRIVER).any()
