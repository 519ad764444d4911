"""Disk.discard, Disk.write_zeroes and the cache mode, on a device of ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

import virtblk
from virtblk.driver.virtio_blk import VirtioBlk


@pytest.fixture(params=[True, False], ids=["bio", "request"])
def disk(request: pytest.FixtureRequest) -> Iterator[virtblk.Disk]:
    with virtblk.open("ram:1m?block_size=4k", use_bio=request.param) as opened:
        opened.pwrite(b"x" * (256 << 10), 0)
        yield opened


def device_of(disk: virtblk.Disk) -> VirtioBlk:
    return disk._device


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("limit", [None, 8, 64, 3])
def test_zeroes_are_written_there_and_nowhere_else(disk: virtblk.Disk, unmap: bool, limit: int | None) -> None:
    if limit is not None:
        device_of(disk).max_write_zeroes_sectors = limit
    disk.write_zeroes(64 << 10, 8 << 10, unmap=unmap, fua=True)
    assert disk.pread(256 << 10, 0) == b"x" * (8 << 10) + bytes(64 << 10) + b"x" * (184 << 10)


def test_discard_gives_up_the_range_and_nothing_else(disk: virtblk.Disk) -> None:
    disk.discard(4096, 4096)
    assert disk.pread(4096, 0) == disk.pread(4096, 8192) == b"x" * 4096
    assert disk.pread(4096, 4096) == bytes(4096)  # our memory disk's choice


def test_nothing_is_nothing(disk: virtblk.Disk) -> None:
    disk.discard(0, 0)
    disk.write_zeroes(0, disk.size)
    assert disk.pread(4096, 0) == b"x" * 4096


@pytest.mark.parametrize("call", ["discard", "write_zeroes"])
def test_what_cannot_be_is_refused(disk: virtblk.Disk, call: str) -> None:
    act = getattr(disk, call)
    for n, offset, code in ((511, 0, errno.EINVAL), (512, 1, errno.EINVAL), (8192, disk.size - 4096, errno.ENOSPC)):
        with pytest.raises(OSError, match="bytes at offset") as caught:
            act(n, offset)
        assert caught.value.errno == code


@pytest.mark.parametrize("call", ["discard", "write_zeroes"])
def test_a_read_only_disk_keeps_what_it_has(call: str) -> None:
    with virtblk.open("ram:1m", read_only=True) as disk, pytest.raises(OSError, match="read-only") as caught:
        getattr(disk, call)(512, 0)
    assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize(("call", "bit"), [("discard", 13), ("write_zeroes", 14)])
def test_a_device_that_does_not_offer_it(disk: virtblk.Disk, call: str, bit: int) -> None:
    device_of(disk).features &= ~(1 << bit)
    with pytest.raises(OSError, match=r"the device does not offer VIRTIO_BLK_F_") as caught:
        getattr(disk, call)(512, 0)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_the_cache_mode_is_switched_and_read_back(disk: virtblk.Disk) -> None:
    assert disk.cache_type == "write back"
    disk.cache_type = "write through"
    assert disk.cache_type == "write through"
    disk.pwrite(b"y" * 512, 0)
    assert disk.pread(512, 0) == b"y" * 512
    disk.cache_type = "write back"
    assert disk.cache_type == "write back"
    with pytest.raises(virtblk.UsageError, match=r"cache_type 'none': give one of write through, write back"):
        disk.cache_type = "none"


def test_a_cache_mode_that_is_fixed(disk: virtblk.Disk) -> None:
    device_of(disk).features &= ~(1 << 11)
    with pytest.raises(virtblk.UsageError, match="does not offer CONFIG_WCE"):
        disk.cache_type = "write through"
