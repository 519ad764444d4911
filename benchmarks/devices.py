"""Two disks under one driver, alternated slice by slice: how fast is one against the other?

    .venv/bin/python benchmarks/devices.py vhost-user:ours.sock vhost-user:theirs.sock --iodepth 1,32

Both are open at the same time. In each round each has one slice, in random order; the ratio of their IOPS, first over
second, is the median over the rounds with a bootstrap interval. Somebody's devices run where they are: pin them alike
before. It writes to both disks, unless --rw names only read and randread.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from virtblk.bench.bootstrap import paired_ratio
from virtblk.bench.job import WORKLOADS, JobOptions, parse_workloads
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session
from virtblk.errors import DeviceError, UsageError, VirtblkError
from virtblk.names import parse_size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("first", metavar="DISK", help="disk name, as for virtblk bench")
    add("second", metavar="DISK", help="the other one")
    add("--rw", default=",".join(WORKLOADS), metavar="LIST", help="workloads (default all four)")
    add("--bs", default="4k", metavar="SIZE", help="bytes per I/O (default 4k)")
    add("--iodepth", default="1,32", metavar="LIST", help="I/Os in flight (default 1,32)")
    add("--size", default="0", metavar="SIZE", help="use the first SIZE of each disk (default all of it)")
    add("--rounds", default="12", metavar="N", help="pairs of slices per line, 8 or more (default 12)")
    add("--slice", type=float, default=0.25, metavar="S", help="seconds per slice (default 0.25)")
    add("--confidence", type=float, default=99.0, metavar="P", help="of the intervals, per cent (default 99)")
    options = parser.parse_args()
    rounds = parse_size(options.rounds, "--rounds")
    if not 8 <= rounds <= 10_000:
        raise UsageError(f"--rounds {options.rounds}: give 8 to 10000")
    if not 0.01 <= options.slice <= 3600:
        raise UsageError(f"--slice {options.slice:g}: give seconds from 0.01 to 3600")
    rng = np.random.default_rng(1)
    for depth in options.iodepth.split(","):
        job = JobOptions(
            workloads=parse_workloads(options.rw),
            paths=("bio",),
            bs=parse_size(options.bs, "--bs"),
            iodepth=parse_size(depth, "--iodepth"),
            size=parse_size(options.size, "--size"),
            runtime=options.slice,
            confidence=options.confidence,
        )
        with Session(options.first, job) as one, Session(options.second, job) as other:
            runners = (Runner(one, job), Runner(other, job))
            try:
                for workload in job.workloads:
                    pairs = np.zeros((rounds, 2))
                    for number in range(-1, rounds):  # the first round warms up
                        for which in rng.permutation(2).tolist():
                            iops = runners[which].slice(workload, 0, options.slice).iops
                            if number >= 0:
                                pairs[number, which] = iops
                    ratio = paired_ratio(pairs[:, 1], pairs[:, 0], options.confidence)
                    if ratio is None or ratio.low is None or ratio.high is None:
                        raise UsageError(f"--slice {options.slice:g}: too little was done; give more seconds")
                    speeds = " / ".join(f"{value / 1000:.1f}k" for value in np.median(pairs, axis=0))
                    text = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
                    print(f"QD {depth:>3}  {workload:>9}  IOPS {speeds}  ratio {text}", flush=True)
            finally:
                for runner in runners:
                    runner.close()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VirtblkError as error:
        print(f"devices.py: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, DeviceError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
