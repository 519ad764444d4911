"""All checks of `virtblk check` on our own device, as its users run it: nothing fails, and what is skipped says why."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import INTERPRETED
from virtblk.check.checks import DEVICE
from virtblk.check.requirement import Requirement
from virtblk.cli import main

#: 65536 requests, one after the other: minutes on an interpreted device.
TAKES_LONG = ["--skip", "split.wrap-65536"] if INTERPRETED else []


def checked(tmp_path: Path, *words: str) -> dict[str, Any]:
    """What `virtblk check` says of `virtblk serve`."""
    command = shlex.join([sys.executable, "-m", "virtblk", "serve", *words, "--socket-path", "{socket}"])
    results = tmp_path / "results.json"
    arguments = ["--scratch", "--timeout", "30", "--json", str(results), *TAKES_LONG]
    assert main(["check", "--exec", command, *arguments]) == 0
    value: dict[str, Any] = json.loads(results.read_text())
    return value


def may_be_skipped(requirement: Requirement, detail: str) -> bool:
    """For want of a feature, whose name is said, or of a way to bring it about."""
    return detail.startswith("the device does not offer V") or (requirement.check is None and bool(detail))


@pytest.mark.once
@pytest.mark.covers
@pytest.mark.parametrize("disk", ["ram", "file"])
def test_nothing_fails_on_our_device(tmp_path: Path, disk: str, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    value = checked(tmp_path, "ram:16m" if disk == "ram" else f"file:{image}")
    counts = value["counts"]
    bad = [result for result in value["results"] if result["verdict"] in ("FAIL", "WEDGED")]
    assert not bad, capsys.readouterr().out
    assert len(DEVICE) >= 80
    assert counts["PASS"] >= 50
    for result in value["results"]:
        if result["verdict"] == "SKIP":
            assert may_be_skipped(DEVICE.requirements[result["id"]], result["detail"]), result
