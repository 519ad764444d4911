"""`--compare A B`: what may be compared, what is refused and why, and the changes themselves."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest

from bench.test_comparison import arm
from virtblk.bench.compare import DRIFT, Compared, compare_files, print_compared
from virtblk.bench.comparison import compare
from virtblk.bench.job import JobOptions
from virtblk.bench.report import as_json
from virtblk.errors import UsageError

DEVICE = {
    "name": "ram:1m", "size": 1 << 20, "block_size": 512, "queue_size": 128, "queues": 1, "cache_type": "write back",
    "completion": "interrupts", "queue": {"scheduler": "noop", "nr_requests": "128"},
}  # fmt: skip


def run(iops: float = 100.0, **given: Any) -> dict[str, Any]:
    """A file that `bench --json` may have written."""
    results = [arm(0, "request", iops=iops), arm(1, "bio", iops=iops * 1.1)]
    told = as_json(copy.deepcopy(DEVICE), JobOptions(**given), results, compare(results, 95.0))
    value: dict[str, Any] = json.loads(json.dumps(told))
    return value


def compared(tmp_path: Path, first: Any, second: Any, confidence: float = 95.0) -> Compared:
    names = []
    for name, value in (("a.json", first), ("b.json", second)):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        names.append(str(path))
    return compare_files(names[0], names[1], confidence)


def refusal(tmp_path: Path, first: Any, second: Any, confidence: float = 95.0) -> str:
    with pytest.raises(UsageError) as caught:
        compared(tmp_path, first, second, confidence)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{tmp_path}/", "")


def test_changes_are_from_the_first_to_the_second(tmp_path: Path) -> None:
    found = compared(tmp_path, run(), run(120.0))
    assert list(found.changes) == [("read", "request", 0), ("read", "bio", 1)]
    for changes in found.changes.values():
        assert changes["iops"] is not None
        assert changes["iops"].change_pct == pytest.approx(20)
        assert changes["iops"].within_noise is False
        assert changes["driver_ns"] is not None
        assert changes["driver_ns"].within_noise
        assert changes["busy_ns"] is None
    assert found.iops["read", "request", 0] == (pytest.approx(101), pytest.approx(121.2))


def test_the_table_says_what_its_intervals_leave_out(tmp_path: Path) -> None:
    out = io.StringIO()
    print_compared(compared(tmp_path, run(), run(120.0)), out)
    text = out.getvalue()
    assert DRIFT in text
    assert "~ within noise" in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("request", "bio"))]
    first, second = (row[:5] for row in rows)
    assert first == ["request", "read", "101", "121", "+20.0%"]
    assert second == ["bio", "read", "111", "133", "+20.0%"]


def test_as_json(tmp_path: Path) -> None:
    told = compared(tmp_path, run(), run(80.0), 99.0).as_json()
    assert told["confidence"] == 99.0
    assert told["note"] == DRIFT
    first = told["cells"][0]
    assert (first["workload"], first["path"], first["arm"]) == ("read", "request", 0)
    assert first["iops_pct"] == pytest.approx(-20)
    low, high = first["iops_ci"]
    assert low < -15 < 0
    assert high < 0
    assert "driver_ns" in first["within_noise"]
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"bs": 512}, "--bs is 4096 in a.json and 512 in b.json"),
        ({"iodepth": 1}, "--iodepth is 32 in a.json and 1 in b.json"),
        ({"numjobs": 2}, "--numjobs is 1 in a.json and 2 in b.json"),
        ({"size": 4096}, "--size is 0 in a.json and 4096 in b.json"),
        ({"slice_s": 0.5}, "--slice is 0.25 in a.json and 0.5 in b.json"),
        ({"batch_submit": 2}, "--iodepth-batch-submit is 1 in a.json and 2 in b.json"),
        ({"rate_iops": 5}, "--rate-iops is 0 in a.json and 5 in b.json"),
        ({"poll": True}, "--poll is False in a.json and True in b.json"),
        ({"verify": "crc32c"}, "--verify is 'none' in a.json and 'crc32c' in b.json"),
        ({"share_core": True}, "--share-core is False in a.json and True in b.json"),
    ],
)
def test_options_that_differ_are_named(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    assert refusal(tmp_path, run(), run(**given)) == f"--compare: {says}"


@pytest.mark.parametrize("given", [{"randseed": 7}, {"timeout": 5.0}, {"confidence": 99.0}, {"ramp_time": 1.0}])
def test_what_does_not_matter_may_differ(tmp_path: Path, given: dict[str, Any]) -> None:
    assert compared(tmp_path, run(), run(**given)).changes


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("size", 2 << 20, "the disk's size is 1048576 in a.json and 2097152 in b.json"),
        ("queue_size", 256, "the disk's queue size is 128 in a.json and 256 in b.json"),
        ("completion", "polling", "the disk's completion is 'interrupts' in a.json and 'polling' in b.json"),
        (
            "queue",
            {"scheduler": "deadline", "nr_requests": "128"},
            "queue/scheduler is 'noop' in a.json and 'deadline' in b.json",
        ),
        ("queue", {"scheduler": "noop"}, "queue/nr_requests is '128' in a.json and not given in b.json"),
        (
            "queue",
            DEVICE["queue"] | {"iosched/read_expire": "500"},  # type: ignore[operator]
            "queue/iosched/read_expire is not given in a.json and '500' in b.json",
        ),
    ],
)
def test_disks_that_differ_are_named(tmp_path: Path, key: str, value: Any, says: str) -> None:
    other = run()
    other["device"][key] = value
    assert refusal(tmp_path, run(), other) == f"--compare: {says}"


def test_the_disks_name_may_differ(tmp_path: Path) -> None:
    other = run()
    other["device"]["name"] = "vhost-user:/elsewhere"
    assert compared(tmp_path, run(), other).changes


def test_a_run_that_only_one_has_is_named(tmp_path: Path) -> None:
    other = run()
    del other["runs"][1]
    says = "--compare: only a.json has a run of read on bio (arm 1)"
    assert refusal(tmp_path, run(), other) == says
    assert refusal(tmp_path, other, run()) == says.replace("a.json", "b.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "is not what this version's bench --json writes: it is no JSON object"),
        ("7", "is not what this version's bench --json writes: it is no JSON object"),
        ('{"runs": 7}', "is not what this version's bench --json writes: a value in it is of another kind"),
        ("{}", "is not what this version's bench --json writes: it has no 'runs'"),
        ('{"runs": []}', "is not what this version's bench --json writes: it has no 'options'"),
        ('{"runs": [{"workload": "read"}]}', "is not what this version's bench --json writes: it has no 'slices'"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, content: str, says: str) -> None:
    line = refusal(tmp_path, content, run())
    assert line.startswith("--compare 'a.json' ")
    assert says in line


@pytest.mark.parametrize("value", ["x", -1.0, [], {"a": 1}, float("inf")])
def test_slices_that_are_no_figures_are_refused(tmp_path: Path, value: Any) -> None:
    broken = run()
    broken["runs"][0]["slices"]["iops"][3] = value
    assert "slices that do not fit together" in refusal(tmp_path, broken, run())


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    broken = run()
    broken["runs"][0]["slices"]["iops"].pop()
    assert "slices that do not fit together" in refusal(tmp_path, run(), broken)


def test_a_file_without_a_run_is_refused(tmp_path: Path) -> None:
    empty = run()
    empty["runs"] = []
    assert refusal(tmp_path, empty, run()).endswith("holds no run")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        compare_files(str(tmp_path / "none"), str(tmp_path / "none"), 95.0)


@pytest.mark.parametrize("confidence", [0.0, 100.0, float("nan")])
def test_a_confidence_that_cannot_be(tmp_path: Path, confidence: float) -> None:
    assert refusal(tmp_path, run(), run(), confidence).startswith("--confidence ")
