"""What a preset's run came to, beside what was posted: each path's figures, and what bio changed. Control context.

On `sim:` disks, whose models know the posting's request rows only, ours is a prediction of the bio rows. Our driver's
CPU stands beside the posting's guest CPU; of latency and CPU only the changes compare, for machine and guest differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TextIO

from virtblk.bench.comparison import Comparison
from virtblk.bench.posting import Preset, posted, posted_change
from virtblk.bench.report import Column, format_table
from virtblk.bench.stat import RunResult
from virtblk.bench.summary import change_text, is_the_postings, percent
from virtblk.figures import duration, si

#: What changes: our name, the posting's, and the heading.
CHANGES: Final = (
    ("iops", "iops", "IOPS"),
    ("latency", "latency", "mean clat"),
    ("iops_per_driver_cpu", "iops_per_cpu", "IOPS/CPU"),
)


def print_preset(preset: Preset, results: Sequence[RunResult], comparisons: Sequence[Comparison], out: TextIO) -> None:
    """Both tables; nothing where there was no such run."""
    cells = posted(preset.disk, preset.vmm)
    rows: list[list[Column]] = []
    for run in results:
        cell = cells.get((run.path, run.workload))
        if cell is not None:
            rows.append(
                [
                    ("path", run.path),
                    ("workload", run.workload),
                    ("IOPS", si(run.iops)),
                    ("posted IOPS", si(cell.iops)),
                    ("IOPS off", percent((run.iops / cell.iops - 1) * 100)),
                    ("clat mean", duration(run.clat.mean)),
                    ("posted clat", duration(cell.clat_mean_us * 1e3)),
                    ("IOPS/driver-CPU", si(run.iops_per_driver_cpu)),
                    ("posted/guest-CPU", si(cell.iops_per_cpu)),
                ]
            )
    if not rows:
        return
    print(file=out)
    print(format_table(rows), file=out)
    changes = [_changes(preset, comparison) for comparison in comparisons if is_the_postings(comparison)]
    if changes:
        print(file=out)
        print(format_table(changes), file=out)
    block = preset.options["bs"]
    print(file=out)
    print(
        f"posted: {preset.title}, {preset.vmm}, eight-CPU guest, 2012; blocks of {block} from its bandwidth", file=out
    )
    print(f"and IOPS; {preset.inferred}", file=out)


def _changes(preset: Preset, comparison: Comparison) -> list[Column]:
    """One row of the second table."""
    then = posted_change(comparison.workload, preset.disk, preset.vmm)
    row = [("change", f"{comparison.base} -> {comparison.path}"), ("workload", comparison.workload)]
    for ours, theirs, heading in CHANGES:
        row.append((heading, change_text(comparison.changes[ours])))
        row.append((f"posted {heading}", percent(getattr(then, theirs))))
    return row


def preset_json(
    name: str, preset: Preset, results: Sequence[RunResult], comparisons: Sequence[Comparison]
) -> dict[str, Any]:
    """The `posting` object of `--json`: the same figures; times in nanoseconds, changes in per cent."""
    cells = posted(preset.disk, preset.vmm)
    runs = [
        {
            "path": run.path,
            "workload": run.workload,
            "iops": run.iops,
            "posted_iops": cell.iops,
            "clat_mean_ns": run.clat.mean,
            "posted_clat_mean_ns": cell.clat_mean_us * 1e3,
            "iops_per_driver_cpu": run.iops_per_driver_cpu,
            "posted_iops_per_guest_cpu": cell.iops_per_cpu,
        }
        for run in results
        if (cell := cells.get((run.path, run.workload))) is not None
    ]
    changes = []
    for comparison in comparisons:
        if is_the_postings(comparison):
            then = posted_change(comparison.workload, preset.disk, preset.vmm)
            value: dict[str, Any] = {"workload": comparison.workload}
            for ours, theirs, _ in CHANGES:
                change = comparison.changes[ours]
                value[f"{ours}_pct"] = change.change_pct if change else None
                value[f"{ours}_ci"] = list(change.interval_pct) if change and change.interval_pct else None
                value[f"posted_{theirs}_pct"] = getattr(then, theirs)
            changes.append(value)
    told = {"preset": name, "disk": preset.disk, "vmm": preset.vmm, "inferred": preset.inferred}
    return told | {"runs": runs, "changes": changes}
