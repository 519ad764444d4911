"""Completion: used rings, statuses and lengths that lie, devices that are late, silent or gone. Nothing hangs."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from conftest import INTERPRETED
from driver.harness import driver, memory_of, read, submit, time_out, write
from driver.test_bio_path import bits_of
from fake_device import HOLD, Answer, FakeDevice, Request
from naive.virtio_blk import GET_ID, IN, INDIRECT, IOERR, OUT, blk_config
from virtblk.block.bio import REQ_OP_FLUSH, REQ_OP_READ, bio_init
from virtblk.driver import completion
from virtblk.driver.completion import virtblk_wait
from virtblk.driver.submit_bio import blk_finish_plug, submit_bio
from virtblk.driver.virtio_blk import DriverOptions, VirtioBlk
from virtblk.jit.atomics import load_i64
from virtblk.jit.libc import clock_ns
from virtblk.virtio.virtio_ring_split import virtqueue_more_used
from waiting import PATIENCE, Background, wait_until

WAYS = [pytest.param(None, id="polling"), pytest.param(0, id="interrupts"), pytest.param(50, id="spin-then-block")]

pytestmark = pytest.mark.usefixtures("both_paths")


def held(request: Request) -> object:
    return None if request.type == GET_ID else HOLD


# Statuses and lengths.


@pytest.mark.parametrize(
    ("status", "error"),
    [(0, 0), (1, errno.EIO), (2, errno.ENOTTY), (3, errno.EIO), (0x7F, errno.EIO), (0xF5, errno.EIO), (255, errno.EIO)],
)
def test_statuses(status: int, error: int) -> None:
    with FakeDevice(lambda r: None if r.type == GET_ID else status) as device, driver(device) as opened:
        assert submit(opened, REQ_OP_FLUSH) == error
        assert submit(opened, REQ_OP_READ, 0, 512) == error
        assert opened.error == 0


def test_a_request_whose_status_was_never_written_failed() -> None:
    with FakeDevice(lambda r: Answer(None) if r.type == IN else None) as device, driver(device) as opened:
        for _ in range(3):  # the status byte of an earlier request must not help
            assert submit(opened, REQ_OP_FLUSH) == 0
            assert submit(opened, REQ_OP_READ, 0, 512) == errno.EIO


@pytest.mark.parametrize("used_len", [0, 1, 512])
def test_a_used_length_that_says_too_little_is_no_crime(used_len: int) -> None:
    """Devices of today say 0 or 1 for whatever they like; the status decides."""
    answer = Answer(0, b"d" * 512, used_len)
    with FakeDevice(lambda r: answer if r.type == IN else None) as device, driver(device) as opened:
        assert read(opened, 0, 512) == b"d" * 512


# Used rings that lie. Each lie comes while three requests are in flight, of which none ever ends.

Lie = Callable[[FakeDevice, list[Request]], None]


def an_id(head: int) -> Lie:
    return lambda device, _: (device.put_used(head, 1), device.publish())[1]


def a_length(length: int) -> Lie:
    return lambda device, requests: device.complete(requests[0], Answer(0, used_len=length))


def an_index(ahead: int) -> Lie:
    return lambda device, _: device.publish(ahead)


def the_same_id_twice(device: FakeDevice, requests: list[Request]) -> None:
    device.put_used(requests[0].head, 513)
    device.put_used(requests[0].head, 513)
    device.publish()


LIES = {
    "id 128, one too many": (an_id(128), "used id 128 "),
    "id 2^32 - 1": (an_id((1 << 32) - 1), "used id 4294967295 "),
    "id that nobody asked for": (an_id(77), "used id 77 is not in flight"),
    "id twice": (the_same_id_twice, "is not in flight"),
    "length of the whole request and one": (a_length(514), "used length 514 "),
    "length 2^32 - 1": (a_length((1 << 32) - 1), "used length 4294967295 "),
    "index ahead of all requests": (an_index(100), "used index moved by 100"),
    "index backwards": (an_index(-1), "used index moved by 65535"),
    "index by half the range": (an_index(32768), "used index moved by 32768"),
}


@pytest.mark.parametrize("poll_us", WAYS)
@pytest.mark.parametrize("name", LIES)
def test_a_used_ring_that_lies_ends_the_queue_and_releases_everybody(name: str, poll_us: int | None) -> None:
    lie, words = LIES[name]
    with FakeDevice(held) as device, driver(device, submitters=3, poll_us=poll_us) as opened:
        waiting = [Background(submit, opened, REQ_OP_READ, 0, 512, sub=sub) for sub in range(3)]
        lie(device, device.wait_for(3))
        codes = [each.result() for each in waiting]
        assert codes.count(-errno.EPROTO) >= 2  # with one id used twice, its owner may have been served
        assert set(codes) <= {-errno.EPROTO, errno.EIO}
        assert opened.error == errno.EPROTO
        message = str(opened.broken_error())
        assert "fake: the device broke the rules of the used ring: " in message
        assert words in message
        assert submit(opened, REQ_OP_READ, 0, 512) == -errno.EPROTO
        assert len(device.io) == 3  # nothing is sent on a broken ring


def test_an_index_within_what_is_in_flight_but_without_an_element() -> None:
    """The element is what an earlier turn of the ring left there: a head that is not in flight any more."""
    with FakeDevice(lambda r: HOLD if r.sector == 9 else None) as device, driver(device, queue_size=4) as opened:
        for _ in range(4):
            assert read(opened, 0, 512) == bytes(512)
        last = Background(submit, opened, REQ_OP_READ, 9, 512)
        wait_until(lambda: device.io and device.io[-1].sector == 9)
        device.publish(ahead=1)
        # Its head may be the stale one: then it has ended, without a status.
        assert last.result() in (-errno.EPROTO, errno.EIO)


# Late, silent and gone.


@pytest.mark.parametrize("poll_us", WAYS)
def test_a_silent_device_is_named_within_the_time_out(poll_us: int | None) -> None:
    with FakeDevice(held) as device, driver(device, submitters=2, poll_us=poll_us) as opened:
        began = time.monotonic()
        waiting = [Background(submit, opened, REQ_OP_READ, 0, 512, sub=sub) for sub in range(2)]
        device.wait_for(2)
        time_out(opened, 0.3)
        assert [each.result() for each in waiting] == [-errno.ETIMEDOUT] * 2
        assert time.monotonic() - began > 0.29
        assert str(opened.broken_error()) == "[Errno 110] fake: the device did not answer in time (0.3 s)"
        assert submit(opened, REQ_OP_READ, 0, 512) == -errno.ETIMEDOUT
        assert len(device.io) == 2, "nothing is sent to a device that was given up"


@pytest.mark.parametrize("poll_us", WAYS)
def test_answers_after_the_time_out_change_nothing(poll_us: int | None) -> None:
    with FakeDevice(held) as device:
        with driver(device, timeout=0.1, poll_us=poll_us) as opened:
            assert submit(opened, REQ_OP_READ, 0, 512) == -errno.ETIMEDOUT
            (late,) = device.wait_for(1)
            device.complete(late)
            assert submit(opened, REQ_OP_READ, 0, 512) == -errno.ETIMEDOUT
            time.sleep(0.02)
            assert opened.error == errno.ETIMEDOUT
        device.disk[:512] = b"z" * 512
        device.publish()  # the driver's memory is gone; the device's mapping of it is not


@pytest.mark.parametrize("poll_us", WAYS)
def test_regression_a_request_that_is_kept_back_times_out_while_others_go_on(
    poll_us: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poller that reaped for others began to count anew each time, and waited for as long as they went on."""
    if INTERPRETED:  # the clock is read between turns, and a turn of the compiled length takes seconds
        monkeypatch.setattr(completion, "TURN_ROUNDS", 16)
    with (
        FakeDevice(lambda r: HOLD if r.sector == 9 else None) as device,
        driver(device, submitters=2, timeout=0.4, poll_us=poll_us, crowded=True) as opened,
    ):
        stop = threading.Event()

        def others() -> int:
            while not stop.is_set():
                if (code := submit(opened, REQ_OP_READ, 0, 512, sub=1)) != 0:
                    return code
            return 0

        busy = Background(others)
        kept = Background(submit, opened, REQ_OP_READ, 9, 512, sub=0)
        try:
            assert kept.result() == -errno.ETIMEDOUT
            assert busy.result() == -errno.ETIMEDOUT
        finally:
            stop.set()


@pytest.mark.parametrize(("poll_us", "both_paths"), [(None, "bio"), (0, "mq"), (50, "bio")], indirect=["both_paths"])
def test_regression_waiting_for_room_is_no_sign_of_a_silent_device(poll_us: int | None) -> None:
    """A slow device and a long queue: who waited for room longer than the time-out broke a queue that moved.

    One request is out at a time, and twelve end within the time-out: a machine that stands still for seconds makes none
    late.
    """
    pace, timeout = 0.4, 5
    submitters = int(timeout / pace) + 2
    given = {"queue_size": 4, "without": bits_of(INDIRECT), "crowded": True}  # a request takes three of four entries

    def slowly(request: Request) -> None:
        if request.type != GET_ID:
            time.sleep(pace)

    with (
        FakeDevice(slowly) as device,
        driver(device, submitters=submitters, timeout=timeout, poll_us=poll_us, **given) as opened,
        ThreadPoolExecutor(submitters) as pool,
    ):
        assert set(pool.map(lambda sub: submit(opened, REQ_OP_READ, 0, 512, sub=sub), range(submitters))) == {0}
        assert opened.ring_full_waits > 0


@pytest.mark.parametrize("poll_us", WAYS)
def test_a_device_that_goes_releases_everybody(poll_us: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve submitters on four descriptors: some wait for their completion, the others for room."""
    # Where it is not compiled in they have to be woken: who is not sleeps longer than is waited for.
    monkeypatch.setattr(completion, "SLEEP_NS", int(3 * PATIENCE * 1e9))
    submitters = 12
    with FakeDevice(held) as device, driver(device, submitters=submitters, queue_size=4, poll_us=poll_us) as opened:
        waiting = [Background(submit, opened, REQ_OP_READ, 0, 512, sub=sub) for sub in range(submitters)]
        device.wait_for(4)
        view = opened.view
        wait_until(
            lambda: (
                view.submitters["ring_full_waits"].sum() == submitters - 4 or view.q.state[0]["in_use"] == submitters
            )
        )
        device.hang_up()
        assert [each.result() for each in waiting] == [-errno.ENODEV] * submitters
        assert str(opened.broken_error()) == "[Errno 19] fake: the device closed the connection"
        assert submit(opened, REQ_OP_READ, 0, 512) == -errno.ENODEV
        assert len(device.io) == 4


def test_the_first_reason_stays() -> None:
    with FakeDevice() as device, driver(device) as opened:
        opened.break_queue(errno.EPROTO)
        device.hang_up()
        wait_until(lambda: opened._monitor is not None and not opened._monitor.is_alive())
        assert opened.error == errno.EPROTO


def test_close_ends_the_completion_thread() -> None:
    with FakeDevice() as device:
        opened = VirtioBlk(device.client, "fake", DriverOptions(poll_us=0))
        ((thread, _),) = opened._completion
        opened.close()
        assert not thread.is_alive()


# Glances: interrupt mode looks for a moment before it blocks, as far as that helps.

LONG_NS = int(3 * PATIENCE * 1e9)


def learned(opened: VirtioBlk, set_to: tuple[int, int] | None = None) -> tuple[int, int]:
    """Waits in which the submitter blocks without a glance, and how many those were after its last one."""
    record = opened.view.submitters[0]
    if set_to is not None:
        record["blind"], record["vain"] = set_to
    return int(record["blind"]), int(record["vain"])


def read_while_it_blocks(device: FakeDevice, opened: VirtioBlk) -> None:
    """A read that the device holds back until the submitter has made up its mind to sleep."""
    sleepers = int(opened.view.queue[0]["sleepers"])
    count = len(device.io) + 1
    reading = Background(submit, opened, REQ_OP_READ, 0, 512)
    request = device.wait_for(count)[-1]
    wait_until(lambda: load_i64(sleepers) == 1)
    device.complete(request)
    assert reading.result() == 0


def test_glances_in_vain_become_rare_and_one_that_helps_makes_them_usual_again() -> None:
    with FakeDevice() as device, driver(device, poll_us=0) as opened:
        d = opened.view
        learned(opened, (0, 0))

        def waits_before_a_glance() -> int:
            waits = 0
            while completion.virtblk_glance(d, 0) == 0:
                waits += 1
            return waits

        for _ in range(2):
            seen = []
            for _ in range(9):
                seen.append(waits_before_a_glance())
                completion.virtblk_glanced(d, 0, False)
            assert seen == [0, 1, 3, 7, 15, 31, 63, 63, 63]
            waits_before_a_glance()
            completion.virtblk_glanced(d, 0, True)


def test_a_wait_that_outlasts_its_glance_blocks_and_the_next_blocks_at_once() -> None:
    with FakeDevice(held) as device, driver(device, poll_us=0) as opened:
        learned(opened, (0, 0))
        for expected in [(1, 1), (0, 1), (3, 3), (2, 3)]:
            read_while_it_blocks(device, opened)
            assert learned(opened) == expected


def test_what_comes_during_a_glance_needs_no_interrupt() -> None:
    with FakeDevice(held) as device, driver(device, poll_us=0) as opened:
        opened.view.queue[0]["glance_ns"] = LONG_NS

        def read_during_a_glance() -> None:
            for seconds in (0.02, 0.2, 2, 20):  # who comes later than that finds it there, without a glance
                learned(opened, (0, 7))
                count = len(device.io) + 1
                reading = Background(submit, opened, REQ_OP_READ, 0, 512)
                request = device.wait_for(count)[-1]
                time.sleep(seconds)
                device.complete(request)
                assert reading.result() == 0
                if learned(opened) != (0, 7):
                    break
            assert learned(opened) == (0, 0)

        read_during_a_glance()  # may be interrupted: who woke GET_ID's submitter asked for one more
        before = device.calls
        read_during_a_glance()
        assert device.calls == before


def test_what_was_there_already_says_nothing_of_glances() -> None:
    with FakeDevice() as device, driver(device, poll_us=0) as opened:
        opened.view.queue[0]["glance_ns"] = LONG_NS
        opened.stop_completion()  # which might reap it first, since who waited for GET_ID asked for an interrupt
        d = opened.view
        learned(opened, (0, 7))
        bio_init(d.bios, 0, REQ_OP_FLUSH, 0, 0, 0, 0, 0, 0)
        assert submit_bio(d, 0, 0, clock_ns()) == 0
        assert blk_finish_plug(d, 0) == 0
        wait_until(lambda: virtqueue_more_used(d.vq))
        assert virtblk_wait(d, 0, 0, True) == 0
        assert learned(opened) == (0, 7)


def test_who_shares_its_core_does_not_glance() -> None:
    with FakeDevice(held) as device, driver(device, poll_us=0, crowded=True) as opened:
        opened.view.queue[0]["glance_ns"] = LONG_NS
        learned(opened, (0, 0))
        read_while_it_blocks(device, opened)
        assert learned(opened) == (0, 0)


# Order and interrupts.


@pytest.mark.parametrize("poll_us", WAYS)
def test_answers_in_any_order_reach_their_own_bios(poll_us: int | None) -> None:
    submitters = 6
    rounds = 3 if INTERPRETED else 10
    random = np.random.default_rng(1)
    with FakeDevice(held) as device, driver(device, submitters=submitters, poll_us=poll_us) as opened:
        device.disk[:] = np.repeat(np.arange(2048) % 251, 512).astype(np.uint8).tobytes()
        for count in range(1, rounds + 1):
            sectors = [int(sector) for sector in random.integers(0, 2048, submitters)]
            waiting = [Background(read, opened, sectors[sub], 512, sub=sub) for sub in range(submitters)]
            requests = device.wait_for(count * submitters)[-submitters:]
            for index in random.permutation(submitters):
                device.complete(requests[index])
            for sector, each in zip(sectors, waiting, strict=True):
                assert each.result() == bytes([sector % 251]) * 512


@pytest.mark.parametrize("poll_us", WAYS)
def test_interrupts_that_nobody_asked_for_are_harmless(poll_us: int | None) -> None:
    with FakeDevice(always_call=True) as device, driver(device, poll_us=poll_us) as opened:
        for sector in range(20):
            assert opened.queue is not None
            os.eventfd_write(opened.queue.call_fd, 1)
            assert write(opened, sector, b"w" * 512) == 0
        assert device.calls == len(device.requests)


def test_errors_of_a_bio_leave_the_queue_in_order() -> None:
    config = blk_config(capacity=16)
    with FakeDevice(lambda r: IOERR if r.sector % 2 else None, config=config) as device, driver(device) as opened:
        for sector in range(8):
            assert write(opened, sector, b"w" * 512) == (errno.EIO if sector % 2 else 0)
        assert [r.sector for r in device.io if r.type == OUT] == list(range(8))
        assert (memory_of(opened)[:512] == ord("w")).all()
