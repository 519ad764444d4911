"""What a bench prints and writes: aligned tables, three figures, JSON with the keys that were promised."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness import a_run
from virtblk import __version__, progress
from virtblk.bench.comparison import compare
from virtblk.bench.cpu import Usage
from virtblk.bench.job import JobOptions
from virtblk.bench.report import (
    ProgressLine,
    as_json,
    format_table,
    print_report,
    rows_of,
)

#: The issue's list, and what this version adds to it.
# fmt: off
RUN_KEYS = [
    "path", "workload", "bs", "iodepth", "numjobs", "ios", "errors", "runtime_s", "iops", "bw_bytes", "clat_ns",
    "driver_cpu", "device_cpu", "busy_ns_per_io", "ctx", "majf", "minf", "kicks", "interrupts", "ring_full_waits",
    "iops_per_driver_cpu", "iops_per_total_cpu",
]
# fmt: on
EXTRA_KEYS = ["steal_s", "notes", "arm", "merges", "dropped", "remarks", "slices", "iops_ci"]


# Tables.


def test_columns_are_aligned() -> None:
    rows = [
        [("path", "bio"), ("workload", "read"), ("IOPS", "1.23M"), ("p99", "9us")],
        [("path", "bio"), ("workload", "randwrite"), ("IOPS", "7"), ("p99", "123.4us")],
    ]
    assert format_table(rows).splitlines() == [
        "path  workload    IOPS      p99",
        "bio   read       1.23M      9us",
        "bio   randwrite      7  123.4us",
    ]


def test_a_column_that_one_row_lacks_is_empty_there() -> None:
    rows = [[("path", "bio"), ("workload", "read")], [("path", "bio"), ("workload", "write"), ("steal", "1.20s")]]
    assert format_table(rows).splitlines() == ["path  workload  steal", "bio   read", "bio   write     1.20s"]


CELLS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=9)


@given(st.lists(st.lists(CELLS, min_size=4, max_size=4), min_size=1, max_size=5))
def test_every_cell_ends_under_its_heading(cells: list[list[str]]) -> None:
    lines = format_table([list(zip(["path", "workload", "x", "long-one"], row, strict=True)) for row in cells])
    heading, *rest = lines.splitlines()
    assert len({len(line) for line in (heading, *rest)}) == 1
    for line, row in zip(rest, cells, strict=True):
        assert line.split() == row
        end = heading.index("x") + 1
        assert line[:end].endswith(row[2])


def test_every_figure_of_the_issue_has_its_column() -> None:
    speed, cost = rows_of(a_run(steal_s=0.25, busy_ns=2_000_000_000, merges=7))
    assert dict(speed) == {
        "path": "bio",
        "workload": "randread",
        "IOPS": "250k",
        "MB/s": "1024",
        "I/Os": "1.00M",
        "runtime": "4.00s",
        "errors": "0",
        "clat mean": "20.0us",
        "p50": "5.00us",
        "p99": "9.90us",
        "p99.9": "9.99us",
        "max": "90.0us",
    }
    assert dict(cost) == {
        "path": "bio",
        "workload": "randread",
        "driver ns/IO": "2.00k",
        "device ns/IO": "3.00k",
        "busy ns/IO": "2.00k",
        "IOPS/driver-CPU": "500k",
        "IOPS/both-CPU": "200k",
        "kicks/IO": "0.002",
        "irqs/IO": "0.031",
        "ring-full": "5",
        "merges": "7",
        "ctx": "17",
        "majf": "3",
        "minf": "1.23k",
        "steal": "0.25s",
    }


def test_what_is_unknown_is_a_dash_and_no_steal_is_no_column() -> None:
    cost = dict(rows_of(a_run(device=None))[1])
    assert (cost["device ns/IO"], cost["busy ns/IO"], cost["IOPS/both-CPU"]) == ("-", "-", "-")
    assert "steal" not in cost
    assert dict(rows_of(a_run(ios=0))[1])["kicks/IO"] == "-"


def test_the_report_ends_with_what_went_wrong() -> None:
    out = io.StringIO()
    print_report(
        [a_run(), a_run(workload="write", errors=2, notes=["first error at offset 512: checksum mismatch"])], out
    )
    speed, cost = out.getvalue().split("\n\n")
    assert len(speed.splitlines()) == 3
    assert cost.splitlines()[-1] == "bio write: 2 errors: first error at offset 512: checksum mismatch"


def test_a_report_of_nothing_says_so() -> None:
    out = io.StringIO()
    print_report([], out)
    assert out.getvalue() == "no run was completed\n"


def test_what_is_remarkable_is_said_below_the_tables() -> None:
    out = io.StringIO()
    print_report([a_run(dropped=2, samples={"iops": [1.0] * 8}, remarks=["too slow"])], out)
    assert out.getvalue().splitlines()[-2:] == [
        "bio randread: too slow",
        "bio randread: 2 of its first slices left out as warm-up, 8 counted",
    ]


# JSON.


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def as_text(*runs: Any) -> dict[str, Any]:
    results = list(runs)
    told = as_json({"name": "null:1g"}, JobOptions(), results, compare(results, 95.0))
    value: dict[str, Any] = json.loads(json.dumps(told), parse_constant=no_constant)
    return value


def test_keys_are_those_of_the_issue() -> None:
    value = as_text(a_run())
    assert list(value) == ["virtblk", "device", "options", "confidence", "slices", "runs", "comparison"]
    assert (value["confidence"], value["slices"], value["comparison"]) == (95.0, 20, [])
    assert value["options"]["path"] == ["request", "bio"]
    assert value["virtblk"] == __version__
    (run,) = value["runs"]
    assert list(run) == RUN_KEYS + EXTRA_KEYS
    assert list(run["clat_ns"]) == ["min", "max", "mean", "stddev", "percentile"]
    assert list(run["driver_cpu"]) == list(run["device_cpu"]) == ["usr_s", "sys_s", "ns_per_io"]


def test_types_are_numbers_not_text() -> None:
    (run,) = as_text(a_run(busy_ns=5))["runs"]
    for key in RUN_KEYS:
        wanted: Any = (int, float)
        if key in ("path", "workload"):
            wanted = str
        elif key in ("clat_ns", "driver_cpu", "device_cpu"):
            wanted = dict
        elif key in ("bs", "iodepth", "numjobs", "ios", "errors", "ctx", "majf", "minf", "kicks", "interrupts"):
            wanted = int
        assert isinstance(run[key], wanted), key
    assert all(isinstance(value, int) for value in run["clat_ns"]["percentile"].values())


def test_values_are_in_the_units_of_their_names() -> None:
    (run,) = as_text(a_run())["runs"]
    assert run["iops"] == 250_000
    assert run["bw_bytes"] == 250_000 * 4096
    assert run["driver_cpu"] == {"usr_s": 1.5, "sys_s": 0.5, "ns_per_io": 2000}
    assert run["device_cpu"] == {"usr_s": 2.5, "sys_s": 0.5, "ns_per_io": 3000}
    assert (run["ctx"], run["majf"], run["minf"]) == (17, 3, 1234)


def test_unknown_is_null() -> None:
    (run,) = as_text(a_run(device=None))["runs"]
    assert (run["device_cpu"], run["busy_ns_per_io"], run["iops_per_total_cpu"]) == (None, None, None)


def test_a_run_without_an_io_is_json_too() -> None:
    nothing = Usage(0.0, 0.0, 0.0)
    (run,) = as_text(a_run(ios=0, runtime_s=0.0, driver=nothing, device=nothing))["runs"]
    assert run["driver_cpu"]["ns_per_io"] is None


# Progress.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_progress_on_a_terminal_is_a_bar_on_one_line(clock: list[float]) -> None:
    stream = Terminal()
    line = ProgressLine(stream)
    line("randread", 1.0, 4.0, 1_000_000, 0)
    assert stream.getvalue() == "\r[######..................] randread: 1.0 of 4 s, 1.00M IOPS"
    line("randread", 1.1, 4.0, 1, 0)
    assert stream.getvalue().count("\r") == 1, "too soon"
    clock[0] += 0.25
    line("verify: fill", 2.0, 0.0, 30, 40)
    assert "75%" in stream.getvalue()
    line.clear()
    assert stream.getvalue().endswith(
        "\r" + " " * (len("[######..................] verify: fill: 75%, 15.0 IOPS")) + "\r"
    )


def test_progress_in_a_log_is_a_line_now_and_then(clock: list[float]) -> None:
    stream = io.StringIO()
    line = ProgressLine(stream)
    for passed in range(12):
        clock[0] = 100.0 + passed
        line("read", float(passed), 12.0, passed * 1000, 0)
    assert stream.getvalue() == "read: 5.0 of 12 s, 1.00k IOPS\nread: 10.0 of 12 s, 1.00k IOPS\n"
    line.clear()
    assert "\r" not in stream.getvalue()
