"""Run a job file on an open session, wave by wave, and collect what each job did (fio: run_threads). Control context.

The jobs of a wave start together and end one by one, each by itself (`bench.fio_loop`); this thread sleeps, samples
their speed every half second as fio does, and ends them all for Ctrl-C or when the session is over.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from virtblk.bench.cpu import Usage, own_usage, usage_of, usage_of_thread
from virtblk.bench.crew import Crew, compile_crew
from virtblk.bench.crew_runner import TICK, CrewRunner, Progress, no_progress
from virtblk.bench.fio_options import JobFile
from virtblk.bench.fio_plan import DiskFacts, FileOptions, Task, buffer_bytes, plan
from virtblk.bench.fio_tables import (
    DEPTH_CLASSES,
    FIO_BIO_DTYPE,
    FIO_JOB_DTYPE,
    FIO_STAT_DTYPE,
    KINDS,
    LATENCIES,
    LEVELS,
    NEVER,
    FioJobs,
)
from virtblk.bench.fio_thread import fio_thread
from virtblk.bench.histogram import BUCKETS, bucket_middle
from virtblk.bench.session import Session
from virtblk.bench.verify import BAD_BLOCK_TEXT
from virtblk.driver.queue import example_queue
from virtblk.jit.arith import mix64
from virtblk.jit.table import Table
from virtblk.jit.warmup import progress
from virtblk.status import bio_to_os_errno, text_of
from virtblk.uapi.virtio_blk import VIRTIO_BLK_F_DISCARD

SECOND: Final = 1_000_000_000
#: fio's bwavgtime and iopsavgtime.
SAMPLE_SECONDS: Final = 0.5
_DIRECTIONS: Final = KINDS - 1  # without flushes


def make_jobs(count: int, depth: int) -> FioJobs:
    """Tables for `count` jobs at most, none deeper than `depth`."""
    return FioJobs(
        Table(count, FIO_JOB_DTYPE),
        Table(count * KINDS, FIO_STAT_DTYPE),
        Table(count * KINDS * BUCKETS),
        Table(count * LEVELS * DEPTH_CLASSES),
        Table(count * depth),
        Table(count * depth, FIO_BIO_DTYPE),
    )


def compile_fio_jobs() -> None:
    """Compile what a job file runs, or load it from the cache."""
    compile_crew(example_queue(), make_jobs(1, 1), fio_thread)


@dataclass
class Outcome:
    """What one task did. Times in nanoseconds; `error` is 0 or a positive errno, `note` says what it was."""

    task: Task
    started_ns: int
    counted_ns: int
    ended_ns: int
    error: int
    note: str
    stats: npt.NDArray[np.void]  # [KINDS] FIO_STAT_DTYPE
    histogram: npt.NDArray[np.int64]  # [KINDS, BUCKETS]
    levels: npt.NDArray[np.int64]  # [LEVELS, DEPTH_CLASSES]
    usage: Usage
    samples: list[list[float]] = field(default_factory=lambda: [[] for _ in range(_DIRECTIONS)])  # IOPS


@dataclass
class WaveResult:
    """What the jobs of one wave did, and what it cost both sides together."""

    outcomes: list[Outcome]
    driver: Usage
    device: Usage | None


class FioRunner(CrewRunner[WaveResult]):
    """Runs a job file; `run` yields what each wave did. Raises UsageError for what cannot work."""

    def __init__(self, session: Session, file: JobFile, path: str, on_progress: Progress = no_progress) -> None:
        super().__init__(session, on_progress)
        assert isinstance(session.options, FileOptions)
        self._options = session.options
        device = self._device
        facts = DiskFacts(
            session.name,
            device.size,
            device.topology.block_size,
            device.read_only,
            device.max_discard_sectors if device.has(VIRTIO_BLK_F_DISCARD) else 0,
        )
        self.waves = plan(file, facts)
        self._jobs = make_jobs(self._options.numjobs, self._options.iodepth)
        self._usages: dict[int, Usage] = {}  # by thread
        device.set_path(path)
        with progress():
            self._crew = Crew(device.view, self._jobs, session.name, fio_thread)
            bucket_middle(1)
        self._generation = int(time.time()) << 24  # so that a block of an earlier run is an old one
        self._fill_buffers(1)

    @property
    def writes(self) -> bool:
        """Whether the file changes the disk at all."""
        return any(task.job.changes for wave in self.waves for task in wave)

    def _run(self) -> Iterator[WaveResult]:
        for tasks in self.waves:
            if self.interrupted:
                return
            yield self._wave(tasks)

    # One wave.

    def _wave(self, tasks: list[Task]) -> WaveResult:
        self._prepare(tasks)
        pid = self._session.device_pid
        device_before = usage_of(pid) if pid else None
        driver_before = own_usage()
        samples = self._go(tasks)
        driver = own_usage().since(driver_before)
        device_after = usage_of(pid) if pid and device_before else None
        outcomes = []
        for index, task in enumerate(tasks):
            outcomes.append(self._outcome(index, task, samples[index]))
        device = device_after.since(device_before) if device_after and device_before else None
        return WaveResult(outcomes, driver, device)

    def _prepare(self, tasks: list[Task]) -> None:
        """Set the wave's jobs up; those that it does not need have no part in it."""
        jobs, options = self._jobs, self._options
        records = jobs.jobs
        records[:] = 0
        jobs.histogram[:] = 0
        jobs.levels[:] = 0
        jobs.stats[:] = 0
        for name in LATENCIES:
            jobs.stats[f"{name}_min"] = np.iinfo(np.int64).max
        address = self._device.data
        for index, task in enumerate(tasks):
            job = task.job
            bits = max(1, (task.blocks - 1).bit_length())
            for name, value in (
                ("submitter", index),
                ("first_bio", index * options.iodepth),
                ("depth", job.iodepth),
                ("batch", job.iodepth_batch_submit if not job.thinktime else 1),
                ("complete_min", job.iodepth_batch_complete_min),
                ("bs", job.bs),
                ("start", task.start),
                ("blocks", task.blocks),
                ("kind", job.directions[0]),
                ("read_share", job.rwmixread if job.mixed else -1),
                ("random", job.random),
                ("once", not job.norandommap),
                ("low_bits", bits // 2),
                ("high_bits", bits - bits // 2),
                ("seed", mix64(job.randseed ^ mix64(task.number))),
                ("limit", NEVER if job.time_based else task.blocks * job.loops),
                ("rewinds", not job.time_based or job.verify != "none"),
                ("ramp_ns", job.ramp_time),
                ("runtime_ns", job.runtime),
                ("rate", job.rate_iops),
                ("phase_ns", SECOND * index // (job.rate_iops * len(tasks)) if job.rate_iops else 0),
                ("think_ns", job.thinktime * 1000),
                ("fsync", job.fsync),
                ("verify", job.verify != "none"),
                ("contents", job.randseed),
                ("generation", self._generation + (task.number << 32)),
                ("buffers", address),
                ("stop", self._crew.stop_word),
            ):
                records[index][name] = value
            address += buffer_bytes(job)
        self._crew.set_stop(1 if self.interrupted else 0)

    def _go(self, tasks: list[Task]) -> list[list[list[float]]]:
        """Run the jobs to their ends; returns their samples. Raises DeviceError if the session ended meanwhile."""
        count = len(tasks)
        label = tasks[0].job.name if count == 1 else f"{tasks[0].job.name} and {count - 1} more"
        planned = max((task.job.ramp_time + task.job.runtime) / SECOND if task.job.runtime else 0.0 for task in tasks)
        limit = 0 if planned else sum(task.blocks * task.job.loops for task in tasks)
        sampler = Sampler(self._jobs, count)
        began = time.monotonic()

        def look_in() -> bool:
            self._look_for_lost()
            sampler.look(time.monotonic())
            ios = int(self._jobs.stats["ios"].sum())
            self._on_progress(label, time.monotonic() - began, planned, ios, limit)
            return not self.interrupted

        self._crew.run(0.0, TICK, look_in, self._look_for_lost)
        if self._jobs.jobs["result"].any():
            raise self._device.broken_error()
        return sampler.samples

    def _outcome(self, index: int, task: Task, samples: list[list[float]]) -> Outcome:
        jobs = self._jobs
        record = jobs.jobs[index]
        error, note = self._error(record)
        return Outcome(
            task=task,
            started_ns=int(record["started_ns"]),
            counted_ns=int(record["counted_ns"]),
            ended_ns=int(record["ended_ns"]),
            error=error,
            note=note,
            stats=jobs.stats.reshape(-1, KINDS)[index].copy(),
            histogram=jobs.histogram.reshape(-1, KINDS, BUCKETS)[index].copy(),
            levels=jobs.levels.reshape(-1, LEVELS, DEPTH_CLASSES)[index].copy(),
            usage=self._usage(index),
            samples=samples,
        )

    def _error(self, record: Any) -> tuple[int, str]:
        """(errno, one line on the error that ended a job); 0 for none."""
        if not record["errno"]:
            return 0, ""
        offset = int(record["bad_offset"])
        if record["bad_block"]:
            return errno.EILSEQ, f"verify failed at offset {offset}: {BAD_BLOCK_TEXT[int(record['bad_block'])]}"
        code = bio_to_os_errno(int(record["errno"]))
        return code, f"error at offset {offset}: {text_of(code)}"

    def _usage(self, index: int) -> Usage:
        """What the job's thread used in this wave."""
        tid = self._crew.thread_ids[index]
        before = self._usages.get(tid, Usage(0.0, 0.0, 0.0))
        now = usage_of_thread(tid) or before
        self._usages[tid] = now
        return now.since(before)


class Sampler:
    """IOPS of each job and direction, every SAMPLE_SECONDS while it runs (fio: add_iops_samples)."""

    def __init__(self, jobs: FioJobs, count: int) -> None:
        self._jobs = jobs
        self._count = count
        self._last = time.monotonic()
        self._ios = np.zeros((count, _DIRECTIONS), np.int64)
        self._counting = jobs.jobs["ramp_ns"][:count] == 0  # since the last look
        self.samples: list[list[list[float]]] = [[[] for _ in range(_DIRECTIONS)] for _ in range(count)]

    def look(self, now: float) -> None:
        """Take a sample if it is time for one. One job's sample counts if it ran and counted all the while."""
        if now - self._last < SAMPLE_SECONDS:
            return
        records = self._jobs.jobs[: self._count]
        running = (records["ended_ns"] == 0) & (records["ramping"] == 0)
        ios = self._jobs.stats.reshape(-1, KINDS)["ios"][: self._count, :_DIRECTIONS].copy()
        rates = (ios - self._ios) / (now - self._last)
        for index in np.flatnonzero(running & self._counting).tolist():
            for kind in np.flatnonzero(ios[index]).tolist():
                self.samples[index][kind].append(float(rates[index, kind]))
        self._counting, self._ios, self._last = running, ios, now
