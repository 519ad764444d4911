"""The attributes by their sysfs names: texts, ranges, what each refuses, and changing them under load."""

from __future__ import annotations

import errno
import re
import struct

import pytest

from conftest import INTERPRETED
from driver.harness import change_under_load, driver
from driver.test_bio_path import hammer
from driver.test_request_path import idle
from fake_device import FakeDevice, Fault
from naive.virtio_blk import F_FLUSH, F_WCE, FEATURES, blk_config
from virtblk.driver.virtio_blk import VirtioBlk
from virtblk.errors import UsageError
from virtblk.uapi.vhost_user import FrontendRequest as R
from virtblk.uapi.virtio_blk import BLK_CONFIG_WRITEBACK
from waiting import PATIENCE

ALWAYS = {
    "serial": "fake",
    "cache_type": "write back",
    "queue/scheduler": "[noop] deadline",
    "queue/nr_requests": "128",
    "queue/nomerges": "0",
}
DEADLINE = {
    "queue/iosched/read_expire": "500",
    "queue/iosched/write_expire": "5000",
    "queue/iosched/writes_starved": "2",
    "queue/iosched/fifo_batch": "16",
    "queue/iosched/front_merges": "1",
}


def all_of(opened: VirtioBlk) -> dict[str, str]:
    return {name: opened.sysfs.read(name) for name in opened.sysfs.names()}


def test_linuxs_names_and_defaults() -> None:
    with FakeDevice() as device, driver(device, path="request") as opened:
        assert all_of(opened) == ALWAYS
        opened.sysfs.write("queue/scheduler", "deadline")
        assert opened.sysfs.scheduler == "deadline"
        assert all_of(opened) == ALWAYS | {"queue/scheduler": "noop [deadline]"} | DEADLINE
        opened.sysfs.write("queue/scheduler", "noop")
        assert all_of(opened) == ALWAYS


@pytest.mark.parametrize(
    ("features", "writeback", "text"),
    [
        (FEATURES, 0, "write back"),
        (FEATURES & ~F_FLUSH, 0, "write through"),
        (FEATURES | F_WCE, 0, "write through"),
        (FEATURES | F_WCE, 1, "write back"),
    ],
)
def test_cache_type(features: int, writeback: int, text: str) -> None:
    with (
        FakeDevice(features=features, config=blk_config(writeback=writeback)) as device,
        driver(device) as opened,
    ):
        assert opened.sysfs.read("cache_type") == text


def test_cache_type_is_switched_on_the_device() -> None:
    with FakeDevice(features=FEATURES | F_WCE, config=blk_config(writeback=1)) as device, driver(device) as opened:
        before = device.config
        for text, value in (("write through", 0), ("write back", 1)):
            opened.sysfs.write("cache_type", text)
            assert opened.sysfs.read("cache_type") == text
            assert device.config[BLK_CONFIG_WRITEBACK] == value
        assert device.config == before, "and nothing else of its configuration"


@pytest.mark.parametrize(
    ("fault", "text", "code"),
    [
        (Fault.REFUSE, "fake: the device refused to change its cache mode", 0),
        (struct.pack("<Q", 0), "fake: the device kept its cache mode", 0),  # it says that it did
        (Fault.CLOSE, "fake: the device closed the connection", errno.ENODEV),
        (Fault.SILENT, "fake: the device did not answer in time", errno.ETIMEDOUT),
    ],
)
def test_a_device_that_does_not_switch(fault: Fault | bytes, text: str, code: int) -> None:
    """An answer that is no, or a lie, is an error of this call; none at all ends the session."""
    with (
        FakeDevice(
            features=FEATURES | F_WCE,
            config=blk_config(writeback=1),
            faults={R.VHOST_USER_SET_CONFIG: fault},
        ) as device,
        driver(device) as opened,
    ):
        opened.front.timeout = 0.2 if fault is Fault.SILENT else PATIENCE
        with pytest.raises(OSError, match=text) as caught:
            opened.sysfs.write("cache_type", "write through")
        assert caught.value.errno == (code or errno.EIO)
        assert opened.error == code
        assert opened.sysfs.read("cache_type") == "write back"


def test_a_cache_type_that_is_fixed() -> None:
    with FakeDevice(features=FEATURES & ~F_WCE) as device, driver(device) as opened:
        with pytest.raises(UsageError, match="cache_type is fixed on this device: it does not offer CONFIG_WCE"):
            opened.sysfs.write("cache_type", "write through")
        assert opened.sysfs.read("cache_type") == "write back"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("queue/nr_requests", ["4", "16384"], ["3", "16385", "-4", "4.0", "", " 4", "1e2", "٤", "9" * 50]),
        ("queue/nomerges", ["0", "1", "2"], ["3", "-1", "on"]),
        ("queue/scheduler", ["noop", "deadline"], ["cfq", "", "[noop]", "NOOP"]),
        ("queue/iosched/read_expire", ["0", "60000", str(1 << 31)], ["-1", str((1 << 31) + 1), "1s"]),
        ("queue/iosched/write_expire", ["0", "60000", str(1 << 31)], ["-1", str((1 << 31) + 1)]),
        ("queue/iosched/writes_starved", ["0", "7"], ["-1", "x"]),
        ("queue/iosched/fifo_batch", ["1", "64"], ["0", "-1"]),
        ("queue/iosched/front_merges", ["0", "1"], ["2", "-1"]),
    ],
)
def test_what_is_written_is_read_and_what_is_wrong_changes_nothing(name: str, good: list[str], bad: list[str]) -> None:
    with FakeDevice() as device, driver(device, path="request") as opened:
        opened.sysfs.write("queue/scheduler", "deadline")
        for text in good:
            opened.sysfs.write(name, text)
            assert text in opened.sysfs.read(name).replace("[", "").replace("]", "").split()
            assert name != "queue/scheduler" or f"[{text}]" in opened.sysfs.read(name)
        before = all_of(opened)
        for text in bad:
            with pytest.raises(UsageError, match=re.escape(repr(text))) as caught:
                opened.sysfs.write(name, text)
            assert name in str(caught.value)
            assert "\n" not in str(caught.value)
        assert all_of(opened) == before


def test_names_that_there_are_not() -> None:
    with FakeDevice() as device, driver(device) as opened:
        for name in (
            "",
            "scheduler",
            "queue/",
            "queue/depth",
            "nr_requests",
            "queue/iosched/",
            "queue/iosched/quantum",
        ):
            for act in (lambda name=name: opened.sysfs.read(name), lambda name=name: opened.sysfs.write(name, "1")):
                with pytest.raises(UsageError, match=re.escape(f"no attribute {name!r} (there are: serial, ")):
                    act()
        for name in DEADLINE:
            with pytest.raises(UsageError, match="set queue/scheduler to deadline first"):
                opened.sysfs.read(name)
        for name, text in (
            ("serial", "serial cannot be set"),
            ("cache_type", "cache_type '1': give one of write through, write back"),
        ):
            with pytest.raises(UsageError, match=text):
                opened.sysfs.write(name, "1")


def test_settings_that_change_under_load_lose_nothing() -> None:
    submitters, rounds = (6, 12) if INTERPRETED else (12, 80)
    with (
        FakeDevice() as device,
        driver(device, path="request", queue_size=4, submitters=submitters, crowded=True) as opened,
    ):

        def change(count: int) -> None:
            opened.sysfs.write("queue/scheduler", ("deadline", "noop")[count % 2])
            opened.sysfs.write("queue/nr_requests", ("4", "128", "9")[count % 3])
            opened.sysfs.write("queue/nomerges", "021"[count % 3])

        opened.sysfs.write("queue/scheduler", "noop")  # compiled before the race begins
        change_under_load(submitters, lambda sub: hammer(opened, sub, rounds), change)
        idle(opened)
