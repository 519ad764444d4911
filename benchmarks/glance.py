"""What a glance before blocking is worth in interrupt mode: with it and without, in turns on one connection.

    .venv/bin/python benchmarks/glance.py --disks null:1g,ram:512m,sim:fusion-io --iodepth 1,32

The arms differ in one word of the queue, `glance_ns` (driver/completion.py). Each pair of slices runs in random order
with everything in before the other begins. Changes are medians over pairs with 95 % intervals: IOPS, and the CPU time
per I/O of driver and device together.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from virtblk.bench.bootstrap import Estimate, paired_ratio
from virtblk.bench.job import JobOptions, parse_workloads
from virtblk.bench.matrix import parse_disks
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session
from virtblk.bench.slices import Slice
from virtblk.bench.summary import change_text
from virtblk.driver.completion import GLANCE_NS
from virtblk.errors import DeviceError, UsageError, VirtblkError
from virtblk.names import parse_size

#: Fewer have no interval at 95 %.
MIN_PAIRS = 6


class Arms:
    """One workload on one session, with and without glances."""

    def __init__(self, session: Session, job: JobOptions, glance_ns: int) -> None:
        self.runner = Runner(session, job)
        assert session.device is not None
        self.views = session.device.views
        self.glances = (0, glance_ns)
        (self.workload,) = job.workloads
        self.seconds = job.runtime

    def slice(self, which: int) -> Slice:
        """One slice, without (0) or with glances (1)."""
        for d in self.views:
            d.queue[0]["glance_ns"] = self.glances[which]
        found = self.runner.slice(self.workload, 0, self.seconds)
        if found.errors:
            raise UsageError(f"{self.workload} had I/O errors; see virtblk bench")
        return found


def cpu_us(one: Slice) -> float:
    """Microseconds of CPU that an I/O of the slice took, on both sides."""
    device = one.device.cpu_s if one.device is not None else 0.0
    return (one.driver.cpu_s + device) / one.ios * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--disks", default="null:1g,ram:512m,sim:fusion-io", metavar="LIST", help="disk names, each in a child process")
    add("--rw", default="randread,randwrite", metavar="LIST", help="workloads (default randread,randwrite)")
    add("--path", default="bio", metavar="PATH", help="of both arms (default bio)")
    add("--bs", default="4k", metavar="SIZE", help="bytes per I/O (default 4k)")
    add("--iodepth", default="1,32", metavar="LIST", help="I/Os in flight (default 1,32)")
    add("--iodepth-batch-submit", default="1", metavar="N", help="I/Os that are submitted together (default 1)")
    add("--glance-us", type=float, default=GLANCE_NS / 1000, metavar="US", help="how long (default: the driver's)")
    add("--pairs", default="12", metavar="N", help=f"pairs of slices, {MIN_PAIRS} or more (default 12)")
    add("--slice", type=float, default=0.25, metavar="S", help="seconds per slice (default 0.25)")
    options = parser.parse_args()
    pairs = parse_size(options.pairs, "--pairs")
    if not MIN_PAIRS <= pairs <= 10_000:
        raise UsageError(f"--pairs {options.pairs}: give {MIN_PAIRS} to 10000")
    if not 0.01 <= options.slice <= 3600:
        raise UsageError(f"--slice {options.slice:g}: give seconds from 0.01 to 3600")
    if not 0 < options.glance_us <= 1000:
        raise UsageError(f"--glance-us {options.glance_us:g}: give microseconds, more than 0 and at most 1000")
    jobs = [
        JobOptions(
            workloads=(workload,),
            paths=(options.path,),
            bs=parse_size(options.bs, "--bs"),
            iodepth=parse_size(depth, "--iodepth"),
            batch_submit=parse_size(options.iodepth_batch_submit, "--iodepth-batch-submit"),
            runtime=options.slice,
        )
        for depth in options.iodepth.split(",")
        for workload in parse_workloads(options.rw)
    ]
    rng = np.random.default_rng(1)
    for disk in parse_disks(options.disks):
        for job in jobs:
            (workload,) = job.workloads
            if job.writes:
                print(f"{workload} writes to {disk}", flush=True)
            with Session(disk, job) as session:
                arms = Arms(session, job, round(options.glance_us * 1000))
                try:
                    arms.slice(0)
                    slices: list[list[Slice]] = [[], []]
                    for _ in range(pairs):
                        for which in rng.permutation(2).tolist():
                            slices[which].append(arms.slice(which))
                finally:
                    arms.runner.close()
            report(f"{disk} {workload} QD {job.iodepth}", slices)
    return 0


def report(label: str, slices: list[list[Slice]]) -> None:
    """A line: medians without and with, and what changed."""
    iops = [[one.iops for one in arm] for arm in slices]
    cpu = [[cpu_us(one) for one in arm] for arm in slices]

    def change(figures: list[list[float]]) -> Estimate:
        found = paired_ratio(figures[0], figures[1], 95)
        assert found is not None, "MIN_PAIRS"
        return found

    medians = [f"{np.median(arm):.4g}" for arm in (*iops, *cpu)]
    print(
        f"{label:<32} IOPS {medians[0]} -> {medians[1]} {change_text(change(iops)).strip()}   "
        f"us of CPU per I/O {medians[2]} -> {medians[3]} {change_text(change(cpu)).strip()}",
        flush=True,
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VirtblkError as error:
        print(f"glance.py: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, DeviceError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
