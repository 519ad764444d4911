"""Disk: what programs call, and what they get when something is wrong with the call, the device or the time."""

from __future__ import annotations

import array
import errno
import math
import random
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import virtblk
from driver.harness import on
from fake_device import FakeDevice, Request
from naive.virtio_blk import F_FLUSH, F_RO, F_WCE, FEATURES, FLUSH, GET_ID, IOERR, OUT, UNSUPP, blk_config
from virtblk.disk import Disk
from virtblk.errors import UsageError
from waiting import PATIENCE, Background

MIB = 1 << 20


@pytest.fixture(scope="module")
def ram() -> Iterator[Disk]:
    with virtblk.open("ram:4m") as disk:
        yield disk


def random_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# Reading and writing.


@pytest.mark.parametrize("path", ["mq", "auto"])
def test_calls_are_spread_over_several_virtqueues(path: str) -> None:
    with virtblk.open("ram:4m", queues=3, path=path) as disk, ThreadPoolExecutor(8) as pool:

        def work(number: int) -> int:
            wrong = 0
            for turn in range(5):
                data, at = random_bytes(4096, 10 * number + turn), MIB // 8 * number + 4096 * turn
                disk.pwrite(data, at, fua=turn == 3)
                disk.flush()
                wrong += disk.pread(4096, at) != data
            return wrong

        assert disk.queues == 3
        assert sum(pool.map(work, range(8))) == 0
        assert disk._device.error == 0


@pytest.mark.parametrize("given", [{"path": "bio"}, {"path": "request"}, {"use_bio": True}])
def test_paths_of_one_virtqueue_do_not_take_more(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"queues 2: path '(bio|request)' has one virtqueue; give path mq or auto"):
        virtblk.open("ram:1m", queues=2, **given)
    with virtblk.open("ram:1m", **given) as disk:
        assert disk.queues == 1


@pytest.mark.parametrize("queues", [0, -1, 257])
def test_as_many_virtqueues_as_there_can_be(queues: int) -> None:
    with pytest.raises(UsageError, match=rf"queues {queues}: give 1 to 256"):
        virtblk.open("ram:1m", queues=queues)


@pytest.mark.parametrize("size", [0, 512, 4096, MIB - 512, MIB, MIB + 512, 3 * MIB, 4 * MIB])
def test_what_is_written_is_read(ram: Disk, size: int) -> None:
    for offset in {0, 512, 4 * MIB - size} if size <= 4 * MIB - 512 else {0}:
        data = random_bytes(size, size + offset)
        assert ram.pwrite(data, offset) == size
        assert ram.pread(size, offset) == data


def test_a_write_touches_nothing_else(ram: Disk) -> None:
    before = random_bytes(8192)
    ram.pwrite(before, 0)
    ram.pwrite(b"\xff" * 1024, 2048)
    assert ram.pread(8192, 0) == before[:2048] + b"\xff" * 1024 + before[3072:]


@pytest.mark.parametrize(
    "data",
    [
        b"b" * 512,
        bytearray(b"a" * 512),
        memoryview(b"m" * 1024)[256:768],
        array.array("I", range(128)),
        np.arange(256, dtype=np.uint16).reshape(16, 16),
        memoryview(bytearray(512)),
        b"",
        bytearray(),
        memoryview(b""),
    ],
    ids=lambda data: f"{type(data).__name__} {memoryview(data).nbytes}",
)
def test_any_contiguous_buffer_can_be_written(ram: Disk, data: Any) -> None:
    size = memoryview(data).nbytes
    assert ram.pwrite(data, 512) == size
    assert ram.pread(size, 512) == bytes(memoryview(data))


def test_regression_an_empty_array_can_be_written(ram: Disk) -> None:
    """memoryview.cast() refuses zeros in a shape."""
    assert ram.pwrite(np.zeros(0, np.uint8), 512) == 0
    assert ram.pwrite(np.zeros((0, 4), np.uint64), 0) == 0


@pytest.mark.parametrize("data", ["text", 512, None, np.zeros(1024, np.uint8)[::2]])
def test_what_is_no_contiguous_buffer_is_a_type_error(ram: Disk, data: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        ram.pwrite(data, 0)


def test_reads_and_writes_of_nothing_at_the_end(ram: Disk) -> None:
    assert ram.pread(0, ram.size) == b""
    assert ram.pwrite(b"", ram.size) == 0


@pytest.mark.parametrize("poll_us", [None, 0, 50])
@pytest.mark.parametrize("queue_size", [4, 128])
def test_every_way_to_wait(poll_us: int | None, queue_size: int) -> None:
    data = random_bytes(2 * MIB)
    with virtblk.open("ram:2m", poll_us=poll_us, queue_size=queue_size) as disk:
        disk.pwrite(data, 0)
        disk.flush()
        assert disk.pread(2 * MIB, 0) == data


# Calls that cannot be.


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        (lambda d: d.pread(511, 0), errno.EINVAL, "511 bytes at offset 0: give multiples of 512"),
        (lambda d: d.pread(512, 100), errno.EINVAL, "512 bytes at offset 100: give multiples"),
        (lambda d: d.pread(-512, 0), errno.EINVAL, "-512 bytes"),
        (lambda d: d.pread(512, -512), errno.EINVAL, "offset -512"),
        (lambda d: d.pwrite(b"x", 0), errno.EINVAL, "1 bytes at offset 0"),
        (lambda d: d.pread(512, 4 * MIB), errno.EINVAL, "512 bytes at offset 4194304 end past the end (4194304)"),
        (lambda d: d.pread(1024, 4 * MIB - 512), errno.EINVAL, "1024 bytes at offset 4193792 end past"),
        (lambda d: d.pread(0, 4 * MIB + 512), errno.EINVAL, "end past"),
        (lambda d: d.pread(512, 1 << 63), errno.EINVAL, "offset 9223372036854775808 end past"),
        (lambda d: d.pread(1 << 70, 0), errno.EINVAL, "1180591620717411303424 bytes"),
        (lambda d: d.pwrite(bytes(512), 4 * MIB), errno.ENOSPC, "512 bytes at offset 4194304 end past"),
        (lambda d: d.pwrite(bytes(1024), 4 * MIB - 512), errno.ENOSPC, "1024 bytes at offset 4193792 end past"),
    ],
)
def test_calls_that_cannot_be(ram: Disk, call: Callable[[Disk], object], code: int, words: str) -> None:
    with pytest.raises(OSError, match="ram:4m: ") as caught:
        call(ram)
    assert not isinstance(caught.value, virtblk.VirtblkError)
    assert caught.value.errno == code
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_only_by_option() -> None:
    with virtblk.open("ram:1m", read_only=True) as disk:
        assert disk.read_only
        with pytest.raises(OSError, match="ram:1m: the disk is read-only") as caught:
            disk.pwrite(bytes(512), 0)
        assert caught.value.errno == errno.EROFS
        assert disk.pread(512, 0) == bytes(512)
        disk.flush()


def test_read_only_by_the_device() -> None:
    device = FakeDevice(features=FEATURES | F_RO)
    with on(device) as disk:
        assert disk.read_only
        with pytest.raises(OSError, match="read-only") as caught:
            disk.pwrite(bytes(512), 0)
        assert caught.value.errno == errno.EROFS
        assert device.io == []


# Flush.


@pytest.mark.usefixtures("both_paths")
@pytest.mark.parametrize("writeback", [0, 1])
def test_flush_is_sent_whenever_it_was_negotiated(writeback: int) -> None:
    """qemu-storage-daemon 7.2 says "write through" (writeback 0) and means nothing by it (peers.md, quirk 5)."""
    device = FakeDevice(features=FEATURES | F_WCE, config=blk_config(writeback=writeback))
    with on(device) as disk:
        assert disk.cache_type == ("write back" if writeback else "write through")
        disk.flush()
        disk.pwrite(bytes(512), 0, fua=True)
        assert device.seen == [(FLUSH, 0, 0), (OUT, 0, 512), (FLUSH, 0, 0)]


@pytest.mark.usefixtures("both_paths")
def test_without_the_feature_there_is_nothing_to_flush() -> None:
    device = FakeDevice(features=FEATURES & ~F_FLUSH)
    with on(device) as disk:
        disk.flush()
        disk.pwrite(bytes(512), 0, fua=True)
        assert device.seen == [(OUT, 0, 512)]


# I/O that fails.


@pytest.mark.usefixtures("both_paths")
@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (IOERR, errno.EIO, "the device reported an I/O error"),
        (UNSUPP, errno.EOPNOTSUPP, "the device does not support this request"),
        (99, errno.EIO, "the device reported an I/O error"),
    ],
)
def test_an_i_o_that_fails_is_an_os_error_and_the_disk_goes_on(status: int, code: int, words: str) -> None:
    device = FakeDevice(lambda r: status if r.sector == 8 or (r.type == FLUSH and len(device.io) < 4) else None)
    with on(device) as disk:
        for call, what in (
            (lambda: disk.pread(512, 4096), "read of 512 bytes at offset 4096"),
            (lambda: disk.pwrite(bytes(1024), 4096), "write of 1024 bytes at offset 4096"),
            (disk.flush, "flush"),
        ):
            with pytest.raises(OSError, match="fake: ") as caught:
                call()
            assert not isinstance(caught.value, virtblk.VirtblkError)
            assert (caught.value.errno, caught.value.strerror) == (code, f"fake: {what}: {words}")
        assert disk.pread(512, 0) == bytes(512)
        disk.flush()


@pytest.mark.usefixtures("both_paths")
def test_a_large_write_that_fails_says_where() -> None:
    device = FakeDevice(lambda r: IOERR if r.sector == 2048 else None, config=blk_config(capacity=8192))
    with on(device) as disk:
        with pytest.raises(OSError, match=f"fake: write of {MIB} bytes at offset {MIB}: "):
            disk.pwrite(b"w" * 3 * MIB, 0)
        assert [r.sector for r in device.io] == [0, 2048]
        assert bytes(device.disk[: 2 * MIB]) == b"w" * MIB + bytes(MIB)


# What it is.


def test_attributes() -> None:
    with virtblk.open("ram:1m?block_size=4k") as disk:
        assert (disk.size, disk.block_size, disk.serial) == (MIB, 4096, "ram:1m?block_size=4k"[:20])
        assert (disk.read_only, disk.cache_type, disk.topology.block_size) == (False, "write back", 4096)
        assert {"VIRTIO_F_VERSION_1", "VIRTIO_BLK_F_FLUSH", "VIRTIO_RING_F_EVENT_IDX"} < disk.features
        assert "VHOST_USER_PROTOCOL_F_CONFIG" in disk.protocol_features
        assert disk.name.startswith("vd")


# Opening.


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("floppy:1m", {}, "scheme 'floppy' is unknown"),
        ("ram:1x", {}, "'1x'"),
        ("ram:100", {}, "size 100 is not"),
        ("vhost-user:/x?mode=1", {}, "unknown key 'mode'"),
        *[("ram:1m", {"timeout": value}, f"timeout {value:g}: give") for value in (0, -1, 1e6, math.inf, math.nan)],
        *[("ram:1m", {"poll_us": value}, f"poll_us {value}: give microseconds") for value in (-1, 10_000_001)],
        *[("ram:1m", {"queue_size": value}, f"queue size {value}: give a power") for value in (0, 3, 65536)],
    ],
)
def test_names_and_options_that_cannot_be(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(virtblk.UsageError) as caught:
        virtblk.open(name, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def refused(path: str, timeout: float = 5) -> virtblk.OpenError:
    with pytest.raises(virtblk.OpenError) as caught:
        virtblk.open(f"vhost-user:{path}", timeout=timeout)
    assert (caught.value.strerror or "").startswith(f"vhost-user:{path}")
    assert "\n" not in str(caught.value)
    return caught.value


def test_sockets_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dead").touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
    assert refused(f"{tmp_path}/none").errno == errno.ENOENT
    assert refused(f"{tmp_path}/file").errno == errno.ECONNREFUSED
    assert refused(f"{tmp_path}/sock").errno == errno.ECONNREFUSED
    assert refused("/" + "x" * 200).errno == errno.EINVAL


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (None, errno.ETIMEDOUT),
        (b"", errno.EPROTO),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", errno.EPROTO),
        (b"\1\0\0\0\5\0\0\0\0\0\0\0", errno.EPROTO),
    ],
)
def test_servers_that_are_not_vhost_user(tmp_path: Path, answer: bytes | None, code: int) -> None:
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve() -> None:
            conn, _ = server.accept()
            with conn:
                conn.recv(1000)
                if answer is None:
                    conn.recv(1)  # until the client gives up
                else:
                    conn.sendall(answer)

        serving = Background(serve)
        assert refused(path, 0.3 if answer is None else PATIENCE).errno == code
        serving.result()


def test_get_id_and_nothing_else_is_asked_at_open() -> None:
    device = FakeDevice()
    with on(device):
        pass
    assert [request.type for request in device.requests] == [GET_ID]


def test_a_request_says_what_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """The fake device itself: what tests compare with is what was sent."""
    device = FakeDevice()
    with on(device) as disk:
        disk.pwrite(b"12345678" * 64, 1024)
        request = device.io[0]
    assert (request.type, request.sector, request.data, request.room) == (OUT, 2, b"12345678" * 64, 0)
    assert isinstance(request, Request)
    assert capsys.readouterr().err == ""
