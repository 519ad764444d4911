"""All checks of `virtblk check` on our own device, as its users run it: nothing fails, and what is skipped says why."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import INTERPRETED
from virtblk.check.checks import DEVICE
from virtblk.check.requirement import Requirement
from virtblk.cli import main

#: 65536 requests, one after the other: minutes on an interpreted device.
TAKES_LONG = ["--skip", "split.wrap-65536"] if INTERPRETED else []


def image(tmp_path: Path) -> Path:
    """An empty disk, larger than the longest request that is allowed, so that a longer one can be tried."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(512 << 20)
    return path


def checked(tmp_path: Path, *words: str, only: Sequence[str] = ()) -> dict[str, Any]:
    """What `virtblk check` says of `virtblk serve`."""
    command = shlex.join([sys.executable, "-m", "virtblk", "serve", *words, "--socket-path", "{socket}"])
    results = tmp_path / "results.json"
    arguments = ["--scratch", "--timeout", "30", "--json", str(results), *(only or TAKES_LONG)]
    main(["check", "--exec", command, "--fail-on", "never", *arguments])
    value: dict[str, Any] = json.loads(results.read_text())
    return value


def may_be_skipped(requirement: Requirement, detail: str) -> bool:
    """For want of a feature (or of one less), whose name is said, or of a way to bring it about."""
    named = detail.startswith(("the device does not offer V", "the device offers V"))
    memory = detail.startswith("the disk does not outlive its process") and requirement.id.startswith("blk.durable-")
    return named or memory or (requirement.check is None and bool(detail))


def assert_sound(value: dict[str, Any]) -> None:
    """Nothing failed, and what was not run says why."""
    by_verdict: dict[str, list[dict[str, Any]]] = {}
    for result in value["results"]:
        by_verdict.setdefault(result["verdict"], []).append(result)
    assert not by_verdict.get("FAIL")
    assert not by_verdict.get("WEDGED")
    for result in by_verdict.get("SKIP", ()):
        assert may_be_skipped(DEVICE.requirements[result["id"]], result["detail"]), result


def test_ids_of_virtio_villain() -> None:
    same = [requirement.same_as for requirement in DEVICE if requirement.same_as]
    assert len(same) >= 50
    assert len(set(same)) == len(same)
    assert all(re.fullmatch(r"[BT]\d{4}", name) for name in same)


@pytest.mark.once
@pytest.mark.covers
def test_nothing_fails_on_our_device(tmp_path: Path) -> None:
    value = checked(tmp_path, "ram:16m")
    assert_sound(value)
    assert len(DEVICE) >= 80
    assert value["counts"]["PASS"] >= 50


@pytest.mark.once
def test_nothing_fails_on_a_file(tmp_path: Path) -> None:
    """What depends on the storage; the rest does in `make soak`."""
    value = checked(tmp_path, f"file:{image(tmp_path)}", only=["--only", "blk"])
    assert_sound(value)
    durable = [result for result in value["results"] if result["id"].startswith("blk.durable-")]
    assert [result["verdict"] for result in durable] == ["PASS"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--queues", "4"], ["--read-only"], ["--filter", "volatile"]])
def test_nothing_at_all_fails_on_a_file(tmp_path: Path, words: list[str]) -> None:
    assert_sound(checked(tmp_path, f"file:{image(tmp_path)}", *words))
