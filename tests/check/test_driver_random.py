"""Seeded misbehaviour against our own driver, each I/O held against what the device made of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import virtblk
from check.our_driver import Hammer
from conftest import INTERPRETED
from virtblk.check.driver_random import Summary, run_random
from virtblk.check.driver_trial import Function

PATIENCE = 60.0
SEED = 20_120_728


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Before anything is timed out."""
    with virtblk.open("ram:1m") as disk:
        disk.pread(512, 0)


def hammer(path: Path, seed: int, count: int, most_lies: int = 5000) -> Summary:
    return run_random(
        lambda chaos: Function(Hammer(chaos)),
        str(path / "s"),
        seed=seed,
        count=count,
        timeout=PATIENCE,
        most_lies=most_lies,
    )


def test_our_driver_among_lies(tmp_path: Path) -> None:
    summary = hammer(tmp_path, SEED, 600 if INTERPRETED else 3000, most_lies=20 if INTERPRETED else 300)
    assert summary.problems == []
    assert summary.connections > 3


def test_regression_a_spoilt_size_max_cuts_requests(tmp_path: Path) -> None:
    """Segments of 127 bytes make two requests of a block; each is judged by its own answer."""
    assert hammer(tmp_path, 1_000_425, 1).problems == []


@pytest.mark.parametrize("name", ["pread", "pwrite"])
def test_a_driver_that_hides_errors_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(virtblk.Disk, name)

    def hide(disk: virtblk.Disk, *arguments: Any) -> Any:
        try:
            return right(disk, *arguments)
        except OSError:
            return b"" if name == "pread" else len(arguments[0])

    monkeypatch.setattr(virtblk.Disk, name, hide)
    problems = hammer(tmp_path, SEED, 100, most_lies=100).problems
    assert problems
    assert all("was reported as done, and failed" in text or "holds what" in text for _, text in problems)


def test_a_driver_that_mixes_up_data_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = virtblk.Disk.pread
    monkeypatch.setattr(virtblk.Disk, "pread", lambda disk, n, offset: right(disk, n, offset ^ 4096))
    problems = hammer(tmp_path, SEED, 100, most_lies=100).problems
    assert problems


@pytest.mark.slow
@pytest.mark.compiled
def test_a_million_misbehaviours(tmp_path: Path) -> None:
    began = time.monotonic()
    summary = hammer(tmp_path, SEED, 1_000_000)
    seconds = time.monotonic() - began
    print(f"seed {SEED}: {summary.lies} lies on {summary.connections} connections in {seconds:.0f} s: {summary.told}")
    assert summary.problems == []
    assert min(summary.told.values()) > 0
