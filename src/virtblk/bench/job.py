"""What a bench run is asked to do: fio's options under fio's names, checked before anything starts.

Control context. Every refusal is a UsageError with the option, its value and what to give instead.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from virtblk.driver.map_queues import MQ_PATHS
from virtblk.errors import UsageError
from virtblk.names import format_size

#: fio's `--rw`, with the posting's names as aliases; the posting's order.
WORKLOADS: Final = ("read", "write", "randread", "randwrite")
ALIASES: Final = {"seq-read": "read", "seq-write": "write", "rand-read": "randread", "rand-write": "randwrite"}
PATHS: Final = ("request", "bio", "mq", "auto")
#: Both paths of the posting, compared: what a bench does unless it is told otherwise.
DEFAULT_PATHS: Final = ("request", "bio")
MAX_ARMS: Final = 8
VERIFY: Final = ("none", "crc32c")
#: fio's default percentile_list.
PERCENTILES: Final = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)

DEFAULT_BS: Final = 4096
DEFAULT_DEPTH: Final = 32
DEFAULT_RUNTIME: Final = 5.0
#: Seconds of a slice, where the run is long enough for LEAST_SLICES of them, and short enough for MANY_SLICES.
DEFAULT_SLICE: Final = 0.25
SHORTEST_SLICE: Final = 0.01
LEAST_SLICES: Final = 10
MANY_SLICES: Final = 1000
MAX_SLICES: Final = 10_000
MAX_RATE: Final = 10_000_000
MAX_BS: Final = 64 << 20
MAX_JOBS: Final = 4096
MAX_DEPTH: Final = 1 << 16
#: What the driver takes too; refused here before anything is started or compiled.
MAX_QUEUES: Final = 256
MIN_QUEUE_SIZE: Final = 4
MAX_QUEUE_SIZE: Final = 32768
MAX_TIMEOUT: Final = 86400
#: Bookkeeping of one I/O in flight besides its data: bio, completion list, segment.
BYTES_PER_BIO: Final = 256


@dataclass(frozen=True)
class JobOptions:
    """One bench invocation. Sizes in bytes, times in seconds; `size` 0 is the whole disk, `runtime` 0 one pass.

    Each of `paths` is an arm of its own, also where two are equal. `runtime` is that of one workload on one arm, run in
    slices of `slice_s`, or of what fits best where that is None. `rate_iops` 0: as fast as it goes.
    """

    workloads: tuple[str, ...] = WORKLOADS
    paths: tuple[str, ...] = DEFAULT_PATHS
    bs: int = DEFAULT_BS
    iodepth: int = DEFAULT_DEPTH
    numjobs: int = 1
    size: int = 0
    runtime: float = DEFAULT_RUNTIME
    ramp_time: float = 0.0
    slice_s: float | None = None
    confidence: float = 95.0
    rate_iops: int = 0
    queue: tuple[tuple[str, str], ...] = ()
    share_core: bool = False
    batch_submit: int = 1
    poll: bool = False
    verify: str = "none"
    randseed: int = 1
    queues: int = 1
    poll_queues: int = 0
    queue_size: int = 128
    timeout: float = 30.0
    driver_cpus: tuple[int, ...] | None = None
    device_cpus: tuple[int, ...] | None = None
    device_pid: int | None = None

    def __post_init__(self) -> None:
        _whole("--bs", self.bs, 512, MAX_BS, multiple=512)
        _whole("--iodepth", self.iodepth, 1, MAX_DEPTH)
        _whole("--numjobs", self.numjobs, 1, MAX_JOBS)
        _whole("--iodepth-batch-submit", self.batch_submit, 1, self.iodepth, hint=" (at most --iodepth)")
        _whole("--randseed", self.randseed, 0, (1 << 62) - 1)
        _whole("--queue-size", self.queue_size, MIN_QUEUE_SIZE, MAX_QUEUE_SIZE, hint=", a power of two")
        if self.queue_size & (self.queue_size - 1):
            raise UsageError(f"--queue-size {self.queue_size}: give a power of two")
        if not 0 < self.timeout <= MAX_TIMEOUT:
            raise UsageError(f"--timeout {self.timeout:g}: give seconds, more than 0 and at most {MAX_TIMEOUT}")
        if self.device_pid is not None:
            _whole("--device-pid", self.device_pid, 1, (1 << 31) - 1)
        if not 0 <= self.runtime <= 1e6:
            raise UsageError(f"--runtime {self.runtime:g}: give seconds from 0 (one pass) to 1000000")
        if not 0 <= self.ramp_time <= 1e6:
            raise UsageError(f"--ramp-time {self.ramp_time:g}: give seconds from 0 to 1000000")
        if self.slice_s is not None:
            self._check_slice(self.slice_s)
        if not 50 <= self.confidence < 100:
            raise UsageError(f"--confidence {self.confidence:g}: give per cent, from 50 to less than 100, such as 95")
        if self.rate_iops:
            _whole("--rate-iops", self.rate_iops, 1, MAX_RATE)
            if self.batch_submit != 1:
                raise UsageError(
                    f"--iodepth-batch-submit {self.batch_submit}: with --rate-iops each I/O has its own time; give 1"
                )
        if self.share_core and self.device_cpus is not None:
            raise UsageError("--share-core puts the device on the driver's CPU; leave out --device-cpus")
        if self.share_core and self.driver_cpus is not None and len(self.driver_cpus) != 1:
            raise UsageError(f"--share-core: give one CPU with --cpus-allowed, not {len(self.driver_cpus)}")
        if len(self.paths) > MAX_ARMS:
            raise UsageError(f"--path {','.join(self.paths)}: give at most {MAX_ARMS}")
        self._check_queues()
        if self.verify not in VERIFY:
            raise UsageError(f"--verify {self.verify!r}: give one of {', '.join(VERIFY)}")

    def _check_queues(self) -> None:
        _whole("--queues", self.queues, 1, MAX_QUEUES)
        if self.queues > 1 and not any(path in MQ_PATHS for path in self.paths):
            paths, more = ",".join(self.paths), " or ".join(MQ_PATHS)
            raise UsageError(f"--queues {self.queues}: --path {paths} uses one virtqueue; give {more} too")
        if self.poll_queues and self.poll:
            raise UsageError(f"--poll-queues {self.poll_queues}: --poll polls all of them; give one of the two")
        if not 0 <= self.poll_queues < self.queues:
            most = f"give 0 to {self.queues - 1}" if self.queues > 1 else "needs --queues 2 or more, and give less"
            raise UsageError(f"--poll-queues {self.poll_queues}: {most}; --poll polls all")

    def _check_slice(self, slice_s: float) -> None:
        if not SHORTEST_SLICE <= slice_s <= 1e6:
            raise UsageError(f"--slice {slice_s:g}: give seconds, {SHORTEST_SLICE:g} or more")
        if not self.runtime:
            raise UsageError(f"--slice {slice_s:g}: --runtime 0 is one pass, which is not sliced")
        if slice_s > self.runtime:
            raise UsageError(f"--slice {slice_s:g}: give no more than --runtime {self.runtime:g}")
        if self.runtime / slice_s > MAX_SLICES:
            raise UsageError(
                f"--slice {slice_s:g}: more than {MAX_SLICES} in --runtime {self.runtime:g}; give longer slices"
            )

    @property
    def completion(self) -> str:
        """How jobs learn that an I/O has ended, for the report."""
        if self.poll_queues:
            return f"interrupts, but polling on the last {self.poll_queues}"
        return "polling" if self.poll else "interrupts"

    @property
    def rings(self) -> str:
        """The virtqueues of the run, for the report."""
        if self.queues == 1:
            return f"ring of {self.queue_size}"
        alone = sorted({path for path in self.paths if path not in MQ_PATHS})
        first = f" ({' and '.join(alone)} {'use' if len(alone) > 1 else 'uses'} the first alone)" if alone else ""
        return f"{self.queues} rings of {self.queue_size}{first}"

    @property
    def rounds(self) -> int:
        """Slices that each arm gets of a workload."""
        if not self.runtime:
            return 1
        length = self.slice_s
        if length is None:
            length = max(SHORTEST_SLICE, min(DEFAULT_SLICE, self.runtime / LEAST_SLICES), self.runtime / MANY_SLICES)
        return max(1, round(self.runtime / length))

    @property
    def slice_seconds(self) -> float:
        """Length of one slice: `runtime` in `rounds` equal parts; 0 for one pass."""
        return self.runtime / self.rounds

    @property
    def writes(self) -> bool:
        """Whether a run of these options writes to the disk at all."""
        return self.verify != "none" or any(is_write(workload) for workload in self.workloads)

    @property
    def data_bytes(self) -> int:
        """Data memory of all jobs."""
        return self.numjobs * self.iodepth * self.bs

    def as_json(self) -> dict[str, Any]:
        """The `options` object of `--json`: what a run with the same figures would have to be given."""
        return {
            "rw": list(self.workloads),
            "path": list(self.paths),
            "bs": self.bs,
            "iodepth": self.iodepth,
            "numjobs": self.numjobs,
            "size": self.size,
            "runtime": self.runtime,
            "ramp_time": self.ramp_time,
            "slice": self.slice_seconds,
            "iodepth_batch_submit": self.batch_submit,
            "rate_iops": self.rate_iops,
            "poll": self.poll,
            "verify": self.verify,
            "randseed": self.randseed,
            "share_core": self.share_core,
        }

    def check_disk(self, size: int, block_size: int, read_only: bool, title: str) -> int:
        """The range to use in bytes, for a disk of `size`. Raises UsageError for what cannot work on it."""
        if self.bs % block_size:
            raise UsageError(f"--bs {format_size(self.bs)} is no multiple of the block size {block_size} of {title}")
        wanted = self.size or size
        if wanted > size:
            raise UsageError(f"--size {format_size(wanted)} is more than {title} has ({format_size(size)})")
        if wanted < self.bs:
            raise UsageError(f"--bs {format_size(self.bs)} is more than the range of {format_size(wanted)}")
        if read_only and self.writes:
            why = "--verify writes first" if self.verify != "none" else "a write workload was asked for"
            raise UsageError(f"{title} is read-only, but {why}; give --rw read,randread")
        return wanted - wanted % self.bs

    def check_memory(self) -> None:
        """Raises UsageError for more buffers than there is memory."""
        available = available_memory()
        if self.data_bytes + self.numjobs * self.iodepth * BYTES_PER_BIO > available:
            raise UsageError(
                f"--numjobs {self.numjobs} x --iodepth {self.iodepth} x --bs {format_size(self.bs)}: "
                f"{roughly(self.data_bytes)} of buffers, and {roughly(available)} of memory are free"
            )


def available_memory() -> int:
    """Bytes that can be had without swapping: the system's page cache counts as free, as it is."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def roughly(size: int) -> str:
    """A size in bytes with one decimal, for messages: 1.5g."""
    unit = next((unit for unit in (40, 30, 20) if size >= 1 << unit), 10)
    return f"{size / (1 << unit):.1f}{dict(zip((40, 30, 20, 10), 'tgmk', strict=True))[unit]}"


def is_write(workload: str) -> bool:
    """Whether the workload writes."""
    return workload in ("write", "randwrite")


def is_random(workload: str) -> bool:
    """Whether the workload's offsets are random."""
    return workload in ("randread", "randwrite")


def parse_workloads(text: str) -> tuple[str, ...]:
    """`read,seq-write,...` -> fio's names. Raises UsageError."""
    found = tuple(ALIASES.get(word, word) for word in text.split(","))
    for word in found:
        if word not in WORKLOADS:
            known = ", ".join((*WORKLOADS, *ALIASES))
            raise UsageError(f"--rw {word!r} is no workload; give some of {known}")
    return found


def parse_paths(text: str) -> tuple[str, ...]:
    """`request,bio` -> the paths to run. Raises UsageError."""
    words = tuple(text.split(","))
    for word in words:
        if word not in PATHS:
            raise UsageError(f"--path {word!r} is no path; give {', '.join(PATHS)}")
    return words


def parse_queue(words: list[str]) -> tuple[tuple[str, str], ...]:
    """`["scheduler=noop", ...]` -> (key, value) pairs; the disk knows which there are. Raises UsageError."""
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise UsageError(f"--queue {word!r}: give KEY=VALUE, such as scheduler=noop")
        pairs.append((key, value))
    return tuple(pairs)


def parse_cpus(option: str, text: str) -> tuple[int, ...]:
    """fio's cpu list `0,2-3` -> numbers. Raises UsageError for what is no list, or not ours to use."""
    allowed = os.sched_getaffinity(0)
    cpus: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UsageError(f"{option} {text!r}: give cpu numbers such as 0,2-3")
        for cpu in range(int(match[1]), int(match[2] or match[1]) + 1):
            if cpu not in allowed:
                known = ",".join(str(c) for c in sorted(allowed))
                raise UsageError(f"{option} {text!r}: cpu {cpu} is not available here (available: {known})")
            cpus.add(cpu)
    return tuple(sorted(cpus))


def _whole(option: str, value: int, least: int, most: int, *, multiple: int = 1, hint: str = "") -> None:
    if not least <= value <= most or value % multiple:
        of = f", a multiple of {multiple}" if multiple > 1 else ""
        raise UsageError(f"{option} {value}: give {least} to {most}{of}{hint}")
