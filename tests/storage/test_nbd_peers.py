"""`nbd:` against servers that we did not write: nbdkit and qemu-nbd."""

from __future__ import annotations

import errno
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import peers
import virtblk
from storage.pending import Pending, discard, flush, pread, read, run, write, write_zeroes
from virtblk.errors import OpenError
from virtblk.names import parse_name
from virtblk.storage.nbd import Times, open_nbd
from virtblk.storage.request import FLAG_FUA, FLAG_UNMAP
from virtblk.storage.storage import Storage
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.once]

MIB = 1 << 20
PATIENT = Times(connect=PATIENCE, retry=PATIENCE, silence=PATIENCE, first_delay=0.01, longest_delay=0.05)


@contextmanager
def serving(socket_path: Path, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A server on a UNIX socket that answers by now."""
    peers.libnbd()

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(socket_path)) == 0

    socket_path.unlink(missing_ok=True)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: process.poll() is not None or listens())
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            yield process
        finally:
            process.kill()


@contextmanager
def nbdkit(tmp_path: Path, *arguments: str, tls: str = "") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    path = tmp_path / "nbdkit.sock"
    with serving(path, [peers.nbdkit(), "--foreground", "--unix", str(path), *arguments]) as process:
        yield (f"nbd:nbds+unix://{tls}&socket={path}" if tls else f"nbd:nbd+unix:///?socket={path}"), process


@contextmanager
def qemu_nbd(tmp_path: Path, image: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    path = tmp_path / "qemu.sock"
    with serving(path, [peers.qemu_nbd(), "--socket", str(path), "--persistent", *arguments, str(image)]) as process:
        yield f"nbd:nbd+unix:///?socket={path}", process


@contextmanager
def opened(name: str, times: Times = PATIENT) -> Iterator[Storage]:
    storage = open_nbd(parse_name(name), times)
    try:
        storage.start()
        yield storage
    finally:
        storage.close()


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a server and wait until all its threads stand still."""
    process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{process.pid}/task")
    wait_until(lambda: all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in tasks.glob("*/stat")))


def exercise(storage: Storage, seed: int) -> bytes:
    """Everything that a storage can do, many requests at once, against a plain array; returns what the disk holds."""
    dice = random.Random(seed)
    model = bytearray(pread(storage, 0, storage.size))
    share = storage.size // 16
    for _ in range(20):
        batch: list[Pending] = []
        for start in range(0, storage.size, share):
            length = 512 * dice.randint(1, share // 512)
            offset = start + 512 * dice.randint(0, (share - length) // 512)
            data = bytes(length)
            kind = dice.random()
            if kind < 0.7:
                data = dice.randbytes(length)
                flags = FLAG_FUA if storage.can_fua and dice.random() < 0.3 else 0
                batch.append(write(offset, data, [length // 3], flags))
            elif storage.can_write_zeroes:
                batch.append(write_zeroes((offset, length), flags=FLAG_UNMAP if kind < 0.85 else 0))
            else:
                continue
            model[offset : offset + length] = data
        assert run(storage, *batch) == 0
        if storage.can_flush:
            assert run(storage, flush()) == 0
        checks = [read(start, share) for start in range(0, storage.size, share)]
        assert run(storage, *checks) == 0
        assert b"".join(bytes(check.buffer) for check in checks) == model
    return bytes(model)


def qcow2(tmp_path: Path, size: int) -> Path:
    image = tmp_path / "disk.qcow2"
    subprocess.run([peers.qemu_img(), "create", "-q", "-f", "qcow2", str(image), str(size)], check=True)
    return image


def contents(tmp_path: Path, image: Path) -> bytes:
    """What a qcow2 image holds, as qemu-img sees it."""
    subprocess.run([peers.qemu_img(), "check", "-q", str(image)], check=True, stdout=subprocess.DEVNULL)
    raw = tmp_path / "disk.raw"
    subprocess.run([peers.qemu_img(), "convert", "-O", "raw", str(image), str(raw)], check=True)
    return raw.read_bytes()


def test_a_qcow2_image_behind_qemu_nbd(tmp_path: Path) -> None:
    image = qcow2(tmp_path, 8 * MIB)
    with qemu_nbd(tmp_path, image, "--format=qcow2", "--discard=unmap", "--detect-zeroes=unmap") as (name, process):
        with opened(name) as storage:
            assert (storage.size, storage.read_only) == (8 * MIB, False)
            assert storage.can_flush
            assert storage.can_fua
            assert storage.can_discard
            assert storage.can_write_zeroes
            model = bytearray(exercise(storage, 11))
            assert run(storage, discard((0, MIB), (2 * MIB, MIB)), flush()) == 0
            for start in (0, 2 * MIB):  # qcow2 forgets discarded clusters
                model[start : start + MIB] = bytes(MIB)
            assert pread(storage, 0, len(model)) == model
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert contents(tmp_path, image) == model


def test_a_memory_disk_of_nbdkit(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "memory", "4M") as (name, _), opened(name) as storage:
        model = exercise(storage, 12)
    with pytest.raises(OpenError, match="cannot connect"):
        open_nbd(parse_name(name))
    assert len(model) == 4 * MIB


def test_a_server_with_large_blocks_and_short_commands(tmp_path: Path) -> None:
    policy = ["blocksize-minimum=4096", "blocksize-preferred=16384", "blocksize-maximum=65536"]
    arguments = ["--filter=blocksize-policy", "memory", "2M", *policy, "blocksize-error-policy=error"]
    with nbdkit(tmp_path, *arguments) as (name, _), opened(name) as storage:
        assert (storage.block_size, storage.opt_io_size) == (4096, 16384)
        exercise(storage, 13)


def test_a_server_that_has_neither_flush_nor_trim(tmp_path: Path) -> None:
    script = ["get_size=echo 1M", "pread=dd if=/dev/zero bs=$3 count=1 2>/dev/null"]
    with nbdkit(tmp_path, "eval", *script) as (name, _), opened(name) as storage:
        assert storage.read_only
        assert not storage.can_flush
        assert not storage.can_discard
        assert pread(storage, 512, 1024) == bytes(1024)
        assert run(storage, flush()) == errno.EOPNOTSUPP
        assert run(storage, write(0, bytes(512))) == errno.EROFS


def test_errors_of_nbdkits_error_filter(tmp_path: Path) -> None:
    trigger = tmp_path / "trigger"
    arguments = ["--filter=error", "memory", "1M", "error=ENOSPC", "error-pwrite-rate=100%", f"error-file={trigger}"]
    with nbdkit(tmp_path, *arguments) as (name, _), opened(name) as storage:
        assert run(storage, write(0, b"a" * 512)) == 0
        trigger.touch()
        assert run(storage, write(0, b"b" * 512)) == errno.ENOSPC
        assert pread(storage, 0, 512) == b"a" * 512
        assert run(storage, write_zeroes((512, 512)), flush()) == 0
        trigger.unlink()
        assert run(storage, write(0, b"b" * 512)) == 0
        assert pread(storage, 0, 512) == b"b" * 512


def test_a_key_file_that_the_uri_names(tmp_path: Path) -> None:
    keys = tmp_path / "keys.psk"
    keys.write_text(f"alice:{'0123456789abcdef' * 4}\n")
    with nbdkit(tmp_path, "--tls=require", f"--tls-psk={keys}", "memory", "1M", tls=f"alice@/?tls-psk-file={keys}") as (
        name,
        _,
    ):
        with opened(name) as storage:
            exercise(storage, 14)
        with pytest.raises(OpenError, match="cannot connect"):
            open_nbd(parse_name(f"nbd:nbd+unix:///?socket={tmp_path / 'nbdkit.sock'}"))


def test_kill_9_in_the_middle_of_i_o_and_a_new_server(tmp_path: Path) -> None:
    """A raw image: what qemu-nbd acknowledged is in the page cache, so that here even its crash loses nothing."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 * MIB))
    model = random.Random(15).randbytes(4 * MIB)
    with qemu_nbd(tmp_path, image, "--format=raw") as (name, process), opened(name) as storage:
        batch = [write(offset, model[offset : offset + 16384]) for offset in range(0, len(model), 16384)]
        assert run(storage, *batch[:8]) == 0  # acknowledged, and never flushed
        storage.submit(batch[8:])
        process.kill()
        process.wait(PATIENCE)
        lost = flush()
        storage.submit([lost])
        with qemu_nbd(tmp_path, image, "--format=raw"):
            assert [request.result() for request in batch] == [0] * len(batch)
            assert lost.result() == errno.EIO
            assert pread(storage, 0, len(model)) == model
            assert run(storage, flush()) == 0
    assert image.read_bytes() == model


def test_a_server_that_is_stopped_for_a_while(tmp_path: Path) -> None:
    times = PATIENT._replace(silence=0.2)
    with nbdkit(tmp_path, "memory", "1M") as (name, process), opened(name, times) as storage:
        assert run(storage, write(0, b"s" * 512), flush()) == 0
        stop(process)
        try:
            waiting = read(0, 512)
            storage.submit([waiting])
            wait_until(lambda: not storage.counters()["nbd_connected"])
            assert not waiting.done
        finally:
            process.send_signal(signal.SIGCONT)
        assert waiting.result() == 0
        assert waiting.buffer == b"s" * 512


def test_closing_does_not_wait_for_a_server_that_is_stopped(tmp_path: Path) -> None:
    times = PATIENT._replace(goodbye=0.1)
    with nbdkit(tmp_path, "memory", "1M") as (name, process), opened(name, times) as storage:
        stop(process)
        waiting = read(0, 512)
        storage.submit([waiting])
        storage.close()
        assert waiting.result() == errno.EIO


def test_the_whole_way_from_the_driver_to_a_qcow2_image(tmp_path: Path) -> None:
    image = qcow2(tmp_path, 4 * MIB)
    data = random.Random(16).randbytes(2 * MIB)
    with qemu_nbd(tmp_path, image, "--format=qcow2", "--discard=unmap") as (name, process):
        with virtblk.open(name) as disk:
            assert (disk.size, disk.block_size, disk.cache_type) == (4 * MIB, 512, "write back")
            disk.pwrite(data, 512)
            disk.pwrite(b"fua" + bytes(509), 0, fua=True)
            disk.write_zeroes(4096, 65536)
            disk.discard(MIB, MIB)
            disk.flush()
            assert disk.pread(512, 0) == b"fua" + bytes(509)
        process.terminate()
        assert process.wait(PATIENCE) == 0
    model = bytearray(4 * MIB)
    model[:3] = b"fua"
    model[512 : 512 + len(data)] = data
    model[65536 : 65536 + 4096] = bytes(4096)
    model[MIB : 2 * MIB] = bytes(MIB)
    assert contents(tmp_path, image) == model
