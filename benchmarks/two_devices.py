"""Two devices, one slower by a known part, alternated slice by slice: is the slow one found?

    .venv/bin/python benchmarks/two_devices.py ram:512m --slower 10 --repetitions 5

Both are devices of our own in processes of their own. What one I/O takes is measured on the first; the second then
spins for a tenth of it, or what --slower says, with every request. Each repetition alternates the two, in random order
within each round, and compares their IOPS as the arms of a run are compared. The exit status is 1 where the slow one
was not found in every repetition.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from virtblk.bench.bootstrap import paired_ratio
from virtblk.bench.job import JobOptions, parse_workloads
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session
from virtblk.bench.summary import change_text
from virtblk.errors import DeviceError, UsageError, VirtblkError
from virtblk.names import parse_size
from virtblk.server import ChildDevice

#: Slices of the first device, to know what one I/O takes.
CALIBRATION = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("disk", nargs="?", default="ram:512m", metavar="DISK", help="ram:SIZE or null:SIZE (default ram:512m)")
    add("--rw", default="randread", metavar="WORKLOAD", help="the workload (default randread)")
    add("--bs", default="4k", metavar="SIZE", help="bytes per I/O (default 4k)")
    add("--iodepth", default="32", metavar="N", help="I/Os in flight (default 32)")
    add("--slower", type=float, default=10.0, metavar="P", help="by so many per cent (default 10)")
    add("--rounds", default="20", metavar="N", help="pairs of slices per repetition, 8 or more (default 20)")
    add("--slice", type=float, default=0.2, metavar="S", help="seconds per slice (default 0.2)")
    add("--repetitions", default="5", metavar="N", help="how often (default 5)")
    add("--confidence", type=float, default=99.0, metavar="P", help="of the intervals, per cent (default 99)")
    options = parser.parse_args()
    repetitions = parse_size(options.repetitions, "--repetitions")
    rounds = parse_size(options.rounds, "--rounds")
    if not 1 <= repetitions <= 10_000:
        raise UsageError(f"--repetitions {options.repetitions}: give 1 to 10000")
    if not 8 <= rounds <= 10_000:
        raise UsageError(f"--rounds {options.rounds}: give 8 to 10000")
    if not 0 < options.slower <= 1000:
        raise UsageError(f"--slower {options.slower:g}: give per cent, more than 0 and at most 1000")
    if not 0.01 <= options.slice <= 3600:
        raise UsageError(f"--slice {options.slice:g}: give seconds from 0.01 to 3600")
    workloads = parse_workloads(options.rw)
    if len(workloads) != 1:
        raise UsageError(f"--rw {options.rw}: give one workload")
    (workload,) = workloads
    job = JobOptions(
        workloads=workloads,
        paths=("bio",),
        bs=parse_size(options.bs, "--bs"),
        iodepth=parse_size(options.iodepth, "--iodepth"),
        runtime=options.slice,
        poll=True,
        confidence=options.confidence,
    )
    found = 0
    rng = np.random.default_rng(1)
    with Session(options.disk, job) as plain:
        first = Runner(plain, job)
        # The fastest of some: what others on this machine took meanwhile is not the device's.
        speed = max(first.slice(workload, 0, options.slice).iops for _ in range(CALIBRATION))
        delay = max(1, round(1e9 / speed * options.slower / 100))
        cpus = ",".join(str(cpu) for cpu in plain.device_cpus or ())
        print(f"{options.disk}: {1e9 / speed:.0f} ns per I/O; the slow one takes {delay} ns longer", flush=True)
        with ChildDevice(options.disk, cpus=cpus, delay_ns=delay) as child:
            child.wait_ready()
            with Session(f"vhost-user:{child.path}", job) as slow:
                second = Runner(slow, job)
                try:
                    for _ in range(repetitions):
                        pairs = np.zeros((rounds, 2))
                        for pair in pairs:
                            for which in rng.permutation(2).tolist():
                                pair[which] = (first, second)[which].slice(workload, 0, options.slice).iops
                        ratio = paired_ratio(pairs[:, 0], pairs[:, 1], options.confidence)
                        assert ratio is not None
                        slower = ratio.high is not None and ratio.high < 1
                        found += slower
                        text = f"{change_text(ratio).strip()}  {'found' if slower else 'NOT found'}"
                        print(f"{workload:>9} IOPS, slow over plain: {text}", flush=True)
                finally:
                    first.close()
                    second.close()
    print(f"the slow one was found {found} of {repetitions} times at {options.confidence:g} %")
    return 0 if found == repetitions else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VirtblkError as error:
        print(f"two_devices.py: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, DeviceError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
