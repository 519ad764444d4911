"""The figures of one run, from job records, histogram and resource counters. Control context.

Units are in the names: nanoseconds for latencies and CPU per I/O, seconds for CPU totals, bytes per second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from virtblk.bench.cpu import Usage
from virtblk.bench.histogram import BUCKETS, bucket_middle
from virtblk.bench.job import PERCENTILES, JobOptions
from virtblk.bench.slices import Slice, add_usage, histogram_of

#: One run's slices as columns, for statistics and for JSON: see `samples_of`.
Samples = dict[str, list[Any]]
#: The columns of Samples besides `round`. None in a column: could not be had.
COLUMNS: Final = ("iops", "clat_mean_ns", "driver_ns_per_io", "device_ns_per_io", "busy_ns_per_io")


def samples_of(slices: Sequence[Slice], busy: bool) -> Samples:
    """The figures of each slice: its round, IOPS, mean latency, CPU of both sides and busy time per I/O."""
    samples: Samples = {"round": [one.round for one in slices], "iops": [one.iops for one in slices]}
    samples["clat_mean_ns"] = [_share(int(one.jobs["clat_sum"][0]), one) for one in slices]
    samples["driver_ns_per_io"] = [_share(one.driver.cpu_s * 1e9, one) for one in slices]
    samples["device_ns_per_io"] = [_share(one.device.cpu_s * 1e9 if one.device else None, one) for one in slices]
    samples["busy_ns_per_io"] = [_share(int(one.jobs["busy_ns"][0]) if busy else None, one) for one in slices]
    return samples


def _share(value: float | None, one: Slice) -> float | None:
    return value / one.ios if value is not None and one.ios else None


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
    """One workload on one arm, over all slices that count. None where a figure could not be had."""

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
    arm: int = 0
    merges: int = 0
    dropped: int = 0  # slices of the warm-up
    #: The histogram, as fio's json+ has it: I/Os by their latency in nanoseconds.
    bins: dict[int, int] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        options: JobOptions,
        path: str,
        workload: str,
        arm: int,
        slices: Sequence[Slice],
        drop: int,
        *,
        polling: bool,
    ) -> RunResult:
        """From the slices of one arm, of which the first `drop` were warm-up: only their errors count."""
        kept = slices[drop:]
        jobs = np.concatenate([one.jobs for one in kept])
        devices = [one.device for one in kept if one.device]
        histogram = histogram_of(kept)
        waits = sum(one.ring_full_waits for one in kept)
        busy = polling and not waits
        return cls(
            path=path,
            workload=workload,
            bs=options.bs,
            iodepth=options.iodepth,
            numjobs=options.numjobs,
            ios=int(jobs["ios"].sum()),
            errors=sum(one.errors for one in slices),
            runtime_s=sum(one.elapsed_s for one in kept),
            clat=Clat.of(jobs, histogram),
            driver=add_usage([one.driver for one in kept]),
            device=add_usage(devices) if len(devices) == len(kept) else None,
            busy_ns=int(jobs["busy_ns"].sum()) if busy else None,
            kicks=sum(one.kicks for one in kept),
            interrupts=sum(one.interrupts for one in kept),
            ring_full_waits=waits,
            steal_s=sum(one.steal_s for one in kept),
            notes=next((one.notes for one in slices if one.notes), []),
            arm=arm,
            merges=sum(one.merges for one in kept),
            dropped=drop,
            bins={int(bucket_middle(index)): int(histogram[index]) for index in np.flatnonzero(histogram).tolist()},
            samples=samples_of([one for one in kept if one.complete], busy),
        )

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
            "arm": self.arm,
            "merges": self.merges,
            "dropped": self.dropped,
            "remarks": self.remarks,
            "slices": self.samples,
        }

    @staticmethod
    def _cpu(usage: Usage, per_io: float | None) -> dict[str, float | None]:
        return {"usr_s": usage.usr_s, "sys_s": usage.sys_s, "ns_per_io": per_io}
