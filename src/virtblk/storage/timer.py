"""Calls at their time: a heap, a condition and one thread (Linux: hrtimer).

Whoever wants a request to go on later says so here and keeps its own thread (`filters/delay.py`, `filters/rate.py`).
The calls run on the timer's thread, in the order of their times; equal times in the order in which they were asked
for. Tests inject a clock, start no thread, and call `run_due()`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from virtblk.jit.threads import start_thread

log = logging.getLogger("virtblk.storage")

#: Seconds that close() waits for a call that runs.
_CLOSE_SECONDS: Final = 10.0


class Timer:
    """Runs calls on one thread, which `start()` starts and `close()` ends."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.clock = clock  # seconds
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; once is enough. Raises OSError where there is none to be had."""
        if self._thread is None:
            self._thread = start_thread(self._run, name=self.name)

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Run `call`, which does not raise, when the clock shows `when` or more."""
        with self._wake:
            first = not self._heap or when < self._heap[0][0]
            heapq.heappush(self._heap, (when, next(self._order), call))
            if first:
                self._wake.notify()

    def run_due(self) -> None:
        """Run all calls whose time has come."""
        while (call := self._take()) is not None:
            try:
                call()
            except Exception:  # one bad call must not stop those after it
                log.exception("%s: a call failed", self.name)

    @property
    def waiting(self) -> int:
        """Calls whose time has not come."""
        with self._wake:
            return len(self._heap)

    def close(self) -> None:
        """End the thread. What still waits runs now, on this thread: no request is lost. Idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_SECONDS)
        self.run_due()

    def _take(self) -> Callable[[], None] | None:
        """The earliest call, if it is due or if all have to go."""
        with self._wake:
            if self._heap and (self._closing or self._heap[0][0] <= self.clock()):
                return heapq.heappop(self._heap)[2]
            return None

    def _run(self) -> None:
        while True:
            with self._wake:
                if self._closing:
                    return
                pause = self._heap[0][0] - self.clock() if self._heap else None
                if pause is None or pause > 0:
                    self._wake.wait(pause)
                    continue
            self.run_due()
