"""One slice of a run, what it counted, and the figures of many slices together. Control context.

A run is cut into slices so that the arms of a comparison can alternate on one connection; each is measured with all
its counters, and those of a settled run are added up (`bench.stat`) and compared (`bench.comparison`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from virtblk.bench.cpu import Usage
from virtblk.bench.histogram import BUCKETS
from virtblk.bench.job_loop import JOB_DTYPE

#: So many slices are kept at least: fewer can have no interval of 99 % (`bench.bootstrap.enough`).
LEAST_KEPT = 8
#: A slice further out of the quartiles than this many quartile distances is unlike the others (Tukey's fences).
FENCE = 1.5


@dataclass
class Slice:
    """What one arm did from one go to the drain after it."""

    arm: int
    round: int
    jobs: npt.NDArray[np.void]  # one JOB_DTYPE record: all jobs together
    buckets: npt.NDArray[np.int64]  # the histogram's buckets that are not empty, and their counts
    counts: npt.NDArray[np.int64]
    elapsed_s: float
    driver: Usage
    device: Usage | None
    kicks: int
    interrupts: int
    ring_full_waits: int
    merges: int
    steal_s: float
    notes: list[str]
    complete: bool  # False where it was interrupted: it says what was done, and is no sample

    @property
    def ios(self) -> int:
        """I/Os that ended in it."""
        return int(self.jobs["ios"][0])

    @property
    def errors(self) -> int:
        """Of these, how many failed or did not verify."""
        return int(self.jobs["errors"][0])

    @property
    def iops(self) -> float:
        """I/Os per second of wall-clock time, the drain included."""
        return self.ios / self.elapsed_s if self.elapsed_s > 0 else 0.0


def together(jobs: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """One record with the counts of all; what is set up for each is that of the first."""
    whole = np.zeros(1, JOB_DTYPE)
    whole[0] = jobs[0]
    for name in ("ios", "errors", "clat_sum", "clat_squares", "busy_ns"):
        whole[name] = jobs[name].sum()
    whole["clat_min"], whole["clat_max"] = jobs["clat_min"].min(), jobs["clat_max"].max()
    return whole


def histogram_of(slices: Sequence[Slice]) -> npt.NDArray[np.int64]:
    """The latencies of all of them."""
    histogram = np.zeros(BUCKETS, np.int64)
    for one in slices:
        histogram[one.buckets] += one.counts
    return histogram


def add_usage(usages: Sequence[Usage]) -> Usage:
    """Their sum."""
    return Usage(
        sum(usage.usr_s for usage in usages),
        sum(usage.sys_s for usage in usages),
        sum(usage.cpu_s for usage in usages),
        sum(usage.ctx for usage in usages),
        sum(usage.majf for usage in usages),
        sum(usage.minf for usage in usages),
    )


def warm_up(values: Sequence[float]) -> int:
    """How many of the first samples belong to the warm-up: at most half, and never so many that too few are left.

    Those before the first that lies within the fences of the second half, which are FENCE quartile distances below the
    first and above the third quartile. A run that has settled loses a slice now and then; one that speeds up or slows
    down at its start loses the slices in which it did.
    """
    count = len(values)
    most = min(count // 2, count - LEAST_KEPT)
    if most <= 0:
        return 0
    half = np.asarray(values[count // 2 :], float)
    low, high = np.quantile(half, [0.25, 0.75])
    margin = FENCE * (high - low)
    for index, value in enumerate(values[:most]):
        if low - margin <= value <= high + margin:
            return index
    return most
