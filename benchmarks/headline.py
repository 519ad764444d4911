"""The headline comparison: what the bio path saves where nothing can merge, and what merging gains where it can.

    .venv/bin/python benchmarks/headline.py ram:512m

Two tables, both of 8 jobs x 32 deep in 512-byte blocks on a ring of 256 by interrupts, with nr_requests=256 and no
elevator, so that all in flight fit: the first submits I/Os one at a time, the second in batches of 32, which the
request path may merge. The last lines say whether the bio path's driver CPU per I/O is lower.
"""

from __future__ import annotations

import argparse
import sys

from virtblk.bench.comparison import Comparison, compare
from virtblk.bench.job import JobOptions, parse_queue, parse_workloads
from virtblk.bench.report import print_report
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session
from virtblk.bench.summary import change_text, print_summary
from virtblk.errors import DeviceError, UsageError, VirtblkError

QUEUE = ("nr_requests=256", "scheduler=noop")


def table(disk: str, job: JobOptions) -> list[Comparison]:
    """One run of both paths, printed."""
    with Session(disk, job) as session:
        print(
            f"{disk}: {job.numjobs} x {job.iodepth} in flight, batches of {job.batch_submit}, blocks of {job.bs}, "
            f"ring of {job.queue_size}, {', '.join(QUEUE)}; {session.placement}\n",
            flush=True,
        )
        results = list(Runner(session, job).run())
    found = compare(results, job.confidence)
    print_report(results, sys.stdout)
    print_summary(found, job.confidence, sys.stdout)
    print(flush=True)
    if any(result.errors for result in results):
        raise UsageError(f"{disk} had I/O errors; see virtblk bench")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("disk", nargs="?", default="ram:512m", metavar="DISK", help="disk name (default ram:512m, in a child process)")
    add("--rw", default="read,write,randread,randwrite", metavar="LIST", help="workloads (default all four)")
    add("--runtime", type=float, default=10.0, metavar="S", help="seconds per workload and path (default 10)")
    add("--confidence", type=float, default=95.0, metavar="P", help="of the intervals, per cent (default 95)")
    options = parser.parse_args()
    lower = 0
    lines = []
    for batch in (1, 32):
        job = JobOptions(
            workloads=parse_workloads(options.rw),
            paths=("request", "bio"),
            bs=512,
            numjobs=8,
            iodepth=32,
            batch_submit=batch,
            queue_size=256,
            queue=parse_queue(list(QUEUE)),
            runtime=options.runtime,
            confidence=options.confidence,
        )
        for found in table(options.disk, job):
            change = found.changes["driver_ns"]
            name = f"batches of {batch:>2} {found.workload:>9}"
            lines.append(f"{name}: driver ns/IO, bio/request - 1 {change_text(change)}".rstrip())
            if batch == 1 and change is not None and change.high is not None:
                lower += change.high < 1
    print("\n".join(lines))
    print(f"one at a time, the bio path's driver CPU per I/O is lower in {lower} of {len(lines) // 2} workloads")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VirtblkError as error:
        print(f"headline.py: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, DeviceError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
