"""Devices that are forked off one process, which has imported and compiled what they need once: each is there in
milliseconds, and is a clean process of its own.

`ForkServer` and `Child` are the asking end, for tests. Run as a script, with the name of a module, the file is that
process: the module's `prepare()` does what is done once, and returns what a child does with the words it was started
with, until it returns its exit status. Both ends speak JSON, a line each: {"start": [log, words]} -> pid,
{"wait": pid} -> what waitpid() gives, null while it runs.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

ROOT: Final = Path(__file__).resolve().parent.parent
#: Seconds in which the process imports numba, and may compile, on a busy machine.
START_TIMEOUT: Final = 300.0
#: Exit status of a child that an exception ended (EX_SOFTWARE).
_FAILED: Final = 70
_PR_SET_PDEATHSIG: Final = 1


class ForkServer:
    """The process; its children go with it."""

    def __init__(self, module: str, **environment: str) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **environment},
            text=True,
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT)
        if not ready or self._process.stdout.readline() != "ready\n":
            self.close()
            raise AssertionError(f"the process that forks for {module} did not start")

    def fork(self, *words: str, log: str = os.devnull) -> Child:
        """A child, whose output goes to the end of `log`; what it is to do may not have begun yet."""
        return Child(self, self.ask(start=[log, words]))

    def ask(self, **question: Any) -> Any:
        """From any thread."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Child:
    """One of its children, with as much of Popen's interface as a test needs."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            status = self._server.ask(wait=self.pid)
            if status is not None:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = START_TIMEOUT) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"child {self.pid}", timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, signo: int) -> None:
        if self.poll() is None:  # only the server's wait frees the number
            os.kill(self.pid, signo)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# The process.


def _fork(act: Callable[..., int], log: str, words: list[str]) -> int:
    """The child acts, and never returns from here."""
    pid = os.fork()
    if pid:
        return pid
    status = _FAILED
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(fd, target)
        os.close(out)
        os.close(null)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  (the old one holds what the pipe's buffer held)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        status = act(*words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int) -> int | None:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return status if found else None


def main() -> None:
    act = importlib.import_module(sys.argv[1]).prepare()
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        answer = _fork(act, *question["start"]) if "start" in question else _wait(question["wait"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
