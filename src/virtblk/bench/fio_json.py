"""What a job file's run did, under fio's keys (fio: stat.c, show_thread_status_json), so that fio's tools read it.

Control context. The order of keys is fio 3.33's. What virtblk knows besides is in one object more, `virtblk`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from virtblk import __version__
from virtblk.bench.cpu import Usage
from virtblk.bench.fio_job import DIRECTIONS, FioJob
from virtblk.bench.fio_options import JobFile
from virtblk.bench.fio_runner import Outcome, WaveResult
from virtblk.bench.fio_tables import FIO_STAT_DTYPE, LATENCIES, LEVEL_COMPLETE, LEVEL_DEPTH, LEVEL_SUBMIT, SYNC
from virtblk.bench.histogram import BUCKETS, bucket_middle
from virtblk.bench.slices import add_usage
from virtblk.bench.stat import percentile

#: The headings of fio's distributions, class by class.
DEPTHS: Final = ("1", "2", "4", "8", "16", "32", ">=64")
COUNTS: Final = ("0", "4", "8", "16", "32", "64", ">=64")
#: Upper bounds of fio's latency classes in each unit, and the unit in nanoseconds; above 2 s is one class more.
LATENCY_BOUNDS: Final = (2, 4, 10, 20, 50, 100, 250, 500, 750, 1000)
UNITS: Final = {"ns": 1, "us": 1000, "ms": 1_000_000}
#: fio's histogram ends here; its readers look no further.
LAST_BIN: Final = 17_112_760_320
#: A share that is not 0 is shown as no less than this, in per cent.
LEAST_SHARE: Final = 0.1


@dataclass
class Report:
    """One entry of `jobs`: a task, or with group_reporting several. `runtimes_ns` and `samples` are by direction."""

    job: FioJob
    groupid: int
    error: int
    notes: list[str]
    started_ns: int
    ended_ns: int
    job_runtime_ns: int
    runtimes_ns: list[int]
    stats: npt.NDArray[np.void]
    histogram: npt.NDArray[np.int64]
    levels: npt.NDArray[np.int64]
    usage: Usage
    samples: list[list[float]]

    @classmethod
    def of(cls, outcome: Outcome) -> Report:
        """One task by itself."""
        runtime = outcome.ended_ns - outcome.counted_ns
        return cls(
            job=outcome.task.job,
            groupid=outcome.task.job.wave,
            error=outcome.error,
            notes=[outcome.note] if outcome.note else [],
            started_ns=outcome.started_ns,
            ended_ns=outcome.ended_ns,
            job_runtime_ns=runtime,
            runtimes_ns=[runtime if ios else 0 for ios in outcome.stats["ios"].tolist()],
            stats=outcome.stats.copy(),
            histogram=outcome.histogram.copy(),
            levels=outcome.levels.copy(),
            usage=outcome.usage,
            samples=[list(samples) for samples in outcome.samples],
        )

    def add(self, other: Report) -> None:
        """Take another task of the group in (fio: sum_thread_stats)."""
        self.error = self.error or other.error
        self.notes += other.notes
        self.started_ns = min(self.started_ns, other.started_ns)
        self.ended_ns = max(self.ended_ns, other.ended_ns)
        self.job_runtime_ns += other.job_runtime_ns
        self.runtimes_ns = [max(pair) for pair in zip(self.runtimes_ns, other.runtimes_ns, strict=True)]
        for name in FIO_STAT_DTYPE.names or ():
            mine, theirs = self.stats[name], other.stats[name]
            if name.endswith("_min"):
                self.stats[name] = np.minimum(mine, theirs)
            elif name.endswith("_max"):
                self.stats[name] = np.maximum(mine, theirs)
            else:
                self.stats[name] = mine + theirs
        self.histogram += other.histogram
        self.levels += other.levels
        self.usage = add_usage([self.usage, other.usage])
        self.samples = [
            [sum(values) for values in zip_longest(mine, theirs, fillvalue=0.0)]
            for mine, theirs in zip(self.samples, other.samples, strict=True)
        ]

    def ios(self, kind: int) -> int:
        """I/Os of a kind."""
        return int(self.stats[kind]["ios"])

    def bytes_per_second(self, kind: int) -> float:
        """Bandwidth in a direction, over the time of the slowest task."""
        runtime = self.runtimes_ns[kind]
        return self.ios(kind) * self.job.bs * 1e9 / runtime if runtime else 0.0

    def mean_ns(self, kind: int, name: str) -> float:
        """Mean of a latency, slat, clat or lat."""
        ios = self.ios(kind)
        return float(self.stats[kind][f"{name}_sum"]) / ios if ios else 0.0

    def percentile_ns(self, kind: int, percent: float) -> int:
        """A completion latency's percentile: of a bucket's middle, not past what was measured."""
        stat = self.stats[kind]
        prefix = "lat" if kind == SYNC else "clat"
        value = percentile(self.histogram[kind], percent)
        return min(max(value, int(stat[f"{prefix}_min"])), int(stat[f"{prefix}_max"])) if self.ios(kind) else 0


def reports_of(waves: Sequence[WaveResult]) -> list[Report]:
    """The entries of `jobs`: a task joins the one before it where it asks for group_reporting in the same group."""
    reports: list[Report] = []
    for wave in waves:
        for outcome in wave.outcomes:
            report = Report.of(outcome)
            if reports and report.job.group_reporting and reports[-1].groupid == report.groupid:
                reports[-1].add(report)
            else:
                reports.append(report)
    return reports


def as_fio_json(
    file: JobFile, reports: Sequence[Report], virtblk: dict[str, Any], *, plus: bool = False
) -> dict[str, Any]:
    """fio's object; `plus` adds the histograms' bins, as fio's json+ does. `virtblk` is what fio has no keys for."""
    now = time.time()
    groups: dict[int, list[Report]] = {}
    for report in reports:
        groups.setdefault(report.groupid, []).append(report)
    return {
        "fio version": f"virtblk-{__version__}",
        "timestamp": int(now),
        "timestamp_ms": int(now * 1000),
        "time": time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(now)),
        "global options": file.global_options,
        "jobs": [_job(report, groups[report.groupid], plus) for report in reports],
        "disk_util": [],
        "virtblk": virtblk,
    }


def _job(report: Report, group: Sequence[Report], plus: bool) -> dict[str, Any]:
    elapsed = report.ended_ns - report.started_ns
    usage, total = report.usage, report.levels.sum(axis=1).tolist()
    cpu = 1e11 / report.job_runtime_ns if report.job_runtime_ns > 0 else 0.0
    clat = report.histogram[:SYNC].sum(axis=0)
    value: dict[str, Any] = {
        "jobname": report.job.name,
        "groupid": report.groupid,
        "error": report.error,
        "eta": 0,
        "elapsed": elapsed // 10**9 + 1,
        "job options": report.job.given,
    }
    for kind, name in enumerate(DIRECTIONS):
        value[name] = _direction(report, kind, group, plus)
    value["sync"] = {
        "total_ios": report.ios(SYNC),
        "lat_ns": _latency(report, SYNC, "lat", percentiles=True, bins=plus),
    }
    value |= {
        "job_runtime": round(report.job_runtime_ns / 1e6),
        "usr_cpu": usage.usr_s * cpu,
        "sys_cpu": usage.sys_s * cpu,
        "ctx": usage.ctx,
        "majf": usage.majf,
        "minf": usage.minf,
        "iodepth_level": _shares(report.levels[LEVEL_DEPTH].tolist(), total[LEVEL_DEPTH], DEPTHS),
        "iodepth_submit": _shares(report.levels[LEVEL_SUBMIT].tolist(), total[LEVEL_SUBMIT], COUNTS),
        "iodepth_complete": _shares(report.levels[LEVEL_COMPLETE].tolist(), total[LEVEL_COMPLETE], COUNTS),
    }
    value |= latency_classes(clat)
    value |= {
        "latency_depth": report.job.iodepth,
        "latency_target": 0,
        "latency_percentile": 100.0,
        "latency_window": 0,
    }
    return value


def _direction(report: Report, kind: int, group: Sequence[Report], plus: bool) -> dict[str, Any]:
    ios, bs, runtime = report.ios(kind), report.job.bs, report.runtimes_ns[kind]
    speed = report.bytes_per_second(kind)
    value: dict[str, Any] = {
        "io_bytes": ios * bs,
        "io_kbytes": ios * bs >> 10,
        "bw_bytes": int(speed),
        "bw": int(speed) >> 10,
        "iops": ios * 1e9 / runtime if runtime else 0.0,
        "runtime": max(1, round(runtime / 1e6)) if runtime else 0,
        "total_ios": ios,
        "short_ios": 0,
        "drop_ios": 0,
    }
    for name in LATENCIES:
        value[f"{name}_ns"] = _latency(report, kind, name, percentiles=name == "clat", bins=plus and name == "clat")
    samples = report.samples[kind]
    together = sum(other.bytes_per_second(kind) for other in group) / 1024
    bandwidths = [sample * bs / 1024 for sample in samples]
    low, high, mean, deviation = _moments(bandwidths)
    value |= {
        "bw_min": int(low),
        "bw_max": int(high),
        "bw_agg": min(100.0, mean * 100 / together) if together else 0.0,
        "bw_mean": mean,
        "bw_dev": deviation,
        "bw_samples": len(samples),
    }
    low, high, mean, deviation = _moments(samples)
    value |= {
        "iops_min": int(low),
        "iops_max": int(high),
        "iops_mean": mean,
        "iops_stddev": deviation,
        "iops_samples": len(samples),
    }
    return value


def _moments(samples: Sequence[float]) -> tuple[float, float, float, float]:
    """(least, most, mean, standard deviation) of samples; zeroes of none."""
    if not samples:
        return 0.0, 0.0, 0.0, 0.0
    deviation = float(np.std(samples, ddof=1)) if len(samples) > 1 else 0.0
    return min(samples), max(samples), float(np.mean(samples)), deviation


def _latency(report: Report, kind: int, name: str, *, percentiles: bool, bins: bool) -> dict[str, Any]:
    stat, ios = report.stats[kind], report.ios(kind)
    if not ios:
        return {"min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0}
    mean = report.mean_ns(kind, name)
    variance = max(0.0, float(stat[f"{name}_squares"]) / ios - mean * mean) * ios / max(1, ios - 1)
    value: dict[str, Any] = {
        "min": int(stat[f"{name}_min"]),
        "max": int(stat[f"{name}_max"]),
        "mean": mean,
        "stddev": math.sqrt(variance),
        "N": ios,
    }
    if percentiles:
        asked = report.job.percentile_list
        value["percentile"] = {f"{percent:.6f}": report.percentile_ns(kind, percent) for percent in asked}
    if bins:
        value["bins"] = _bins(report.histogram[kind])
    return value


def _bins(histogram: npt.NDArray[np.int64]) -> dict[str, int]:
    """json+: how often each bucket's value was seen."""
    bins: dict[str, int] = {}
    for index in np.flatnonzero(histogram).tolist():
        key = str(min(int(bucket_middle(index)), LAST_BIN))
        bins[key] = bins.get(key, 0) + int(histogram[index])
    return bins


def _shares(counts: Sequence[int], total: int, names: Sequence[str]) -> dict[str, float]:
    """Per cent of each class (fio: stat_calc_dist)."""
    shares = [count * 100 / total if total else 0.0 for count in counts]
    return dict(zip(names, [max(share, LEAST_SHARE) if share else 0.0 for share in shares], strict=True))


def latency_classes(histogram: npt.NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """fio's latency_ns, latency_us and latency_ms: per cent of I/Os below each bound and not below the one before."""
    total = int(histogram.sum())
    bounds = [bound * factor for factor in UNITS.values() for bound in LATENCY_BOUNDS] + [2_000_000_000]
    middles = [bucket_middle(index) for index in range(BUCKETS)]
    counts = np.bincount(np.searchsorted(bounds, middles, side="right"), weights=histogram, minlength=len(bounds) + 1)
    shares = iter((counts * 100 / total if total else counts * 0.0).tolist())
    value = {f"latency_{unit}": {str(bound): next(shares) for bound in LATENCY_BOUNDS} for unit in UNITS}
    value["latency_ms"] |= {"2000": next(shares), ">=2000": next(shares)}
    return value
