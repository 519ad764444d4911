"""The device process: it comes up, says what is wrong in one line, and goes with whoever started it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import virtblk
from virtblk import server
from virtblk.errors import UsageError
from virtblk.names import parse_name
from virtblk.server import ChildDevice, ServeOptions, local_device, serial_of
from virtblk.storage.open import open_storage
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.once, pytest.mark.covers]


def is_gone(pid: int) -> bool:
    """No such process, or one that only its parent has not noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_child_serves_one_disk_after_the_other_client() -> None:
    with ChildDevice("ram:1m?block_size=4k", queues=3) as child:
        child.wait_ready()
        directory = Path(child.path).parent
        assert directory.stat().st_mode & 0o777 == 0o700
        for turn in range(3):
            with virtblk.open(f"vhost-user:{child.path}") as disk:
                assert (disk.size, disk.block_size, disk.serial) == (1 << 20, 4096, "ram:1m?block_size=4k"[:20])
                assert disk.pread(512, 0) == bytes([turn]) * 512
                disk.pwrite(bytes([turn + 1]) * 512, 0)
                assert disk._device.num_queues == 3
                assert disk._device.peer_pid() == child.pid
    assert child.process.returncode == 0
    assert not directory.exists()


def test_a_second_client_is_refused_while_there_is_one() -> None:
    with ChildDevice("null:1m") as child:
        child.wait_ready()
        with (
            virtblk.open(f"vhost-user:{child.path}"),
            pytest.raises(virtblk.OpenError, match="closed the connection"),  # and no time-out
        ):
            virtblk.open(f"vhost-user:{child.path}")
        virtblk.open(f"vhost-user:{child.path}").close()


@pytest.mark.parametrize(
    ("field", "value"),
    [("queues", 0), ("queue_size", 3), ("poll_us", -1), ("socket_mode", 0o1000), ("hint", "fast")],
)
def test_an_option_that_can_never_work_is_named(field: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        ServeOptions(**{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ram:lots", {}, "disk 'ram:lots': size 'lots'"),
        ("ram:100", {}, "size 100 is not a positive multiple"),
        ("floppy:", {}, "scheme 'floppy' is unknown"),
        ("vhost-user:/x", {}, "is no storage of this version"),
        ("null:1m", {"queues": 0}, "0 queues: give 1 to 256"),
        ("null:1m", {"cpus": "4096"}, "Invalid argument"),
        ("null:1m", {"cpus": "all"}, "'all'"),
    ],
)
def test_a_child_that_cannot_start_says_why_in_one_line(name: str, options: dict[str, object], words: str) -> None:
    child = ChildDevice(name, **options)  # type: ignore[arg-type]
    with child, pytest.raises(virtblk.OpenError) as caught:
        child.wait_ready()
    assert caught.value.errno == errno.ENODEV
    assert (caught.value.strerror or "").startswith("the device process did not start: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(child.path).parent.exists()


def test_a_child_that_dies_without_a_word() -> None:
    with ChildDevice("null:1m") as child:
        child.process.kill()
        with pytest.raises(virtblk.OpenError, match="exit status -9"):
            child.wait_ready()


def test_regression_a_child_that_never_gets_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "START_TIMEOUT", 0.2)
    with ChildDevice("null:1m") as child:
        child.process.send_signal(signal.SIGSTOP)
        with pytest.raises(virtblk.OpenError, match=r"did not start within 0\.2 s") as caught:
            child.wait_ready()
    assert caught.value.errno == errno.ETIMEDOUT
    assert child.process.returncode == -9


@pytest.mark.parametrize("way", ["SIGTERM", "stdin"])
def test_a_child_goes_when_it_is_told_to(way: str) -> None:
    child = ChildDevice("ram:1m")
    child.wait_ready()
    with virtblk.open(f"vhost-user:{child.path}") as disk:
        if way == "stdin":
            assert child.process.stdin is not None
            child.process.stdin.close()
        else:
            child.process.terminate()
        assert child.process.wait(PATIENCE) == 0
        assert not Path(child.path).exists()
        with pytest.raises(virtblk.DeviceError):
            disk.pread(512, 0)
    child.close()


def test_a_child_that_will_not_go_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STOP_TIMEOUT", 0.2)
    child = ChildDevice("null:1m")
    child.wait_ready()
    child.process.send_signal(signal.SIGSTOP)
    child.close()
    assert child.process.returncode == -9
    assert not Path(child.path).parent.exists()


def test_ctrl_c_at_the_terminal_is_not_for_the_child() -> None:
    with ChildDevice("null:1m") as child:
        assert os.getpgid(child.pid) == child.pid != os.getpgid(0)


PARENT = """
import sys, time
from virtblk.server import ChildDevice
child = ChildDevice("ram:1m")
child.wait_ready()
print(child.pid, child.path, flush=True)
time.sleep(60)
"""


def test_a_child_dies_with_its_parent_and_takes_its_directory_along() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pid, path = parent.stdout.readline().split()
            with virtblk.open(f"vhost-user:{path}") as disk:
                assert disk.pread(512, 0) == bytes(512)
                parent.kill()
                wait_until(lambda: is_gone(int(pid)))
                with pytest.raises(virtblk.DeviceError, match="closed the connection"):
                    disk.pread(512, 0)
        finally:
            parent.kill()
    assert not Path(path).parent.exists()


# In this process.


def test_a_local_device_needs_a_storage() -> None:
    with pytest.raises(virtblk.UsageError, match="is no storage"):
        local_device("vhost-user:/x")


def test_serials_are_names_as_far_as_they_fit() -> None:
    assert serial_of("ram:1m") == "ram:1m"
    assert serial_of("null:1g?block_size=65536") == "null:1g?block_size=6"


@pytest.mark.parametrize(
    ("name", "serial"),
    [
        ("file:/var/lib/disks/root.img", "root.img"),
        ("file:root.img?cache=none", "root.img"),
        ("file:/dev/disk/by-id/a-very-long-name-of-a-disk-7", "long-name-of-a-disk-7"[-20:]),
        ("nbd:nbd://host:10809/export-1", "export-1"),
    ],
)
def test_disks_that_have_a_path_are_told_apart_by_its_end(name: str, serial: str) -> None:
    assert serial_of(name) == serial


@pytest.mark.compiled
def test_regression_the_worker_is_compiled_before_a_driver_waits_for_it() -> None:
    """It took ten seconds of the driver's time-out on a machine that had never run virtblk."""
    code = (
        "from virtblk.device.worker import worker_loop\n"
        "from virtblk.server import local_device\n"
        "device = local_device('null:1m')\n"
        "print(len(worker_loop.signatures))\n"
        "device.client.close(); device.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


# serve(): a server in this process.


def test_serve_by_name(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    with virtblk.serve("ram:1m", path, queues=2, serial="mine", poll_us=0, socket_mode=0o640) as running:
        assert running.path == str(path)
        assert path.stat().st_mode & 0o777 == 0o640
        for turn in range(2):
            with virtblk.open(f"vhost-user:{path}") as disk:
                assert (disk.size, disk.serial, disk._device.num_queues) == (1 << 20, "mine", 2)
                assert disk.pread(512, 0) == bytes([turn]) * 512
                disk.pwrite(bytes([turn + 1]) * 512, 0)
    assert not path.exists()
    running.close()  # harmless


def test_serve_an_open_storage_which_stays_the_callers(tmp_path: Path) -> None:
    storage = open_storage(parse_name("ram:1m"))
    try:
        for turn in range(2):
            with (
                virtblk.serve(storage, str(tmp_path / "a")),
                virtblk.open(f"vhost-user:{tmp_path / 'a'}") as disk,
            ):
                assert disk.pread(512, 512) == bytes([turn]) * 512
                disk.pwrite(bytes([turn + 1]) * 512, 512)
        with (
            virtblk.serve(storage, tmp_path / "a", read_only=True),
            virtblk.open(f"vhost-user:{tmp_path / 'a'}") as disk,
        ):
            assert disk.read_only
            assert disk.pread(512, 512) == bytes([2]) * 512
        with pytest.raises(virtblk.UsageError, match="filters go with a disk's name"):
            virtblk.serve(storage, tmp_path / "a", filters=["readonly"])
    finally:
        storage.close()


def test_closing_a_server_ends_its_session(tmp_path: Path) -> None:
    running = virtblk.serve("ram:1m", tmp_path / "a")
    with virtblk.open(f"vhost-user:{tmp_path / 'a'}") as disk:
        disk.pwrite(bytes(512), 0)
        running.close()
        with pytest.raises(virtblk.DeviceError):
            disk.pread(512, 0)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("floppy:", {}, "scheme 'floppy' is unknown"),
        ("ram:1m", {"queues": 300}, "300 queues"),
        ("ram:1m", {"queue_size": 3}, "queue size 3"),
        ("ram:1m", {"poll_us": -1}, "poll_us -1"),
        ("ram:1m", {"filters": ["floppy"]}, "floppy"),
        ("ram:1m", {"socket_mode": 0o1777}, "socket mode 1777"),
        ("ram:1m", {"serial": "much longer than twenty"}, "is longer than 20 bytes"),
    ],
)
def test_what_cannot_be_served_is_a_usage_error(
    tmp_path: Path, name: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(virtblk.UsageError, match=words):
        virtblk.serve(name, tmp_path / "a", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()


def test_a_socket_that_cannot_be_made(tmp_path: Path) -> None:
    with virtblk.serve("null:1m", tmp_path / "a"):
        with pytest.raises(virtblk.OpenError, match="another server answers there") as caught:
            virtblk.serve("null:1m", tmp_path / "a")
        assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(virtblk.UsageError, match="socket path of"):
        virtblk.serve("null:1m", tmp_path / ("x" * 120))


def test_no_thread_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.EAGAIN, "no thread")

    monkeypatch.setattr(server, "start_thread", refuse)
    with pytest.raises(OSError, match="no thread"):
        virtblk.serve("null:1m", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_stop_may_be_said_any_number_of_times(tmp_path: Path) -> None:
    with virtblk.serve("null:1m", tmp_path / "a") as running:
        os.eventfd_write(running._stop_fd, (1 << 64) - 2)
        running.stop()
