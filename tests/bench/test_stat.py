"""Percentiles, mean and deviation against NumPy on the samples themselves; rates and costs per I/O."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness import a_run
from virtblk.bench.cpu import Usage
from virtblk.bench.histogram import BUCKETS, bucket_of
from virtblk.bench.job import PERCENTILES
from virtblk.bench.job_loop import JOB_DTYPE
from virtblk.bench.stat import Clat, percentile

SAMPLES = st.lists(st.one_of(st.integers(0, 500), st.integers(0, 1 << 32)), min_size=1, max_size=300)


def histogram_of(samples: list[int]) -> np.ndarray:
    histogram = np.zeros(BUCKETS, np.int64)
    for sample in samples:
        histogram[bucket_of(sample)] += 1
    return histogram


def clat_of(*jobs: list[int]) -> Clat:
    """As the job loop leaves it: one record and one histogram per job."""
    records = np.zeros(len(jobs), JOB_DTYPE)
    for record, samples in zip(records, jobs, strict=True):
        record["ios"] = len(samples)
        record["clat_min"] = min(samples, default=np.iinfo(np.int64).max)
        record["clat_max"] = max(samples, default=0)
        record["clat_sum"] = sum(samples)
        record["clat_squares"] = sum(float(sample) * sample for sample in samples)
    return Clat.of(records, np.concatenate([histogram_of(samples) for samples in jobs]))


def close(found: float, wanted: float) -> bool:
    """Within the histogram's resolution."""
    return abs(found - wanted) * 64 <= wanted


@given(SAMPLES, st.sampled_from([0.001, 1, 50, 99, 99.9, 99.99, 100]))
def test_percentiles_are_numpys(samples: list[int], percent: float) -> None:
    """fio's percentile is the smallest sample that at least so many per cent do not exceed."""
    assert close(percentile(histogram_of(samples), percent), np.percentile(samples, percent, method="inverted_cdf"))


@pytest.mark.parametrize(("percent", "value"), [(50, 2), (50.1, 3), (25, 1), (25.01, 2), (99.9, 4), (100, 4)])
def test_percentiles_at_the_edges_of_ranks(percent: float, value: int) -> None:
    assert percentile(histogram_of([1, 2, 3, 4]), percent) == value


def test_percentiles_of_nothing() -> None:
    assert percentile(np.zeros(BUCKETS, np.int64), 99) == 0


@given(SAMPLES, SAMPLES)
def test_the_figures_of_two_jobs_are_those_of_all_their_samples(first: list[int], second: list[int]) -> None:
    clat, samples = clat_of(first, second), [*first, *second]
    assert (clat.min, clat.max) == (min(samples), max(samples))
    assert math.isclose(clat.mean, np.mean(samples), rel_tol=1e-9)
    # Sums of squares cancel: what is left of a deviation that is far below the mean.
    assert math.isclose(clat.stddev, np.std(samples), rel_tol=1e-4, abs_tol=1e-6 * clat.mean + 1e-9)
    for percent in PERCENTILES:
        wanted = np.percentile(samples, percent, method="inverted_cdf")
        assert close(clat.percentile[f"{percent:.6f}"], wanted)


@given(SAMPLES)
def test_no_percentile_lies_outside_of_what_was_seen(samples: list[int]) -> None:
    clat = clat_of(samples)
    values = list(clat.percentile.values())
    assert values == sorted(values)
    assert clat.min <= values[0]
    assert values[-1] <= clat.max


def test_a_job_without_a_single_io_has_no_say() -> None:
    assert clat_of([], [7, 9]).min == 7


def test_no_io_at_all_is_all_zeroes() -> None:
    clat = clat_of([], [])
    assert (clat.min, clat.max, clat.mean, clat.stddev) == (0, 0, 0.0, 0.0)
    assert set(clat.percentile.values()) == {0}


def test_percentiles_are_named_as_fio_names_them() -> None:
    clat = clat_of([1])
    assert next(iter(clat.percentile)) == "1.000000"
    assert {"50.000000", "99.000000", "99.900000", "99.990000"} <= set(clat.percentile)
    assert len(clat.percentile) == 17


def test_rates_and_costs() -> None:
    run = a_run(ios=1000, runtime_s=2.0, driver=Usage(0.25, 0.25, 0.5), device=Usage(1.0, 0.5, 1.5), busy_ns=3000)
    assert run.iops == 500
    assert run.driver_ns == 500_000
    assert run.device_ns == 1_500_000
    assert run.busy_ns_per_io == 3
    assert run.iops_per_driver_cpu == 2000
    assert run.iops_per_total_cpu == 500


def test_what_could_not_be_measured_is_none() -> None:
    run = a_run(device=None, busy_ns=None)
    assert run.device_ns is None
    assert run.iops_per_total_cpu is None
    assert run.busy_ns_per_io is None
    assert run.as_json()["device_cpu"] is None
    assert run.as_json()["busy_ns_per_io"] is None


def test_a_run_without_an_io_divides_by_nothing() -> None:
    nothing = Usage(0.0, 0.0, 0.0)
    run = a_run(ios=0, runtime_s=0.0, driver=nothing, device=nothing, busy_ns=0)
    assert run.iops == 0
    per_io = (run.driver_ns, run.device_ns, run.busy_ns_per_io, run.iops_per_driver_cpu, run.iops_per_total_cpu)
    assert per_io == (None,) * 5
