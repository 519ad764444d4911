"""Who sorts: the driver's elevator or the host? Random reads on a slow disk, request path against bio, in four cases.

    .venv/bin/python benchmarks/reorder.py

`sim:sata` with a drive that takes one command at a time, behind a host that sorts what it has seen (`reorder=on`) or
does not, and a ring of 32 or of 128 entries: a host can only sort what the ring shows it. 250 reads all over the disk
are in flight; the request path has `deadline` and 256 requests. The cases take turns, slice by slice, in random order,
and in each both paths, so that all have the same machine.

The disk runs `--speed` times as fast as the clock, and `read_expire` is divided by as much. The last lines say whether
request is faster than bio where nobody else sorts (reorder=off, 32), and whether both are within `WITHIN` where the
host does (reorder=on, 128): the exit status is 1 where one of the two does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from virtblk.bench.bootstrap import Estimate, median_interval, paired_ratio
from virtblk.bench.job import JobOptions, parse_queue
from virtblk.bench.report import format_table
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session
from virtblk.bench.slices import Slice
from virtblk.bench.summary import change_text
from virtblk.block.deadline import READ_EXPIRE_NS
from virtblk.errors import DeviceError, UsageError, VirtblkError
from virtblk.figures import si
from virtblk.names import parse_size

PATHS: Final = ("request", "bio")
WORKLOAD: Final = "randread"
IN_FLIGHT: Final = 250
#: Of the two paths' IOPS, where the host sorts.
WITHIN: Final = 0.03


@dataclass
class Case:
    """One combination of host and ring, and what its slices came to: IOPS by path."""

    reorder: str
    ring: int
    runner: Runner
    slices: dict[str, list[Slice]] = field(default_factory=lambda: {path: [] for path in PATHS})

    @property
    def name(self) -> str:
        return f"reorder={self.reorder} ring={self.ring}"

    def turn(self, arm: int, seconds: float, number: int) -> None:
        """One slice of a path."""
        one = self.runner.slice(WORKLOAD, arm, seconds, number=number, label=self.name)
        if one.errors:
            raise UsageError(f"{self.name}: the disk had I/O errors; see virtblk bench")
        self.slices[PATHS[arm]].append(one)

    def iops(self, path: str) -> list[float]:
        return [one.iops for one in self.slices[path]]

    def change(self, confidence: float) -> Estimate:
        """IOPS of bio by those of request, paired by round."""
        found = paired_ratio(self.iops("request"), self.iops("bio"), confidence)
        assert found is not None
        return found

    def row(self, confidence: float) -> list[tuple[str, str]]:
        row = [("host", f"reorder={self.reorder}"), ("ring", str(self.ring))]
        for path in PATHS:
            interval = median_interval(self.iops(path), confidence)
            between = f" [{si(interval[0])}, {si(interval[1])}]" if interval else ""
            row.append((f"{path} IOPS", f"{si(float(np.median(self.iops(path))))}{between}"))
        return [*row, ("bio/request - 1", change_text(self.change(confidence)))]


def disk_of(reorder: str, depth: int, speed: int) -> str:
    return f"sim:sata?reorder={reorder}&depth={depth}&speed={speed}"


def job_of(ring: int, speed: int, seconds: float, confidence: float, cpus: list[int]) -> JobOptions:
    """The same for all cases but for the ring: also the CPUs, which a session inside another would not find."""
    expire = max(1, READ_EXPIRE_NS // 1_000_000 // speed)
    return JobOptions(
        workloads=(WORKLOAD,),
        paths=PATHS,
        iodepth=IN_FLIGHT,
        queue_size=ring,
        queue=parse_queue(["scheduler=deadline", "nr_requests=256", f"read_expire={expire}"]),
        runtime=seconds,
        confidence=confidence,
        driver_cpus=tuple(cpus[:1]),
        device_cpus=tuple(cpus[-1:]),
    )


def verdicts(cases: list[Case], confidence: float) -> list[tuple[str, bool]]:
    """The two expectations, and whether each holds."""
    changes = {(case.reorder, case.ring): case.change(confidence) for case in cases}
    alone, sorted_by_host = changes["off", 32], changes["on", 128]
    faster = alone.high is not None and alone.high < 1
    close = abs(sorted_by_host.change_pct) <= WITHIN * 100
    return [
        (f"reorder=off ring=32: request is faster than bio: {'yes' if faster else 'NO'}", faster),
        (f"reorder=on ring=128: within {WITHIN:.0%} of each other: {'yes' if close else 'NO'}", close),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--depth", default="1", metavar="N", help="commands that the drive knows (default 1)")
    add("--speed", default="10", metavar="N", help="how many times as fast as the clock (default 10)")
    add("--rounds", default="12", metavar="N", help="slices per case and path, 8 or more (default 12)")
    add("--slice", type=float, default=2.0, metavar="S", help="seconds per slice (default 2)")
    add("--confidence", type=float, default=95.0, metavar="P", help="of the intervals, per cent (default 95)")
    add("--seed", default="1", metavar="N", help="of the turns and the offsets (default 1)")
    options = parser.parse_args()
    rounds = parse_size(options.rounds, "--rounds")
    speed, depth = parse_size(options.speed, "--speed"), parse_size(options.depth, "--depth")
    if not 8 <= rounds <= 10_000:
        raise UsageError(f"--rounds {options.rounds}: give 8 to 10000")
    if not 0.01 <= options.slice <= 3600:
        raise UsageError(f"--slice {options.slice:g}: give seconds from 0.01 to 3600")
    if not 1 <= speed <= 100:
        raise UsageError(f"--speed {options.speed}: give 1 to 100")
    rng = np.random.default_rng(parse_size(options.seed, "--seed"))
    cpus = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        cases = []
        for reorder in ("off", "on"):
            for ring in (32, 128):
                job = job_of(ring, speed, options.slice, options.confidence, cpus)
                session = stack.enter_context(Session(disk_of(reorder, depth, speed), job))
                runner = Runner(session, job)
                stack.callback(runner.close)
                cases.append(Case(reorder, ring, runner))
        disk = f"sim:sata?depth={depth}&speed={speed}"
        queue = ", ".join(f"{key}={value}" for key, value in job.queue)
        print(f"{WORKLOAD} on {disk}, {IN_FLIGHT} in flight; {queue}", flush=True)
        print(f"{rounds} slices of {options.slice:g} s per case and path", flush=True)
        for number in range(rounds):
            for which in rng.permutation(len(cases)).tolist():
                for arm in rng.permutation(len(PATHS)).tolist():
                    cases[which].turn(arm, options.slice, number)
    print(format_table([case.row(options.confidence) for case in cases]))
    print(f"medians, [{options.confidence:g} % interval]; ~ within noise: no difference was found")
    found = verdicts(cases, options.confidence)
    print("\n".join(text for text, _ in found))
    return 0 if all(holds for _, holds in found) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VirtblkError as error:
        print(f"reorder.py: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, DeviceError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
