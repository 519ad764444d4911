"""The end of a bench's report: what one path gained over the other, beside the posting's figures. Control context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from virtblk.bench.bootstrap import Estimate
from virtblk.bench.comparison import POSTED, Comparison
from virtblk.bench.posting import DEFAULT_PRESET, Preset, posted_change
from virtblk.bench.report import Column, format_table

NOISE = "~"


def percent(value: float) -> str:
    """A change: +12.3%, -0.4%, +150%."""
    return f"{value:+.0f}%" if abs(value) >= 99.95 else f"{value:+.1f}%"


def change_text(change: Estimate | None) -> str:
    """A change with its interval; marked where it is within noise, `-` where it could not be had."""
    if change is None:
        return "-"
    text = percent(change.change_pct)
    if change.interval_pct is None:
        return f"{text} [?]"
    low, high = change.interval_pct
    return f"{text} [{percent(low)[:-1]}, {percent(high)[:-1]}]" + (f" {NOISE}" if change.within_noise else "  ")


def is_the_postings(comparison: Comparison) -> bool:
    """Whether it is the comparison that the posting makes."""
    return (comparison.base, comparison.path) == ("request", "bio")


def rows_of(comparison: Comparison, preset: Preset, *, alone: bool) -> tuple[list[Column], list[Column]]:
    """Speed and cost: two rows of (heading, cell). Headings name both paths where no others are compared."""
    base, path = comparison.base, comparison.path
    low, high = (base, path) if alone else ("base", "path")
    other = f"{path}#{comparison.arm}" if base == path else path
    first = f"{base}#{comparison.base_arm}" if base == path else base
    head = [("change", f"{first} -> {other}"), ("workload", comparison.workload)]
    changes = comparison.changes
    speed = [
        ("IOPS", change_text(changes["iops"])),
        (f"mean clat, {high}/{low} - 1", change_text(changes["latency"])),
        (f"as posted, {low}/{high} - 1", change_text(changes[POSTED])),
    ]
    cost = [("IOPS/driver-CPU", change_text(changes["iops_per_driver_cpu"]))]
    if is_the_postings(comparison):
        then = posted_change(comparison.workload, preset.disk, preset.vmm)
        cost.append((f"posted, {preset.disk}", percent(then.iops_per_cpu)))
    cost += [
        ("IOPS/both-CPU", change_text(changes["iops_per_total_cpu"])),
        ("driver ns/IO", change_text(changes["driver_ns"])),
        ("busy ns/IO", change_text(changes["busy_ns"])),
    ]
    return head + speed, head + cost


def print_summary(
    comparisons: Sequence[Comparison], confidence: float, stream: TextIO, preset: Preset = DEFAULT_PRESET
) -> None:
    """Both tables, and how to read them; nothing where nothing was compared."""
    if not comparisons:
        return
    alone = len({(comparison.base, comparison.path) for comparison in comparisons}) == 1
    pairs = [rows_of(comparison, preset, alone=alone) for comparison in comparisons]
    print(file=stream)
    print(format_table([speed for speed, _ in pairs]), file=stream)
    print(file=stream)
    print(format_table([cost for _, cost in pairs]), file=stream)
    print(file=stream)
    least = min(comparison.pairs for comparison in comparisons)
    most = max(comparison.pairs for comparison in comparisons)
    count = str(least) if least == most else f"{least} to {most}"
    print(f"medians over {count} pairs of slices, [{confidence:g} % interval]", file=stream, end="")
    changes = [change for comparison in comparisons for change in comparison.changes.values() if change]
    if any(change.within_noise for change in changes):
        print(f"; {NOISE} within noise: no difference was found", file=stream, end="")
    if any(change.interval_pct is None for change in changes):
        print("; [?] too few slices for an interval", file=stream, end="")
    print(file=stream)
    if any(is_the_postings(comparison) for comparison in comparisons):
        print(f"posted: change in IOPS per guest CPU on the {preset.title}, 2012", file=stream)
