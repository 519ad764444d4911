"""SIGTERM to a command that started a device: the device goes with it, and the files."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.harness import PATIENCE, Command, children, is_running
from waiting import wait_until

pytestmark = [pytest.mark.once, pytest.mark.covers]

SILENT = Path(__file__).parent / "silent_device.py"


@pytest.mark.parametrize("command", ["check", "fuzz"])
def test_the_device_goes_with_the_command(command: str, tmp_path: Path) -> None:
    """It is in a group of its own, where no terminal's signals reach it."""
    told = tmp_path / "pid"
    device = shlex.join([sys.executable, str(SILENT), "{socket}", str(told)])
    with Command(command, "--timeout", "300", "--exec", device, tmp=tmp_path) as running:
        wait_until(lambda: told.exists() or running.process.poll() is not None, PATIENCE)
        pid = int(told.read_text())
        assert is_running(pid)
        running.process.send_signal(signal.SIGTERM)
        status, _, err = running.wait()
        assert status == 128 + signal.SIGTERM
        assert "Traceback" not in err
        assert not is_running(pid)
    assert [path.name for path in tmp_path.iterdir()] == ["pid"]  # no socket, no log


@contextmanager
def background(deaf: bool) -> Iterator[None]:
    """With `deaf`, what is started meanwhile ignores SIGINT, as a script's background job does."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if deaf else None
    try:
        yield
    finally:
        if deaf:
            signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize(
    ("words", "begun", "deaf"),
    [
        (("ram:1m", "--rw", "read", "--runtime", "120"), "ram:1m (1m)", False),
        (("--matrix", "--disks", "null:1m,file:", "--rw", "read", "--runtime", "120"), "1 of 2: null:1m", True),
    ],
)
def test_a_bench_ends_with_what_it_has_so_far(words: tuple[str, ...], begun: str, deaf: bool, tmp_path: Path) -> None:
    with background(deaf):
        running = Command("bench", *words, tmp=tmp_path)
    with running:
        running.wait_for(begun)
        child = running.child()
        running.process.send_signal(signal.SIGTERM)
        status, _, err = running.wait()
    assert status == 128 + signal.SIGTERM
    assert err.splitlines()[-1] == "virtblk: interrupted"
    assert "Traceback" not in err
    assert not is_running(child)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("deaf", [False, True])
def test_a_bench_that_has_not_begun_leaves_nothing(deaf: bool, tmp_path: Path) -> None:
    """The signal comes while its device starts, where Ctrl-C is put off."""
    with background(deaf):
        running = Command("bench", "ram:1m", "--runtime", "120", tmp=tmp_path)
    with running:
        wait_until(lambda: children(running.process.pid) or running.process.poll() is not None, PATIENCE)
        (child,) = children(running.process.pid)
        running.process.send_signal(signal.SIGTERM)
        status, _, err = running.wait()
    assert (status, "Traceback" in err) == (128 + signal.SIGTERM, False), err
    wait_until(lambda: not is_running(child))
    assert list(tmp_path.iterdir()) == []
