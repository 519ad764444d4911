"""Against qemu-storage-daemon, a device that we did not write: its image holds what was written through virtblk."""

from __future__ import annotations

import errno
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import peers
import virtblk
from waiting import Background, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.once]

MIB = 1 << 20


@contextmanager
def daemon(tmp_path: Path, blockdev: str, export: str = "writable=on") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """qemu-storage-daemon with one export: the disk's name, and its process."""
    socket, ready = tmp_path / "qsd.sock", tmp_path / "qsd.pid"  # the pid is written when the socket listens
    command = [peers.qemu_storage_daemon(), "--blockdev", f"{blockdev},node-name=f0"]
    command += ["--export", f"type=vhost-user-blk,id=e0,node-name=f0,addr.type=unix,addr.path={socket},{export}"]
    command += ["--pidfile", str(ready)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: ready.exists() or process.poll() is not None)
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            yield f"vhost-user:{socket}", process
        finally:
            process.kill()


@contextmanager
def file_disk(tmp_path: Path, size: int, **keywords: str) -> Iterator[tuple[str, Path]]:
    """A disk on an image file, and that file."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(size)
    with daemon(tmp_path, f"driver=file,filename={image}", **keywords) as (name, _):
        yield name, image


@contextmanager
def null_disk(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with daemon(tmp_path, "driver=null-co,size=1073741824,read-zeroes=on") as running:
        yield running


@pytest.mark.parametrize("poll_us", [None, 0, 20])
@pytest.mark.parametrize("queue_size", [None, 4])
def test_the_image_holds_what_was_written(tmp_path: Path, poll_us: int | None, queue_size: int | None) -> None:
    dice = random.Random(7)
    model = bytearray(4 * MIB)
    with file_disk(tmp_path, len(model)) as (name, image):
        with virtblk.open(name, poll_us=poll_us, queue_size=queue_size) as disk:
            assert (disk.size, disk.block_size, disk.read_only) == (len(model), 512, False)
            for size in (512, 4096, 65536, MIB, 3 * MIB + 512, *(512 * dice.randint(1, 64) for _ in range(40))):
                offset = 512 * dice.randint(0, (len(model) - size) // 512)
                data = dice.randbytes(size)
                assert disk.pwrite(data, offset, fua=dice.random() < 0.2) == size
                model[offset : offset + size] = data
                assert disk.pread(size, offset) == data
            disk.flush()
            assert disk.pread(len(model), 0) == bytes(model)
        assert image.read_bytes() == bytes(model)


def test_eight_threads_on_one_image(tmp_path: Path) -> None:
    share = 256 * 1024
    with file_disk(tmp_path, 8 * share) as (name, image):
        with virtblk.open(name) as disk, ThreadPoolExecutor(8) as pool:

            def work(number: int) -> bytes:
                dice = random.Random(number)
                model = bytearray(share)
                for _ in range(60):
                    size = 512 * dice.randint(1, 40)
                    at = 512 * dice.randint(0, (share - size) // 512)
                    model[at : at + size] = dice.randbytes(size)
                    disk.pwrite(bytes(model[at : at + size]), number * share + at)
                    assert disk.pread(share, number * share) == bytes(model)
                disk.flush()
                return bytes(model)

            models = list(pool.map(work, range(8)))
        assert image.read_bytes() == b"".join(models)


@pytest.mark.parametrize("poll_us", [None, 0])
def test_four_virtqueues_of_one_image(tmp_path: Path, poll_us: int | None) -> None:
    """A write that ended on any of them is in the image after a flush on one."""
    share = 64 * 1024
    with (
        file_disk(tmp_path, 8 * share, export="writable=on,num-queues=4") as (name, image),
        virtblk.open(name, queues=4, path="mq", poll_us=poll_us) as disk,
        ThreadPoolExecutor(8) as pool,
    ):
        assert (disk.queues, disk._device.num_queues) == (4, 4)

        def work(number: int) -> bytes:
            dice = random.Random(number)
            model = bytearray(share)
            for _ in range(40):
                at = 4096 * dice.randrange(share // 4096)
                model[at : at + 4096] = dice.randbytes(4096)
                disk.pwrite(bytes(model[at : at + 4096]), number * share + at, fua=dice.random() < 0.1)
                assert disk.pread(share, number * share) == bytes(model)
            return bytes(model)

        models = list(pool.map(work, range(8)))
        disk.flush()
        assert image.read_bytes() == b"".join(models)
        assert disk._device.error == 0


def test_more_virtqueues_than_it_exports(tmp_path: Path) -> None:
    with (
        file_disk(tmp_path, MIB, export="writable=on,num-queues=2") as (name, _),
        pytest.raises(virtblk.UsageError, match=r"queues 3: .* has 2 virtqueues; give 1 to 2"),
    ):
        virtblk.open(name, queues=3)


def test_what_it_offers_and_how_it_differs(tmp_path: Path) -> None:
    """peers.md, quirks 2 and 5: "write through" that is none, and size_max 0 that means no limit."""
    with null_disk(tmp_path) as (name, process), virtblk.open(name) as disk:
        assert disk.size == 1 << 30
        assert {"VIRTIO_F_VERSION_1", "VIRTIO_BLK_F_FLUSH", "VIRTIO_BLK_F_CONFIG_WCE"} < disk.features
        assert {"VIRTIO_RING_F_EVENT_IDX", "VIRTIO_RING_F_INDIRECT_DESC"} < disk.features
        assert disk.cache_type == "write through"
        assert (disk._device.size_max, disk._device.seg_max) == (0, 126)
        assert disk._device.peer_pid() == process.pid
        assert isinstance(disk.serial, str)
        disk.flush()
        disk.pwrite(b"x" * MIB, 0)
        assert disk.pread(2 * MIB, (1 << 30) - 2 * MIB) == bytes(2 * MIB)


def test_a_read_only_export(tmp_path: Path) -> None:
    with file_disk(tmp_path, MIB, export="writable=off") as (name, image):
        with virtblk.open(name) as disk:
            assert disk.read_only
            with pytest.raises(OSError, match="read-only") as caught:
                disk.pwrite(b"x" * 512, 0)
            assert caught.value.errno == errno.EROFS
            assert disk.pread(512, 0) == bytes(512)
        assert image.read_bytes() == bytes(MIB)


def test_opened_again_and_again(tmp_path: Path) -> None:
    with file_disk(tmp_path, MIB) as (name, image):
        for turn in range(20):
            with virtblk.open(name) as disk:
                assert disk.pread(512, 512) == bytes([turn]) * 512
                disk.pwrite(bytes([turn + 1]) * 512, 512)
        assert image.read_bytes()[512:1024] == bytes([20]) * 512


def test_kill_9_in_the_middle_of_i_o(tmp_path: Path) -> None:
    with null_disk(tmp_path) as (name, process), virtblk.open(name) as disk:
        started = threading.Barrier(5)

        def work(number: int) -> None:
            started.wait()
            while True:
                disk.pwrite(bytes(4096), 4096 * number)

        workers = [Background(work, number) for number in range(4)]
        started.wait()
        time.sleep(0.05)
        process.kill()
        for worker in workers:
            with pytest.raises(virtblk.DeviceError) as caught:
                worker.result()
            assert caught.value.errno == errno.ENODEV
            assert caught.value.strerror == f"{name}: the device closed the connection"
        with pytest.raises(virtblk.DeviceError):
            disk.flush()
    with pytest.raises(virtblk.OpenError, match="cannot connect"):
        virtblk.open(name)


def test_a_second_client_gets_no_answer_and_says_so(tmp_path: Path) -> None:
    """qemu-storage-daemon leaves it in the backlog until the first one goes."""
    with null_disk(tmp_path) as (name, _), virtblk.open(name) as disk:
        began = time.monotonic()
        with pytest.raises(virtblk.OpenError) as caught:
            virtblk.open(name, timeout=0.5)
        assert time.monotonic() - began > 0.4
        assert caught.value.errno == errno.ETIMEDOUT
        said = "VHOST_USER_GET_FEATURES: no answer within 0.5 s; another client may hold it"
        assert caught.value.strerror == f"{name}: {said}"
        assert disk.pread(512, 0) == bytes(512)
        disk.close()
        with virtblk.open(name) as again:
            assert again.pread(512, 0) == bytes(512)


def test_requests_that_the_file_cannot_serve_are_errors_and_no_more(tmp_path: Path) -> None:
    """The image shrinks behind the device's back: what is beyond its end reads as zeroes or fails; the disk goes on."""
    with file_disk(tmp_path, MIB) as (name, image), virtblk.open(name) as disk:
        disk.pwrite(b"k" * 512, 0)
        with image.open("r+b") as file:
            file.truncate(4096)
        with suppress(OSError):
            assert disk.pread(4096, 65536) == bytes(4096)
        assert disk.pread(512, 0) == b"k" * 512
