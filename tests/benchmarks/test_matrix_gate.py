"""benchmarks/matrix_gate.py: its verdicts on files made by hand, and what it says of files that are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.html_harness import measured
from benchmarks.harness import load
from virtblk.bench.matrix import Matrix
from virtblk.errors import UsageError

pytestmark = pytest.mark.once

FOUR = {"request": 1e5, "bio": 1.2e5, "mq": 1.2e5, "auto": 1.2e5}


GATE = load("matrix_gate")


def pair(workload: str, base: str, path: str, ratio: float, half: float | None = 0.01) -> dict[str, Any]:
    interval = None if half is None else [(ratio - half - 1) * 100, (ratio + half - 1) * 100]
    return {"workload": workload, "base": base, "path": path, "iops_pct": (ratio - 1) * 100, "iops_ci": interval}


def point(pairs: list[dict[str, Any]], disk: str = "ram:512m", **options: Any) -> dict[str, Any]:
    workloads = dict.fromkeys(one["workload"] for one in pairs)
    return {
        "disk": disk, "option": None, "value": None, "failure": None, "pairs": pairs,
        "options": {"iodepth_batch_submit": 1, "bs": 4096, "poll": False} | options,
        "runs": [{"workload": workload, "errors": 0} for workload in workloads],
    }  # fmt: skip


def cell(workload: str, bio: float, mq: float, auto: float, half: float | None = 0.01) -> list[dict[str, Any]]:
    """A workload with IOPS as multiples of those of `request`."""
    return [
        pair(workload, "request", "bio", bio, half),
        pair(workload, "request", "mq", mq, half),
        pair(workload, "request", "auto", auto, half),
        pair(workload, "bio", "mq", mq / bio, half),
        pair(workload, "bio", "auto", auto / bio, half),
        pair(workload, "mq", "auto", auto / mq, half),
    ]


def in_batches(ratio: float, disk: str = "null:512m", half: float | None = 0.01, **options: Any) -> dict[str, Any]:
    pairs = [pair(workload, "bio", "mq", ratio, half) for workload in ("read", "write")]
    return point(pairs, disk, **{"iodepth_batch_submit": 32} | options)


def files(tmp_path: Path, *runs: list[dict[str, Any]]) -> list[str]:
    found = []
    for number, points in enumerate(runs, 1):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"points": points, "interrupted": False}))
        found.append(str(path))
    return found


def verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> tuple[int, list[str]]:
    monkeypatch.setattr(sys, "argv", ["matrix_gate.py", *names])
    status = GATE.main()
    return status, capsys.readouterr().out.splitlines()


GOOD = [point([one for workload in ("read", "randread") for one in cell(workload, 1.2, 1.25, 1.19)])]
MQ_PAYS = [in_batches(1.6), in_batches(1.1, "ram:512m")]


@pytest.fixture
def judge(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *runs: verdict(capsys, monkeypatch, files(tmp_path, *runs))


def test_all_is_well(judge: Any, tmp_path: Path) -> None:
    status, lines = judge(GOOD, GOOD, GOOD, MQ_PAYS)
    assert status == 0, lines
    assert lines[0] == "IOPS not below 0.98 of the better of request and bio, over 3 of 3 runs"
    assert lines[1:4] == [
        "    mq: 6 of 6 cells, 100.0%",
        "  auto: 6 of 6 cells, 100.0%",
        "  both: 6 of 6 cells, 100.0%; wanted 95%",
    ]
    assert f"  {tmp_path}/4.json: null:512m read: 1.600 [1.590, 1.610]" in lines
    assert f"  {tmp_path}/4.json: ram:512m write: 1.100 [1.090, 1.110]" in lines
    assert lines[-1] == "passed"
    assert not any(line.startswith("  fails") or line.endswith("  fails") for line in lines)


def test_a_cell_fails_where_the_interval_lies_wholly_below(judge: Any, tmp_path: Path) -> None:
    slower = [point(cell("read", 1.2, 1.1, 1.2))]  # mq / bio is 0.917
    status, lines = judge(GOOD, GOOD, slower, MQ_PAYS)
    assert status == 1
    assert "    mq: 4 of 5 cells, 80.0%" in lines
    assert "  auto: 5 of 5 cells, 100.0%" in lines
    assert "  both: 4 of 5 cells, 80.0%; wanted 95%" in lines
    assert [line for line in lines if line.startswith("  fails")] == [
        f"  fails: {tmp_path}/3.json: ram:512m read: mq / bio 0.917 [0.907, 0.927]"
    ]
    assert lines[-1] == "NOT passed"


@pytest.mark.parametrize(("ratio", "half", "passes"), [(0.969, 0.01, False), (0.971, 0.01, True), (0.8, 0.3, True)])
def test_where_the_line_is(judge: Any, ratio: float, half: float, passes: bool) -> None:
    run = [point(cell("read", 0.9, ratio, 1.0, half))]  # request is the better
    status, lines = judge(run, run, run, MQ_PAYS)
    assert (status == 0) is passes, lines


def test_five_in_a_hundred_may_fail(judge: Any) -> None:
    bad, worse = ([point(cell("read", 1.0, 0.9, 0.9), f"null:{n}m")] for n in (1, 2))
    nineteen = [point(cell("read", 1.0, 1.0, 1.0), f"ram:{n}m") for n in range(1, 20)]
    assert judge(nineteen + bad, nineteen + bad, nineteen + bad, MQ_PAYS)[0] == 0, "95 % of 60 cells"
    assert judge(nineteen + bad, nineteen + bad, nineteen + bad + worse, MQ_PAYS)[0] == 1


def test_without_an_interval_nothing_is_known(judge: Any) -> None:
    run = [point(cell("read", 1.0, 1.0, 1.0, None))]
    status, lines = judge(run, run, run, MQ_PAYS)
    assert status == 1
    assert any("mq / request 1.000 [?]" in line for line in lines)


def test_it_takes_three_runs(judge: Any) -> None:
    status, lines = judge(GOOD, GOOD, MQ_PAYS)
    assert status == 1
    assert "  give 3 runs for a verdict" in lines


def test_no_cell_to_judge(judge: Any) -> None:
    status, lines = judge(MQ_PAYS)
    assert status == 1
    assert lines[0] == "no cell has request and bio and one of mq, auto"


@pytest.mark.parametrize("ratio", [1.49, 0.9])
def test_mq_does_not_pay(judge: Any, ratio: float) -> None:
    status, lines = judge(GOOD, GOOD, GOOD, [in_batches(ratio)])
    assert status == 1
    assert sum(line.endswith("  fails") for line in lines) == 2


def test_a_pair_may_be_the_other_way_round(judge: Any, tmp_path: Path) -> None:
    status, lines = judge(
        GOOD, GOOD, GOOD, [point([pair("read", "mq", "bio", 0.5)], "null:1m", iodepth_batch_submit=32)]
    )
    assert status == 0
    assert f"  {tmp_path}/4.json: null:1m read: 2.000 [1.961, 2.041]" in lines


@pytest.mark.parametrize("options", [{"poll": True}, {"bs": 512}, {"iodepth_batch_submit": 16}])
def test_another_load_is_no_answer(judge: Any, options: dict[str, Any]) -> None:
    status, lines = judge(GOOD, GOOD, GOOD, [in_batches(2.0, **options)])
    assert status == 1
    assert any("none of null: is there" in line for line in lines)


def test_other_disks_count_for_nothing_in_batches(judge: Any) -> None:
    assert judge(GOOD, GOOD, GOOD, [in_batches(2.0, "ram:1m")])[0] == 1


def test_what_the_bench_writes_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for number in range(3):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(Matrix(95.0, None, [measured(FOUR)]).as_json()))
        names.append(str(path))
    status, lines = verdict(capsys, monkeypatch, names)
    assert status == 1, "nothing is in batches"
    assert "  both: 3 of 3 cells, 100.0%; wanted 95%" in lines


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no JSON"),
        ("[]", "is no file of virtblk bench --matrix --json"),
        ("{}", "is no file of virtblk bench --matrix --json"),
        ('{"points": [{}]}', "'failure' is missing"),
        ('{"points": [], "interrupted": true}', "the run was interrupted"),
        (json.dumps({"points": [point([]) | {"failure": "it broke"}]}), "ram:512m: it broke"),
        (json.dumps({"points": [point([]) | {"runs": [{"workload": "read", "errors": 1}]}]}), "I/Os failed"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        GATE.read_cells(str(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["/nowhere/x.json"], "/nowhere/x.json: No such file"),
        (["x.json", "--runtime", "1"], "--runtime 1: is for runs"),
        (["x.json", "x.json"], "a file is there twice"),
    ],
)
def test_wrong_usage(monkeypatch: pytest.MonkeyPatch, words: list[str], says: str) -> None:
    monkeypatch.setattr(sys, "argv", ["matrix_gate.py", *words])
    with pytest.raises(UsageError, match=says):
        GATE.main()


def test_it_runs_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    class Done:
        returncode = 0

    def run(command: list[str], **given: Any) -> Done:
        commands.append(command)
        points = MQ_PAYS if "--iodepth-batch-submit" in command else GOOD
        Path(command[-1]).write_text(json.dumps({"points": points}))
        return Done()

    monkeypatch.setattr(GATE.subprocess, "run", run)
    words = ["--directory", str(tmp_path), "--disks", "null:,ram:", "--runtime", "2"]
    status, lines = verdict(capsys, monkeypatch, words)
    assert status == 0, lines
    assert len(commands) == 4
    for command in commands:
        assert command[2:5] == ["virtblk", "bench", "--matrix"]
        assert "--disks null:,ram: --runtime 2 --json" in " ".join(command)
    Done.returncode = 1
    with pytest.raises(UsageError, match=r"matrix-1.json: the run ended with 1"):
        GATE.main()
