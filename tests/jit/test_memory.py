"""Prefetches are hints: no address faults, and nothing changes."""

from __future__ import annotations

import numpy as np
import pytest

from virtblk.jit.kernel import cold_kernel
from virtblk.jit.memory import prefetch_read, prefetch_write


@cold_kernel
def prefetch_both(address):
    prefetch_read(address)
    prefetch_write(address)
    return 1


@pytest.mark.parametrize("address", [0, -1, 1, 1 << 62, -(1 << 63)])
def test_any_address_is_harmless(address: int) -> None:
    assert prefetch_both(np.int64(address)) == 1


def test_what_is_prefetched_stays() -> None:
    words = np.arange(64, dtype=np.int64)
    assert prefetch_both(np.int64(words.ctypes.data)) == 1
    assert words.tolist() == list(range(64))
