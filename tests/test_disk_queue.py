"""Disk.path and Disk.queue: the ways of a bio, and their attributes as a program reads and sets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import virtblk
from virtblk.driver.virtio_blk import VirtioBlk


@pytest.fixture
def disk() -> Iterator[virtblk.Disk]:
    with virtblk.open("ram:1m", use_bio=False) as opened:
        yield opened


def test_a_disk_takes_the_path_that_it_was_opened_with(disk: virtblk.Disk) -> None:
    assert not disk.use_bio
    disk.pwrite(b"a" * 4096, 4096, fua=True)
    disk.flush()
    assert disk.pread(8192, 0) == bytes(4096) + b"a" * 4096
    assert dispatched(disk) > 0
    with virtblk.open("ram:1m", path="bio") as other:
        assert other.use_bio
        other.pread(512, 0)
        assert dispatched(other) == 0


@pytest.mark.parametrize("path", ["mq", "auto", None])
def test_a_disk_on_tags(path: str | None) -> None:
    with virtblk.open("ram:1m", path=path) as disk:
        assert (disk.path, disk.use_bio) == (path or "auto", False)
        disk.pwrite(b"a" * 4096, 4096, fua=True)
        disk.flush()
        disk.discard(4096, 0)
        assert disk.pread(4096, 4096) == b"a" * 4096
        assert disk.queue.scheduler == "none"
        if path == "mq":
            disk.queue.scheduler = "mq-deadline"
            assert disk.pread(4096, 4096) == b"a" * 4096
            assert disk.queue.scheduler == "mq-deadline"
            assert disk.queue.iosched["fifo_batch"] == 16
        else:
            with pytest.raises(virtblk.UsageError, match="'mq-deadline': the path auto chooses its own"):
                disk.queue.scheduler = "mq-deadline"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"path": "sq"}, "path 'sq': give one of request, bio, mq, auto"),
        ({"path": "mq", "use_bio": True}, "use_bio True is path 'bio', but path 'mq' was given too"),
        ({"path": "bio", "use_bio": False}, "use_bio False is path 'request', but path 'bio' was given too"),
    ],
)
def test_paths_that_there_are_not(options: dict[str, Any], text: str) -> None:
    with pytest.raises(virtblk.UsageError, match=text):
        virtblk.open("ram:1m", **options)


def test_the_posting_parameter_and_the_path_may_agree() -> None:
    with virtblk.open("ram:1m", path="request", use_bio=False) as disk:
        assert disk.path == "request"


def dispatched(disk: virtblk.Disk) -> int:
    device: VirtioBlk = disk._device
    return int(device.view.q.state[0]["dispatched"])


def test_linux_defaults(disk: virtblk.Disk) -> None:
    assert (disk.queue.scheduler, disk.queue.nr_requests, disk.queue.nomerges) == ("noop", 128, 0)
    assert dict(disk.queue.iosched) == {}
    disk.queue.scheduler = "deadline"
    assert dict(disk.queue.iosched) == {
        "read_expire": 500,
        "write_expire": 5000,
        "writes_starved": 2,
        "fifo_batch": 16,
        "front_merges": 1,
    }


def test_attributes_are_set_and_io_goes_on(disk: virtblk.Disk) -> None:
    disk.queue.scheduler = "deadline"
    disk.queue.nr_requests = 4
    disk.queue.nomerges = 2
    disk.queue.iosched["read_expire"] = 20
    assert (disk.queue.scheduler, disk.queue.nr_requests, disk.queue.nomerges) == ("deadline", 4, 2)
    assert disk.queue.iosched["read_expire"] == 20
    disk.pwrite(b"b" * 512, 512)
    assert disk.pread(512, 512) == b"b" * 512


@pytest.mark.parametrize(
    ("attribute", "value", "text"),
    [
        ("scheduler", "cfq", r"queue/scheduler 'cfq': give one of noop, deadline"),
        ("nr_requests", 3, r"queue/nr_requests '3': give 4 to 16384"),
        ("nr_requests", -1, r"queue/nr_requests '-1': give 4 to 16384"),
        ("nomerges", 3, r"queue/nomerges '3': give 0 to 2"),
    ],
)
def test_a_value_that_cannot_be_is_refused(disk: virtblk.Disk, attribute: str, value: object, text: str) -> None:
    with pytest.raises(virtblk.UsageError, match=text):
        setattr(disk.queue, attribute, value)


def test_an_iosched_attribute_that_there_is_not(disk: virtblk.Disk) -> None:
    with pytest.raises(KeyError):
        disk.queue.iosched["read_expire"]
    with pytest.raises(virtblk.UsageError, match=r"set queue/scheduler to deadline first"):
        disk.queue.iosched["read_expire"] = 1
    with pytest.raises(virtblk.UsageError, match=r"no attribute 'queue/iosched/quantum' \(there are: "):
        disk.queue.iosched["quantum"] = 1
