"""Run workloads one after another on an open session and collect their figures (fio: run_threads). Control context.

Jobs run in compiled loops on threads of their own; this thread sleeps, looks in on them for the progress line, and sets
their stop word when the time is up, when Ctrl-C came, or when one of them lost the device.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from virtblk.bench.cpu import own_usage, steal_seconds, usage_of
from virtblk.bench.histogram import BUCKETS, bucket_middle
from virtblk.bench.job import JobOptions, is_random, is_write
from virtblk.bench.job_loop import JOB_DTYPE, Jobs, job_loop
from virtblk.bench.session import Session
from virtblk.bench.stat import Clat, RunResult
from virtblk.bench.verify import BAD_BLOCK_TEXT, NEVER_WRITTEN
from virtblk.block.bio import REQ_OP_READ, REQ_OP_WRITE
from virtblk.driver.virtio_blk import VirtioBlk
from virtblk.errors import DeviceError
from virtblk.jit.arith import mix64
from virtblk.jit.atomics import store_release_i64
from virtblk.jit.table import Table
from virtblk.jit.threads import start_thread
from virtblk.jit.warmup import ensure, progress
from virtblk.mem.shm import Words
from virtblk.status import bio_to_os_errno, text_of

#: How often this thread looks in, in seconds: the granularity of Ctrl-C, and of the time limit when nobody ends early.
TICK = 0.1

#: Called with a label, the seconds passed, the seconds planned (0: unknown), I/Os done and I/Os planned (0: unknown).
Progress = Callable[[str, float, float, int, int], None]


def no_progress(label: str, passed: float, planned: float, ios: int, limit: int) -> None:
    """Say nothing."""


class Runner:
    """Runs on one session. `interrupt` may be called from a signal handler."""

    def __init__(self, session: Session, options: JobOptions, on_progress: Progress = no_progress) -> None:
        assert session.device is not None
        self._session = session
        self._device: VirtioBlk = session.device
        self._options = options
        self._on_progress = on_progress
        device = self._device
        self._range = options.check_disk(device.size, device.topology.block_size, device.read_only, session.name)
        self._blocks = self._range // options.bs
        self._words = Words(1)
        self._stop = self._words.address(0)
        self._finished = threading.Event()
        self.interrupted = False
        self._generation = 0
        count = self._blocks if options.verify != "none" else 1
        self._jobs = Jobs(
            Table(options.numjobs, JOB_DTYPE),
            Table(options.numjobs * BUCKETS),
            Table(options.numjobs * options.iodepth),
            Table.of(np.full(count, NEVER_WRITTEN, np.int64)),
        )
        with progress():
            ensure(job_loop, self._device.view, self._jobs, 0)
            bucket_middle(1)
        self._fill_buffers()

    def interrupt(self) -> None:
        """End the current run soon and start no other (Ctrl-C). The second time, do not even wait for the device."""
        if self.interrupted:
            self._device.break_queue(errno.ESHUTDOWN)
        self.interrupted = True
        store_release_i64(self._stop, 1)

    def run(self) -> Iterator[RunResult]:
        """Yield one result per workload and path. Raises DeviceError when the session is over.

        A run that Ctrl-C ended is yielded with what it did so far; nothing comes after it.
        """
        options = self._options
        fill: list[str] = []
        failed = 0
        if options.verify != "none":
            notes = self._pass("verify: fill", REQ_OP_WRITE)
            if notes is None:
                return
            fill = [f"fill: {note}" for note in notes]
            failed = int(self._jobs.jobs["errors"].sum())
        for path in options.paths:
            for workload in options.workloads:
                if options.ramp_time > 0:
                    ramp = self._measure(path, workload, options.ramp_time, "ramp")
                    failed += ramp.errors
                    fill += [f"ramp: {note}" for note in ramp.notes]
                if self.interrupted:
                    return
                result = self._measure(path, workload, options.runtime, workload)
                if options.verify != "none" and is_write(workload) and not self.interrupted:
                    self._read_back(result)
                result.errors += failed  # of fill and ramp: told with the run that follows
                result.notes += fill
                failed, fill = 0, []
                yield result
                if self.interrupted:
                    return

    # Passes.

    def _pass(self, label: str, op: int) -> list[str] | None:
        """Go over the whole range once, untimed, with one job. None when interrupted, else notes on what was wrong."""
        self._prepare(op, random=False, limit=self._blocks, only_first=True)
        self._go(label, 0.0, 1)
        return None if self.interrupted else self._notes()

    def _read_back(self, result: RunResult) -> None:
        """After a write workload: every block must hold what was last acknowledged."""
        notes = self._pass("verify: read back", REQ_OP_READ)
        if notes is not None:
            result.errors += int(self._jobs.jobs["errors"].sum())
            result.notes += [f"read back: {note}" for note in notes]

    def _measure(self, path: str, workload: str, seconds: float, label: str) -> RunResult:
        options, device, jobs = self._options, self._device, self._jobs
        op = REQ_OP_WRITE if is_write(workload) else REQ_OP_READ
        ramped = label != "ramp" and options.ramp_time > 0
        limit = 0 if seconds else self._blocks
        self._prepare(op, random=is_random(workload), limit=limit, only_first=False, ramped=ramped)
        queue, submitters = device.view.queue, device.view.submitters
        pid = self._session.device_pid
        kicks, waits_before = int(submitters["kicks"].sum()), int(submitters["ring_full_waits"].sum())
        interrupts = int(queue[0]["interrupts"])
        steal = steal_seconds()
        device_before = usage_of(pid) if pid and pid != os.getpid() else None
        driver_before = own_usage()
        began = self._go(label, seconds, options.numjobs)
        driver_after = own_usage()
        device_after = usage_of(pid) if pid and device_before else None
        ended = int(jobs.jobs["ended_ns"].max())
        waits = int(submitters["ring_full_waits"].sum()) - waits_before
        busy = int(jobs.jobs["busy_ns"].sum())
        return RunResult(
            path=path,
            workload=workload,
            bs=options.bs,
            iodepth=options.iodepth,
            numjobs=options.numjobs,
            ios=int(jobs.jobs["ios"].sum()),
            errors=int(jobs.jobs["errors"].sum()),
            runtime_s=max(0, ended - began) / 1e9,
            clat=Clat.of(jobs.jobs, jobs.histogram),
            driver=driver_after.since(driver_before),
            device=device_after.since(device_before) if device_after and device_before else None,
            busy_ns=busy if options.poll and not device.options.crowded and not waits else None,
            kicks=int(submitters["kicks"].sum()) - kicks,
            interrupts=int(queue[0]["interrupts"]) - interrupts,
            ring_full_waits=waits,
            steal_s=steal_seconds() - steal,
            notes=self._notes(),
        )

    # One pass of job threads.

    def _prepare(self, op: int, *, random: bool, limit: int, only_first: bool, ramped: bool = False) -> None:
        """Set all jobs up. `ramped`: go on where the ramp ended, not over blocks that it brought into a cache."""
        options, jobs = self._options, self._jobs
        if op == REQ_OP_WRITE:
            self._generation += 1
        count = 1 if only_first else options.numjobs
        records = jobs.jobs
        ramp_ends = records["next"].tolist()
        records[:] = 0
        jobs.histogram[:] = 0
        for index in range(options.numjobs):
            job = records[index]
            job["submitter"] = index
            job["op"], job["random"], job["bs"] = op, random, options.bs
            job["depth"], job["batch"] = options.iodepth, options.batch_submit
            job["blocks"] = self._blocks
            start = self._blocks * index // count % self._blocks
            job["next"], job["step"] = ramp_ends[index] if ramped else start, 1
            job["limit"] = limit
            job["seed"] = mix64(options.randseed ^ mix64(index) ^ mix64(ramped)) >> 1
            job["contents"] = options.randseed
            job["verify"] = options.verify != "none"
            job["generation"] = self._generation
            job["buffers"] = self._buffers(index)
            job["stop"] = self._stop
            job["clat_min"] = np.iinfo(np.int64).max
        store_release_i64(self._stop, 1 if self.interrupted else 0)

    def _go(self, label: str, seconds: float, count: int) -> int:
        """Run `count` jobs for `seconds` (0: to their limits); returns CLOCK_MONOTONIC in ns at the start.

        Raises DeviceError if the session ended meanwhile.
        """
        jobs = self._jobs
        self._finished.clear()
        barrier = threading.Barrier(count + 1)
        left = [count]
        lock = threading.Lock()
        failures: list[BaseException] = []  # of Python's: none in a kernel, except in a checking build

        def work(index: int) -> None:
            try:
                barrier.wait()
                job_loop(self._device.view, jobs, index)
            except BaseException as error:
                failures.append(error)
            finally:
                with lock:
                    left[0] -= 1
                    last = left[0] == 0
                if last or jobs.jobs[index]["result"]:
                    self._finished.set()

        threads: list[threading.Thread] = []
        try:
            for index in range(count):
                threads.append(start_thread(work, index, name=f"job{index}"))
        except OSError as error:
            barrier.abort()
            for thread in threads:
                thread.join()
            text = f"{self._session.name}: only {len(threads)} of --numjobs {count} threads could be started"
            raise DeviceError(errno.EAGAIN, text) from error
        began = time.monotonic_ns()
        barrier.wait()
        limit = int(jobs.jobs["limit"][:count].sum())
        deadline = time.monotonic() + seconds
        try:
            while not self._finished.is_set() and not self.interrupted:
                now = time.monotonic()
                if seconds and now >= deadline:
                    break
                self._finished.wait(min(TICK, deadline - now) if seconds else TICK)
                self._look_for_lost()
                passed = time.monotonic() - (deadline - seconds)
                self._on_progress(label, passed, seconds, int(jobs.jobs["ios"].sum()), limit)
        finally:  # whatever happened here, nobody unmaps memory under a job
            store_release_i64(self._stop, 1)
            while left[0]:  # bounded: a job waits for its last I/O no longer than the device's time-out
                self._finished.wait(TICK)
                if left[0]:
                    time.sleep(0.001)
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        if jobs.jobs["result"].any():
            raise self._device.broken_error()
        return began

    def _look_for_lost(self) -> None:
        """End the session when one I/O is out for longer than the time-out, even while others come back."""
        oldest = self._device.oldest_start_ns()
        if oldest is not None and time.monotonic_ns() - oldest > self._options.timeout * 1e9:
            self._device.break_queue(errno.ETIMEDOUT)

    def _notes(self) -> list[str]:
        """One line for the first error of a pass."""
        for job in self._jobs.jobs:
            if job["errors"]:
                offset = int(job["bad_offset"])
                if job["bad_block"]:
                    what = BAD_BLOCK_TEXT[int(job["bad_block"])]
                else:
                    what = text_of(bio_to_os_errno(int(job["bad_errno"])))
                return [f"first error at offset {offset}: {what}"]
        return []

    def _buffers(self, index: int) -> int:
        assert self._device.queue is not None
        return self._device.queue.data + index * self._options.iodepth * self._options.bs

    def _fill_buffers(self) -> None:
        """Random bytes, so that what is written does not compress; faulted in before anything is timed."""
        size = self._options.data_bytes
        view = self._device.arena.array(self._buffers(0), size)
        block = np.random.default_rng(self._options.randseed).integers(0, 256, min(size, 1 << 20), np.uint8)
        for start in range(0, size, len(block)):
            part = view[start : start + len(block)]
            part[:] = block[: len(part)]
