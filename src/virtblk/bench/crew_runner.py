"""What runs a crew of job threads to its end, whatever the jobs are: the bench's runs and the waves of a job file.

Control context. Ends the work for Ctrl-C, ends the session when an I/O never comes back, and ends the threads.
"""

from __future__ import annotations

import errno
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np

from virtblk.bench.crew import Crew
from virtblk.bench.overdue import Overdue
from virtblk.bench.session import Session
from virtblk.driver.virtio_blk import VirtioBlk

#: How often the control thread looks in, in seconds: the granularity of Ctrl-C, and of the time limit when nobody ends
#: early.
TICK = 0.1

#: Called with a label, the seconds passed, the seconds planned (0: unknown), I/Os done and I/Os planned (0: unknown).
Progress = Callable[[str, float, float, int, int], None]

Result = TypeVar("Result")


def no_progress(label: str, passed: float, planned: float, ios: int, limit: int) -> None:
    """Say nothing."""


class CrewRunner(ABC, Generic[Result]):
    """Runs on one session; the heir makes the `_crew`. `interrupt` may be called from a signal handler."""

    _crew: Crew

    def __init__(self, session: Session, on_progress: Progress) -> None:
        assert session.device is not None
        self._session = session
        self._device: VirtioBlk = session.device
        self._overdue = Overdue(self._device, session.options.timeout)
        self._on_progress = on_progress
        self.interrupted = False

    def interrupt(self) -> None:
        """End the current run soon and start no other (Ctrl-C). The second time, do not even wait for the device."""
        if self.interrupted:
            self._device.break_queue(errno.ESHUTDOWN)
        self.interrupted = True
        self._crew.set_stop(1)

    def close(self) -> None:
        """End the job threads; before the session ends. Repeatable."""
        self._crew.close()

    def run(self) -> Iterator[Result]:
        """Yield what each run did. Raises DeviceError when the session is over.

        What Ctrl-C ended is yielded with what it did so far; nothing comes after it.
        """
        try:
            yield from self._run()
        finally:
            self.close()

    @abstractmethod
    def _run(self) -> Iterator[Result]: ...

    def _look_for_lost(self) -> None:
        """End the session when one I/O is out for longer than the time-out, even while others come back."""
        if self._overdue.look(time.monotonic_ns()):
            self._device.break_queue(errno.ETIMEDOUT)

    def _fill_buffers(self, seed: int) -> None:
        """Random bytes, so that what is written does not compress; faulted in before anything is timed."""
        view = self._device.arena.array(self._device.data, self._session.options.data_bytes)
        block = np.random.default_rng(seed).integers(0, 256, min(len(view), 1 << 20), np.uint8)
        for start in range(0, len(view), len(block)):
            part = view[start : start + len(block)]
            part[:] = block[: len(part)]
