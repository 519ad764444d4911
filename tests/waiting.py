"""Waiting for other threads, with an end to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

#: Seconds after which a test is not going to get what it waits for.
PATIENCE: Final = 60.0


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait for what another thread or process is about to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def sleeps_on(thread: threading.Thread, address: int) -> bool:
    """Whether a thread is blocked in futex(2) on the word at `address`, and not on the GIL, which is a futex, too."""
    task = Path(f"/proc/self/task/{thread.native_id}")
    try:
        arguments = (task / "syscall").read_text().split()[1:2]
    except OSError:  # a kernel that does not tell
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "S"
    return bool(arguments) and int(arguments[0], 16) == address


class Background:
    """A call on a thread of its own, whose result the test collects later."""

    def __init__(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        self._call, self._arguments, self._keywords = call, arguments, keywords
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call(*self._arguments, **self._keywords)
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self, seconds: float = PATIENCE) -> Any:
        """What the call returned or raised."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "still waiting"
        if self._error is not None:
            raise self._error
        return self._result
