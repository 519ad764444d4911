"""`virtblk bench` as a program: what it prints, and how it ends when it is told to, or when its device goes."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cli.harness import Command, children, held, is_running, virtblk, wait_until_busy
from waiting import wait_until

pytestmark = pytest.mark.once

QUICK = ("--runtime", "0.1", "--size", "256k", "--path", "bio")
BOTH = (*QUICK, "--path", "request,bio")
RUNS = ["read", "write", "randread", "randwrite"]


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def figures(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text, parse_constant=no_constant)
    return value


def table(text: str) -> list[dict[str, str]]:
    """The rows of the first two tables, each as heading -> cell. Headings may hold one blank, cells none."""
    tables = [part.splitlines() for part in text.split("\n\n")[1:3]]
    rows: list[dict[str, str]] = []
    for heading, *lines in tables:
        names = re.split(" {2,}", heading)
        for row in lines:
            rows.append(dict(zip(names, row.split(), strict=False)))  # `steal`, the last, may be empty
    return rows


def test_the_tables_of_four_workloads(tmp_path: Path) -> None:
    status, out, err = virtblk("bench", "ram:1m", *QUICK, tmp=tmp_path)
    assert status == 0, err  # which tells of a run that takes long
    first, second = out.splitlines()[:2]
    assert first.startswith("ram:1m (1m): blocks of 4k, 1 x 32 in flight, ring of 128, interrupts; ")
    assert "driver" in first
    assert "device" in first
    assert second == "this writes to the first 256k of the disk; --rw read,randread does not"
    rows = table(out)
    assert [row["workload"] for row in rows] == RUNS + RUNS
    for row in rows[:4]:
        assert row["errors"] == "0"
        assert row["IOPS"] != "0.00"
        assert row["p50"].endswith("s")
    for row in rows[4:]:
        assert row["device ns/IO"] != "-"
        assert row["busy ns/IO"] == "-"
    assert list(tmp_path.iterdir()) == []


def test_both_paths_and_the_summary_are_what_a_bench_prints(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    words = ("--runtime", "0.1", "--size", "256k", "--json", str(target))
    status, out, err = virtblk("bench", "ram:1m", *words)
    assert status == 0, err  # which tells of a run that takes long
    rows = table(out)
    assert [(row["path"], row["workload"]) for row in rows] == [
        (path, workload) for workload in RUNS for path in ("request", "bio")
    ] * 2
    speed, cost = (part for part in out.split("\n\n") if part.startswith("change "))
    legend = out.split("\n\n")[-1]
    assert [line.split()[:4] for line in speed.splitlines()[1:]] == [["request", "->", "bio", name] for name in RUNS]
    assert [line for line in cost.splitlines()[1:] if "%" not in line] == []
    for posted in ("+28.4%", "+10.1%", "+23.4%", "+19.9%"):
        assert posted in cost
    assert "95 % interval" in legend
    value = figures(target.read_text())
    assert (value["confidence"], value["slices"]) == (95.0, 10)
    assert [(run["path"], run["workload"]) for run in value["runs"]] == [
        (path, workload) for workload in RUNS for path in ("request", "bio")
    ]
    assert [one["workload"] for one in value["comparison"]] == RUNS
    for one in value["comparison"]:
        assert (one["base"], one["path"]) == ("request", "bio")
        assert 8 <= one["pairs"] <= 10
        low, high = one["iops_ci"]
        assert low <= one["iops_pct"] <= high
        assert one["iops_per_total_cpu_pct"] is not None
    for run in value["runs"]:
        assert run["merges"] >= 0
        assert len(run["slices"]["iops"]) == 10 - run["dropped"]
    assert set(value["device"]["queue"]) >= {"scheduler", "nr_requests"}


def test_a_run_is_compared_to_itself_and_to_no_other(tmp_path: Path) -> None:
    first, second, other = (str(tmp_path / name) for name in ("a.json", "b.json", "c.json"))
    for target, words in ((first, ()), (second, ("--randseed", "2")), (other, ("--iodepth", "1"))):
        status, _, _ = virtblk("bench", "null:1m", *QUICK, "--rw", "read", "--json", target, *words)
        assert status == 0
    status, out, err = virtblk("bench", "--compare", first, second, "--confidence", "99", "--json", "-")
    assert status == 0
    (cell,) = figures(out)["cells"]
    assert (cell["path"], cell["workload"]) == ("bio", "read")
    assert "drift of the machine between the two runs is outside of these intervals" in err
    status, out, err = virtblk("bench", "--compare", first, other)
    assert (status, out) == (2, "")
    assert err == f"virtblk: --compare: --iodepth is 32 in {first} and 1 in {other}\n"


@pytest.mark.covers
def test_the_preset_prints_ours_beside_the_postings() -> None:
    words = ("--preset", "posting-ramdisk", "--runtime", "0", "--size", "16k", "--numjobs", "4")
    status, out, err = virtblk("bench", "ram:1m", *words, "--rw", "read,write")
    assert status == 0, err  # which tells of a run that takes long
    assert "blocks of 512, 4 x 64 in flight, ring of 256" in out
    beside = next(part for part in out.split("\n\n") if "posted IOPS" in part)
    assert [line.split()[:2] for line in beside.splitlines()[1:]] == [
        [path, workload] for workload in ("read", "write") for path in ("request", "bio")
    ]
    assert "182k" in beside
    assert "234k" in beside
    assert "inferred" in out


def test_a_preset_brings_its_disk_and_load_and_yields_to_what_is_given(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    words = ("--preset", "posting-sata", "--runtime", "0.2", "--rw", "write", "--json", str(target))
    status, out, err = virtblk("bench", *words)
    assert status == 0, err  # which tells of a run that takes long
    assert "sim:sata (500g): blocks of 4k, 8 x 32 in flight, batches of 16, ring of 256" in out
    assert "this writes to the first 251m of the disk" in out
    assert "posted: SATA image, kvm tool" in out
    value = figures(target.read_text())
    assert (value["options"]["runtime"], value["slices"]) == (0.2, 10)
    assert [(run["path"], run["posted_iops"]) for run in value["posting"]["runs"]] == [("request", 6722), ("bio", 6065)]
    assert [change["workload"] for change in value["posting"]["changes"]] == ["write"]


def test_a_rate_a_shared_core_and_settings_of_the_queue() -> None:
    words = ("--rate-iops", "2000", "--share-core", "--queue", "nr_requests=64", "--slice", "0.05")
    status, out, err = virtblk("bench", "null:1m", *QUICK, "--rw", "randread", *words, "--json", "-")
    assert status == 0
    value = figures(out)
    assert value["device"]["queue"]["nr_requests"] == "64"
    assert value["device"]["driver_cpus"] == value["device"]["device_cpus"]
    assert (value["options"]["rate_iops"], value["slices"]) == (2000, 2)
    (run,) = value["runs"]
    assert 0 < run["ios"] <= run["runtime_s"] * 2000 + 2, "the first of each slice is due at its start"
    assert "1 x 32 in flight at 2000 IOPS each" in err


def test_reads_alone_say_nothing_of_writing() -> None:
    _, out, _ = virtblk("bench", "null:1m", "--rw", "rand-read,seq-read", *QUICK)
    assert "writes" not in out
    assert [row["workload"] for row in table(out)][:2] == ["randread", "read"]


def test_json_on_standard_output_is_json_and_nothing_else() -> None:
    status, out, err = virtblk("bench", "null:1g", *QUICK, "--json", "-", "--poll", "--numjobs", "1")
    assert status == 0
    value = figures(out)
    assert [run["workload"] for run in value["runs"]] == RUNS
    assert value["device"]["name"] == "null:1g"
    assert value["device"]["completion"] == "polling"
    for run in value["runs"]:
        assert run["ios"] > 0
        assert run["errors"] == 0
        assert run["device_cpu"]["ns_per_io"] > 0
        assert run["busy_ns_per_io"] > 0
        assert run["iops"] == pytest.approx(run["ios"] / run["runtime_s"])
        assert run["interrupts"] == 0
    assert len(table(err)) == 8, "the table is on standard error meanwhile"


def test_json_in_a_file_says_what_the_table_says(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    words = ("--rw", "write", "--bs", "8k", "--iodepth", "4", "--numjobs", "2", "--json", str(target))
    status, out, _ = virtblk("bench", "ram:1m", *QUICK, *words)
    assert status == 0
    (run,) = figures(target.read_text())["runs"]
    assert (run["path"], run["workload"], run["bs"], run["iodepth"], run["numjobs"]) == ("bio", "write", 8192, 4, 2)
    speed, cost = table(out)
    assert speed["runtime"] == f"{run['runtime_s']:.2f}s"
    assert cost["kicks/IO"] == f"{run['kicks'] / run['ios']:.3f}"


@pytest.mark.parametrize("words", [(), ("--poll",), ("--use-bio", "1", "--iodepth-batch-submit", "8"), BOTH])
def test_verify_finds_nothing_on_a_sound_disk(words: tuple[str, ...]) -> None:
    status, out, err = virtblk("bench", "ram:1m", "--verify", "crc32c", "--bs", "512", *QUICK, *words)
    assert status == 0, err  # which tells of a run that takes long
    count = 8 if words == BOTH else 4
    assert [row["errors"] for row in table(out)[:count]] == ["0"] * count


@pytest.mark.covers
def test_errors_are_exit_status_1_and_told() -> None:
    """A disk that keeps nothing cannot verify."""
    words = ("--rw", "randread", "--verify", "crc32c", "--runtime", "0", "--size", "256k", "--iodepth", "1")
    words = (*words, "--path", "bio")
    status, out, _ = virtblk("bench", "null:1m", *words)
    assert status == 1
    assert re.search(r"^bio randread: \d+ errors: first error at offset \d+: no header$", out, re.M)


def test_one_pass_does_every_block_once() -> None:
    _, out, _ = virtblk("bench", "ram:1m", "--runtime", "0", "--bs", "64k", "--rw", "read,write", "--json", "-")
    assert [run["ios"] for run in figures(out)["runs"]] == [16] * 4


# The end.


def test_ctrl_c_prints_the_table_so_far(tmp_path: Path) -> None:
    with Command("bench", "ram:1m", "--rw", "read,write", "--runtime", "120", tmp=tmp_path) as command:
        command.wait_for("ram:1m (1m)")
        child = command.child()
        wait_until_busy(child)
        command.interrupt()
        status, out, err = command.wait()
    assert status == 130
    assert err.splitlines()[-1] == "virtblk: interrupted"
    rows = table(out)
    assert {row["workload"] for row in rows} == {"read"}
    assert 1 <= len({row["path"] for row in rows}) <= 2, "the second path may have had its turn"
    assert not is_running(child)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.covers
def test_ctrl_c_still_writes_the_json(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    with Command("bench", "null:1m", "--runtime", "120", "--json", str(target)) as command:
        command.wait_for("null:1m (1m)")
        wait_until_busy(command.child())
        command.interrupt()
        status, _, err = command.wait()
    assert (status, "Traceback" in err) == (130, False)
    assert {run["workload"] for run in figures(target.read_text())["runs"]} == {"read"}


@pytest.mark.parametrize("delay", [0, 0.01, 0.1, 0.3])
def test_ctrl_c_before_the_run_leaves_nothing(delay: float, tmp_path: Path) -> None:
    with Command("bench", "ram:1m", tmp=tmp_path) as command:
        wait_until(lambda: children(command.process.pid), 120)
        child = command.child()
        time.sleep(delay)
        command.interrupt()
        status, _, err = command.wait()
    assert (status, "Traceback" in err) == (130, False), err
    wait_until(lambda: not is_running(child))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [(), ("--poll",), ("--numjobs", "32", "--verify", "crc32c")])
def test_a_device_that_is_killed_is_named(words: tuple[str, ...], tmp_path: Path) -> None:
    with Command("bench", "ram:64m", "--runtime", "120", "--rw", "randread", *words, tmp=tmp_path) as command:
        command.wait_for("ram:64m (64m)")
        child = command.child()
        wait_until_busy(child)
        os.kill(child, signal.SIGKILL)
        status, out, err = command.wait()  # which comes long before the 120 s are over
    assert status == 1
    assert err.splitlines()[-1] == "virtblk: ram:64m: the device closed the connection"
    assert "Traceback" not in err
    assert out.endswith("no run was completed\n")
    assert list(tmp_path.iterdir()) == []


def test_runs_before_the_end_of_the_device_are_printed() -> None:
    for seconds in (1, 4, 16):  # a busy machine may not be done with the reads, or done with it all
        with Command("bench", "null:1m", "--rw", "read,write", "--runtime", str(seconds), "--path", "bio") as command:
            command.wait_for("null:1m (1m)")
            time.sleep(1.5 * seconds)
            with suppress(ValueError):
                os.kill(command.child(), signal.SIGKILL)
            status, out, _ = command.wait()
        if status == 1 and "no run was completed" not in out:
            break
    assert status == 1
    assert [row["workload"] for row in table(out)] == ["read", "read"]


def test_a_device_that_stops_is_named_with_the_time_out(tmp_path: Path) -> None:
    with Command("bench", "ram:1m", "--runtime", "120", "--timeout", "4", tmp=tmp_path) as command:
        command.wait_for("ram:1m (1m)")
        child = command.child()
        leash = os.readlink(f"/proc/{child}/fd/0")
        os.kill(child, signal.SIGSTOP)
        wait_until(lambda: leash not in held(command.process.pid), 60)  # the child is told to end
        os.kill(child, signal.SIGCONT)
        status, _, err = command.wait()
    assert status == 1
    assert err.splitlines()[-1] == "virtblk: ram:1m: the device did not answer in time (4 s)"
    assert list(tmp_path.iterdir()) == []


def test_a_bench_that_is_killed_leaves_no_device(tmp_path: Path) -> None:
    with Command("bench", "ram:1m", "--runtime", "120", tmp=tmp_path) as command:
        command.wait_for("ram:1m (1m)")
        child = command.child()
        os.kill(command.process.pid, signal.SIGKILL)
        wait_until(lambda: not is_running(child))
        command.wait()
    assert list(tmp_path.iterdir()) == []
