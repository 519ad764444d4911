"""A/A: how often two arms that are the same are said to differ. It should be about as often as the intervals are wrong.

    .venv/bin/python benchmarks/aa.py ram:512m --repetitions 20 --paths bio,request

Each repetition is one interleaved run of `PATH,PATH`, as `virtblk bench --path bio,bio --confidence 99` does it, with a
seed of its own. A cell is a workload's change in IOPS, in mean latency or in IOPS per driver CPU; it differs where
its interval leaves zero out.
"""

from __future__ import annotations

import argparse
import sys

from virtblk.bench.comparison import compare
from virtblk.bench.job import JobOptions, parse_paths, parse_workloads
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session
from virtblk.bench.summary import change_text
from virtblk.errors import DeviceError, UsageError, VirtblkError
from virtblk.names import parse_size

CELLS = ("iops", "latency", "iops_per_driver_cpu")
#: Of all cells, so many may differ at 99 % before something is wrong with the intervals.
TOLERATED = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("disk", nargs="?", default="ram:512m", metavar="DISK", help="disk name (default ram:512m, in a child process)")
    add("--paths", default="bio,request", metavar="LIST", help="paths, each against itself (default bio,request)")
    add("--rw", default="read,write,randread,randwrite", metavar="LIST", help="workloads (default all four)")
    add("--bs", default="4k", metavar="SIZE", help="bytes per I/O (default 4k)")
    add("--iodepth", default="32", metavar="N", help="I/Os in flight (default 32)")
    add("--repetitions", default="20", metavar="N", help="runs per path (default 20)")
    add("--runtime", type=float, default=5.0, metavar="S", help="seconds per workload and arm (default 5)")
    add("--confidence", type=float, default=99.0, metavar="P", help="of the intervals, per cent (default 99)")
    options = parser.parse_args()
    repetitions = parse_size(options.repetitions, "--repetitions")
    if not 1 <= repetitions <= 10_000:
        raise UsageError(f"--repetitions {options.repetitions}: give 1 to 10000")

    def job(path: str, seed: int) -> JobOptions:
        return JobOptions(
            paths=(path, path),
            workloads=parse_workloads(options.rw),
            bs=parse_size(options.bs, "--bs"),
            iodepth=parse_size(options.iodepth, "--iodepth"),
            runtime=options.runtime,
            confidence=options.confidence,
            randseed=seed,
        )

    cells = differ = 0
    for path in parse_paths(options.paths):
        with Session(options.disk, job(path, 1)) as session:
            for seed in range(1, repetitions + 1):
                results = list(Runner(session, job(path, seed)).run())
                if any(result.errors for result in results):
                    raise UsageError(f"{options.disk} had I/O errors; see virtblk bench")
                for found in compare(results, options.confidence, seed):
                    changes = [found.changes[cell] for cell in CELLS]
                    known = [change for change in changes if change is not None and change.interval_pct is not None]
                    if not known:
                        raise UsageError(f"--runtime {options.runtime:g}: too few slices; give more seconds")
                    cells += len(known)
                    differ += sum(not change.within_noise for change in known)
                    texts = "   ".join(f"{cell} {change_text(found.changes[cell])}" for cell in CELLS)
                    print(f"{path},{path} {seed:>3} {found.workload:>9}   {texts}", flush=True)
    print(f"{differ} of {cells} cells differ at {options.confidence:g} %: {differ / cells:.1%}")
    return 1 if differ > TOLERATED * cells else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VirtblkError as error:
        print(f"aa.py: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, DeviceError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
