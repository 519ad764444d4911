"""`delay`, by a clock that the test moves."""

from __future__ import annotations

import pytest

from storage.filters.harness import Call, LowerDisk, filtered, flush, read_call, write_call
from storage.test_timer import FakeClock
from virtblk.storage.request import OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES
from virtblk.storage.timer import Timer

TEXT = "delay?read=10ms&write=20ms,flush=0s&zero=1.5s&all=200us"


def calls() -> dict[int, Call]:
    return {
        OP_READ: read_call(0, 512),
        OP_WRITE: write_call(0, bytes(512)),
        OP_FLUSH: Call(OP_FLUSH),
        OP_DISCARD: Call(OP_DISCARD, ranges=[(0, 512)]),
        OP_WRITE_ZEROES: Call(OP_WRITE_ZEROES, ranges=[(0, 512)]),
    }


def test_each_operation_starts_after_its_own_time() -> None:
    lower, clock = LowerDisk(), FakeClock()
    timer = Timer("test", clock)
    disk = filtered(lower, TEXT, timer=timer)
    disk.submit([call.request for call in calls().values()])
    started = []
    for microseconds in (0, 199, 201, 9_999, 10_001, 19_999, 20_001, 1_499_999, 1_500_001):
        clock.now = 100 + microseconds / 1e6
        timer.run_due()
        started.append(lower.ops())
    first = [OP_FLUSH]
    second = [*first, OP_DISCARD]
    third = [*second, OP_READ]
    fourth = [*third, OP_WRITE]
    fifth = [*fourth, OP_WRITE_ZEROES]
    assert started == [first, first, second, second, third, third, fourth, fourth, fifth]
    assert disk.counters()["delay_waiting"] == 0
    disk.close()


def test_requests_of_one_delay_keep_their_order() -> None:
    lower, clock = LowerDisk(), FakeClock()
    timer = Timer("test", clock)
    disk = filtered(lower, "delay?all=1ms", timer=timer)
    offsets = [1024, 0, 512, 2048]
    for offset in offsets:
        disk.submit([read_call(offset, 512).request])
    assert lower.asked == []
    assert disk.counters()["delay_waiting"] == len(offsets)
    clock.now += 1
    timer.run_due()
    assert [request.offset for request in lower.asked] == offsets
    disk.close()


@pytest.mark.parametrize("started", [True, False])
def test_what_waits_at_close_is_not_lost(started: bool) -> None:
    lower = LowerDisk()
    disk = filtered(lower, "delay?all=60m")
    if started:
        disk.start()
    call = Call(OP_FLUSH)
    disk.submit([call.request])
    assert call.running
    disk.close()
    assert call.error == 0
    assert lower.closes == 1


def test_the_real_clock() -> None:
    disk = filtered(LowerDisk(), "delay?all=1ms")
    disk.start()
    assert flush(disk) == 0
    disk.close()
