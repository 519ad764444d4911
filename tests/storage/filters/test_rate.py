"""`rate` against the definition of a token bucket, by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage.filters.harness import SECTOR, Call, LowerDisk, filtered, flush, read_call
from storage.test_timer import FakeClock
from virtblk.storage.io_request import Request
from virtblk.storage.request import OP_FLUSH
from virtblk.storage.timer import Timer


class Timed(LowerDisk):
    """Notes when each request arrives."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.arrived: list[tuple[float, int, int]] = []

    def execute(self, request: Request) -> None:
        self.arrived.append((self.clock.now, request.offset, request.length))
        super().execute(request)


#: Milliseconds of a pause, and sectors of the read after it.
STEPS = st.lists(st.tuples(st.sampled_from([0, 0, 1, 7, 50]), st.integers(1, 8)), min_size=1, max_size=25)


@example([(0, 1), (0, 3), (0, 1)], 0, True, True)  # the second waits for one limit; it has to pay the other then
@given(STEPS, st.sampled_from([0, 5, 20]), st.booleans(), st.booleans())
def test_never_more_than_the_bucket_and_its_rate(
    steps: list[tuple[int, int]], burst: int, iops: bool, bw: bool
) -> None:
    """In any time no more starts than that time and the burst pay for, and one request; and no later than needed."""
    clock = FakeClock()
    clock.now = 0.0
    lower, timer = Timed(clock), Timer("test", clock)
    rates = ["iops=100"] * iops + ["bw=100k"] * (bw or not iops)
    disk = filtered(lower, f"rate?{'&'.join(rates)}&burst={burst}ms", timer=timer)
    for number, (pause, sectors) in enumerate(steps):
        for _ in range(pause):
            clock.now = round(clock.now + 0.001, 3)
            timer.run_due()
        disk.submit([read_call(number * SECTOR % 8192, sectors * SECTOR).request])
    while timer.waiting:
        clock.now = round(clock.now + 0.001, 3)
        timer.run_due()
    arrived = lower.arrived
    assert [offset for _when, offset, _length in arrived] == [i * SECTOR % 8192 for i in range(len(steps))]
    for cost in [lambda length: 0.01] * iops + [lambda length: length / 102400] * (bw or not iops):
        for first in range(len(arrived)):
            paid = 0.0
            for last in range(first + 1, len(arrived)):
                paid += cost(arrived[last - 1][2])
                assert paid <= arrived[last][0] - arrived[first][0] + burst / 1000 + 0.0011
    # Paying for all of them one after the other takes longer than it took.
    total = sum(
        (0.01 if iops else 0) + (length / 102400 if bw or not iops else 0) for _when, _offset, length in arrived
    )
    assert clock.now <= sum(pause for pause, _sectors in steps) / 1000 + total + 0.002 * len(steps)


def test_a_burst_starts_at_once_and_the_rest_at_the_rate() -> None:
    clock = FakeClock()
    lower, timer = Timed(clock), Timer("test", clock)
    disk = filtered(lower, "rate?iops=10&burst=300ms", timer=timer)
    disk.submit([Call(OP_FLUSH).request for _ in range(6)])
    assert len(lower.arrived) == 4
    assert (disk.counters()["rate_delayed"], disk.counters()["rate_waiting"]) == (2, 2)
    clock.now += 0.101
    timer.run_due()
    assert len(lower.arrived) == 5
    clock.now += 0.1
    timer.run_due()
    assert len(lower.arrived) == 6
    disk.close()


def test_a_request_does_not_overtake_those_that_are_due() -> None:
    clock = FakeClock()
    lower, timer = Timed(clock), Timer("test", clock)
    disk = filtered(lower, "rate?iops=10&burst=0s", timer=timer)
    for offset in (0, 512):
        disk.submit([read_call(offset, 512).request])
    clock.now += 1
    disk.submit([read_call(1024, 512).request])
    timer.run_due()
    assert [offset for _when, offset, _length in lower.arrived] == [0, 512, 1024]
    disk.close()


def test_a_flush_costs_no_bytes_and_a_request_larger_than_the_bucket_passes() -> None:
    clock = FakeClock()
    lower, timer = Timed(clock), Timer("test", clock)
    disk = filtered(lower, "rate?bw=1k&burst=0s", timer=timer)
    disk.submit([Call(OP_FLUSH).request, Call(OP_FLUSH).request, read_call(0, 8192).request])
    assert len(lower.arrived) == 3
    disk.submit([Call(OP_FLUSH).request])
    clock.now += 7.9
    timer.run_due()
    assert len(lower.arrived) == 3
    clock.now += 0.2
    timer.run_due()
    assert len(lower.arrived) == 4
    disk.close()


@pytest.mark.parametrize("text", ["rate?iops=1000&burst=0s", "rate?bw=1m"])
def test_the_real_clock(text: str) -> None:
    disk = filtered(LowerDisk(), text)
    disk.start()
    assert [flush(disk) for _ in range(3)] == [0, 0, 0]
    disk.close()
