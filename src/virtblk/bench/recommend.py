"""Which path to use on a disk, and why: a pure function of how the paths compare. Control context.

The rule, which docs/matrix.md states with its reasons:

1. A path *loses* a cell to another where the interval of the change in IOPS lies wholly below zero and the change is
   more than TOLERANCE. Anything else is level: no difference was found, or one too small to choose by.
2. Paths that lose no cell are candidates. Where every path loses one, the candidate is the path whose worst loss is
   the smallest, and the recommendation says who is best where.
3. Among several candidates, IOPS per CPU of both sides decide, with the same idea of a difference; per driver CPU,
   where the device's is not known.
4. What is still level is left as it is: the base stays, and where nothing differed at all, that is what is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from virtblk.bench.bootstrap import Estimate
from virtblk.bench.comparison import Comparison, base_of, compare_arms, grouped
from virtblk.bench.stat import RunResult
from virtblk.bench.summary import percent

#: What is less by a smaller share than this is not less enough to choose by, however sure it is.
TOLERANCE: Final = 0.02

SPEED: Final = "iops"
BOTH_CPUS: Final = "iops_per_total_cpu"
DRIVER_CPU: Final = "iops_per_driver_cpu"
NAMES: Final = {SPEED: "IOPS", BOTH_CPUS: "IOPS per CPU of both", DRIVER_CPU: "IOPS per driver CPU"}

UNBEATEN: Final = "no other path was found to have more IOPS"

#: What a recommendation comes to. `use` another path than the base; `keep` the base, which is the best or as good as
#: any; `mixed`: no path is the best everywhere; `unknown`: there is nothing to decide by.
VERDICTS: Final = ("use", "keep", "mixed", "unknown")


@dataclass(frozen=True)
class Recommendation:
    """The path for a disk. `path` is None only where the verdict is `unknown`.

    `losses` holds per cell what each path that lost it has less than the best of it, as a share of 1.
    """

    verdict: str
    path: str | None
    base: str
    headline: str
    reasons: tuple[str, ...] = ()
    losses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Its object in `--json`."""
        return {
            "verdict": self.verdict,
            "path": self.path,
            "base": self.base,
            "headline": self.headline,
            "reasons": list(self.reasons),
            "losses_pct": {cell: {p: -x * 100 for p, x in lost.items()} for cell, lost in self.losses.items()},
        }


def compare_pairs(results: Sequence[RunResult], confidence: float, seed: int = 0) -> list[Comparison]:
    """Every path against every other on each workload, once; of a path with several arms, the first stands for it.

    The base of `comparison.compare` comes first on its workload, the others in the order of their arms.
    """
    found = []
    for group in grouped(results):
        ordered: list[RunResult] = []
        for one in (base_of(group), *group):
            if all(one.path != other.path for other in ordered):
                ordered.append(one)
        for index, first in enumerate(ordered):
            found += [compare_arms(first, other, confidence, seed) for other in ordered[index + 1 :]]
    return found


class _Table:
    """Who does how well against whom, in which cell."""

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        self.cells = list(dict.fromkeys(one.workload for one in comparisons))
        self.paths = list(dict.fromkeys(path for one in comparisons for path in (one.base, one.path)))
        self._changes: dict[tuple[str, str, str], Mapping[str, Estimate | None]] = {}
        for one in comparisons:
            self._changes[one.workload, one.path, one.base] = one.changes
            self._changes[one.workload, one.base, one.path] = {
                name: change.inverse() if change else None for name, change in one.changes.items()
            }

    def change(self, cell: str, path: str, other: str, metric: str) -> Estimate | None:
        """Of `path` against `other`; None where it could not be had."""
        return self._changes.get((cell, path, other), {}).get(metric)

    def changes(self, metric: str) -> list[Estimate | None]:
        """One per cell and pair that was compared."""
        return [changes.get(metric) for changes in self._changes.values()]

    def found(self, cell: str, path: str, other: str, metric: str) -> float:
        """The ratio, where it is a difference to choose by; else 1."""
        change = self.change(cell, path, other, metric)
        return change.value if change is not None and differs(change) else 1.0

    def loss(self, cell: str, path: str, metric: str, others: Sequence[str]) -> float:
        """What `path` has less than the best of `others`, as a share; 0 where it loses to none."""
        return max([0.0, *(1 - self.found(cell, path, other, metric) for other in others)])

    def worst(self, path: str, metric: str, others: Sequence[str]) -> tuple[float, str]:
        """The largest loss of `path`, and the cell."""
        return max(((self.loss(cell, path, metric, others), cell) for cell in self.cells), key=lambda pair: pair[0])

    def gain(self, path: str, metric: str, others: Sequence[str]) -> float:
        """What `path` has more than `others` over all cells: the sum of the logarithms of what was found."""
        ratios = [self.found(cell, path, other, metric) for cell in self.cells for other in others]
        return sum(math.log(ratio) for ratio in ratios)


def differs(change: Estimate) -> bool:
    """Whether a change is a difference: sure, and large enough to choose by."""
    if change.within_noise is not False:
        return False
    return max(change.value, 1 / change.value) > 1 / (1 - TOLERANCE)


def recommend(comparisons: Sequence[Comparison]) -> Recommendation:
    """The path for a disk, from every path against every other (`compare_pairs`). The base is that of the first."""
    if not comparisons:
        return Recommendation("unknown", None, "", "nothing was compared: run two paths or more")
    table = _Table(comparisons)
    base = comparisons[0].base
    known = [change for change in table.changes(SPEED) if change is not None]
    if not known or all(change.within_noise is None for change in known):
        return Recommendation("unknown", None, base, "too few slices for an interval: measure longer")
    paths = table.paths
    losses = {
        cell: {path: loss for path in paths if (loss := table.loss(cell, path, SPEED, paths))} for cell in table.cells
    }
    candidates = [path for path in paths if not table.worst(path, SPEED, paths)[0]]
    if not candidates:
        return _mixed(table, base, losses)
    cost = BOTH_CPUS if any(table.changes(BOTH_CPUS)) else DRIVER_CPU
    # max() takes the first of equals, and the base is the first of all
    best = max(candidates, key=lambda path: round(table.gain(path, cost, candidates), 9))
    others = [path for path in paths if path != best]
    reasons = tuple(line for other in others if (line := _against(table, best, other, cost)))
    if best != base:
        return Recommendation("use", best, base, f"use {best}: {_why(table, best, others, cost)}", reasons, losses)
    if not any(change and differs(change) for metric in (SPEED, cost) for change in table.changes(metric)):
        return Recommendation("keep", base, base, "no difference was found: keep what you have", reasons, losses)
    return Recommendation("keep", base, base, f"keep {base}: {_why(table, base, others, cost)}", reasons, losses)


def _why(table: _Table, best: str, others: Sequence[str], cost: str) -> str:
    """The headline's second half: what speaks for the best path."""
    for metric in (SPEED, cost):
        gains = [
            (gain, cell, other)
            for other in others
            for cell in table.cells
            if (gain := table.found(cell, best, other, metric)) > 1
        ]
        if gains:
            gain, cell, other = max(gains)
            return f"{UNBEATEN}, and it has up to {_pct(gain)} {NAMES[metric]} ({cell}, over {other})"
    return UNBEATEN


def _mixed(table: _Table, base: str, losses: Mapping[str, Mapping[str, float]]) -> Recommendation:
    """Where every path loses somewhere."""
    paths = table.paths
    best = min(paths, key=lambda path: table.worst(path, SPEED, paths)[0])
    loss, where = table.worst(best, SPEED, paths)
    text = f"no path is best everywhere; if one must do for all, {best}: it loses {loss:.1%} at most ({where})"
    reasons = []
    for cell in table.cells:
        lost = losses[cell]
        winners = [path for path in paths if path not in lost]
        if not lost or not winners:
            reasons.append(f"{cell}: no path is clearly the best")
            continue
        margins = ", ".join(
            f"{path} {_change(table.change(cell, path, winners[0], SPEED))}" for path in paths if path in lost
        )
        reasons.append(f"{cell}: {' or '.join(winners)}; IOPS against {winners[0]}: {margins}")
    return Recommendation("mixed", best, base, text, tuple(reasons), losses)


def _against(table: _Table, best: str, other: str, cost: str) -> str:
    """One line: the best against another path, in numbers."""
    parts = [text for metric in (SPEED, cost) if (text := _changes(table, best, other, metric))]
    return f"against {other}: {'; '.join(parts)}" if parts else ""


def _changes(table: _Table, best: str, other: str, metric: str) -> str:
    """The differences by cell; how far apart they may be where there is none."""
    known = {cell: change for cell in table.cells if (change := table.change(cell, best, other, metric)) is not None}
    if not known:
        return ""
    found = [f"{_change(change)} ({cell})" for cell, change in known.items() if differs(change)]
    level = [change for change in known.values() if not differs(change)]
    if level:
        lows = [change.low for change in level if change.low is not None]
        highs = [change.high for change in level if change.high is not None]
        within = f", within [{_pct(min(lows))}, {_pct(max(highs))}]" if lows and highs else ""
        found.append(f"level in {len(level)} of {len(known)}{within}")
    return f"{NAMES[metric]} {', '.join(found)}"


def _change(change: Estimate | None) -> str:
    if change is None:
        return "-"
    if change.interval_pct is None:
        return percent(change.change_pct)
    low, high = change.interval_pct
    return f"{percent(change.change_pct)} [{percent(low)[:-1]}, {percent(high)[:-1]}]"


def _pct(ratio: float) -> str:
    return percent((ratio - 1) * 100)
