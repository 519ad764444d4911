"""Run workloads one after another on an open session and collect their figures (fio: run_threads). Control context.

A workload's arms (paths, the same one twice if that is asked for) take turns on the one connection, slice by slice: in
each round every arm has one slice, in random order, and all I/O is in before the next begins. So whatever drifts,
drifts for all of them. Jobs run in compiled loops on threads of their own (`bench.crew`); this thread sleeps, looks in
on them for the progress line, and ends a slice when its time is up, when Ctrl-C came, or when a job lost the device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np

from virtblk.bench.cpu import own_usage, steal_seconds, usage_of
from virtblk.bench.crew import Crew
from virtblk.bench.crew_runner import TICK, CrewRunner, Progress, no_progress
from virtblk.bench.histogram import BUCKETS, bucket_middle
from virtblk.bench.job import JobOptions, is_random, is_write
from virtblk.bench.job_loop import JOB_DTYPE, SECOND, Jobs, job_loop
from virtblk.bench.session import Session
from virtblk.bench.slices import Slice, together, warm_up
from virtblk.bench.stat import RunResult
from virtblk.bench.verify import BAD_BLOCK_TEXT, NEVER_WRITTEN
from virtblk.block.bio import REQ_OP_READ, REQ_OP_WRITE
from virtblk.jit.arith import mix64
from virtblk.jit.table import Table
from virtblk.jit.warmup import ensure, progress
from virtblk.status import bio_to_os_errno, text_of

#: A rate that was missed by more than this is told.
RATE_MISSED = 0.01


class Runner(CrewRunner[RunResult]):
    """Runs the workloads of one bench; `run` yields one result per workload and arm."""

    def __init__(self, session: Session, options: JobOptions, on_progress: Progress = no_progress) -> None:
        super().__init__(session, on_progress)
        self._options = options
        device = self._device
        self._range = options.check_disk(device.size, device.topology.block_size, device.read_only, session.name)
        self._blocks = self._range // options.bs
        self._generation = 0
        self._slices = 0
        self._path = ""
        self._label = ""
        self._done_before = (0.0, 0)  # seconds and I/Os of the workload's slices so far, for the progress line
        count = self._blocks if options.verify != "none" else 1
        in_flight = options.numjobs * options.iodepth
        self._jobs = Jobs(
            Table(options.numjobs, JOB_DTYPE),
            Table(options.numjobs * BUCKETS),
            Table(in_flight),
            Table.of(np.full(count, NEVER_WRITTEN, np.int64)),
            Table(in_flight),
        )
        self._writers: dict[int, int] = {}  # which arm wrote a generation
        with progress():
            ensure(job_loop, self._device.view, self._jobs, 0)
            self._crew = Crew(self._device.view, self._jobs, session.name, others=self._device.views[1:])
            bucket_middle(1)
        self._stop = self._crew.stop_word
        self._rewind()
        self._fill_buffers(options.randseed)

    def _run(self) -> Iterator[RunResult]:
        options = self._options
        fill: list[str] = []
        failed = 0
        if options.verify != "none":
            self.set_path(options.paths[0])
            notes = self._pass("verify: fill", REQ_OP_WRITE)
            if notes is None:
                return
            fill = [f"fill: {note}" for note in notes]
            failed = int(self._jobs.jobs["errors"].sum())
        for index, workload in enumerate(options.workloads):
            self._rewind()
            slices: list[Slice] = []
            if options.ramp_time > 0:
                for arm in range(len(options.paths)):
                    ramp = self.slice(workload, arm, options.ramp_time, label="ramp")
                    failed += ramp.errors
                    fill += [f"ramp: {note}" for note in ramp.notes]
                    if self.interrupted:
                        return
            for one in self._rounds(workload, index):
                slices.append(one)
            results = self._results(workload, slices)
            if options.verify != "none" and is_write(workload) and not self.interrupted:
                self._read_back(results)
            for result in results:
                result.errors += failed  # of fill and ramp: told with the first that follows
                result.notes = fill + result.notes
                failed, fill = 0, []
                yield result
            if self.interrupted:
                return

    # Slices.

    def _rounds(self, workload: str, index: int) -> Iterator[Slice]:
        """All slices of a workload, until Ctrl-C."""
        options = self._options
        rng = np.random.default_rng([options.randseed, index])
        arms = len(options.paths)
        for number in range(options.rounds):
            for arm in rng.permutation(arms).tolist():
                if self.interrupted:
                    return
                yield self.slice(workload, arm, options.slice_seconds, number=number)

    def slice(self, workload: str, arm: int, seconds: float, *, number: int = 0, label: str = "") -> Slice:
        """Run one slice of `seconds` (0: one pass per job) on the path of `arm`, and drain.

        Raises DeviceError when the session is over. Sequential jobs go on where the slice before left them, whichever
        arm that was: nobody reads what another has just brought into a cache.
        """
        options, device, jobs = self._options, self._device, self._jobs
        self.set_path(options.paths[arm])
        op = REQ_OP_WRITE if is_write(workload) else REQ_OP_READ
        self._prepare(op, random=is_random(workload), limit=0 if seconds else self._blocks)
        self._writers[self._generation] = arm
        pid = self._session.device_pid
        kicks, waits, interrupts, merges = device.kicks, device.ring_full_waits, device.interrupts, device.merges
        steal = steal_seconds()
        device_before = usage_of(pid) if pid and pid != os.getpid() else None
        driver_before = own_usage()
        began = self._go(label or workload, seconds, options.runtime * len(options.paths))
        driver_after = own_usage()
        device_after = usage_of(pid) if pid and device_before else None
        elapsed = max(0, int(jobs.jobs["ended_ns"].max()) - began) / SECOND
        histogram = jobs.histogram.reshape(-1, BUCKETS).sum(axis=0)
        buckets = np.flatnonzero(histogram)
        return Slice(
            arm=arm,
            round=number,
            jobs=together(jobs.jobs),
            buckets=buckets,
            counts=histogram[buckets],
            elapsed_s=elapsed,
            driver=driver_after.since(driver_before),
            device=device_after.since(device_before) if device_after and device_before else None,
            kicks=device.kicks - kicks,
            interrupts=device.interrupts - interrupts,
            ring_full_waits=device.ring_full_waits - waits,
            merges=device.merges - merges,
            steal_s=steal_seconds() - steal,
            notes=self._notes(),
            complete=not self.interrupted,
        )

    def _results(self, workload: str, slices: list[Slice]) -> list[RunResult]:
        """One result per arm that had a slice; the warm-up is that of the arm with the longest."""
        options = self._options
        of_arms = [[one for one in slices if one.arm == arm] for arm in range(len(options.paths))]
        drop = max(warm_up([one.iops for one in mine if one.complete]) for mine in of_arms)
        polling = options.poll and not self._device.options.crowded
        results = []
        for arm, mine in enumerate(of_arms):
            if mine:
                result = RunResult.of(options, options.paths[arm], workload, arm, mine, drop, polling=polling)
                asked = options.rate_iops * options.numjobs
                if asked and result.iops < asked * (1 - RATE_MISSED):
                    told = f"{result.iops:.0f} of the {asked} IOPS asked for: the disk or the machine did not keep up"
                    result.remarks.append(told)
                results.append(result)
        return results

    def set_path(self, path: str) -> None:
        """The path of the slices to come."""
        if path != self._path:
            self._device.set_path(path)
            self._path = path

    def queues(self) -> dict[str, dict[str, str]]:
        """The queue's attributes by path, each of which may have a scheduler of its own. After the run."""
        found = {}
        for path in dict.fromkeys(self._options.paths):
            self.set_path(path)
            found[path] = self._session.queue_settings()
        return found

    # Passes.

    def _pass(self, label: str, op: int) -> list[str] | None:
        """Go over the whole range once, untimed, with one job. None when interrupted, else notes on what was wrong."""
        self._rewind()
        self._prepare(op, random=False, limit=self._blocks, only_first=True)
        self._go(label, 0.0, 0.0)
        return None if self.interrupted else self._notes()

    def _read_back(self, results: list[RunResult]) -> None:
        """After a write workload: every block must hold what was last acknowledged. Told with the arm that wrote it."""
        notes = self._pass("verify: read back", REQ_OP_READ)
        errors = int(self._jobs.jobs["errors"].sum())
        if notes and errors:
            generation = int(self._jobs.generations[int(self._jobs.jobs[0]["bad_offset"]) // self._options.bs])
            writer = self._writers.get(generation, 0)
            result = next((result for result in results if result.arm == writer), results[0])
            result.errors += errors
            result.notes += [f"read back: {note}" for note in notes]

    # One run of the job threads.

    def _rewind(self) -> None:
        """Sequential jobs start again, each at its share of the range."""
        count = self._options.numjobs
        self._jobs.jobs["next"] = [self._blocks * index // count % self._blocks for index in range(count)]
        self._done_before = (0.0, 0)

    def _prepare(self, op: int, *, random: bool, limit: int, only_first: bool = False) -> None:
        """Set all jobs up for one run. Its random offsets, its generation and its seed are its own."""
        options, jobs = self._options, self._jobs
        if op == REQ_OP_WRITE:
            self._generation += 1
        self._slices += 1
        records = jobs.jobs
        positions = records["next"].copy()
        records[:] = 0
        jobs.histogram[:] = 0
        rate = 0 if only_first else options.rate_iops
        for index in range(options.numjobs):
            job = records[index]
            queue, number = self._device.map_submitter(index)
            job["queue"], job["submitter"] = queue.handle, number
            job["op"], job["random"], job["bs"] = op, random, options.bs
            job["depth"], job["batch"] = options.iodepth, options.batch_submit
            job["blocks"] = self._blocks
            job["next"], job["step"] = positions[index], 1
            job["limit"] = limit
            job["seed"] = mix64(options.randseed ^ mix64(index) ^ mix64(self._slices)) >> 1
            job["contents"] = options.randseed
            job["verify"] = options.verify != "none"
            job["generation"] = self._generation
            job["buffers"] = self._buffers(index)
            job["stop"] = self._stop
            job["rate"] = rate
            if rate:  # so that jobs do not all start theirs at once
                job["phase_ns"] = SECOND * index // (rate * options.numjobs)
            job["clat_min"] = np.iinfo(np.int64).max
        if only_first:
            records["depth"][1:] = 0  # these have no part in it
        self._crew.set_stop(1 if self.interrupted else 0)

    def _go(self, label: str, seconds: float, planned: float) -> int:
        """Run the jobs for `seconds` (0: to their limits); returns CLOCK_MONOTONIC in ns at the start.

        Raises DeviceError if the session ended meanwhile.
        """
        jobs = self._jobs
        if label != self._label:
            self._label, self._done_before = label, (0.0, 0)
        limit = int(jobs.jobs["limit"].sum())
        began = time.monotonic()
        before_s, before_ios = self._done_before

        def look_in() -> bool:
            self._look_for_lost()
            passed = before_s + time.monotonic() - began
            self._on_progress(label, passed, planned, before_ios + int(jobs.jobs["ios"].sum()), limit)
            return not self.interrupted

        began_ns = self._crew.run(seconds, TICK, look_in, self._look_for_lost)
        self._done_before = (before_s + time.monotonic() - began, before_ios + int(jobs.jobs["ios"].sum()))
        if jobs.jobs["result"].any():
            raise self._device.broken_error()
        return began_ns

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
        return self._device.data + index * self._options.iodepth * self._options.bs
