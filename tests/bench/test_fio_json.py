"""fio's JSON out of what jobs did: sums and means against the I/Os themselves, groups, classes, samples."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.bench.cpu import Usage
from virtblk.bench.fio_json import COUNTS, DEPTHS, as_fio_json, latency_classes, reports_of
from virtblk.bench.fio_options import parse_jobs
from virtblk.bench.fio_plan import DiskFacts, plan
from virtblk.bench.fio_report import cost_as_json, print_fio_report
from virtblk.bench.fio_runner import Outcome, WaveResult
from virtblk.bench.fio_tables import FIO_STAT_DTYPE, KINDS, LATENCIES, LEVELS, READ, SYNC, WRITE
from virtblk.bench.histogram import BUCKETS, bucket_of

MS = 1_000_000
#: (slat, clat) of I/Os by kind.
Ios = dict[int, list[tuple[int, int]]]
TIMES = st.tuples(st.integers(0, 10**7), st.integers(0, 10**10))


def outcome(task: Any, ios: Ios, **given: Any) -> Outcome:
    stats = np.zeros(KINDS, FIO_STAT_DTYPE)
    histogram = np.zeros((KINDS, BUCKETS), np.int64)
    for name in LATENCIES:
        stats[f"{name}_min"] = np.iinfo(np.int64).max
    for kind, times in ios.items():
        for slat, clat in times:
            stats[kind]["ios"] += 1
            for name, value in (("slat", slat), ("clat", clat), ("lat", slat + clat)):
                stats[kind][f"{name}_min"] = min(stats[kind][f"{name}_min"], value)
                stats[kind][f"{name}_max"] = max(stats[kind][f"{name}_max"], value)
                stats[kind][f"{name}_sum"] += value
                stats[kind][f"{name}_squares"] += float(value) ** 2
            histogram[kind, bucket_of(slat + clat if kind == SYNC else clat)] += 1
    levels = np.zeros((LEVELS, len(DEPTHS)), np.int64)
    fields: dict[str, Any] = {
        "task": task,
        "started_ns": 0,
        "counted_ns": 0,
        "ended_ns": 2000 * MS,
        "error": 0,
        "note": "",
        "stats": stats,
        "histogram": histogram,
        "levels": levels,
        "usage": Usage(0.5, 0.25, 0.75, 17, 3, 5),
    }
    return Outcome(**fields | given)


def run_of(text: str, *ios: Ios, **given: Any) -> dict[str, Any]:
    """The JSON of a file whose tasks did `ios`, each in its turn."""
    file = parse_jobs(text, "a.fio")
    waves = plan(file, DiskFacts("x", 1 << 30, 512, False, 8))
    done = iter(ios)
    results = [
        WaveResult([outcome(task, next(done), **given) for task in tasks], Usage(1, 1, 2), None) for tasks in waves
    ]
    text = json.dumps(as_fio_json(file, reports_of(results), {"groups": cost_as_json(results)}, plus=True))
    value: dict[str, Any] = json.loads(text)
    return value


@given(st.lists(TIMES, min_size=1, max_size=50))
def test_latencies_are_those_of_the_ios(times: list[tuple[int, int]]) -> None:
    (job,) = run_of("[a]\npercentile_list=50:100\n", {READ: times})["jobs"]
    read = job["read"]
    assert (read["total_ios"], read["io_bytes"], read["runtime"]) == (len(times), len(times) * 4096, 2000)
    assert read["iops"] == pytest.approx(len(times) / 2)
    assert read["bw_bytes"] == len(times) * 2048
    assert read["bw"] == len(times) * 2
    for name, values in (
        ("slat_ns", [slat for slat, _ in times]),
        ("clat_ns", [clat for _, clat in times]),
        ("lat_ns", [slat + clat for slat, clat in times]),
    ):
        found = read[name]
        assert (found["min"], found["max"], found["N"]) == (min(values), max(values), len(values))
        assert found["mean"] == pytest.approx(np.mean(values))
        if len(values) > 1:
            assert found["stddev"] == pytest.approx(np.std(values, ddof=1), rel=1e-3, abs=max(values) * 1e-3 + 1)
    assert list(read["clat_ns"]["percentile"]) == ["50.000000", "100.000000"]
    assert read["clat_ns"]["percentile"]["100.000000"] <= read["clat_ns"]["max"]
    assert sum(read["clat_ns"]["bins"].values()) == len(times)
    assert "percentile" not in read["slat_ns"]
    assert job["write"]["clat_ns"] == {"min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0}
    assert (job["write"]["runtime"], job["write"]["iops"]) == (0, 0.0)


def test_flushes_are_told_apart() -> None:
    (job,) = run_of("[a]\nrw=write\n", {WRITE: [(1, 5)], SYNC: [(100, 20), (100, 40)]})["jobs"]
    assert (job["write"]["total_ios"], job["sync"]["total_ios"]) == (1, 2)
    assert job["sync"]["lat_ns"]["mean"] == 130.0
    assert job["sync"]["lat_ns"]["percentile"]["50.000000"] == 120
    assert sum(job["latency_ns"].values()) == 100.0


def naive_class(value: int) -> tuple[str, str]:
    """fio: io_u_mark_latency."""
    for unit, factor in (("ns", 1), ("us", 1000), ("ms", 1_000_000)):
        if value < 1000 * factor:
            bound = next(one for one in (2, 4, 10, 20, 50, 100, 250, 500, 750, 1000) if value < one * factor)
            return f"latency_{unit}", str(bound)
    return "latency_ms", "2000" if value < 2_000_000_000 else ">=2000"


@given(st.lists(st.integers(0, 5 * 10**9), min_size=1, max_size=30))
def test_classes_of_latencies(values: list[int]) -> None:
    """Of the values that buckets stand for: those of neighbours may differ by 1.6 %."""
    from virtblk.bench.histogram import bucket_middle

    histogram = np.zeros(BUCKETS, np.int64)
    wanted: dict[tuple[str, str], int] = {}
    for value in values:
        histogram[bucket_of(value)] += 1
        key = naive_class(int(bucket_middle(bucket_of(value))))
        wanted[key] = wanted.get(key, 0) + 1
    found = latency_classes(histogram)
    told = {(unit, bound): share for unit, shares in found.items() for bound, share in shares.items() if share}
    assert told == pytest.approx({key: count * 100 / len(values) for key, count in wanted.items()})
    assert list(found["latency_ms"])[-2:] == ["2000", ">=2000"]


def test_cpu_and_depths_are_shares() -> None:
    levels = np.zeros((LEVELS, len(DEPTHS)), np.int64)
    levels[0, 0], levels[0, 3] = 1, 9999
    levels[1, 1] = 4
    (job,) = run_of("[a]\n", {READ: [(1, 1)]}, levels=levels)["jobs"]
    assert (job["usr_cpu"], job["sys_cpu"], job["ctx"], job["majf"], job["minf"]) == (25.0, 12.5, 17, 3, 5)
    assert job["iodepth_level"] == dict.fromkeys(DEPTHS, 0.0) | {"1": 0.1, "8": 99.99}
    assert job["iodepth_submit"] == dict.fromkeys(COUNTS, 0.0) | {"4": 100.0}
    assert job["iodepth_complete"] == dict.fromkeys(COUNTS, 0.0)
    assert (job["job_runtime"], job["elapsed"]) == (2000, 3)


def test_samples_have_their_moments_and_their_share() -> None:
    ios: Ios = {READ: [(1, 1)] * 100}
    samples = [[100.0, 300.0], [], []]
    first, second = run_of("[a]\nbs=2k\n[b]\nbs=2k\n", ios, ios, samples=samples)["jobs"]
    read = first["read"]
    assert [read[f"iops_{name}"] for name in ("min", "max", "mean", "samples")] == [100, 300, 200.0, 2]
    assert read["iops_stddev"] == pytest.approx(141.42, abs=0.01)
    assert [read[f"bw_{name}"] for name in ("min", "max", "mean", "samples")] == [200, 600, 400.0, 2]
    assert read["bw_agg"] == 100.0, "more than all of it together is all of it"
    assert second["write"]["bw_samples"] == 0


GROUPS = "[a]\nnumjobs=2\n[b]\nnumjobs=2\ngroup_reporting\n[c]\nstonewall\ngroup_reporting\n[d]\n[e]\ngroup_reporting\n"


def test_a_group_is_one_entry() -> None:
    """As in fio, a job that asks for it joins the entry before it in its group, whoever that is."""
    tasks: list[Ios] = [{READ: [(1, 10)] * (number + 1)} for number in range(7)]
    jobs = run_of(GROUPS, *tasks)["jobs"]
    assert [(job["jobname"], job["groupid"], job["read"]["total_ios"]) for job in jobs] == [
        ("a", 0, 1),
        ("a", 0, 2 + 3 + 4),
        ("c", 1, 5),
        ("d", 1, 6 + 7),
    ]
    merged = jobs[1]
    assert (merged["read"]["runtime"], merged["job_runtime"]) == (2000, 6000)
    assert (merged["ctx"], merged["usr_cpu"]) == (51, 25.0)
    assert merged["read"]["iops"] == 4.5


def test_an_error_is_its_job_s_and_its_group_s() -> None:
    file = parse_jobs("[a]\nnumjobs=3\ngroup_reporting\n", "a.fio")
    (tasks,) = plan(file, DiskFacts("x", 1 << 30, 512, False, 8))
    done = [
        outcome(task, {}, error=code, note=f"error {code}" if code else "")
        for task, code in zip(tasks, (0, 5, 84), strict=True)
    ]
    (report,) = reports_of([WaveResult(done, Usage(1, 1, 2), None)])
    assert (report.error, report.notes) == (5, ["error 5", "error 84"])


def test_the_table_has_a_line_per_direction_and_the_errors() -> None:
    file = parse_jobs("[a]\nrw=rw\n[b]\n", "a.fio")
    (tasks,) = plan(file, DiskFacts("x", 1 << 30, 512, False, 8))
    ios: list[Ios] = [{READ: [(1, 1000)] * 10, WRITE: [(1, 9)], SYNC: [(1, 7)]}, {}]
    done = [outcome(task, one, note="why" if not one else "") for task, one in zip(tasks, ios, strict=True)]
    waves = [WaveResult(done, Usage(1, 1, 12e-9), Usage(0, 0, 24e-9))]
    stream = io.StringIO()
    print_fio_report(reports_of(waves), waves, stream)
    first, second = stream.getvalue().split("\n\n")
    assert [line.split()[:5] for line in first.splitlines()[1:]] == [
        ["a", "read", "5.00", "0", "10"],
        ["a", "write", "0.50", "0", "1"],
        ["a", "flush", "0.50", "1", "2.00s"],
        ["b", "read", "0.00", "0", "0"],
    ]
    assert second.splitlines()[1].split() == ["0", "2", "12", "1.00", "2.00", "0"]
    assert second.splitlines()[2] == "a.fio:3: [b]: why"
    stream = io.StringIO()
    print_fio_report([], [], stream)
    assert stream.getvalue() == "no job was completed\n"
