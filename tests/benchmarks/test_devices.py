"""benchmarks/devices.py: a line per depth and workload for two disks, and wrong usage is a line."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from benchmarks.harness import BENCHMARKS
from cli.harness import PATIENCE

pytestmark = [pytest.mark.once, pytest.mark.compiled]

SCRIPT = BENCHMARKS / "devices.py"
LINE = re.compile(r"QD +(\d+) +(\w+)  IOPS [\d.]+k / [\d.]+k  ratio ([\d.]+) \[([\d.]+), ([\d.]+)\]")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_a_line_per_depth_and_workload() -> None:
    told = run("ram:1m", "null:1m", "--iodepth", "1,4", "--rw", "read,randwrite", "--rounds", "8", "--slice", "0.05")
    assert told.returncode == 0, told.stderr
    found = [LINE.fullmatch(line) for line in told.stdout.splitlines()]
    assert [match and match.groups()[:2] for match in found] == [
        ("1", "read"),
        ("1", "randwrite"),
        ("4", "read"),
        ("4", "randwrite"),
    ]
    for match in found:
        assert match is not None
        ratio, low, high = map(float, match.groups()[2:])
        assert 0 < low <= ratio <= high


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ram:1m", "null:1m", "--rounds", "7"], "--rounds 7: give 8 to 10000"),
        (["ram:1m", "null:1m", "--slice", "0"], "--slice 0: give seconds from 0.01 to 3600"),
        (["ram:1m", "nowhere"], "disk 'nowhere' has no scheme"),
    ],
)
def test_wrong_usage_is_a_line(words: list[str], says: str) -> None:
    told = run(*words)
    assert told.returncode == 2
    assert told.stderr.splitlines()[-1].startswith(f"devices.py: {says}")
