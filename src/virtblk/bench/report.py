"""What a bench prints: a table a person reads, and the same figures as JSON. Control context."""

from __future__ import annotations

from typing import Any, TextIO

from virtblk import __version__
from virtblk.bench.comparison import Comparison, iops_interval
from virtblk.bench.job import JobOptions
from virtblk.bench.stat import RunResult
from virtblk.figures import duration, si
from virtblk.progress import StatusLine

Column = tuple[str, str]


def _rate(count: int, ios: int) -> str:
    return f"{count / ios:.3f}" if ios else "-"


def rows_of(run: RunResult) -> tuple[list[Column], list[Column]]:
    """The two table rows of a run: (heading, cell) each."""
    clat = run.clat
    percent = clat.percentile
    head = [("path", run.path), ("workload", run.workload)]
    speed = [
        ("IOPS", si(run.iops)),
        ("MB/s", f"{run.iops * run.bs / 1e6:.0f}"),
        ("I/Os", si(run.ios)),
        ("runtime", f"{run.runtime_s:.2f}s"),
        ("errors", str(run.errors)),
        ("clat mean", duration(clat.mean)),
        ("p50", duration(percent["50.000000"])),
        ("p99", duration(percent["99.000000"])),
        ("p99.9", duration(percent["99.900000"])),
        ("max", duration(clat.max)),
    ]
    cost = [
        ("driver ns/IO", si(run.driver_ns)),
        ("device ns/IO", si(run.device_ns)),
        ("busy ns/IO", si(run.busy_ns_per_io)),
        ("IOPS/driver-CPU", si(run.iops_per_driver_cpu)),
        ("IOPS/both-CPU", si(run.iops_per_total_cpu)),
        ("kicks/IO", _rate(run.kicks, run.ios)),
        ("irqs/IO", _rate(run.interrupts, run.ios)),
        ("ring-full", si(run.ring_full_waits)),
        ("merges", si(run.merges)),
        ("ctx", si(run.driver.ctx)),
        ("majf", str(run.driver.majf)),
        ("minf", si(run.driver.minf)),
    ]
    if run.steal_s > 0:
        cost.append(("steal", f"{run.steal_s:.2f}s"))
    return head + speed, head + cost


def format_table(rows: list[list[Column]]) -> str:
    """Rows of (heading, cell) as aligned text; a heading that some row lacks is empty there."""
    headings = list(dict.fromkeys(heading for row in rows for heading, _ in row))
    lines = [headings] + [[dict(row).get(heading, "") for heading in headings] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]

    def join(line: list[str]) -> str:
        left = [line[i].ljust(widths[i]) for i in range(2)]
        right = [line[i].rjust(widths[i]) for i in range(2, len(line))]
        return "  ".join(left + right).rstrip()

    return "\n".join(join(line) for line in lines)


def print_report(results: list[RunResult], stream: TextIO) -> None:
    """Both tables, the notes on what went wrong, and what else is remarkable."""
    if not results:
        print("no run was completed", file=stream)
        return
    pairs = [rows_of(run) for run in results]
    print(format_table([speed for speed, _ in pairs]), file=stream)
    print(file=stream)
    print(format_table([cost for _, cost in pairs]), file=stream)
    for run in results:
        for note in run.notes:
            print(f"{run.path} {run.workload}: {run.errors} errors: {note}", file=stream)
    remarks = [f"{run.path} {run.workload}: {remark}" for run in results for remark in remarks_of(run)]
    if remarks:
        print("\n" + "\n".join(remarks), file=stream)


def remarks_of(run: RunResult) -> list[str]:
    """What a reader of a run's figures should know besides."""
    warm_up = f"{run.dropped} of its first slices left out as warm-up, {len(run.samples.get('iops', []))} counted"
    return run.remarks + ([warm_up] if run.dropped else [])


def as_json(
    device: dict[str, Any], options: JobOptions, results: list[RunResult], comparisons: list[Comparison]
) -> dict[str, Any]:
    """The object that `--json` writes."""
    runs = []
    for run in results:
        interval = iops_interval(run, options.confidence, options.randseed)
        runs.append(run.as_json() | {"iops_ci": list(interval) if interval else None})
    return {
        "virtblk": __version__,
        "device": device,
        "options": options.as_json(),
        "confidence": options.confidence,
        "slices": options.rounds,
        "runs": runs,
        "comparison": [comparison.as_json() for comparison in comparisons],
    }


class ProgressLine(StatusLine):
    """How far the current run is."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._label = ""

    def __call__(self, label: str, passed: float, planned: float, ios: int, limit: int) -> None:
        if label != self._label:
            self._label = label
            self.begin()
        if not self.due():
            return
        share = passed / planned if planned else (ios / limit if limit else 0.0)
        share = min(1.0, max(0.0, share))
        of = f"{passed:.1f} of {planned:g} s" if planned else f"{share:.0%}"
        self.write(f"{label}: {of}, {si(ios / passed if passed > 0 else 0)} IOPS", share)
