"""What is out for too long, by a clock that the tests set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from driver.harness import driver, submit
from driver.test_bio_path import bits_of
from driver.test_map_queues import disk, several
from driver.test_request_path import held
from fake_device import HOLD, FakeDevice, Request
from naive.virtio_blk import INDIRECT
from virtblk.bench.overdue import Overdue, in_flight
from virtblk.block.bio import REQ_OP_READ
from virtblk.driver.virtio_blk import VirtioBlk
from waiting import Background, wait_until

SECOND = 1_000_000_000
#: The time-out of these looks. The driver has one of its own.
TIMEOUT = 10


@contextmanager
def one_at_a_time(device: FakeDevice, submitters: int) -> Iterator[tuple[VirtioBlk, Overdue]]:
    """A ring of four entries, of which a read takes three."""
    with driver(device, submitters=submitters, queue_size=4, without=bits_of(INDIRECT)) as opened:
        yield opened, Overdue(opened, TIMEOUT)


def reads(opened: VirtioBlk, count: int) -> list[Background]:
    return [Background(submit, opened, REQ_OP_READ, 8 * sub, 512, sub=sub) for sub in range(count)]


@pytest.mark.usefixtures("both_paths")
def test_what_does_not_come_back_is_overdue() -> None:
    with FakeDevice(held) as device, driver(device) as opened:
        overdue = Overdue(opened, TIMEOUT)
        assert not any(overdue.look(now * SECOND) for now in range(0, 99, 7)), "nothing is out"
        (waiting,) = reads(opened, 1)
        (request,) = device.wait_for(1)
        found = [overdue.look((100 + now) * SECOND) for now in range(14)]
        assert found == [False] * 12 + [True] * 2, "seen at 0, late at 11, and at 12 still"
        device.complete(request)
        assert waiting.result() == 0
        assert not overdue.look(200 * SECOND)


def test_one_late_look_is_not_enough() -> None:
    """The machine stood still: what had ended was not reaped when the control thread looked."""
    with FakeDevice(held) as device, driver(device) as opened:
        overdue = Overdue(opened, TIMEOUT)
        (waiting,) = reads(opened, 1)
        (request,) = device.wait_for(1)
        assert not overdue.look(0)
        assert not overdue.look(60 * SECOND)
        device.complete(request)
        assert waiting.result() == 0
        assert not overdue.look(61 * SECOND)


@pytest.mark.usefixtures("both_paths")
def test_regression_who_waited_for_room_is_not_overdue() -> None:
    """A bio counted from its submission: a bench whose I/Os waited for room longer than the time-out was ended."""
    with FakeDevice(held) as device, one_at_a_time(device, 3) as (opened, overdue):
        waiting = reads(opened, 3)
        for count in range(1, 4):
            request: Request = device.wait_for(count)[-1]
            times = [count * 9 + part for part in (0, 4, 8)]
            assert not any(overdue.look(now * SECOND) for now in times)
            device.complete(request)
        assert [each.result() for each in waiting] == [0] * 3


def test_the_next_one_in_the_same_place_counts_anew() -> None:
    with FakeDevice(held) as device, one_at_a_time(device, 1) as (opened, overdue):
        for count in range(1, 5):
            (waiting,) = reads(opened, 1)
            request = device.wait_for(count)[-1]
            assert not any(overdue.look((count * 9 + part) * SECOND) for part in (0, 4, 8))
            device.complete(request)
            assert waiting.result() == 0


def test_a_lost_one_is_found_among_others_that_come_back() -> None:
    with (
        FakeDevice(lambda request: held(request) if request.sector == 0 else None) as device,
        driver(device, submitters=2) as opened,
    ):
        overdue = Overdue(opened, TIMEOUT)
        lost = Background(submit, opened, REQ_OP_READ, 0, 512, sub=0)
        (request,) = device.wait_for(1)
        found = []
        for now in range(14):
            assert submit(opened, REQ_OP_READ, 8, 512, sub=1) == 0
            found.append(overdue.look(now * SECOND))
        assert found == [False] * 12 + [True] * 2
        device.complete(request)
        assert lost.result() == 0
        wait_until(lambda: not in_flight(opened.views)[:, 1].any())


def test_what_is_in_flight_is_found_on_any_virtqueue() -> None:
    with disk(lambda request: HOLD if request.queue == 3 else None) as device, several(device) as opened:
        assert not in_flight(opened.views)[:, 1].any()
        began = time.monotonic_ns()
        waiting = Background(submit, opened, REQ_OP_READ, 0, 512, sub=3)
        (late,) = device.wait_for(1)
        assert began <= in_flight(opened.views)[:, 1].max() <= time.monotonic_ns()
        device.complete(late)
        assert waiting.result() == 0
        assert not in_flight(opened.views)[:, 1].any()
