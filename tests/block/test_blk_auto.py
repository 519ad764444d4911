"""The rule of the path auto: window by window against a twin, and what becomes of it on disks of known kinds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naive.blk_auto import NaiveAuto, Window
from virtblk.block.blk_auto import WINDOW_NS, blk_auto_merges, blk_auto_sorts, blk_auto_window
from virtblk.block.request_queue import blk_auto_record

MS = 1_000_000


class Rule:
    """The kernels, asked as driver.auto asks them."""

    def __init__(self) -> None:
        self.auto = blk_auto_record()

    def state(self) -> tuple[bool, bool]:
        return bool(blk_auto_merges(self.auto)), bool(blk_auto_sorts(self.auto))

    def close(self, window: Window) -> None:
        blk_auto_window(self.auto, window.requests, window.ios, window.mergeable, window.full, window.ns)

    @property
    def counters(self) -> tuple[int, int, int]:
        return tuple(int(self.auto[0][name]) for name in ("windows", "trials", "changes"))


REQUESTS = st.sampled_from([64, 100, 1000, 5000])
WINDOWS = st.builds(
    lambda requests, merges, met, full, ms: Window(
        requests, requests * merges, requests * merges * met // 8, full, ms * MS
    ),
    REQUESTS,
    st.sampled_from([1, 1, 2, 32]),
    st.integers(0, 8),
    st.integers(0, 2),
    st.sampled_from([20, 21, 23, 40, 200, 6000]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(WINDOWS, st.integers(1, 40)), min_size=1, max_size=40))
def test_the_rule_agrees_with_its_twin(phases: list[tuple[Window, int]]) -> None:
    rule, twin = Rule(), NaiveAuto()
    count = 0
    for window, times in phases:
        for _ in range(times):
            assert rule.state() == twin.state()
            rule.close(window)
            twin.close(window)
            count += 1
            assert rule.counters == (count, twin.trials, twin.changes)


# The table: a window, repeated, that leads to no trial, or to one, and when.

FAST = Window(requests=20_000, ios=20_000, mergeable=0, full=9, ns=WINDOW_NS)
SLOW = Window(requests=100, ios=100, mergeable=0, full=9, ns=WINDOW_NS)


def but(window: Window, **changes: int) -> Window:
    return Window(**(vars(window) | changes))


@pytest.mark.parametrize(
    ("window", "trial", "after"),
    [
        (FAST, None, 0),
        (but(FAST, mergeable=20_000), None, 0),  # the work per request is the limit, and merging saves it
        (SLOW, "elevator", 2),
        (but(SLOW, full=0), None, 0),  # all of it is in the ring: the device can sort it
        (but(SLOW, requests=1000, ios=1000), "elevator", 2),  # 20 us each
        (but(SLOW, requests=1001, ios=1001), None, 0),
        (but(SLOW, full=0, mergeable=100), "merging", 32),
        (but(SLOW, full=0, mergeable=12), None, 0),  # fewer than one in eight
        (but(SLOW, full=0, requests=5000, ios=5000, mergeable=5000), "merging", 32),  # 4 us each
        (but(SLOW, full=0, requests=5001, ios=5001, mergeable=5001), None, 0),
    ],
)
def test_what_is_tried_and_when(window: Window, trial: str | None, after: int) -> None:
    rule = Rule()
    for number in range(1, 101):
        before = rule.state()
        rule.close(window)
        if number < after or trial is None:
            assert rule.state() == before == (True, False)
        if number == after:
            assert rule.state() == ((False, False) if trial == "merging" else (True, True))
            return
    assert rule.counters == (100, 0, 0)


@pytest.mark.parametrize(
    ("speeds", "states", "elevator"),
    [
        ([94], "-", 0),  # in vain at once
        ([104], "-", 0),
        ([105, 100, 105], "-x-", 1),
        ([120, 100, 104], "-x-", 0),
        ([120, 119, 120], "-x-", 0),  # the load had changed, not what we did of it
        ([120, 90, 95], "-x-", 1),
    ],
)
def test_a_trial(speeds: list[int], states: str, elevator: int) -> None:
    rule = Rule()
    for _ in range(2):
        rule.close(SLOW)  # 100 I/Os: speed 100
    seen = []
    for speed in speeds:
        seen.append(rule.state()[1])
        rule.close(but(SLOW, ios=speed, requests=speed))
    assert seen == [state == "-" for state in states]
    assert rule.auto[0]["trial"] == 0
    assert rule.state() == (True, bool(elevator))
    assert rule.counters[1:] == (1, elevator)


def test_trials_in_vain_become_rare() -> None:
    rule = Rule()
    begun = []
    for number in range(6000):
        trials = rule.counters[1]
        rule.close(SLOW)
        if rule.counters[1] > trials:
            begun.append(number)
    gaps = np.diff(begun).tolist()
    assert gaps[:5] == [65, 129, 257, 513, 1025]
    assert set(gaps[5:]) == {1025}


@pytest.mark.parametrize(
    ("window", "kept"),
    [(SLOW, True), (but(SLOW, full=0), False), (but(SLOW, requests=1999, ios=1999), True), (FAST, False)],
)
def test_an_elevator_goes_when_nothing_speaks_for_it(window: Window, kept: bool) -> None:
    rule = Rule()
    rule.auto[0]["elevator"] = 1
    rule.auto[0]["elevator_in"] = 1000
    rule.close(window)
    assert rule.state() == (True, kept)


# Disks of known kinds.

Model = Callable[[bool, bool], Window]


def seeks(merging: bool, elevator: bool) -> Window:
    """Random reads of a rotating disk that does not sort: the elevator halves the way."""
    return Window(64, 64, 0, 50, 64 * (4 * MS if elevator else 8 * MS))


def flash(merging: bool, elevator: bool) -> Window:
    """A disk of many channels that serves a request on one of them: sequential I/O is faster in pieces."""
    ios = 5_000 if merging else 8_000
    return Window(ios // 32 if merging else ios, ios, ios * 31 // 32, 0, 2 * WINDOW_NS)


def memory(merging: bool, elevator: bool) -> Window:
    """What is limited by the work per request."""
    ios = 80_000 if merging else 20_000
    return Window(ios // 32 if merging else ios, ios, ios * 31 // 32, 3, WINDOW_NS)


def indifferent(merging: bool, elevator: bool) -> Window:
    """A slow disk that sorts for itself, and whose time goes by bytes."""
    return Window(200, 200, 100, 20, 20 * WINDOW_NS)


@pytest.mark.parametrize(
    ("model", "state"),
    [(seeks, (True, True)), (flash, (False, False)), (memory, (True, False)), (indifferent, (True, False))],
)
@pytest.mark.parametrize("noise", [0.0, 0.03, 0.2])
def test_where_it_settles(model: Model, state: tuple[bool, bool], noise: float) -> None:
    """And what it costs: less than 2 % of the speed of whoever knew it beforehand, in the first minute or so."""
    rng = np.random.default_rng(5)
    rule = Rule()
    ios = ns = 0
    settled = 0
    for number in range(2000):
        window = model(*rule.state())
        ios, ns = ios + window.ios, ns + window.ns
        window.ns = int(window.ns * np.exp(noise * rng.standard_normal()))
        rule.close(window)
        if number >= 200:
            settled += (bool(rule.auto[0]["merging"]), bool(rule.auto[0]["elevator"])) == state
    if noise < 0.1:
        assert settled == 1800
        assert rule.counters[2] == (state != (True, False))
    elif model is not indifferent:  # there it is the same whatever it does
        assert settled > 1700
    assert ios / ns > 0.98 * model(*state).speed


def test_a_load_that_changes_is_followed() -> None:
    rule = Rule()

    def run(model: Model, windows: int) -> None:
        for _ in range(windows):
            rule.close(model(*rule.state()))

    run(seeks, 20)
    assert rule.state() == (True, True)
    run(memory, 1)
    assert rule.state() == (True, False)
    run(memory, 500)
    assert rule.state() == (True, False)
    run(flash, 50)
    assert rule.state() == (False, False)
    run(memory, 1)
    assert rule.state() == (True, False)
    run(seeks, 20)
    assert rule.state() == (True, True)
