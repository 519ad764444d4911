"""What every test of the fuzzer shares."""

from __future__ import annotations

import pytest

from conftest import INTERPRETED
from virtblk.fuzz import front_end


@pytest.fixture(autouse=True)
def memory_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, nothing catches the SIGBUS of a device whose client truncates its memory file."""
    if INTERPRETED:
        monkeypatch.setattr(front_end._Session, "truncate", lambda session, size: None)
