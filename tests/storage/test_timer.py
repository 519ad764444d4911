"""The timer: by a clock that the test moves, and its thread by the real one."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.storage.timer import Timer
from waiting import PATIENCE, wait_until


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 6), max_size=4))
def test_calls_run_when_they_are_due_in_the_order_of_their_times(times: list[int], moments: list[int]) -> None:
    clock, ran = FakeClock(), []
    timer = Timer("test", clock)
    for number, when in enumerate(times):
        timer.at(100.0 + when, lambda item=(when, number): ran.append(item))
    due = sorted((when, number) for number, when in enumerate(times))
    for moment in sorted(moments):
        clock.now = 100.0 + moment
        timer.run_due()
        assert ran == [item for item in due if item[0] <= moment]
        assert timer.waiting == len(due) - len(ran)
    timer.close()
    assert ran == due


def test_a_call_may_ask_for_another() -> None:
    clock, ran = FakeClock(), []
    timer = Timer("test", clock)
    timer.at(100.0, lambda: timer.at(100.0, lambda: ran.append(1)))
    timer.run_due()
    assert ran == [1]
    timer.close()


def test_the_thread_runs_them_and_an_earlier_call_wakes_it() -> None:
    timer, late, early = Timer("test"), threading.Event(), threading.Event()
    timer.start()
    timer.start()
    timer.at(timer.clock() + 3600, late.set)
    wait_until(lambda: timer.waiting == 1)
    timer.at(timer.clock() + 0.001, early.set)
    assert early.wait(PATIENCE)
    assert not late.is_set()
    timer.close()
    assert late.is_set()  # no request is lost
    timer.close()


def test_a_call_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    timer, ran = Timer("test"), threading.Event()
    timer.at(0.0, lambda: 1 / 0)
    timer.at(0.0, ran.set)
    timer.start()
    assert ran.wait(PATIENCE)
    timer.close()
    assert "test: a call failed" in caplog.text
