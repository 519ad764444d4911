"""The command line, called in this process or run as one of its own; and sockets with something wrong behind them."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import pytest

from virtblk.bench.cpu import usage_of
from virtblk.cli import main
from waiting import wait_until

#: Seconds for a process to do what it is about to do; it may have to compile first.
PATIENCE = 240.0


def complaint(capsys: pytest.CaptureFixture[str], *words: str, status: int = 2) -> str:
    """The one line on standard error that a command ends with; nothing of it may be a traceback."""
    capsys.readouterr()
    assert main(words) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if "compil" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("virtblk: ")
    return lines[0].removeprefix("virtblk: ")


class Command:
    """`python -m virtblk ...` in a session of its own, as a shell would run it. Killed, if need be, at the end."""

    def __init__(self, *words: str, tmp: Path | None = None) -> None:
        environment = os.environ | ({"TMPDIR": str(tmp)} if tmp else {})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "virtblk", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def wait(self) -> tuple[int, str, str]:
        """(exit status, standard output, standard error)"""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, self.head + out, err

    head = ""

    def wait_for(self, text: str) -> None:
        """Read standard output until a line with `text` has come."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.head += line
            if text in line:
                return
        raise AssertionError(f"{text!r} did not come: {self.wait()}")

    def child(self) -> int:
        """The device's process."""
        (pid,) = children(self.process.pid)
        return pid

    def interrupt(self) -> None:
        """Ctrl-C: to the whole group, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def virtblk(*words: str, tmp: Path | None = None) -> tuple[int, str, str]:
    """Run a command to its end: (exit status, standard output, standard error without notes on compiling)."""
    with Command(*words, tmp=tmp) as command:
        status, out, err = command.wait()
    return status, out, "".join(line for line in err.splitlines(True) if "compil" not in line)


def children(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def held(pid: int) -> set[str]:
    """What the open descriptors of a process are."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):
            found.add(str(fd.readlink()))
    return found


def wait_until_busy(pid: int) -> None:
    """Until a device has computed for so long that the run has begun for which it works, or until it is gone."""
    before = usage_of(pid)
    wait_until(lambda: not before or not (now := usage_of(pid)) or now.cpu_s > before.cpu_s + 0.2, PATIENCE)


def is_running(pid: int) -> bool:
    """A zombie that nobody waits for runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def server(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Listen at `path`, and let `serve` deal with each client in turn."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        stop, stopped = os.pipe()

        def run() -> None:
            while stop not in select.select([listening, stop], [], [])[0]:
                client, _ = listening.accept()
                with client, suppress(OSError):
                    serve(client)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            os.write(stopped, b"x")
            thread.join()
            os.close(stop)
            os.close(stopped)


def until_closed(client: socket.socket) -> None:
    """Read, and say nothing, until the client is gone."""
    while client.recv(4096):
        pass
