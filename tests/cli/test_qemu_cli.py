"""The command line on qemu-storage-daemon: a device that we did not write."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from cli.harness import Command, virtblk, wait_until_busy
from cli.test_bench_cli import figures
from cli.test_info_cli import facts
from naive.verify import decode_image
from peers import qemu_storage_daemon
from waiting import wait_until

pytestmark = [pytest.mark.peer, pytest.mark.once]

MIB = 1 << 20


class Daemon(NamedTuple):
    process: subprocess.Popen[bytes]
    disk: str

    @property
    def pid(self) -> int:
        return self.process.pid


@contextmanager
def daemon(path: Path, blockdev: str, export: str = "writable=on") -> Iterator[Daemon]:
    """qemu-storage-daemon with one vhost-user-blk export of node f0."""
    sock = path / "qsd.sock"
    process = subprocess.Popen(
        [
            qemu_storage_daemon(),
            *("--blockdev", f"{blockdev},node-name=f0"),
            *("--export", f"type=vhost-user-blk,id=e0,node-name=f0,addr.type=unix,addr.path={sock},{export}"),
        ]
    )
    try:
        wait_until(lambda: sock.exists() or process.poll() is not None)
        assert process.poll() is None, "qemu-storage-daemon did not start"
        yield Daemon(process, f"vhost-user:{sock}")
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(2 * MIB)
    return path


@pytest.fixture
def file_disk(tmp_path: Path, image: Path) -> Iterator[Daemon]:
    with daemon(tmp_path, f"driver=file,filename={image}") as running:
        yield running


def test_verify_finds_no_error_and_the_image_holds_what_was_written(file_disk: Daemon, image: Path) -> None:
    status, out, _ = virtblk("bench", file_disk.disk, "--verify", "crc32c", "--runtime", "0.2", "--json", "-")
    assert status == 0
    value = figures(out)
    assert value["device"]["pid"] == file_disk.pid
    assert [(run["workload"], run["path"]) for run in value["runs"]] == [
        (workload, path) for workload in ("read", "write", "randread", "randwrite") for path in ("request", "bio")
    ]
    for run in value["runs"]:
        assert (run["errors"], run["notes"]) == (0, [])
        assert run["ios"] > 0
        assert run["device_cpu"]["usr_s"] + run["device_cpu"]["sys_s"] > 0
        assert run["device_cpu"]["ns_per_io"] > 0
    blocks = list(decode_image(image, 4096))
    assert len(blocks) == 512
    assert [block.offset for block in blocks] == [i * 4096 for i in range(512)]
    assert all(block.good for block in blocks)
    assert min(block.generation for block in blocks) >= 1, "the fill"
    assert max(block.generation for block in blocks) >= 3, "a slice of write, or more, and one of randwrite"


@pytest.mark.parametrize("poll", ["--poll", "--no-poll"])
def test_a_crowd_of_jobs_verifies(file_disk: Daemon, image: Path, poll: str) -> None:
    words = (
        "--numjobs",
        "64",
        "--iodepth",
        "16",
        "--bs",
        "512",
        "--size",
        "64k",
        "--runtime",
        "0.2",
        "--rw",
        "randwrite",
    )
    status, out, _ = virtblk("bench", file_disk.disk, "--verify", "crc32c", *words, poll, "--json", "-")
    assert status == 0
    runs = figures(out)["runs"]
    assert [(run["path"], run["errors"]) for run in runs] == [("request", 0), ("bio", 0)]
    assert runs[1]["ring_full_waits"] > 0  # the request path is kept from it by nr_requests
    blocks = list(decode_image(image, 512, 64 << 10))
    assert [(block.offset, block.good) for block in blocks] == [(i * 512, True) for i in range(128)]
    assert image.read_bytes()[64 << 10 :] == bytes(2 * MIB - (64 << 10)), "nothing past --size is written"


def test_reads_alone_leave_the_image_as_it_was(file_disk: Daemon, image: Path) -> None:
    before = os.urandom(2 * MIB)
    image.write_bytes(before)
    assert virtblk("bench", file_disk.disk, "--rw", "read,randread", "--runtime", "0.1")[0] == 0
    assert image.read_bytes() == before


def test_a_read_only_export_is_read_and_not_written(tmp_path: Path, image: Path) -> None:
    with daemon(tmp_path, f"driver=file,filename={image}", "writable=off") as running:
        status, _, err = virtblk("bench", running.disk, "--runtime", "0.1")
        assert status == 2
        assert err.startswith(f"virtblk: {running.disk} is read-only, but a write workload was asked for")
        assert virtblk("bench", running.disk, "--runtime", "0.1", "--rw", "read,randread")[0] == 0
        assert facts(virtblk("info", running.disk)[1])["read_only"] == "yes"


def test_a_null_disk(tmp_path: Path) -> None:
    """What the driver itself costs."""
    with daemon(tmp_path, "driver=null-co,size=1073741824") as running:
        for poll in ("--poll", "--no-poll"):
            status, out, _ = virtblk("bench", running.disk, "--runtime", "0.1", poll, "--json", "-")
            assert status == 0
            value = figures(out)
            assert value["device"]["size"] == 1 << 30
            assert all(run["ios"] > 0 and run["errors"] == 0 for run in value["runs"])


def test_info(file_disk: Daemon) -> None:
    status, out, err = virtblk("info", file_disk.disk)
    assert (status, err) == (0, "")
    told = facts(out)
    assert told["size"] == "2097152 (2m)"
    assert told["serial"] == "vhost_user_blk"
    assert told["pid"] == str(file_disk.pid)
    assert {"VIRTIO_F_VERSION_1", "VIRTIO_BLK_F_FLUSH", "VIRTIO_BLK_F_CONFIG_WCE"} <= set(told["features"])


def test_one_client_after_another(file_disk: Daemon) -> None:
    for _ in range(3):
        assert virtblk("info", file_disk.disk)[0] == 0


@pytest.mark.parametrize("poll", ["--poll", "--no-poll"])
def test_a_daemon_that_stops_is_named_with_the_time_out(file_disk: Daemon, poll: str) -> None:
    with Command("bench", file_disk.disk, "--runtime", "120", "--timeout", "4", poll) as command:
        command.wait_for(file_disk.disk)
        wait_until_busy(file_disk.pid)
        os.kill(file_disk.pid, signal.SIGSTOP)
        status, _, err = command.wait()
    assert status == 1
    assert err.splitlines()[-1] == f"virtblk: {file_disk.disk}: the device did not answer in time (4 s)"
    assert "Traceback" not in err


def test_a_daemon_that_is_stopped_from_the_start(file_disk: Daemon) -> None:
    os.kill(file_disk.pid, signal.SIGSTOP)
    status, _, err = virtblk("info", file_disk.disk, "--timeout", "0.5")
    assert status == 2
    said = "VHOST_USER_GET_FEATURES: no answer within 0.5 s; another client may hold it"
    assert err == f"virtblk: {file_disk.disk}: {said}\n"


def test_a_daemon_that_is_killed_is_named(file_disk: Daemon) -> None:
    with Command("bench", file_disk.disk, "--runtime", "120", "--rw", "randread") as command:
        command.wait_for(file_disk.disk)
        wait_until_busy(file_disk.pid)
        os.kill(file_disk.pid, signal.SIGKILL)
        status, _, err = command.wait()  # which comes long before the 120 s are over
    assert status == 1
    assert err.splitlines()[-1] == f"virtblk: {file_disk.disk}: the device closed the connection"
