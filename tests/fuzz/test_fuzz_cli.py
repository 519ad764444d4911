"""`virtblk fuzz` on our own device, for seconds; what it prints, writes and exits with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import virtblk
from cli.harness import Command, complaint
from conftest import INTERPRETED
from virtblk.cli import main
from virtblk.fuzz.groups import GROUPS
from waiting import PATIENCE, wait_until

#: Seconds, and more of them on a machine that has much else to do.
RUNTIMES = ("3" if INTERPRETED else "5", "30", "120")


def serve_command(disk: str = "ram:2m") -> str:
    return f"{sys.executable} -m virtblk serve {disk} --queues 2 --socket-path {{socket}}"


def fuzz(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    status = main(["fuzz", *words, "--json", str(tmp_path / "fuzz.json"), "--save-in", str(tmp_path)])
    return status, json.loads((tmp_path / "fuzz.json").read_text())


@pytest.mark.parametrize("disk", ["ram:2m", "file"])
def test_nothing_is_found_in_our_device(disk: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, watched for leaks; a file of a disk, which is another worker, too."""
    if disk == "file":
        (tmp_path / "disk").write_bytes(bytes(2 << 20))
        disk = f"file:{tmp_path}/disk"
    for runtime in RUNTIMES:
        words = ("--exec", serve_command(disk), "--runtime", runtime, "--timeout", "60")
        status, report = fuzz(tmp_path, *words)
        assert report["findings"] == []
        assert status == 0
        if min(report["groups"][name]["covered"] for name in ("chain", "messages")) > 3:
            break
    assert report["device"]["queues"] == 2
    assert report["inputs"]["total"] == report["inputs"]["guest"] + report["inputs"]["front-end"]
    assert min(report["inputs"].values()) > 0
    assert not report["interrupted"]
    assert report["details"]["dead_sessions"] == 0  # a broken ring is made anew in the same session
    assert set(report["groups"]) == {group.name for group in GROUPS}
    assert report["groups"]["chain"]["covered"] > 3
    assert report["groups"]["messages"]["covered"] > 3
    out = capsys.readouterr().out
    assert "nothing found" in out
    assert "double fetch" in out


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "disk.sock")
    with virtblk.serve("ram:1m", path, queues=2):
        yield path


def test_a_device_that_runs(socket_path: str, tmp_path: Path) -> None:
    status, report = fuzz(tmp_path, f"vhost-user:{socket_path}", "--count", "500", "--seed", "3", "--attacker", "guest")
    assert (status, report["findings"], report["seed"]) == (0, [], 3)
    assert report["inputs"]["guest"] >= 500
    assert "front-end" not in report["inputs"]
    with virtblk.open(f"vhost-user:{socket_path}", timeout=PATIENCE) as disk:
        assert disk.size == 1 << 20


def test_a_saved_case_is_run(socket_path: str, tmp_path: Path) -> None:
    case = {
        "virtblk-fuzz": 1,
        "finding": {"kind": "hang"},
        "attacker": "front-end",
        "seed": 1,
        "settings": {},
        "steps": [{"request": 8, "payload": "0000000000000000", "items": [55]}],
    }
    saved = tmp_path / "case.json"
    saved.write_text(json.dumps(case))
    status, report = fuzz(tmp_path, f"vhost-user:{socket_path}", "--replay", str(saved))
    assert (status, report["findings"], report["inputs"]["front-end"]) == (0, [], 1)


@pytest.mark.once
def test_ctrl_c_ends_it_with_what_was_done(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.sock")
    with virtblk.serve("ram:1m", path) as server:
        words = ("fuzz", f"vhost-user:{path}", "--runtime", "600", "--attacker", "guest", "--save-in", str(tmp_path))
        with Command(*words) as command:
            wait_until(lambda: "virtblk_requests_total" in server.metrics() and _requests(server.metrics()) > 0, 240.0)
            command.interrupt()
            status, out, err = command.wait()
    assert status == 130, err
    assert "nothing found, interrupted" in out
    assert "Traceback" not in err


def _requests(metrics: str) -> float:
    return sum(
        float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith("virtblk_requests_total")
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "nothing to attack: give vhost-user:SOCKET, or --exec with a command that has {socket} in it"),
        (["ram:1m"], "disk 'ram:1m': give vhost-user:SOCKET, or --exec with a command that serves it"),
        (["vhost-user:/s", "--exec", "x {socket}"], "both a disk ('vhost-user:/s') and --exec 'x {socket}': give one"),
        (["--exec", "device"], "--exec 'device': write {socket} where the socket's path belongs"),
        (["--exec", "/no/such {socket}"], "--exec '/no/such {socket}': No such file or directory"),
        (["--exec", "false {socket}"], "--exec 'false {socket}' does not serve: the device exited with status 1"),
        (["vhost-user:/nowhere/s"], "socket /nowhere/s: No such file or directory"),
        (["vhost-user:/s", "--seed", "x"], "--seed 'x': give a whole number"),
        (["vhost-user:/s", "--runtime", "-1"], "--runtime -1: give seconds, 0 or more"),
        (["vhost-user:/s", "--timeout", "0"], "--timeout 0: give seconds, more than 0"),
        (["vhost-user:/s", "--save-in", "/nowhere"], "--save-in '/nowhere': this is no directory"),
        (["vhost-user:/s", "--replay", "/nowhere"], "--replay '/nowhere': No such file or directory"),
        (["vhost-user:/s", "--replay", __file__], f"--replay '{__file__}': this is no file of virtblk fuzz"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "fuzz", *words).startswith(text)


@pytest.mark.parametrize(
    "value",
    [[], {"virtblk-fuzz": 2}, {"virtblk-fuzz": 1}, {"virtblk-fuzz": 1, "attacker": "nobody", "steps": [], "seed": 1}],
)
def test_a_file_that_is_no_case_is_one_line(value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "case.json"
    path.write_text(json.dumps(value))
    assert complaint(capsys, "fuzz", "vhost-user:/s", "--replay", str(path)).startswith(f"--replay '{path}': ")
