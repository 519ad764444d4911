"""An hour of fuzzing, in `make soak` only."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from virtblk.cli import main

SECONDS = 1700


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["ram:64m", "file"])
def test_nothing_is_found_in_our_device_in_half_an_hour(disk: str, tmp_path: Path) -> None:
    """Another seed each time; it is printed, and stands in the name of what is saved."""
    if disk == "file":
        (tmp_path / "disk").write_bytes(bytes(64 << 20))
        disk = f"file:{tmp_path}/disk"
    command = f"{sys.executable} -m virtblk serve {disk} --log-level error --queues 2 --socket-path {{socket}}"
    words = ["fuzz", "--exec", command, "--runtime", str(SECONDS), "--seed", str(int(time.time())), "--timeout", "60"]
    assert main([*words, "--save-in", str(tmp_path)]) == 0
