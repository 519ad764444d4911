"""What a preset prints and writes: each path beside its posted row, and the changes beside those of then."""

from __future__ import annotations

import io
import json

from bench.harness import a_run
from bench.test_comparison import arm
from virtblk.bench.comparison import Comparison, compare
from virtblk.bench.posting import PRESETS
from virtblk.bench.prediction import preset_json, print_preset
from virtblk.bench.stat import RunResult

SATA = PRESETS["posting-sata"]


def printed(name: str, results: list[RunResult], comparisons: list[Comparison]) -> list[str]:
    """The parts of what is printed, by the empty lines between them."""
    out = io.StringIO()
    print_preset(PRESETS[name], results, comparisons, out)
    return out.getvalue().strip("\n").split("\n\n")


def test_ours_beside_the_postings() -> None:
    runs = [a_run(path="request", workload="write"), a_run(path="bio", workload="read")]
    table, note = printed("posting-ramdisk", runs, [])
    first, second = table.splitlines()[1:]
    assert first.split() == ["request", "write", "250k", "161k", "+54.8%", "20.0us", "78.0ms", "500k", "23.7k"]
    assert second.split() == ["bio", "read", "250k", "234k", "+6.8%", "20.0us", "58.7ms", "500k", "30.1k"]
    assert note == (
        "posted: ramdisk, kvm tool, eight-CPU guest, 2012; blocks of 512 from its bandwidth\n"
        "and IOPS; 256 jobs x 64 deep and a ring of 256 are inferred, the posting names none of them"
    )


def test_changes_beside_the_postings() -> None:
    arms = [arm(0, "request"), arm(1, "bio", iops=125.0)]
    _, table, note = printed("posting-sata", arms, compare(arms, 95.0))
    heading, row = table.splitlines()
    for word in ("IOPS", "posted IOPS", "mean clat", "posted mean clat", "IOPS/CPU", "posted IOPS/CPU"):
        assert word in heading
    assert row.split()[:5] == ["request", "->", "bio", "read", "+25.0%"]
    assert [word for word in row.split() if word in ("-9.7%", "+13.0%", "-19.3%")] == ["-9.7%", "+13.0%", "-19.3%"]
    assert note.startswith("posted: SATA image, kvm tool")


def test_other_paths_stand_beside_nothing() -> None:
    arms = [arm(0, "request"), arm(1, "mq")]
    table, _ = printed("posting-sata", arms, compare(arms, 95.0))
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["request"]


def test_the_preset_without_a_run() -> None:
    assert printed("posting-sata", [], []) == [""]


def test_the_json_holds_the_same() -> None:
    arms = [arm(0, "request"), arm(1, "bio", iops=125.0), arm(2, "mq")]
    value = json.loads(json.dumps(preset_json("posting-sata", SATA, arms, compare(arms, 95.0))))
    assert (value["preset"], value["disk"], value["vmm"]) == ("posting-sata", "sata-image", "kvm tool")
    assert [(run["path"], run["workload"], run["posted_iops"]) for run in value["runs"]] == [
        ("request", "read", 10037),
        ("bio", "read", 9060),
    ]
    assert value["runs"][1]["posted_clat_mean_ns"] == 28_060_000
    (change,) = value["changes"]
    assert change["workload"] == "read"
    assert round(change["iops_pct"], 6) == 25
    low, high = change["iops_ci"]
    assert low <= change["iops_pct"] <= high
    assert round(change["posted_iops_pct"], 1) == -9.7
    assert round(change["posted_latency_pct"], 1) == 13.0
    assert round(change["posted_iops_per_cpu_pct"], 1) == -19.3
