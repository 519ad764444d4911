"""Where devices under test come from quickly: a process that has imported numba and compiled virtblk, but holds nothing
of it, forks one after the other. A device is there in a tenth of a second, and it is a clean process of its own.

`Nursery` is the asking end, for tests; `python -m tests.mutants.nursery`, which it starts, is the other one. They
speak JSON, a line each: {"start": [name, socket, directory, disk, log]} -> pid, {"wait": pid} -> what waitpid() gives.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, Final

from .catalogue import MUTANTS
from .mutant import DISKS, RAM, SOURCE, serve

ROOT: Final = Path(__file__).resolve().parent.parent.parent
#: Seconds in which the process imports numba, on a busy machine.
START_TIMEOUT: Final = 300.0


class Nursery:
    """The process; its devices go with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
            text=True,
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT)
        if not ready or self._process.stdout.readline() != "ready\n":
            self.close()
            raise AssertionError("the mutants' nursery did not start")

    def ask(self, **question: Any) -> Any:
        """From any thread."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(self, name: str, socket: str, directory: str, disk: str = "ram", log: str = os.devnull) -> Device:
        """The mutant `name`, or `healthy` with one of `mutant.DISKS`; it may not listen yet."""
        return Device(self, self.ask(start=[name, socket, directory, disk, log]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Device:
    """One device's process, with as much of Popen's interface as a test needs."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            status = self._nursery.ask(wait=self.pid)
            if status is not None:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = START_TIMEOUT) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"device {self.pid}", timeout)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signo: int) -> None:
        if self.poll() is None:  # only the nursery's wait frees the number
            os.kill(self.pid, signo)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _fork(compiled: Mapping[str, CodeType], name: str, socket: str, directory: str, disk: str, log: str) -> int:
    """The child serves, and never returns from here."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(fd, target)
        os.closerange(3, 64)
        sys.stdin = open(os.devnull)  # noqa: SIM115  (the old ones hold the pipes' buffers)
        _die_with_parent()
        where = ("--socket-path", socket)
        status = serve(None if name == "healthy" else MUTANTS[name], where, directory, DISKS.get(disk, RAM), compiled)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _die_with_parent() -> None:
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _wait(pid: int) -> int | None:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return status if found else None


def _prepare() -> dict[str, CodeType]:
    """Compile all of virtblk, and import all that it imports; of itself nothing stays. By path of the source."""
    import virtblk.cli.serve
    import virtblk.server  # noqa: F401

    for name in [name for name in sys.modules if name.partition(".")[0] == "virtblk"]:
        del sys.modules[name]
    return {str(path): compile(path.read_bytes(), path, "exec", dont_inherit=True) for path in SOURCE.rglob("*.py")}


def main() -> None:
    compiled = _prepare()
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        answer = _fork(compiled, *question["start"]) if "start" in question else _wait(question["wait"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
