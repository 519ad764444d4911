"""A job file on a certain disk: who runs when, where on the disk, in which memory (fio: add_job, setup_files).

Control context; needs the disk's size and features, hence an open session, and nothing compiled. What cannot work on
the disk is a UsageError with file and line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from virtblk.bench.fio_job import TRIM, FioJob
from virtblk.bench.fio_options import JobFile
from virtblk.bench.job import BYTES_PER_BIO, JobOptions, available_memory, roughly
from virtblk.errors import UsageError
from virtblk.names import format_size
from virtblk.storage.storage import Storage

PAGE: Final = 4096
_NO_LIMIT: Final = 1 << 53


def buffer_bytes(job: FioJob) -> int:
    """Data memory of one job, in whole pages: a disk below may want its buffers aligned."""
    size = job.iodepth * job.bs
    return size + -size % PAGE


@dataclass(frozen=True)
class FileOptions(JobOptions):
    """What a session is to provide for a job file: its largest wave, the deepest job. `buffers` in bytes."""

    buffers: int = 0

    @classmethod
    def of(cls, file: JobFile, given: JobOptions) -> FileOptions:
        """For `file`, and for the rest as `given` on the command line."""
        waves = file.waves
        fields = {name: getattr(given, name) for name in JobOptions.__dataclass_fields__}
        fields["numjobs"] = max(sum(job.numjobs for job in wave) for wave in waves)
        fields["iodepth"] = max(job.iodepth for job in file.jobs)
        fields["rate_iops"] = max(job.rate_iops for job in file.jobs)
        return cls(**fields, buffers=max(sum(job.numjobs * buffer_bytes(job) for job in wave) for wave in waves))

    @property
    def data_bytes(self) -> int:
        """Data memory of the largest wave."""
        return self.buffers

    def check_memory(self) -> None:
        """Raises UsageError for more buffers than there is memory."""
        available = available_memory()
        if self.buffers + self.numjobs * self.iodepth * BYTES_PER_BIO > available:
            text = f"{roughly(self.buffers)} of buffers for the jobs that run at the same time"
            raise UsageError(f"--job: {text}, and {roughly(available)} of memory are free")


@dataclass(frozen=True)
class Task:
    """One clone of a job: a thread. `number` counts all of the file, `start` is a byte, `blocks` are of `job.bs`."""

    job: FioJob
    number: int
    start: int
    blocks: int

    @property
    def end(self) -> int:
        """The byte after its range."""
        return self.start + self.blocks * self.job.bs


@dataclass(frozen=True)
class DiskFacts:
    """What a plan has to know of a disk. `discard_sectors` 0: it offers no discard."""

    title: str
    size: int
    block_size: int
    read_only: bool
    discard_sectors: int


def plan(file: JobFile, disk: DiskFacts) -> list[list[Task]]:
    """The waves of a job file on a disk. Raises UsageError for what cannot work on it."""
    waves: list[list[Task]] = []
    number = 0
    for wave in file.waves:
        tasks = []
        for job in wave:
            _check(job, disk)
            start, blocks = job.range_on(disk.size, disk.block_size, disk.title)
            for _ in range(job.numjobs):
                tasks.append(Task(job, number, start, blocks))
                number += 1
        _check_verify(tasks)
        waves.append(tasks)
    return waves


def check_file(file: JobFile, title: str, storage: Storage) -> None:
    """Raise UsageError for what cannot work on a device that serves `storage`: all but the limits of the device."""
    sectors = _NO_LIMIT if storage.can_discard and not storage.read_only else 0
    plan(file, DiskFacts(title, storage.size, storage.block_size, storage.read_only, sectors))


def _check(job: FioJob, disk: DiskFacts) -> None:
    if disk.read_only and job.changes:
        raise job.refuse("rw", f"{disk.title} is read-only; give read or randread")
    if TRIM in job.directions:
        if not disk.discard_sectors:
            raise job.refuse("rw", f"{disk.title} offers no discard (VIRTIO_BLK_F_DISCARD)")
        if job.bs > disk.discard_sectors * 512:
            most = format_size(disk.discard_sectors * 512)
            raise job.refuse("bs", f"a discard on {disk.title} takes at most {most}")


def _check_verify(tasks: list[Task]) -> None:
    """Nobody else may change what a job verifies while it does: it could not tell that from a lost write."""
    for one in tasks:
        if one.job.verify == "none":
            continue
        for other in tasks:
            if other is not one and other.job.changes and one.start < other.end and other.start < one.end:
                who = "its own clones" if other.job is one.job else f"[{other.job.name}]"
                raise one.job.refuse("verify", f"{who} would change the same blocks meanwhile; give ranges apart")
