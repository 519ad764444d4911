"""Whether something leaks address space: every mapping of ours has two guards, which a hundred leaks cannot hide."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

from virtblk.mem.shm import GUARD

TIMES = 100


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def leaks(body: Callable[[], object]) -> bool:
    """True when running `body` again and again takes up address space that does not come back."""
    body()
    before = _address_space()
    for _ in range(TIMES):
        body()
    return _address_space() - before >= TIMES * GUARD
