"""A checking build that reaches outside of guest memory stops serving: to a fuzzer its process has crashed."""

from __future__ import annotations

from pathlib import Path

import pytest

import virtblk
from virtblk.fuzz.front_end import FrontEnd
from virtblk.fuzz.groups import Coverage
from virtblk.fuzz.messages import Op
from virtblk.fuzz.target import Target
from virtblk.mem.guest_memory import GuestMemory
from waiting import wait_until


def test_an_access_outside_of_guest_memory_ends_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "s")
    ping = Op(request=1, ping=True)
    target = Target(path, None, 20.0)
    with virtblk.serve("ram:1m", path) as server, FrontEnd(target, Coverage()) as front:
        front.run([ping])
        wait_until(lambda: "virtblk_sessions_total 1" in server.metrics())
        assert server.violations == 0
        monkeypatch.setattr(GuestMemory, "violations", 3)
        front.run([ping])
        wait_until(lambda: server.violations == 3)
        thread = server._thread
        assert thread is not None
        wait_until(lambda: not thread.is_alive())
