"""Rings of the device: sizes, indices, interrupts, rings that break, changes while requests are in flight."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from conftest import INTERPRETED
from device.guest import GUEST, RING_NAMES, RINGS, USER, Guest, Queue, header
from naive.ring import Buffer
from naive.virtio_blk import IN, OK
from virtblk.vhost_user.frontend import Region
from waiting import PATIENCE, wait_until

ROUNDS = 30 if INTERPRETED else 200


# Rings.


@pytest.mark.parametrize("num", [1, 2, 4, 1024, 32768])
def test_ring_sizes(num: int) -> None:
    with Guest(num=num) as guest:
        for sector in range(10):
            buffers = [guest.buffer(header(IN, sector)), guest.room(513)]
            token = guest.queue.add(buffers, guest.alloc(64, 16))
            assert guest.queue.wait(token) == 513


@pytest.mark.parametrize("base", [0, 1, 65530, 65535])
@pytest.mark.parametrize("features", RINGS, ids=RING_NAMES)
def test_indices_wrap(base: int, features: int) -> None:
    with Guest(base=base, num=8, features=features, poll_us=0) as guest:
        for sector in range(20):
            assert guest.queue.read(sector, 512) == bytes(512)
        assert guest.queue.stop() == (base + 20) % 65536


@pytest.mark.parametrize("poll_us", [0, 32])
@pytest.mark.parametrize("features", RINGS, ids=RING_NAMES)
def test_an_interrupt_comes_when_it_was_asked_for(features: int, poll_us: int) -> None:
    with Guest(features=features, poll_us=poll_us) as guest:
        queue = guest.queue
        queue.driver.disable()
        assert queue.read(0, 512) == bytes(512)
        assert not queue.called(0.02)
        for sector in range(20):
            assert queue.driver.enable()
            token = queue.add([guest.buffer(header(IN, sector)), guest.room(513)])
            assert queue.called()
            assert queue.wait(token) == 513
            queue.driver.disable()


def test_an_idle_worker_sleeps_and_wakes_by_the_kick_that_it_asked_for() -> None:
    """The driver's part of the rule: it kicks only when it is told to. Nothing may get lost."""
    with Guest(poll_us=0) as guest:
        queue = guest.queue
        kicks = 0
        for sector in range(ROUNDS):
            queue.tokens += 1
            queue.driver.add([guest.buffer(header(IN, sector % 8)), guest.room(513)], queue.tokens)
            if queue.driver.kick():
                kicks += 1
                queue.kick()
            assert queue.wait(queue.tokens) == 513
        assert kicks > 0


def test_chains_longer_than_the_ring_through_an_indirect_table() -> None:
    """Windows sends more than seg_max (spdk#2330)."""
    with Guest(num=4, size=8 << 20) as guest:
        pieces = [512] * 600
        answer = guest.queue.framed([header(IN)], [*pieces, 1], indirect=True)
        assert (answer.used, answer.status) == (600 * 512 + 1, 0)


# Rings that break.

LOOP = ((GUEST, 16, 1, 0),)
BREAKS = {
    "loop": (LOOP, "a loop"),
    "next outside": (((GUEST, 16, 1, 999),), "next 999 is outside"),
    "nowhere": (((0, 16, 0, 0),), "address 0x0 is in no memory region"),
    "user address": (((USER, 16, 0, 0),), "is in no memory region"),
    "indirect of 8 bytes": (((GUEST, 8, 4, 0),), "indirect table of 8 bytes"),
    "readable after writable": (((GUEST, 16, 3, 1), (GUEST, 16, 0, 0)), "after a device-writable one"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_ring_that_breaks_leaves_the_others_at_work(name: str, caplog: pytest.LogCaptureFixture) -> None:
    descriptors, words = BREAKS[name]
    with Guest(queues=3) as guest:
        first, bad, last = guest.queues
        assert bad.write(1, b"b" * 512) == 0
        bad.raw(*descriptors)
        assert bad.broke()
        assert words in caplog.text
        assert "queue 1 is broken" in caplog.text
        for queue in (first, last):
            assert queue.read(1, 512) == b"b" * 512
        assert bad.is_quiet()
        assert guest.front.get_queue_num() == 3  # the session goes on, and the ring can be started anew
        bad.stop()
        again = Queue(guest, 1, 64)
        again.start()
        assert again.read(1, 512) == b"b" * 512
        again.close()


def test_requests_before_the_bad_one_are_answered() -> None:
    with Guest() as guest:
        queue = guest.queue
        queue.stop()
        token = queue.add([guest.buffer(header(IN)), guest.room(513)])
        queue.ring.set_avail_head(queue.driver.idx, 60000)
        queue.ring.set_avail_idx(queue.driver.idx + 1)
        queue.start()
        assert queue.wait(token) == 513
        assert queue.broke()


@pytest.mark.parametrize("kind", ["eventfd", "pipe"])
def test_regression_an_err_fd_that_is_full_does_not_hold_up_the_device(kind: str) -> None:
    """The thread of a broken ring wrote to it whatever its state: it raised on the one, and blocked on the other."""
    with Guest(start=False) as guest:
        queue = guest.queue
        if kind == "eventfd":
            os.eventfd_write(queue.err_fd, (1 << 64) - 2)
            err_fd, read_end = queue.err_fd, -1
        else:
            read_end, err_fd = os.pipe()
            os.set_blocking(err_fd, False)
            with suppress(BlockingIOError):
                while os.write(err_fd, bytes(4096)):
                    pass
            os.set_blocking(err_fd, True)
        ring = queue.ring
        addresses = ring.desc, ring.avail, ring.used
        guest.front.start_vring(0, ring.num, 0, *addresses, queue.kick_fd, queue.call_fd, err_fd)
        queue.raw(*LOOP)
        wait_until(lambda: guest.device.queues[0].broken)
        thread = guest.device.queues[0]._thread
        wait_until(lambda: not thread.is_alive())
        queue.stop()
        if read_end >= 0:
            os.close(read_end)
            os.close(err_fd)


# Changes while it runs.


@contextmanager
def traffic(guest: Guest) -> Iterator[list[int]]:
    """Each queue writes and reads back its own sectors on a thread, all the time; yields how much each has done."""
    stop = threading.Event()
    counts = [0] * len(guest.queues)

    def run(queue: Queue) -> None:
        sent = guest.buffer(header(IN) + bytes(1024))
        room = guest.room(1025)
        while not stop.is_set() or counts[queue.index] < 3:
            counts[queue.index] += 1
            sector = queue.index * 8 + counts[queue.index] % 4
            data = struct.pack("<II", queue.index, counts[queue.index]) * 128
            guest.store(sent.address, header(1, sector) + data)
            status = Buffer(room.address + 1024, 1, True)
            assert queue.wait(queue.add([Buffer(sent.address, 1040, False), status])) == 1
            guest.store(sent.address, header(0, sector))
            assert queue.wait(queue.add([Buffer(sent.address, 16, False), room])) == 1025
            assert guest.load(room.address, 1025) == data + b"\0", f"queue {queue.index}, round {counts[queue.index]}"

    with ThreadPoolExecutor(len(guest.queues)) as pool:
        runs = [pool.submit(run, queue) for queue in guest.queues]
        try:
            wait_until(lambda: all(counts) or any(each.done() for each in runs))
            yield counts
        finally:
            stop.set()
        for each in runs:
            each.result(PATIENCE)


@pytest.mark.parametrize("features", RINGS, ids=RING_NAMES)
def test_queues_work_at_once(features: int) -> None:
    with Guest(queues=4, features=features, poll_us=0) as guest, traffic(guest) as counts:
        wait_until(lambda: min(counts) > ROUNDS // 4)


def test_call_fds_change_while_requests_are_in_flight() -> None:
    with Guest(queues=2) as guest:
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        with traffic(guest):
            for round_number in range(ROUNDS // 4):
                guest.front.set_vring_call(0, fds[round_number % 2])
                guest.front.set_vring_call(1, -1 if round_number % 2 else fds[0])
        guest.front.set_vring_call(0, fds[1])
        guest.queue.driver.enable()
        os.close(guest.queue.call_fd)
        guest.queue.call_fd = fds[1]
        assert guest.queue.read(0, 512)
        assert guest.queue.called()
        os.close(fds[0])


def test_the_memory_table_changes_while_requests_are_in_flight() -> None:
    with Guest(queues=2) as guest:
        more = os.memfd_create("more")
        os.ftruncate(more, 1 << 20)
        extra = Region(GUEST + (1 << 30), 1 << 20, USER + (1 << 30), 0, more)
        with traffic(guest):
            for _ in range(ROUNDS // 8):
                guest.front.add_mem_reg(extra)
                guest.front.set_mem_table(guest.regions)
                guest.front.add_mem_reg(extra)
                guest.front.rem_mem_reg(extra)
        os.close(more)


def test_stop_and_start_lose_and_repeat_nothing() -> None:
    """`Queue.reap` notices what is used twice, `wait` what is not used; the naive driver counts the indices."""
    with Guest(queues=2, base=65500) as guest:
        with traffic(guest) as counts:
            for _ in range(ROUNDS // 2):
                queue = guest.queue
                guest.front.get_vring_base(1)
                queue.base = guest.front.get_vring_base(0)
                guest.queues[1].base = guest.queues[1].ring.used_idx
                queue.start()
                guest.queues[1].start()
        for queue in guest.queues:
            assert queue.stop() == queue.driver.idx % 65536 == queue.ring.used_idx
            assert queue.driver.idx == 65500 + 2 * counts[queue.index]
            assert queue.is_quiet(0.01)


def test_a_ring_that_is_disabled_is_not_processed() -> None:
    with Guest() as guest:
        queue = guest.queue
        guest.front.set_vring_enable(0, False)
        token = queue.add([guest.buffer(header(IN)), guest.room(513)])
        assert queue.is_quiet()
        guest.front.set_vring_enable(0, True)
        assert queue.wait(token) == 513


def test_a_kick_fd_that_is_a_pipe_whose_writer_goes() -> None:
    with Guest(start=False, poll_us=0) as guest:
        queue, ring = guest.queue, guest.queue.ring
        read_end, write_end = os.pipe()
        guest.front.start_vring(0, ring.num, 0, ring.desc, ring.avail, ring.used, read_end, queue.call_fd)
        os.close(read_end)
        token = queue.add([guest.buffer(header(IN)), guest.room(513)])
        os.write(write_end, b"k")
        assert queue.wait(token) == 513
        os.close(write_end)
        before = os.times()
        assert queue.is_quiet(0.3)
        after = os.times()
        assert after.user + after.system - before.user - before.system < 0.2, "it spins on the closed pipe"
        assert queue.stop() == 1


def test_regression_a_call_fd_that_the_peer_filled_and_made_blocking_holds_no_worker() -> None:
    """The peer shares the file description: what fcntl said when the ring started says nothing later."""
    with Guest() as guest:
        queue = guest.queue
        queue.read(0, 512)
        with suppress(BlockingIOError):
            os.eventfd_read(queue.call_fd)
        os.set_blocking(queue.call_fd, True)
        os.eventfd_write(queue.call_fd, 2**64 - 2)
        assert queue.write(0, bytes(512)) == OK
        queue.stop()
        os.set_blocking(queue.call_fd, False)
