"""benchmarks/profile_paths.py: every I/O comes back on every path, the table has its rows, wrong usage is a line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.harness import BENCHMARKS, load
from cli.harness import PATIENCE

pytestmark = [pytest.mark.once, pytest.mark.compiled]

SCRIPT = BENCHMARKS / "profile_paths.py"


profile_paths = load("profile_paths")


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("random", [False, True])
def test_all_stages_of_all_paths_are_timed(batch: int, random: bool) -> None:
    found = profile_paths.profile(16, batch, random, 20)
    assert list(found) == ["request", "bio", "mq"]
    for samples in found.values():
        assert samples.shape == (18, len(profile_paths.STAGES))
        assert (samples >= 0).all()
        assert (samples.sum(axis=1) > 0).all()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_a_row_per_path_offsets_and_batch() -> None:
    told = run("--iodepth", "32", "--batch", "1,32", "--rounds", "10")
    assert told.returncode == 0, told.stderr
    heading, *rows = told.stdout.splitlines()
    assert heading.split() == ["path", "offsets", *profile_paths.STAGES, "ns/IO"]
    assert [row.split()[0] for row in rows] == ["request", "bio", "mq"] * 4
    assert all(float(word) >= 0 for row in rows for word in row.split()[-7:-3])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--batch", "3"], "--batch 3: give a divisor of --iodepth 128"),
        (["--iodepth", "512", "--batch", "1"], "--batch 1: give a divisor of --iodepth 512, which is at most 256"),
        (["--rounds", "1"], "--rounds 1: give 10 or more"),
    ],
)
def test_wrong_usage_is_a_line(words: list[str], says: str) -> None:
    told = run(*words)
    assert told.returncode == 2
    assert told.stderr.splitlines()[-1].startswith(f"profile_paths: {says}")
