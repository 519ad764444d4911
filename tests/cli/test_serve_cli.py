"""`virtblk serve`: the conventions of back-end programs, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import virtblk
from cli.harness import complaint
from cli.harness import virtblk as virtblk_command
from serving import Serving, scrape
from waiting import wait_until

pytestmark = pytest.mark.once


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "disk.sock"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def check(path: Path) -> None:
    """A client writes and reads."""
    with virtblk.open(f"vhost-user:{path}") as disk:
        disk.pwrite(b"served!!" * 64, 512)
        assert disk.pread(512, 512) == b"served!!" * 64


def is_listening(path: Path) -> bool:
    """Whether somebody does; connecting, to see, would make a session."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return any(row[-1] == str(path) and int(row[3], 16) & 0x10000 for row in rows)  # __SO_ACCEPTCON


# The conventions.


@pytest.mark.parametrize("words", [[], ["ram:1m"], ["--queues", "0", "--socket-path", "/nowhere/x", "--fd", "99"]])
def test_capabilities_are_printed_whatever_else_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """ "Other options and arguments should be ignored"."""
    with pytest.raises(SystemExit) as exit_info:
        virtblk_main("serve", *words, "--print-capabilities")
    assert exit_info.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"type": "block", "features": ["read-only", "blk-file"]}


def virtblk_main(*words: str) -> int:
    from virtblk.cli import main

    return main(words)


@pytest.mark.parametrize("option", ["--socket-path", "--socket"])
@pytest.mark.parametrize(("signo", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_serves_until_a_signal_and_takes_its_socket_along(
    sock: Path, log: Path, option: str, signo: int, status: int
) -> None:
    with Serving("ram:1m", option, str(sock), log=log) as serving:
        assert stat.S_IMODE(sock.stat().st_mode) == 0o600
        ready = serving.wait_for("ready")
        assert (ready["disk"], ready["size"], ready["socket"]) == ("ram:1m", "1048576", str(sock))
        check(sock)
        check(sock)
        assert serving.end(signo) == status
        assert not sock.exists()
        assert len(serving.events("session_begin")) == len(serving.events("session_end")) == 2
        assert serving.events("stopped")
        assert "Traceback" not in serving.log


def test_a_signal_ends_a_session_under_way(sock: Path, log: Path) -> None:
    with Serving("ram:1m", "--socket-path", str(sock), log=log) as serving:
        with virtblk.open(f"vhost-user:{sock}") as disk:
            disk.pwrite(bytes(512), 0)
            assert serving.end() == 0
            with pytest.raises(virtblk.DeviceError):
                disk.pread(512, 0)
        assert serving.events("session_end")[0]["reason"] == "stopped"


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_it_is_ready_ends_it_too(sock: Path, log: Path, signo: int, tmp_path: Path) -> None:
    """A fresh cache: it is compiling for a good while."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with Serving("ram:1m", "--socket-path", str(sock), log=log, environment=environment, wait=False) as serving:
        serving.wait_for("compiling")
        assert serving.end(signo) == (0 if signo == signal.SIGTERM else 130)
        assert not sock.exists()
        assert "Traceback" not in serving.log


@pytest.mark.covers
def test_what_the_options_say_shows_at_the_client(sock: Path, log: Path) -> None:
    words = ("--queues", "3", "--serial", "number 5", "--read-only", "--socket-mode", "660", "--poll-us", "0")
    with Serving("ram:1m", "--socket-path", str(sock), *words, "--queue-size", "64", log=log):
        assert stat.S_IMODE(sock.stat().st_mode) == 0o660
        with virtblk.open(f"vhost-user:{sock}", queue_size=64) as disk:
            assert (disk.serial, disk.read_only, disk._device.num_queues) == ("number 5", True, 3)
            with pytest.raises(OSError, match="read-only"):
                disk.pwrite(bytes(512), 0)
        with pytest.raises(virtblk.OpenError, match="VRING_NUM"):
            virtblk.open(f"vhost-user:{sock}", queue_size=128)


@pytest.mark.covers
def test_it_runs_where_it_is_told_to(sock: Path, log: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    with Serving("ram:1m", "--socket-path", str(sock), "--cpus", str(cpu), log=log) as serving:
        assert os.sched_getaffinity(serving.pid) == {cpu}


@pytest.mark.covers
def test_logs_can_be_json(sock: Path, log: Path) -> None:
    with Serving("ram:1m", "--socket-path", str(sock), "--log-format", "json", log=log, wait=False) as serving:
        wait_until(lambda: is_listening(sock) or serving.process.poll() is not None, 300)
        check(sock)
        assert serving.end() == 0
        lines = [json.loads(line) for line in serving.log.splitlines()]
    events = [line["event"] for line in lines if line["event"] != "compiling"]
    assert events == ["ready", "session_begin", "session_end", "stopped"]
    assert all(line["level"] == "info" for line in lines)


def test_it_says_only_what_is_asked_for(sock: Path, log: Path) -> None:
    with Serving("ram:1m", "--socket-path", str(sock), "--log-level", "error", log=log, wait=False) as serving:
        wait_until(lambda: is_listening(sock) or serving.process.poll() is not None, 300)
        check(sock)
        assert serving.end() == 0
        assert serving.log == ""


# Sockets that others made.


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen()
        yield made


@pytest.mark.covers
def test_an_inherited_listening_socket(sock: Path, log: Path) -> None:
    with listening(sock) as made:
        fd = made.fileno()
        with Serving("ram:1m", "--fd", str(fd), log=log, pass_fds=[fd]) as serving:
            check(sock)
            check(sock)
            assert serving.end() == 0
        assert sock.exists(), "the file is its maker's"


def test_an_inherited_connection_is_the_only_session(log: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        with Serving("ram:1m", "--fd", str(fd), log=log, pass_fds=[fd], wait=False) as serving:
            theirs.close()
            from virtblk.vhost_user.connection import Connection
            from virtblk.vhost_user.frontend import Frontend

            with Connection(ours) as connection:
                assert Frontend(connection, 300).get_features()
            assert serving.process.wait(60) == 0
            assert serving.events("session_end")


#: As systemd starts a service: the socket is descriptor 3, and LISTEN_PID is the process that exec() made.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = sys.argv[2], sys.argv[3] if sys.argv[3] else str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "virtblk", "serve", "ram:1m"])
"""


def activate(fd: int, count: str, log: Path, pid: str = "") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", ACTIVATE, str(fd), count, pid]
    with log.open("wb") as file:
        return subprocess.Popen(command, pass_fds=[fd, 3], stdin=subprocess.DEVNULL, stderr=file)


def test_a_socket_that_systemd_passes(sock: Path, log: Path) -> None:
    with listening(sock) as made:
        process = activate(made.fileno(), "1", log)
        try:
            with virtblk.open(f"vhost-user:{sock}", timeout=300) as disk:  # it waits in the backlog, as it would
                assert disk.size == 1 << 20
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
        assert 'socket="fd 3"' in log.read_text()


@pytest.mark.parametrize(
    ("count", "pid", "words"),
    [
        ("2", "", "LISTEN_FDS=2: one disk takes one socket"),
        ("many", "", "LISTEN_FDS='many' is no number"),
        ("1", "1", "nowhere to listen: give --socket-path PATH or --fd N"),  # passed to another process
    ],
)
def test_what_systemd_passed_and_will_not_do(sock: Path, log: Path, count: str, pid: str, words: str) -> None:
    with listening(sock) as made:
        assert activate(made.fileno(), count, log, pid).wait(60) == 2
        assert log.read_text() == f"virtblk: {words}\n"


def test_a_stale_socket_is_replaced_and_a_live_one_refused(sock: Path, log: Path, tmp_path: Path) -> None:
    with Serving("ram:1m", "--socket-path", str(sock), log=log) as serving:
        serving.kill()
    assert sock.exists(), "nobody removed it"
    with Serving("ram:1m", "--socket-path", str(sock), log=log):
        check(sock)
        with Serving("ram:1m", "--socket-path", str(sock), log=tmp_path / "second", wait=False) as second:
            assert second.process.wait(300) == 2
            assert second.log.splitlines()[-1] == f"virtblk: socket {sock}: another server answers there"
        check(sock)


# What is refused, in one line.


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "no disk to serve: give ram:512m"),
        (["ram:1m"], "nowhere to listen: give --socket-path PATH or --fd N"),
        (["ram:1m", "--socket-path", "a", "--fd", "3"], "both --socket-path 'a' and --fd 3: give one"),
        (["ram:1m", "--blk-file", "x", "--socket-path", "a"], "both a disk ('ram:1m') and --blk-file 'x'"),
        (["--blk-file", "", "--socket-path", "a"], "--blk-file '': give the path"),
        (["vhost-user:/x", "--socket-path", "a"], "disk 'vhost-user:/x': a vhost-user device is served already"),
        (["ram:lots", "--socket-path", "a"], "disk 'ram:lots': size 'lots'"),
        (["ram:1m", "--socket-path", "a", "--queues", "0"], "--queues 0: give 1 to 256"),
        (["ram:1m", "--socket-path", "a", "--queues", "257"], "--queues 257: give 1 to 256"),
        (["ram:1m", "--socket-path", "a", "--queues", "x"], "argument --queues: invalid int value: 'x'"),
        (["ram:1m", "--socket-path", "a", "--queue-size", "100"], "--queue-size 100: give a power of two"),
        (["ram:1m", "--socket-path", "a", "--queue-size", "65536"], "--queue-size 65536: give a power of two"),
        (["ram:1m", "--socket-path", "a", "--poll-us", "-1"], "--poll-us -1: give microseconds"),
        (["ram:1m", "--socket-path", "a", "--socket-mode", "689"], "--socket-mode '689': give octal"),
        (["ram:1m", "--socket-path", "a", "--socket-mode", "1777"], "--socket-mode '1777': give octal"),
        (["ram:1m", "--socket-path", "a", "--cpus", "all"], "--cpus 'all': give cpu numbers"),
        (["ram:1m", "--socket-path", "a", "--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
        (["ram:1m", "--socket-path", "a", "--serial", "x" * 21], "is longer than 20 bytes"),
        (["ram:1m", "--socket-path", "/nowhere/a"], "socket /nowhere/a: No such file or directory"),
        (["ram:1m", "--socket-path", "x" * 200], "socket path of 200 bytes"),
        (["ram:1m", "--socket-path", "a", "more"], "unknown argument 'more'"),
        (["ram:1m", "--socket-path", "a", "--metrics", "9100000"], "--metrics '9100000': give PORT or HOST:PORT"),
        (["ram:1m", "--socket-path", "a", "--metrics", "99999"], "PORT from 0 to 65535"),
        (["ram:1m", "--socket-path", "a", "--filter", "floppy"], "'floppy'"),
        (["ram:1m", "--socket-path", "a", "--filter", "error?rate=lots"], "'lots'"),
        (["ram:1m", "--fd", "-1"], "file descriptor -1 is not a socket"),
        (["ram:1m", "--fd", "0"], "file descriptor 0 is not"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with restored_process(), open(os.devnull, "rb") as null, restored_fd(0, null.fileno()):
        assert text in complaint(capsys, "serve", *words)
    assert list(tmp_path.iterdir()) == [], "no socket is left"


def test_a_path_that_is_no_socket_is_left_alone(sock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sock.write_text("precious")
    with restored_process():
        assert "exists and is not a socket" in complaint(capsys, "serve", "ram:1m", "--socket-path", str(sock))
    assert sock.read_text() == "precious"


@contextmanager
def restored_process() -> Iterator[None]:
    """The command changes signals and logging of its process, which here is the tests'."""
    import logging

    signals = {signo: signal.getsignal(signo) for signo in (signal.SIGTERM, signal.SIGINT)}
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    cpus = os.sched_getaffinity(0)
    try:
        yield
    finally:
        for signo, handler in signals.items():
            signal.signal(signo, handler)
        root.handlers[:] = handlers
        root.setLevel(level)
        os.sched_setaffinity(0, cpus)


@contextmanager
def restored_fd(fd: int, other: int) -> Iterator[None]:
    """Descriptor `fd` is `other` inside."""
    kept = os.dup(fd)
    os.dup2(other, fd)
    try:
        yield
    finally:
        os.dup2(kept, fd)
        os.close(kept)


# --metrics.


@pytest.mark.covers
def test_metrics_count_requests_over_all_sessions(sock: Path, log: Path) -> None:
    words = ("--socket-path", str(sock), "--queues", "2", "--metrics", "0")
    with Serving("ram:1m", *words, log=log) as serving:
        address = serving.wait_for("metrics")["address"]
        assert address.startswith("127.0.0.1:")
        before = scrape(address)
        assert before['virtblk_info{version="' + virtblk.__version__ + '",disk="ram:1m",read_only="false"}'] == 1
        assert before["virtblk_disk_size_bytes"] == 1 << 20
        assert before["virtblk_sessions_total"] == before["virtblk_sessions_active"] == 0
        for turn in (1, 2):
            with virtblk.open(f"vhost-user:{sock}") as disk:
                requests = scrape(address)['virtblk_queue_requests_total{queue="0"}']
                for _ in range(10):
                    disk.pread(512, 0)
                now = scrape(address)
                assert now['virtblk_queue_requests_total{queue="0"}'] == requests + 10
                assert now['virtblk_requests_total{queue="0",op="read"}'] == 10 * turn
                assert now['virtblk_bytes_total{queue="0",op="read"}'] == 5120 * turn
                answered = now['virtblk_queue_requests_total{queue="0"}']
                assert now['virtblk_request_seconds_count{queue="0"}'] == answered
                assert now['virtblk_in_flight{queue="0"}'] == 0
                assert now['virtblk_queue_running{queue="0"}'] == 1
                assert now["virtblk_sessions_total"] == turn
                assert now["virtblk_sessions_active"] == 1
            serving.wait_for("session_end", turn)
            after = scrape(address)
            assert after['virtblk_queue_requests_total{queue="0"}'] == now['virtblk_queue_requests_total{queue="0"}']
            assert after['virtblk_queue_running{queue="0"}'] == after["virtblk_sessions_active"] == 0
        assert after['virtblk_queue_requests_total{queue="1"}'] == 0


def test_a_driver_on_four_virtqueues(sock: Path, log: Path) -> None:
    """Two processes: what was asked of the device on each virtqueue adds up to what the driver did."""
    words = ("--socket-path", str(sock), "--queues", "4", "--metrics", "0")
    with Serving("ram:1m", *words, log=log) as serving:
        address = serving.wait_for("metrics")["address"]
        with virtblk.open(f"vhost-user:{sock}", queues=4, path="mq") as disk, ThreadPoolExecutor(8) as pool:
            assert (disk.queues, disk._device.num_queues) == (4, 4)

            def work(number: int) -> int:
                wrong = 0
                for turn in range(10):
                    data = bytes([number, turn]) * 2048
                    disk.pwrite(data, number << 17, fua=turn == 5)
                    wrong += disk.pread(4096, number << 17) != data
                return wrong

            assert sum(pool.map(work, range(8))) == 0
            disk.flush()
            now = scrape(address)
            for op, count in (("read", 80), ("write", 80)):
                assert sum(now[f'virtblk_requests_total{{queue="{index}",op="{op}"}}'] for index in range(4)) == count
            assert [now[f'virtblk_queue_running{{queue="{index}"}}'] for index in range(4)] == [1] * 4
            ended = [int(d.queue[0]["ended"]) for d in disk._device.views]
            assert [now[f'virtblk_queue_requests_total{{queue="{index}"}}'] for index in range(4)] == ended
        serving.wait_for("session_end")


def test_metrics_where_they_cannot_be(sock: Path, log: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = ("ram:1m", "--socket-path", str(sock), "--metrics", port)
        with Serving(*words, log=log, wait=False) as serving:
            assert serving.process.wait(300) == 2
        assert log.read_text().splitlines()[-1] == f"virtblk: metrics on 127.0.0.1:{port}: Address already in use"
    assert not sock.exists()


# --filter.


def test_errors_that_a_filter_makes_are_all_counted_by_the_driver(sock: Path, log: Path, tmp_path: Path) -> None:
    trigger = tmp_path / "arm"
    words = ("--filter", f"error?rate=10%&file={trigger}", "--metrics", "0")
    with Serving("ram:16m", "--socket-path", str(sock), *words, log=log) as serving:
        address = serving.wait_for("metrics")["address"]
        check(sock)
        assert scrape(address)["virtblk_storage_error_injected"] == 0, "not armed"
        trigger.touch()
        words = ("--rw", "randread,randwrite", "--runtime", "0.5", "--json", "-")
        status, out, _ = virtblk_command("bench", f"vhost-user:{sock}", *words)
        trigger.unlink()
        assert status == 1
        errors = sum(run["errors"] for run in json.loads(out)["runs"])
        assert errors == scrape(address)["virtblk_storage_error_injected"] > 0
        check(sock)
