"""What one arm of a run gained or lost against another: the posting's summary, with intervals. Control context.

Arms are compared slice by slice, paired by round, so that the machine's drift cancels. Every change is a median with
a bootstrap interval (`bench.bootstrap`); one whose interval holds zero is called within noise, and is no change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from virtblk.bench.bootstrap import Estimate, median_interval, paired_ratio
from virtblk.bench.stat import RunResult, Samples

Figure = float | None


def _driver(driver: Figure, device: Figure) -> Figure:
    return 1e9 / driver if driver else None


def _total(driver: Figure, device: Figure) -> Figure:
    return 1e9 / (driver + device) if driver is not None and device is not None and driver + device > 0 else None


def _of_cpu(combine: Callable[[Figure, Figure], Figure]) -> Callable[[Samples], list[Figure]]:
    def values(samples: Samples) -> list[Figure]:
        columns = zip(samples["driver_ns_per_io"], samples["device_ns_per_io"], strict=True)
        return [combine(driver, device) for driver, device in columns]

    return values


def _column(name: str) -> Callable[[Samples], list[Figure]]:
    return lambda samples: samples[name]


#: What is compared, by the name that it has in JSON, and how it comes from a run's slices.
METRICS: Final[dict[str, Callable[[Samples], list[Figure]]]] = {
    "iops": _column("iops"),
    "latency": _column("clat_mean_ns"),
    "iops_per_driver_cpu": _of_cpu(_driver),
    "iops_per_total_cpu": _of_cpu(_total),
    "driver_ns": _column("driver_ns_per_io"),
    "busy_ns": _column("busy_ns_per_io"),
}
#: The change of latency the other way round: what the posting prints.
POSTED: Final = "latency_posted"


def figures(samples: Samples, metric: str) -> list[Figure]:
    """One figure per slice; None where it could not be had, or is no rate or time to compare with."""
    return [value if value else None for value in METRICS[metric](samples)] if samples else []


@dataclass(frozen=True)
class Comparison:
    """One arm against another on one workload. A change is None where one of the two has no such figure."""

    workload: str
    base: str
    path: str
    base_arm: int
    arm: int
    pairs: int
    changes: dict[str, Estimate | None]

    def as_json(self) -> dict[str, Any]:
        """Its object in `--json`: per change the per cent, its interval, and the names of those within noise."""
        value: dict[str, Any] = {"workload": self.workload, "base": self.base, "path": self.path}
        value |= changes_json(self.changes)
        return value | {"pairs": self.pairs, "base_arm": self.base_arm, "arm": self.arm}


def changes_json(changes: dict[str, Estimate | None]) -> dict[str, Any]:
    """Changes as JSON: NAME_pct, NAME_ci, and `within_noise`."""
    value: dict[str, Any] = {}
    for name, change in changes.items():
        value[f"{name}_pct"] = change.change_pct if change else None
        value[f"{name}_ci"] = list(change.interval_pct) if change and change.interval_pct else None
    value["within_noise"] = [name for name, change in changes.items() if change and change.within_noise]
    return value


def with_posted(changes: dict[str, Estimate | None]) -> dict[str, Estimate | None]:
    """The same with the posting's convention for latency, which is the other way round, beside it."""
    latency = changes["latency"]
    value: dict[str, Estimate | None] = {}
    for name, change in changes.items():
        value[name] = change
        if name == "latency":
            value[POSTED] = latency.inverse() if latency else None
    return value


def base_of(results: Sequence[RunResult]) -> RunResult:
    """What the others are compared with: the first on the request path, or else the first."""
    return next((result for result in results if result.path == "request"), results[0])


def paired(base: RunResult, other: RunResult, metric: str) -> tuple[list[float], list[float]]:
    """The figures of both in the rounds in which both have one."""
    first = dict(zip(base.samples.get("round", []), figures(base.samples, metric), strict=True))
    pairs = [
        (before, after)
        for number, after in zip(other.samples.get("round", []), figures(other.samples, metric), strict=True)
        if after is not None and (before := first.get(number)) is not None
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def compare_arms(base: RunResult, other: RunResult, confidence: float, seed: int = 0) -> Comparison:
    """All changes of `other` against `base`."""
    changes = {metric: paired_ratio(*paired(base, other, metric), confidence, seed) for metric in METRICS}
    pairs = len(paired(base, other, "iops")[0])
    return Comparison(other.workload, base.path, other.path, base.arm, other.arm, pairs, with_posted(changes))


def grouped(results: Sequence[RunResult]) -> list[list[RunResult]]:
    """The results by workload, each with all its arms; in their order."""
    groups: list[list[RunResult]] = []
    for one in results:
        if not groups or one.arm <= groups[-1][-1].arm:
            groups.append([])
        groups[-1].append(one)
    return groups


def compare(results: Sequence[RunResult], confidence: float, seed: int = 0) -> list[Comparison]:
    """Each arm against the base of its workload, in the order of the results."""
    comparisons = []
    for group in grouped(results):
        base = base_of(group)
        comparisons += [compare_arms(base, one, confidence, seed) for one in group if one is not base]
    return comparisons


def iops_interval(result: RunResult, confidence: float, seed: int = 0) -> tuple[float, float] | None:
    """Interval of the median IOPS of a run's slices; None where there are too few."""
    return median_interval(result.samples.get("iops", []), confidence, seed)
