"""Arms of a run against each other: which with which, paired by round, and what JSON says of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.harness import a_run
from virtblk.bench.bootstrap import Estimate
from virtblk.bench.comparison import (
    METRICS,
    POSTED,
    base_of,
    changes_json,
    compare,
    compare_arms,
    figures,
    iops_interval,
    paired,
)
from virtblk.bench.stat import RunResult, Samples

ROUNDS = 10


def samples(iops: float = 100.0, rounds: int = ROUNDS, **given: Any) -> Samples:
    """Every slice the same, but for some noise in IOPS that both arms of a round share."""
    noise = [1 + 0.01 * (index % 3) for index in range(rounds)]
    return {
        "round": list(range(rounds)),
        "iops": [iops * factor for factor in noise],
        "clat_mean_ns": [1e9 / iops / factor for factor in noise],
        "driver_ns_per_io": [500.0] * rounds,
        "device_ns_per_io": [1500.0] * rounds,
        "busy_ns_per_io": [None] * rounds,
    } | given


def arm(number: int, path: str, workload: str = "read", **given: Any) -> RunResult:
    return a_run(path=path, arm=number, workload=workload, samples=samples(**given))


def test_every_change_is_the_ratio_of_its_figures() -> None:
    request = arm(0, "request")
    bio = arm(1, "bio", iops=125.0, driver_ns_per_io=[250.0] * ROUNDS, busy_ns_per_io=[4.0] * ROUNDS)
    found = compare_arms(request, bio, 95.0)
    changes = {name: change.change_pct if change else None for name, change in found.changes.items()}
    assert changes == {
        "iops": pytest.approx(25),
        "latency": pytest.approx(-20),
        "latency_posted": pytest.approx(25),
        "iops_per_driver_cpu": pytest.approx(100),
        "iops_per_total_cpu": pytest.approx((2000 / 1750 - 1) * 100),
        "driver_ns": pytest.approx(-50),
        "busy_ns": None,
    }
    assert (found.workload, found.base, found.path, found.pairs) == ("read", "request", "bio", ROUNDS)


def test_json_has_the_keys_of_the_issue() -> None:
    told = compare_arms(arm(0, "request"), arm(1, "bio", iops=125.0), 95.0).as_json()
    wanted = (
        "workload base path iops_pct iops_ci latency_pct latency_posted_pct iops_per_driver_cpu_pct "
        "iops_per_total_cpu_pct busy_ns_pct"
    )
    assert [key for key in wanted.split() if key not in told] == []
    assert [f"{metric}_ci" for metric in (*METRICS, POSTED) if f"{metric}_ci" not in told] == []
    low, high = told["iops_ci"]
    assert low <= told["iops_pct"] <= high
    assert low == pytest.approx(25)
    assert told["busy_ns_pct"] is told["busy_ns_ci"] is None
    assert told["within_noise"] == ["iops_per_driver_cpu", "iops_per_total_cpu", "driver_ns"]
    assert json.loads(json.dumps(told)) == told


def test_the_latencys_two_conventions_are_one_ratio_seen_from_both_sides() -> None:
    found = compare_arms(arm(0, "request"), arm(1, "bio", iops=80.0), 95.0).changes
    latency, posted = found["latency"], found[POSTED]
    assert latency is not None
    assert posted is not None
    assert posted == latency.inverse()
    assert latency.change_pct == pytest.approx(25)
    assert posted.change_pct == pytest.approx(-20)


def test_pairs_are_of_the_same_round() -> None:
    """An interrupted arm may lack the last, and a slice without an I/O has no ratio."""
    first = arm(0, "request", rounds=4)
    second = arm(1, "bio", rounds=4)
    second.samples["round"] = [2, 1, 0, 9]
    second.samples["iops"] = [30.0, 20.0, 10.0, 90.0]
    first.samples["iops"] = [1.0, 0.0, 3.0, 4.0]
    assert paired(first, second, "iops") == ([3.0, 1.0], [30.0, 10.0])


def test_a_run_without_slices_is_compared_to_nothing() -> None:
    nothing = a_run(path="bio", arm=1)
    found = compare_arms(arm(0, "request"), nothing, 95.0)
    assert found.pairs == 0
    assert set(found.changes.values()) == {None}
    assert found.as_json()["within_noise"] == []
    assert iops_interval(nothing, 95.0) is None


def test_few_slices_have_a_change_and_no_interval() -> None:
    found = compare_arms(arm(0, "request", rounds=3), arm(1, "bio", rounds=3, iops=200.0), 95.0)
    told = found.as_json()
    assert told["iops_pct"] == pytest.approx(100)
    assert told["iops_ci"] is None
    assert told["within_noise"] == []


@pytest.mark.parametrize(
    ("paths", "base"),
    [(("request", "bio"), 0), (("bio", "request"), 1), (("bio", "bio"), 0), (("bio", "request", "request"), 1)],
)
def test_the_request_path_is_the_base(paths: tuple[str, ...], base: int) -> None:
    assert base_of([arm(number, path) for number, path in enumerate(paths)]).arm == base


def test_each_arm_is_compared_within_its_workload() -> None:
    results = [
        arm(number, path, workload)
        for workload in ("read", "write", "write")
        for number, path in enumerate(("bio", "request", "bio"))
    ]
    found = [(one.workload, one.base, one.path, one.base_arm, one.arm) for one in compare(results, 95.0)]
    each = [("request", "bio", 1, 0), ("request", "bio", 1, 2)]
    assert found == [(workload, *one) for workload in ("read", "write", "write") for one in each]


def test_one_arm_is_compared_to_none() -> None:
    assert compare([], 95.0) == []
    assert compare([arm(0, "bio"), arm(0, "bio", "write")], 95.0) == []
    assert compare([arm(0, "bio"), arm(1, "bio"), arm(1, "bio", "write")], 95.0)[0].workload == "read"
    assert len(compare([arm(0, "bio"), arm(1, "bio"), arm(1, "bio", "write")], 95.0)) == 1


def test_an_unknown_cpu_is_none() -> None:
    unknown = samples(device_ns_per_io=[None] * ROUNDS, driver_ns_per_io=[0.0] * ROUNDS)
    assert figures(unknown, "iops_per_total_cpu") == [None] * ROUNDS
    assert figures(unknown, "iops_per_driver_cpu") == [None] * ROUNDS
    assert figures({}, "iops") == []


def test_changes_as_json() -> None:
    told = changes_json({"a": Estimate(1.5, 1.25, 2.0), "b": Estimate(1.0, 0.5, 1.5), "c": None})
    assert told == {
        "a_pct": 50, "a_ci": [25, 100], "b_pct": 0, "b_ci": [-50, 50], "c_pct": None, "c_ci": None,
        "within_noise": ["b"],
    }  # fmt: skip


def test_the_interval_of_one_run() -> None:
    interval = iops_interval(arm(0, "bio"), 95.0)
    assert interval is not None
    low, high = interval
    assert 100 <= low < high <= 102
