"""The path auto on a device: when it looks, what takes hold, the device's hint, and that nothing is lost meanwhile."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conftest import INTERPRETED
from driver.harness import driver, read, write
from driver.test_bio_path import WAYS
from driver.test_request_path import harvest, idle, plug, unplug
from fake_device import FakeDevice
from naive.virtio_blk import FEATURES
from virtblk.block.bio import REQ_OP_READ, REQ_OP_WRITE
from virtblk.block.blk_auto import WINDOW_NS, WINDOW_REQUESTS
from virtblk.driver.auto import NEVER, blk_auto_apply
from virtblk.driver.sysfs import queue_lock
from virtblk.driver.virtio_blk import VirtioBlk
from virtblk.errors import UsageError

F_SORT = 1 << 23


def auto(device: FakeDevice, **options: Any) -> Any:
    return driver(device, **({"path": "auto", "bios_each": 40, "segments_each": 1} | options))


def batches(opened: VirtioBlk, count: int, sectors: list[int], sub: int = 0) -> int:
    """So many plugs of reads and writes; how many bios failed."""
    each = len(sectors)
    wrong = 0
    for number in range(count):
        for k, sector in enumerate(sectors):
            op = REQ_OP_WRITE if number % 2 else REQ_OP_READ
            wrong += plug(opened, sub * opened.options.bios_each + k, op, sector, sub=sub) != 0
        unplug(opened, sub)
        wrong += sum(error != 0 for _, error in harvest(opened, each, sub))
    return wrong


def record(opened: VirtioBlk, *names: str) -> list[int]:
    return [int(opened.view.auto[0][name]) for name in names]


def test_it_begins_as_mq_without_an_elevator() -> None:
    with FakeDevice() as device, auto(device) as opened:
        assert opened.path == "auto"
        assert opened.sysfs.read("queue/scheduler") == "[none] mq-deadline"
        assert opened.sysfs.read("queue/auto") == "merging=1 elevator=0 windows=0 trials=0 changes=0"
        assert "queue/auto" in opened.sysfs.names()
        assert batches(opened, 2, [8, 9, 10, 50]) == 0
        assert opened.merges == 4
        idle(opened)


def test_its_attributes_are_not_set_by_hand() -> None:
    with FakeDevice() as device, auto(device) as opened:
        for name, text, told in (
            ("queue/scheduler", "mq-deadline", "queue/scheduler 'mq-deadline': the path auto chooses its own"),
            ("queue/auto", "merging=0", "queue/auto cannot be set"),
        ):
            with pytest.raises(UsageError, match=re.escape(told)):
                opened.sysfs.write(name, text)
        opened.set_path("mq")
        assert "queue/auto" not in opened.sysfs.names()
        with pytest.raises(UsageError, match="no attribute 'queue/auto'"):
            opened.sysfs.read("queue/auto")


def test_a_window_is_so_many_requests_in_so_much_time() -> None:
    pause = WINDOW_NS / 1e9 / WINDOW_REQUESTS
    with FakeDevice(lambda request: time.sleep(pause)) as device, auto(device) as opened:
        first = batches(opened, 1, [8])  # and GET_ID before it: from here on there is a window
        assert (first, record(opened, "windows")) == (0, [0])
        assert record(opened, "start_ns") != [0]
        assert batches(opened, WINDOW_REQUESTS - 10, [8]) == 0
        assert record(opened, "windows") == [0], "too few"
        assert batches(opened, 50, [8]) == 0
        assert record(opened, "windows") == [1]
        assert record(opened, "base_ns")[0] >= WINDOW_NS
        assert record(opened, "base_ios")[0] >= WINDOW_REQUESTS


@pytest.mark.parametrize("poll_us", WAYS)
def test_a_slow_device_and_a_full_ring_make_it_try_an_elevator(poll_us: int | None) -> None:
    submitters = 6
    with (
        FakeDevice(lambda request: time.sleep(0.0005)) as device,
        auto(device, queue_size=4, submitters=submitters, bios_each=8, poll_us=poll_us) as opened,
        ThreadPoolExecutor(submitters) as pool,
    ):

        def run(sub: int) -> int:
            return batches(opened, 20, [sub * 100 + 7 * k for k in range(8)], sub)

        assert list(pool.map(run, range(submitters))) == [0] * submitters
        windows, trials = record(opened, "windows", "trials")
        assert windows >= 3
        assert trials >= 1
        assert opened.view.q.state[0]["dispatched"] > 1, "the elevator had its part, besides GET_ID"
        idle(opened)


def test_merging_that_is_off_is_counted() -> None:
    with FakeDevice() as device, auto(device) as opened:
        d = opened.view
        d.auto[0]["merging"] = 0
        opened.set_path("bio")
        opened.set_path("auto")
        assert batches(opened, 1, [8, 9, 10, 50]) == 0
        assert (opened.merges, int(d.submitters[0]["mergeable"])) == (0, 2)
        assert [request.sector for request in device.io] == [8, 9, 10, 50]
        opened.set_path("mq")
        assert batches(opened, 1, [8, 9, 10, 50]) == 0
        assert opened.merges == 2


def test_other_paths_are_not_looked_at() -> None:
    with FakeDevice() as device, auto(device) as opened:
        assert opened.view.queue[0]["look_at"] < NEVER
        for path in ("mq", "bio", "request"):
            opened.set_path(path)
            assert opened.view.queue[0]["look_at"] == NEVER
            assert read(opened, 0, 512) == bytes(512)
        assert record(opened, "windows") == [0]


def test_it_goes_on_with_what_it_knew() -> None:
    """A long window goes on, too; one that had hardly begun begins anew."""
    with FakeDevice(lambda request: time.sleep(0.001)) as device, auto(device) as opened:
        opened.view.auto[0]["elevator"] = 1
        assert batches(opened, 8, [8]) == 0
        opened.set_path("request")
        assert opened.sysfs.scheduler == "noop"
        assert opened.view.q.state[0]["elevator"] == 0
        spent = record(opened, "spent_ns")[0]
        assert spent > 0
        opened.set_path("auto")
        assert opened.sysfs.scheduler == "mq-deadline"
        assert (record(opened, "start_ns") == [0]) == (spent < WINDOW_NS)
        assert write(opened, 5, b"x" * 512) == 0


@pytest.mark.parametrize("features", [FEATURES, FEATURES | F_SORT])
def test_the_hint_of_a_device(features: int) -> None:
    hinted = bool(features & F_SORT)
    with FakeDevice(features=features) as device, auto(device, queue_size=4) as opened:
        assert opened.hinted == hinted
        assert not opened.has(23), "it is looked at, not accepted"
        assert opened.sysfs.scheduler == ("mq-deadline" if hinted else "none")
        assert (opened.view.queue[0]["look_at"] == NEVER) == hinted
        assert batches(opened, 3, [8, 9, 30, 20]) == 0
        assert device.seen[0] == (0, 8, 1024)
        idle(opened)
        opened.set_path("mq")
        assert opened.sysfs.scheduler == "none", "the other paths do as they are told"


def test_settings_that_change_under_load_lose_nothing() -> None:
    submitters, rounds = (4, 10) if INTERPRETED else (8, 60)
    stop = threading.Event()
    with (
        FakeDevice() as device,
        auto(device, queue_size=4, submitters=submitters, bios_each=6, crowded=True) as opened,
        ThreadPoolExecutor(submitters + 1) as pool,
    ):
        d = opened.view

        def change() -> int:
            count = 0
            while count < 3 or not stop.is_set():
                with queue_lock(d):
                    d.auto[0]["merging"], d.auto[0]["elevator"] = count & 1, count >> 1 & 1
                    blk_auto_apply(d, count)
                count += 1
            return count

        with queue_lock(d):
            blk_auto_apply(d, 0)  # compiled before the race begins
        changes = pool.submit(change)
        try:
            run = [
                pool.submit(batches, opened, rounds, [sub, sub + 1, 90, 91, 92, 7], sub) for sub in range(submitters)
            ]
            wrong = [each.result() for each in run]
        finally:
            stop.set()
        assert wrong == [0] * submitters
        assert changes.result() > 2
        assert len(device.io) + opened.merges == 6 * rounds * submitters
        idle(opened)
