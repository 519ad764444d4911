"""The jobs' threads: started once, sent into one run of `job_loop` after another, joined at the end (fio: run_threads).

Control context. This side sleeps while a run lasts, looks in now and then, and says when it is over.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from virtblk.bench.fio_tables import FioJobs
from virtblk.bench.job_loop import Jobs
from virtblk.bench.job_thread import (
    CREW_DTYPE,
    GO_HOME,
    await_crew,
    job_thread,
    leave_crew,
    start_crew,
    stop_crew,
)
from virtblk.errors import DeviceError
from virtblk.jit.atomics import load_acquire_i64, store_release_i64
from virtblk.jit.table import Table
from virtblk.jit.threads import start_thread
from virtblk.jit.warmup import ensure
from virtblk.mem.shm import Words

_GO, _RUNNING, _WAKE, _IDLE, _STOP, _WORDS = range(6)


def compile_crew(view: Any, jobs: Jobs | FioJobs, thread: Any = None) -> None:
    """Compile what the threads run (`job_thread`, or another kernel like it), or load it from the cache."""
    crew = Table(1, CREW_DTYPE)
    ensure(thread or job_thread, view, jobs, crew, 0)
    ensure(start_crew, crew, 0, 0)
    ensure(await_crew, crew, 0)
    ensure(stop_crew, view, crew)
    ensure(leave_crew, crew)


class Crew:
    """One thread per job on the queue `view`, each running `thread` (default: `job_thread`).

    `others` are further queues that jobs may be on. `close` must come before the queues go.
    """

    def __init__(
        self, view: Any, jobs: Jobs | FioJobs, title: str, thread: Any = None, others: Sequence[Any] = ()
    ) -> None:
        self._view = view
        self._others = others
        self._jobs = jobs
        self._title = title
        self._thread = thread
        self._words = Words(_WORDS)
        self._crew = Table(1, CREW_DTYPE)
        for name, index in (("go", _GO), ("running", _RUNNING), ("wake", _WAKE), ("idle", _IDLE), ("stop", _STOP)):
            self._crew[0][name] = self._words.address(index)
        self._number = 0
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []  # of Python's: none in a kernel, except in a checking build
        compile_crew(view, jobs, thread)

    @property
    def stop_word(self) -> int:
        """Address of the word that ends a run: it may be set by anybody, a signal handler included."""
        return self._words.address(_STOP)

    @property
    def thread_ids(self) -> list[int]:
        """The system's numbers of the threads, job by job; empty before the first run."""
        return [thread.native_id or 0 for thread in self._threads]

    def _start(self) -> None:
        """Start the threads. Raises DeviceError where there are not as many to be had."""
        count = len(self._jobs.jobs)
        self._number = 0
        store_release_i64(self._words.address(_GO), 0)
        try:
            for index in range(count):
                self._threads.append(start_thread(self._work, index, name=f"job{index}"))
        except OSError as error:
            started = len(self._threads)
            self.close()
            text = f"{self._title}: only {started} of --numjobs {count} threads could be started"
            raise DeviceError(errno.EAGAIN, text) from error

    def _work(self, index: int) -> None:
        try:
            (self._thread or job_thread)(self._view, self._jobs, self._crew, index)
        except BaseException as error:
            self._failures.append(error)
            leave_crew(self._crew)

    def run(self, seconds: float, tick: float, look_in: Callable[[], bool], drain: Callable[[], None]) -> int:
        """Run all jobs for `seconds` (0: to their limits); returns CLOCK_MONOTONIC in ns at the start.

        `look_in` is called every `tick` seconds and at the end, and ends the run by returning False; then `drain` is,
        which must not raise, until all is in. Whatever happens, no job runs any more when this returns: a job waits
        for its last I/O no longer than the device's time-out.
        """
        if not self._threads:
            self._start()
        crew = self._crew
        self._number += 1
        began = time.monotonic_ns()
        deadline = began + int(seconds * 1e9)
        start_crew(crew, self._number, len(self._jobs.jobs))
        try:
            while True:
                left = deadline - time.monotonic_ns() if seconds else int(tick * 1e9)
                if left <= 0:
                    break
                running = await_crew(crew, min(int(tick * 1e9), left))
                if not look_in() or running == 0 or self._jobs.jobs["result"].any() or self._failures:
                    break
        finally:  # whatever happened here, nobody unmaps memory under a job
            for view in (self._view, *self._others):
                stop_crew(view, crew)
            while load_acquire_i64(int(crew[0]["running"])) > 0:
                await_crew(crew, int(tick * 1e9))
                drain()
        if self._failures:
            raise self._failures[0]
        return began

    def close(self) -> None:
        """Send the threads home and wait for them. No run is under way. Repeatable."""
        if self._threads:
            start_crew(self._crew, GO_HOME, 0)
            for thread in self._threads:
                thread.join()
            self._threads = []

    def set_stop(self, value: int) -> None:
        """Set the stop word: 0 before a run, 1 to end it. Safe in a signal handler."""
        store_release_i64(self.stop_word, value)
