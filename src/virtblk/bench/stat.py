"""The figures of one run, from job records, histogram and resource counters. Control context.

Units are in the names: nanoseconds for latencies and CPU per I/O, seconds for CPU totals, bytes per second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from virtblk.bench.cpu import Usage
from virtblk.bench.histogram import BUCKETS, bucket_middle

#: fio's default percentile_list.
PERCENTILES: Final = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)


def percentile(histogram: npt.NDArray[np.int64], percent: float) -> int:
    """The latency in nanoseconds that `percent` of the counts do not exceed; 0 for an empty histogram."""
    total = int(histogram.sum())
    if total == 0:
        return 0
    rank = max(1, math.ceil(total * percent / 100))
    return int(bucket_middle(int(np.searchsorted(np.cumsum(histogram), rank))))


@dataclass
class Clat:
    """Completion latency in nanoseconds."""

    min: int
    max: int
    mean: float
    stddev: float
    percentile: dict[str, int]

    @classmethod
    def of(cls, jobs: npt.NDArray[np.void], histogram: npt.NDArray[np.int64]) -> Clat:
        """Over all jobs of a run; zeroes where no I/O ended."""
        count = int(jobs["ios"].sum())
        merged = histogram.reshape(-1, BUCKETS).sum(axis=0)
        values = {f"{percent:.6f}": percentile(merged, percent) for percent in PERCENTILES}
        if count == 0:
            return cls(0, 0, 0.0, 0.0, values)
        mean = float(jobs["clat_sum"].sum()) / count
        variance = max(0.0, float(jobs["clat_squares"].sum()) / count - mean * mean)
        low, high = int(jobs["clat_min"].min()), int(jobs["clat_max"].max())
        # The middle of the last bucket may lie past the largest value that was seen.
        values = {key: min(max(value, low), high) for key, value in values.items()}
        return cls(low, high, mean, math.sqrt(variance), values)


@dataclass
class RunResult:
    """One workload on one path. None where a figure could not be had."""

    path: str
    workload: str
    bs: int
    iodepth: int
    numjobs: int
    ios: int
    errors: int
    runtime_s: float
    clat: Clat
    driver: Usage
    device: Usage | None
    #: Polling only; not with more jobs than cores, where a round lasts while others run, nor with a ring that was full,
    #: where reaping happens inside the wait.
    busy_ns: int | None
    kicks: int
    interrupts: int
    ring_full_waits: int
    steal_s: float
    notes: list[str] = field(default_factory=list)

    @property
    def iops(self) -> float:
        """I/Os per second of the run's wall-clock time."""
        return self.ios / self.runtime_s if self.runtime_s > 0 else 0.0

    @property
    def driver_ns(self) -> float | None:
        """Driver CPU per I/O, in nanoseconds."""
        return self._per_io(self.driver.cpu_s * 1e9)

    @property
    def device_ns(self) -> float | None:
        """Device CPU per I/O, in nanoseconds."""
        return self._per_io(self.device.cpu_s * 1e9) if self.device else None

    @property
    def busy_ns_per_io(self) -> float | None:
        """Driver time per I/O in rounds that found something, in nanoseconds; only when polling."""
        return self._per_io(self.busy_ns) if self.busy_ns is not None else None

    @property
    def iops_per_driver_cpu(self) -> float | None:
        """I/Os per second of driver CPU."""
        return self.ios / self.driver.cpu_s if self.driver.cpu_s > 0 else None

    @property
    def iops_per_total_cpu(self) -> float | None:
        """I/Os per second of driver and device CPU together."""
        if self.device is None:
            return None
        total = self.driver.cpu_s + self.device.cpu_s
        return self.ios / total if total > 0 else None

    def _per_io(self, value: float) -> float | None:
        return value / self.ios if self.ios else None

    def as_json(self) -> dict[str, Any]:
        """The run's object in `--json`."""
        return {
            "path": self.path,
            "workload": self.workload,
            "bs": self.bs,
            "iodepth": self.iodepth,
            "numjobs": self.numjobs,
            "ios": self.ios,
            "errors": self.errors,
            "runtime_s": self.runtime_s,
            "iops": self.iops,
            "bw_bytes": self.iops * self.bs,
            "clat_ns": {
                "min": self.clat.min,
                "max": self.clat.max,
                "mean": self.clat.mean,
                "stddev": self.clat.stddev,
                "percentile": self.clat.percentile,
            },
            "driver_cpu": self._cpu(self.driver, self.driver_ns),
            "device_cpu": self._cpu(self.device, self.device_ns) if self.device else None,
            "busy_ns_per_io": self.busy_ns_per_io,
            "ctx": self.driver.ctx,
            "majf": self.driver.majf,
            "minf": self.driver.minf,
            "kicks": self.kicks,
            "interrupts": self.interrupts,
            "ring_full_waits": self.ring_full_waits,
            "iops_per_driver_cpu": self.iops_per_driver_cpu,
            "iops_per_total_cpu": self.iops_per_total_cpu,
            "steal_s": self.steal_s,
            "notes": self.notes,
        }

    @staticmethod
    def _cpu(usage: Usage, per_io: float | None) -> dict[str, float | None]:
        return {"usr_s": usage.usr_s, "sys_s": usage.sys_s, "ns_per_io": per_io}
