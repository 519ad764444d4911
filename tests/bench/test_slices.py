"""Slices added up are what one run would have counted, and what belongs to the warm-up is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness import options
from virtblk.bench.cpu import Usage
from virtblk.bench.histogram import BUCKETS, bucket_of
from virtblk.bench.job_loop import JOB_DTYPE
from virtblk.bench.slices import LEAST_KEPT, Slice, add_usage, histogram_of, together, warm_up
from virtblk.bench.stat import COLUMNS, Clat, RunResult, samples_of

LATENCIES = st.lists(st.integers(1, 1 << 30), min_size=1, max_size=50)


def a_slice(latencies: list[int], **given_fields: Any) -> Slice:
    """A slice of one job with these latencies, in a second of which a half was the driver's."""
    job = np.zeros(1, JOB_DTYPE)
    job["ios"], job["clat_sum"] = len(latencies), sum(latencies)
    job["clat_min"], job["clat_max"] = min(latencies, default=1 << 62), max(latencies, default=0)
    job["clat_squares"] = sum(float(latency) ** 2 for latency in latencies)
    job["busy_ns"] = 10 * len(latencies)
    histogram = np.bincount([bucket_of(latency) for latency in latencies], minlength=BUCKETS).astype(np.int64)
    buckets = np.flatnonzero(histogram)
    fields: dict[str, Any] = {
        "arm": 0, "round": 0, "jobs": job, "buckets": buckets, "counts": histogram[buckets], "elapsed_s": 1.0,
        "driver": Usage(0.25, 0.25, 0.5, 3, 2, 1), "device": Usage(0.5, 0.25, 0.75), "kicks": 2, "interrupts": 3,
        "ring_full_waits": 0, "merges": 4, "steal_s": 0.5, "notes": [], "complete": True,
    }  # fmt: skip
    return Slice(**fields | given_fields)


def result_of(slices: list[Slice], drop: int = 0, polling: bool = True) -> RunResult:
    return RunResult.of(options(), "bio", "read", 1, slices, drop, polling=polling)


@given(LATENCIES, LATENCIES)
def test_two_slices_are_one_run(first: list[int], second: list[int]) -> None:
    both, whole = [a_slice(first), a_slice(second)], a_slice(first + second)
    assert (histogram_of(both) == histogram_of([whole])).all()
    apart = Clat.of(np.concatenate([one.jobs for one in both]), histogram_of(both))
    wanted = Clat.of(whole.jobs, histogram_of([whole]))
    assert (apart.min, apart.max, apart.percentile) == (wanted.min, wanted.max, wanted.percentile)
    assert apart.mean == pytest.approx(wanted.mean)


def test_jobs_together() -> None:
    jobs = np.concatenate([a_slice([5, 7]).jobs, a_slice([]).jobs, a_slice([100]).jobs])
    jobs["errors"] = [1, 0, 2]
    (whole,) = together(jobs)
    assert (whole["ios"], whole["errors"], whole["clat_sum"], whole["busy_ns"]) == (3, 3, 112, 30)
    assert (whole["clat_min"], whole["clat_max"]) == (5, 100)


def test_counters_of_a_run_are_sums() -> None:
    result = result_of([a_slice([1000] * 4), a_slice([1000] * 6, elapsed_s=3.0)])
    assert (result.ios, result.runtime_s, result.iops) == (10, 4.0, 2.5)
    assert (result.kicks, result.interrupts, result.merges, result.steal_s) == (4, 6, 8, 1.0)
    assert result.driver == add_usage([Usage(0.25, 0.25, 0.5, 3, 2, 1)] * 2) == Usage(0.5, 0.5, 1.0, 6, 4, 2)
    assert result.device == Usage(1.0, 0.5, 1.5)
    assert (result.busy_ns, result.arm, result.path, result.dropped) == (100, 1, "bio", 0)


def test_figures_of_each_slice_are_kept() -> None:
    nothing = a_slice([], round=1)
    result = result_of([a_slice([2000, 4000], elapsed_s=0.5), nothing, a_slice([1000], round=2, complete=False)])
    assert result.samples == {
        "round": [0, 1],
        "iops": [4.0, 0.0],
        "clat_mean_ns": [3000.0, None],
        "driver_ns_per_io": [0.25e9, None],
        "device_ns_per_io": [0.375e9, None],
        "busy_ns_per_io": [10.0, None],
    }
    assert result.ios == 3, "what was interrupted is no sample, but it was done"
    assert set(samples_of([], True)) == {"round", *COLUMNS}


def test_what_could_not_be_had_in_one_slice_is_not_told_of_the_run() -> None:
    assert result_of([a_slice([1]), a_slice([1], device=None)]).device is None
    assert result_of([a_slice([1]), a_slice([1], ring_full_waits=1)]).busy_ns is None
    assert result_of([a_slice([1])], polling=False).busy_ns is None
    assert result_of([a_slice([1])], polling=False).samples["busy_ns_per_io"] == [None]


def test_errors_of_the_warm_up_count_and_its_figures_do_not() -> None:
    failed = a_slice([1_000_000])
    failed.jobs["errors"], failed.notes = 1, ["first error"]
    result = result_of([failed, a_slice([1000]), a_slice([1000])], drop=1)
    assert (result.ios, result.clat.max, result.errors, result.notes) == (2, 1000, 1, ["first error"])
    assert result.dropped == 1
    assert len(result.samples["iops"]) == 2


# Warm-up.

NOISE = [100.0, 101.0, 99.0, 100.5, 99.5, 100.2, 99.8, 100.1, 99.9, 100.3]


@pytest.mark.parametrize(
    ("values", "dropped"),
    [
        ([], 0),
        ([1.0], 0),
        (NOISE * 2, 0),
        ([10.0, 40.0, 80.0, *NOISE, *NOISE], 3),
        ([200.0, 150.0, *NOISE, *NOISE], 2),
        ([*NOISE, 10.0, *NOISE], 0),
        ([10.0, 100.0, *NOISE[2:]], 1),
        ([10.0] * 5 + NOISE[5:], 2),
        ([10.0, *NOISE[1 : LEAST_KEPT - 1]], 0),
        ([10.0] * 20 + NOISE * 2, 20),
        ([10.0] * 30 + NOISE, 0),
        ([float(value) for value in range(40)], 11),
    ],
)
def test_what_is_unlike_the_second_half_at_the_start_is_warm_up(values: list[float], dropped: int) -> None:
    assert warm_up(values) == dropped


@given(st.lists(st.floats(0, 1e9), max_size=60))
def test_at_most_half_is_warm_up_and_enough_is_left(values: list[float]) -> None:
    drop = warm_up(values)
    assert 0 <= drop <= len(values) / 2
    assert drop == 0 or len(values) - drop >= LEAST_KEPT
