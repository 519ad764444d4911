"""SIGTERM to a command that started a device: the device goes with it."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path

import pytest

from cli.harness import PATIENCE, Command, is_running
from waiting import wait_until

pytestmark = [pytest.mark.once, pytest.mark.covers]

SILENT = Path(__file__).parent / "silent_device.py"


@pytest.mark.parametrize("command", ["check", "fuzz"])
def test_the_device_goes_with_the_command(command: str, tmp_path: Path) -> None:
    """It is in a group of its own, where no terminal's signals reach it."""
    told = tmp_path / "pid"
    device = shlex.join([sys.executable, str(SILENT), "{socket}", str(told)])
    with Command(command, "--timeout", "300", "--exec", device, tmp=tmp_path) as running:
        wait_until(lambda: told.exists() or running.process.poll() is not None, PATIENCE)
        pid = int(told.read_text())
        assert is_running(pid)
        running.process.send_signal(signal.SIGTERM)
        status, _, err = running.wait()
        assert status == 128 + signal.SIGTERM
        assert "Traceback" not in err
        assert not is_running(pid)
    assert [path.name for path in tmp_path.iterdir()] == ["pid"]  # no socket, no log
