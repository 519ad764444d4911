"""Disk: devices that die or fall silent, many threads, closing, and a thousand sessions one after the other."""

from __future__ import annotations

import errno
import gc
import os
import random
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import virtblk
from conftest import INTERPRETED
from driver.harness import on
from fake_device import HOLD, FakeDevice
from naive.virtio_blk import IN, OUT
from virtblk.disk import CALLERS
from waiting import Background, wait_until

MIB = 1 << 20


# Sessions that end.


def test_a_device_that_dies_is_a_device_error_from_then_on() -> None:
    device = FakeDevice(lambda r: HOLD if r.type == IN else None)
    with on(device) as disk:
        reading = Background(disk.pread, 512, 0)
        device.wait_for(1)
        device.hang_up()
        for call in (reading.result, lambda: disk.pread(512, 0), lambda: disk.pwrite(bytes(512), 0), disk.flush):
            with pytest.raises(virtblk.DeviceError) as caught:
                call()
            assert caught.value.errno == errno.ENODEV
            assert caught.value.strerror == "fake: the device closed the connection"


def test_a_silent_device_is_a_device_error_within_the_time_out() -> None:
    with on(FakeDevice(lambda r: HOLD if r.type == IN else None), timeout=0.3) as disk:
        began = time.monotonic()
        with pytest.raises(virtblk.DeviceError) as caught:
            disk.pread(512, 0)
        assert caught.value.errno == errno.ETIMEDOUT
        assert time.monotonic() - began > 0.29


def test_more_calls_than_callers_on_a_silent_device_all_end() -> None:
    with on(FakeDevice(lambda r: HOLD if r.type == IN else None), timeout=0.4) as disk:
        calls = [Background(disk.pread, 512, 0) for _ in range(CALLERS + 8)]
        for call in calls:
            with pytest.raises(virtblk.DeviceError) as caught:
                call.result()
            assert caught.value.errno == errno.ETIMEDOUT


def test_regression_the_data_of_a_write_that_timed_out_stay_as_they_were() -> None:
    """A slow device may still execute it: the next call must not put other data into the same memory."""
    device = FakeDevice(lambda r: HOLD if r.type == OUT else None)
    with on(device, timeout=0.1) as disk:
        for data in (b"A" * 512, b"B" * 512):
            with pytest.raises(virtblk.DeviceError):
                disk.pwrite(data, 0)
        (request,) = device.wait_for(1)
        assert device.ring is not None
        address = request.buffers[1].address
        assert device.ring.memory.load(address, 512).to_bytes(512, "little") == b"A" * 512


# Threads.


def test_threads_share_a_disk() -> None:
    """Each has sectors of its own and one that all of them write, which is always wholly one thread's."""
    threads, rounds = 8, 10 if INTERPRETED else 150
    with virtblk.open("ram:1m") as disk, ThreadPoolExecutor(threads) as pool:

        def work(number: int) -> None:
            mine = 4096 * (1 + number)
            dice = random.Random(number)
            for turn in range(rounds):
                data = bytes([number, turn % 256]) * 512
                disk.pwrite(data, mine)
                disk.pwrite(bytes([number]) * 512, 0)
                if dice.random() < 0.2:
                    disk.flush()
                assert disk.pread(1024, mine) == data
                assert len(set(disk.pread(512, 0))) == 1

        list(pool.map(work, range(threads)))


def test_more_threads_than_callers() -> None:
    threads = CALLERS * 2 + 3
    with on(FakeDevice(lambda request: time.sleep(0.001)), queue_size=4) as disk, ThreadPoolExecutor(threads) as pool:

        def work(number: int) -> bool:
            disk.pwrite(bytes([number]) * 512, 512 * number)
            return disk.pread(512, 512 * number) == bytes([number]) * 512

        assert all(pool.map(work, range(threads)))


# Opening with little.


@pytest.mark.once
def test_regression_an_open_that_runs_out_of_descriptors_is_an_open_error_and_leaks_none() -> None:
    """At each of the steps that need one; some were a bare OSError without the disk's name."""

    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    virtblk.open("ram:1m").close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = held()
    errors = []
    for spare in range(40):
        resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + spare, hard))
        try:
            virtblk.open("ram:1m", timeout=5).close()
        except OSError as error:
            errors.append(error)
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(lambda: held() == before)
    assert len(errors) > 5
    for error in errors:
        assert isinstance(error, virtblk.OpenError), error
        assert (error.strerror or "").startswith("ram:1m: ")


# Closing.


def test_use_after_close() -> None:
    with virtblk.open("ram:1m") as disk:
        assert repr(disk) == f"<virtblk.Disk ram:1m ({disk.name}, 1048576 bytes)>"
    disk.close()
    assert repr(disk) == f"<virtblk.Disk ram:1m ({disk.name}, closed)>"
    for call in (lambda: disk.pread(512, 0), lambda: disk.pwrite(bytes(512), 0), disk.flush, lambda: disk.pread(0, 0)):
        with pytest.raises(ValueError, match="ram:1m: the disk is closed"):
            call()
    assert (disk.size, disk.serial) == (MIB, "ram:1m")


def test_close_waits_for_calls_under_way_and_refuses_new_ones() -> None:
    device = FakeDevice(lambda r: HOLD if r.type == IN else None)
    with on(device) as disk:
        reading = Background(disk.pread, 512, 0)
        (request,) = device.wait_for(1)
        closing = Background(disk.close)
        wait_until(lambda: disk._closing)
        with pytest.raises(ValueError, match="closed"):
            disk.pread(512, 0)
        time.sleep(0.02)
        assert closing.running
        device.complete(request)
        assert reading.result() == bytes(512)
        closing.result()


def test_close_with_calls_waiting_on_a_silent_device_is_bounded() -> None:
    with on(FakeDevice(lambda r: HOLD if r.type == IN else None), timeout=0.3) as disk:
        calls = [Background(disk.pread, 512, 0) for _ in range(CALLERS + 4)]
        Background(disk.close).result()
        for call in calls:
            with pytest.raises((virtblk.DeviceError, ValueError)):
                call.result()


def test_an_error_inside_the_block_is_not_hidden() -> None:
    with pytest.raises(KeyError), virtblk.open("null:1m"):
        raise KeyError


@pytest.mark.once
def test_a_thousand_disks_one_after_the_other_leave_nothing_behind() -> None:
    def held() -> tuple[int, int, int]:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), pages * os.sysconf("SC_PAGESIZE")

    def cycle(count: int) -> None:
        for turn in range(count):
            with virtblk.open("ram:1m", poll_us=(None, 0, 20)[turn % 3]) as disk:
                disk.pwrite(b"x" * 512, 512)
                assert disk.pread(512, 512) == b"x" * 512

    cycle(200)
    fds, threads, memory = held()
    cycle(800)
    after = held()
    assert after[:2] == (fds, threads)
    assert after[2] - memory < 4 * MIB
