"""The posting's load on a simulated disk in the model's own time, and the parameters that make its rows come true.

`ClosedLoop` keeps jobs' I/Os in flight as the bench does, lets a path merge them or not, and admits no more commands to
the disk than ring and requests allow; the driver itself takes no time. `calibrate` looks for one parameter after the
other. Only rows of the `request` path are looked at: what the bio path does is then a prediction. Control context;
nothing here waits, and no clock is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from virtblk.bench.job import is_random, is_write
from virtblk.bench.posting import FUSION_IO, PRESETS, SATA, posted
from virtblk.block.request import DEFAULT_NR_REQUESTS
from virtblk.jit.arith import mix64
from virtblk.mem.shm import Words
from virtblk.names import DiskName, parse_size
from virtblk.storage.request import OP_READ, OP_WRITE
from virtblk.storage.sim.profiles import make_model, make_queue, parse_profile
from virtblk.storage.sim.queue import sim_queue_due, sim_queue_poll, sim_queue_submit

_NS: Final = 1_000_000_000


@dataclass(frozen=True)
class Load:
    """What is asked of the disk: `bs` in bytes, `range` the bytes that are used, `commands` at the disk at most."""

    workload: str
    bs: int
    numjobs: int
    iodepth: int
    batch: int
    range: int
    commands: int
    merges: bool


@dataclass
class _Job:
    next: int
    free: int = 0
    issued: int = 0


@dataclass
class ClosedLoop:
    """A load on a disk of `values` (`parse_profile`). `run` returns I/Os per second of the model's time."""

    profile: str
    values: Mapping[str, int]
    load: Load
    _waiting: deque[tuple[int, int, int]] = field(default_factory=deque)  # job, block, blocks
    _out: dict[int, tuple[int, int]] = field(default_factory=dict)  # slot -> job, blocks

    def __post_init__(self) -> None:
        self._model = make_model(self.profile, self.values)
        self._words = Words(1)
        self._model.state[0]["lock"] = self._words.address(0)
        self._queue = make_queue(0)
        self._slots = list(range(min(self.load.commands, len(self._queue.free))))
        self._blocks = self.load.range // self.load.bs
        count = self.load.numjobs
        self._jobs = [_Job(self._blocks * index // count) for index in range(count)]
        self._random = is_random(self.load.workload)
        self._op = OP_WRITE if is_write(self.load.workload) else OP_READ

    def run(self, warm: int, count: int) -> float:
        """Count `count` I/Os after the first `warm`."""
        for index, job in enumerate(self._jobs):
            job.free = self.load.iodepth
            self._issue(index)
        now = done = start = 0
        self._admit(now)
        last = warm + count
        while done < last:
            now = max(now, int(sim_queue_due(self._model, self._queue)))
            sim_queue_poll(self._model, self._queue, now)
            state = self._queue.state[0]
            slots = self._queue.ended[: state["ended"]].tolist()
            state["ended"] = 0
            for slot in slots:
                index, blocks = self._out.pop(slot)
                self._slots.append(slot)
                self._jobs[index].free += blocks
                done += blocks
                self._issue(index)
            if not start and done >= warm:
                start, warm = now, done
            self._admit(now)
        return (done - warm) * _NS / (now - start)

    def _issue(self, index: int) -> None:
        """As many batches as the job may have in flight, merged by the plug or not."""
        job, batch = self._jobs[index], self.load.batch
        while job.free >= batch:
            job.free -= batch
            blocks = [self._next(index, job) for _ in range(batch)]
            if self.load.merges and not self._random and blocks[-1] - blocks[0] == batch - 1:
                self._waiting.append((index, blocks[0], batch))
            else:
                self._waiting += [(index, block, 1) for block in blocks]

    def _next(self, index: int, job: _Job) -> int:
        job.issued += 1
        if self._random:
            return int(mix64(mix64(index) + job.issued)) % self._blocks
        block = job.next
        job.next = (block + 1) % self._blocks
        return block

    def _admit(self, now: int) -> None:
        while self._waiting and self._slots:
            job, block, blocks = self._waiting.popleft()
            slot = self._slots.pop()
            self._out[slot] = job, blocks
            bs = self.load.bs
            sim_queue_submit(self._model, self._queue, slot, self._op, block * bs, blocks * bs, 0, now)


@dataclass(frozen=True)
class Fit:
    """A parameter, the posted row that it follows from, and where to look for it: from `low` to `high` by `step`."""

    key: str
    workload: str
    rises: bool  # IOPS with the parameter
    low: int
    high: int
    step: int


@dataclass(frozen=True)
class Calibration:
    """How a profile follows from the rows of the request path on `disk` under `vmm`."""

    profile: str
    disk: str
    vmm: str
    fits: tuple[Fit, ...]
    #: Sequential jobs may fall into step with the platter, as their distance has it: the mean over these.
    ranges: tuple[str, ...]
    warm: int
    count: int


_US: Final = 1000
CALIBRATIONS: Final = (
    Calibration(
        "sata",
        SATA,
        "kvm tool",
        (
            Fit("seek_min", "randread", False, 100 * _US, 3000 * _US, 10 * _US),
            Fit("write_settle", "randwrite", False, 0, 3000 * _US, 10 * _US),
            Fit("rate", "read", True, 30 << 20, 200 << 20, 1 << 20),
        ),
        ("249m", "251m", "252m", "253m", "255m", "257m", "260m", "266m"),
        warm=2000,
        count=6000,
    ),
    Calibration(
        "fusion-io",
        FUSION_IO,
        "kvm tool",
        (
            Fit("read", "randread", False, 10 * _US, 1000 * _US, _US),
            Fit("program", "randwrite", False, 10 * _US, 1000 * _US, _US),
        ),
        ("1g",),
        warm=4000,
        count=12_000,
    ),
)


def posted_load(disk: str, workload: str, path: str, size: str | None = None) -> Load:
    """The load of a disk's preset on a path: the request path has `nr_requests` requests, and merges."""
    given = next(preset.options for preset in PRESETS.values() if preset.disk == disk)
    ring = int(given["queue_size"])
    return Load(
        workload,
        bs=parse_size(given["bs"]),
        numjobs=int(given["numjobs"]),
        iodepth=int(given["iodepth"]),
        batch=int(given.get("iodepth_batch_submit", 1)),
        range=parse_size(size or given["size"]),
        commands=min(ring, DEFAULT_NR_REQUESTS) if path == "request" else ring,
        merges=path == "request",
    )


def modelled_iops(of: Calibration, values: Mapping[str, int], workload: str, path: str = "request") -> float:
    """I/Os per second that the model says for a workload of the posting."""
    found = [
        ClosedLoop(of.profile, values, posted_load(of.disk, workload, path, size)).run(of.warm, of.count)
        for size in (of.ranges if not is_random(workload) else of.ranges[:1])
    ]
    return sum(found) / len(found)


def calibrate(of: Calibration, rounds: int = 3) -> dict[str, int]:
    """The parameters of `of.fits`, each by bisection with the others as they are; then all over again."""
    values = parse_profile(DiskName(f"sim:{of.profile}", "sim", of.profile))
    cells = posted(of.disk, of.vmm)
    for _ in range(rounds):
        for fit in of.fits:
            wanted = cells["request", fit.workload].iops
            low, high = fit.low // fit.step, fit.high // fit.step
            while high - low > 1:
                middle = (low + high) // 2
                found = modelled_iops(of, values | {fit.key: middle * fit.step}, fit.workload)
                if (found < wanted) == fit.rises:
                    low = middle
                else:
                    high = middle
            values[fit.key] = low * fit.step
    return {fit.key: values[fit.key] for fit in of.fits}
