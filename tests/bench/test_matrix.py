"""--matrix and --sweep: which disks, which points, what is printed, and how it ends."""

from __future__ import annotations

import io
import json
import signal
from typing import Any

import pytest

from bench.harness import a_run, options
from virtblk.bench import matrix as matrix_module
from virtblk.bench.bootstrap import Estimate
from virtblk.bench.comparison import compare
from virtblk.bench.job import PATHS
from virtblk.bench.matrix import (
    DISKS,
    MATRIX_PATHS,
    Disk,
    Matrix,
    cell_text,
    clock,
    disks_of,
    parse_disks,
    plan_text,
    points_of,
    print_legend,
    print_measured,
    print_recommendations,
    print_sweep,
    run_points,
)
from virtblk.bench.point import Measured, Point, measure, of_points
from virtblk.bench.recommend import compare_pairs
from virtblk.bench.sweep import parse_sweep
from virtblk.driver.virtio_blk import PATHS as DRIVERS_PATHS
from virtblk.errors import UsageError
from virtblk.names import KNOWN

ROUNDS = 10


def samples(iops: float, **given: Any) -> dict[str, list[Any]]:
    """Ten slices that hardly differ."""
    columns: dict[str, list[Any]] = {
        "round": list(range(ROUNDS)),
        "iops": [iops * (1 + number / 1000) for number in range(ROUNDS)],
        "clat_mean_ns": [1e9 / iops] * ROUNDS,
        "driver_ns_per_io": [1000.0] * ROUNDS,
        "device_ns_per_io": [1000.0] * ROUNDS,
        "busy_ns_per_io": [None] * ROUNDS,
    }
    return columns | given


def measured(iops: dict[str, float], title: str = "null:1m", **given: Any) -> Measured:
    """A point with two workloads on these paths; the writes are all alike."""
    job = options(workloads=("read", "write"), paths=tuple(iops), runtime=1)
    point = Point(title, title, job, **given)
    results = [
        a_run(path=path, workload=workload, arm=arm, samples=samples(value if workload == "read" else 1e5))
        for workload in job.workloads
        for arm, (path, value) in enumerate(iops.items())
    ]
    queue = {"scheduler": "noop [deadline]", "nr_requests": "128", "nomerges": "0"}
    queues = dict.fromkeys(iops, queue)
    return Measured(point, {}, "", queues, results, compare(results, 95.0), compare_pairs(results, 95.0))


def printed(function: Any, *words: Any) -> str:
    stream = io.StringIO()
    function(*words, stream)
    return stream.getvalue()


# Disks.


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ram:,null:", ["ram:", "null:"]),
        ("sim:sata?reorder=off,depth=1,ram:4m", ["sim:sata?reorder=off,depth=1", "ram:4m"]),
        ("ram:4m?block_size=4k,null:", ["ram:4m?block_size=4k", "null:"]),
        ("file:/tmp/a,b,file:", ["file:/tmp/a,b", "file:"]),
        ("vhost-user:/s,ram:4m", ["vhost-user:/s", "ram:4m"]),
    ],
)
def test_a_comma_begins_a_disk_where_a_scheme_follows(text: str, names: list[str]) -> None:
    assert parse_disks(text) == names


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("floppy:1", "'floppy:1' is no disk; give names such as ram:,null:"),
        ("ram", "'ram' is no disk"),
        ("", "'' is no disk"),
        ("ram:,", "size ','"),
        ("ram:,ram:", "ram: is there twice"),
        ("null:x", "size 'x'"),
        ("null:0", "null:0: give a size such as 512m"),
        ("ram:1m,vhost-user:", "give a socket's path"),
    ],
)
def test_names_that_are_none(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_disks(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_disks_of_this_build_are_opened_and_the_others_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_module, "KNOWN", ("ram", "null", "file"))
    monkeypatch.setattr(matrix_module, "SIZE", "1m")
    skipped: list[tuple[str, str]] = []
    with disks_of(DISKS, skipped) as disks:
        titles = [disk.title for disk in disks]
        path = matrix_module.Path(disks[2].name.removeprefix("file:"))
        assert path.stat().st_size == 1 << 20
        assert path.stat().st_blocks * 512 >= 1 << 20, "not of holes"
    assert titles == ["ram:1m", "null:1m", "file:1m"]
    assert not path.exists()
    sims = [name for name in DISKS if name.startswith("sim:")]
    assert skipped == [(name, "this version has no sim: disks") for name in sims]


def test_the_default_disks_and_paths_are_names() -> None:
    assert parse_disks(",".join(DISKS)) == list(DISKS)
    assert set(PATHS) <= set(MATRIX_PATHS)
    assert tuple(DRIVERS_PATHS) == PATHS
    assert {"ram", "null", "file"} <= set(KNOWN)


# Points.


def test_each_disk_is_measured_at_each_value() -> None:
    disks = [Disk("ram:1m", "ram:1m"), Disk("file:/x", "file:1m")]
    points = points_of(disks, options(), parse_sweep("iodepth=1,2"))
    assert [(point.title, point.label, point.job.iodepth) for point in points] == [
        ("ram:1m", "iodepth=1", 1), ("ram:1m", "iodepth=2", 2),
        ("file:1m", "iodepth=1", 1), ("file:1m", "iodepth=2", 2),
    ]  # fmt: skip
    assert [point.label for point in points_of(disks, options(), None)] == ["", ""]


def test_the_plan_says_how_long_it_takes_and_what_it_overwrites() -> None:
    disks = [Disk("ram:1m", "ram:1m"), Disk("null:1m", "null:1m")]
    job = options(runtime=5, workloads=("read", "write"), paths=("request", "bio"))
    text = plan_text(points_of(disks, job, None))
    assert text.splitlines() == [
        "2 disks x 2 workloads x 2 paths, 5 s each: 40 s and the starts",
        "this writes to ram:1m, null:1m; --rw read,randread does not",
    ]
    text = plan_text(points_of(disks[:1], options(runtime=60), parse_sweep("iodepth=1,2")))
    assert text == "1 disk x 2 values x 1 workload x 1 path, 60 s each: 2 min 0 s and the starts"
    assert plan_text([]) == "there is no disk to measure"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.3, "0.3 s"), (7.25, "7.2 s"), (45, "45 s"), (560, "9 min 20 s"), (7500, "2 h 5 min")]
)
def test_a_time_for_a_reader(seconds: float, text: str) -> None:
    assert clock(seconds) == text


# What is printed.


def test_cells_that_lose_are_marked() -> None:
    slower, faster, level = Estimate(0.9, 0.85, 0.95), Estimate(1.1, 1.05, 1.15), Estimate(1.0, 0.9, 1.1)
    assert cell_text(slower).endswith(" <")
    assert cell_text(faster) == "+10.0% [+5.0, +15.0]  "
    assert cell_text(faster, higher_is_better=False).endswith(" <")
    assert not cell_text(slower, higher_is_better=False).endswith("<")
    assert cell_text(level).endswith(" ~")
    assert cell_text(Estimate(0.5, None, None)).startswith("-50.0% [?]")
    assert "<" not in cell_text(Estimate(0.5, None, None))
    assert cell_text(None) == "-"


def test_a_points_table() -> None:
    one = measured({"request": 1e5, "bio": 8e4})
    text = printed(print_measured, one)
    heading, *rows = text.splitlines()
    assert [row.split()[:2] for row in rows] == [[w, p] for w in ("read", "write") for p in ("request", "bio")]
    assert "-20.0% [-20.0, -20.0] <" in rows[1]
    assert "+25.0% [+25.0, +25.0] <" in rows[1], "the latency"
    assert "<" not in rows[3]
    for name in ("IOPS change", "mean clat", "IOPS/driver-CPU", "IOPS/both-CPU"):
        assert name in heading


def test_errors_and_failures_are_in_the_table() -> None:
    one = measured({"bio": 1e5})
    one.results[0].errors, one.results[0].notes = 3, ["first error at offset 0: EIO"]
    one.failure = "the device closed the connection"
    text = printed(print_measured, one)
    assert "bio read: 3 errors: first error at offset 0: EIO" in text
    assert "null:1m: the device closed the connection" in text
    advice = of_points([one])
    assert (advice.verdict, advice.path) == ("unknown", None)
    assert "3 I/Os failed" in advice.headline


def test_a_sweep_ends_with_a_table_per_figure() -> None:
    points = [
        measured({"request": iops, "bio": iops}, option="iodepth", value=value, label=f"iodepth={value}")
        for value, iops in ((1, 1e4), (2, 2e4))
    ]
    result = Matrix(95.0, parse_sweep("iodepth=1,2"), points)
    iops, clat = printed(print_sweep, result).strip().split("\n\n")
    assert iops.splitlines()[0] == "null:1m: IOPS"
    assert clat.splitlines()[0] == "null:1m: clat mean"
    assert iops.splitlines()[1].split() == ["workload", "path", "iodepth=1", "iodepth=2"]
    assert len(iops.splitlines()) == len(clat.splitlines()) == 6
    assert printed(print_sweep, Matrix(95.0, None, points)) == ""


def test_recommendations_come_with_settings() -> None:
    result = Matrix(
        95.0, None, [measured({"request": 1e5, "bio": 1.2e5}), measured({"request": 1e5, "bio": 1e5}, "ram:1m")]
    )
    text = printed(print_recommendations, result)
    assert (
        "null:1m: use bio: no other path was found to have more IOPS, and it has up to +20.0% IOPS (read, over request)"
        in text
    )
    assert "    $ echo none > /sys/block/vdX/queue/scheduler\n" in text
    assert "ram:1m: no difference was found: keep what you have" in text
    assert "    $ echo mq-deadline > /sys/block/vdX/queue/scheduler\n" in text
    legend = printed(print_legend, result)
    assert "changes against request, medians over pairs of slices, [95 % interval]; < loses" in legend
    assert "~ within noise" in legend


def test_the_values_of_a_sweep_are_cells_of_one_recommendation() -> None:
    points = [
        measured(iops, option="iodepth", value=value, label=f"iodepth={value}")
        for value, iops in ((1, {"request": 1e5, "bio": 1.2e5}), (2, {"request": 1e5, "bio": 0.9e5}))
    ]
    advice = of_points(points)
    assert advice.verdict == "mixed"
    assert set(advice.losses) == {"read iodepth=1", "write iodepth=1", "read iodepth=2", "write iodepth=2"}


def test_the_json_holds_every_point_as_a_bench_would_write_it() -> None:
    result = Matrix(95.0, None, [measured({"request": 1e5, "bio": 1.2e5})], [("sim:sata", "no")])
    value = json.loads(json.dumps(result.as_json()))
    (point,) = value["points"]
    assert {"virtblk", "device", "options", "confidence", "slices", "runs", "comparison"} <= set(point)
    assert (point["disk"], point["failure"], point["option"]) == ("null:1m", None, None)
    assert [(one["base"], one["path"]) for one in point["pairs"]] == [("request", "bio")] * 2
    (advice,) = value["recommendations"]
    assert (advice["disk"], advice["path"], advice["verdict"]) == ("null:1m", "bio", "use")
    assert advice["linux"][0] == "echo none > /sys/block/vdX/queue/scheduler"
    assert value["skipped"] == [{"disk": "sim:sata", "why": "no"}]
    assert (value["sweep"], value["interrupted"]) == (None, False)


# The run.


def run(matrix: Matrix, points: list[Point]) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    run_points(points, matrix, out, err)
    return out.getvalue(), err.getvalue()


def test_a_disk_that_cannot_be_opened_takes_no_other_with_it() -> None:
    job = options(runtime=0, size=64 << 10, bs=4096)
    names = ("vhost-user:/nowhere", "null:1m", "ram:4k")
    matrix = Matrix(95.0)
    out, _ = run(matrix, points_of([Disk(name, name) for name in names], job, None))
    first, second, third = matrix.measured
    assert second.queues["bio"]["nr_requests"] == "128"
    assert first.failure is not None
    assert "vhost-user:/nowhere: cannot connect" in first.failure
    assert [result.ios for result in second.results] == [16]
    assert third.failure == "--size 64k is more than ram:4k has (4k)"
    assert matrix.status == 1
    assert matrix.titles == ["null:1m"]
    assert "2 of 3: null:1m: blocks of 4k, 1 x 4 in flight, ring of 128, interrupts; " in out
    assert "--size 64k is more than ram:4k has (4k)" in out


def test_ctrl_c_ends_the_run_with_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second point is interrupted while it runs; the third never starts."""
    started = []

    def interrupting(point: Point, on_start: Any, on_progress: Any) -> Measured:
        def then(measured: Measured) -> None:
            started.append(point.title)
            on_start(measured)
            if len(started) == 2:
                signal.raise_signal(signal.SIGINT)

        return measure(point, then, on_progress)

    monkeypatch.setattr(matrix_module, "measure", interrupting)
    matrix = Matrix(95.0)
    run(matrix, points_of([Disk(f"null:{n}m", f"null:{n}m") for n in (1, 2, 3)], options(size=32 << 10), None))
    assert started == ["null:1m", "null:2m"]
    assert matrix.interrupted
    assert matrix.status == 130
    assert matrix.titles == ["null:1m"]
    assert matrix.measured[1].interrupted


def test_ctrl_c_while_a_disk_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupting(point: Point, on_start: Any, on_progress: Any) -> Measured:
        raise KeyboardInterrupt

    monkeypatch.setattr(matrix_module, "measure", interrupting)
    matrix = Matrix(95.0)
    run(matrix, points_of([Disk("null:1m", "null:1m")], options(), None))
    assert (matrix.status, matrix.measured) == (130, [])


def test_errors_are_in_the_status() -> None:
    one = measured({"bio": 1e5})
    assert Matrix(95.0, None, [one]).status == 0
    one.results[0].errors = 1
    assert Matrix(95.0, None, [one]).status == 1
