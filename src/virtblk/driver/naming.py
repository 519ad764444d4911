"""Disk names vda, vdb, ..., vdz, vdaa, ... (Linux: virtblk_name_format, vd_index_ida). Control context."""

from __future__ import annotations

import threading


def virtblk_name_format(prefix: str, index: int) -> str:
    """The `index`-th name: digits of a bijective base 26."""
    letters = ""
    while index >= 0:
        letters = chr(ord("a") + index % 26) + letters
        index = index // 26 - 1
    return prefix + letters


class IndexAllocator:
    """The lowest free index, as the kernel's ida gives it."""

    def __init__(self) -> None:
        self._used: set[int] = set()
        self._lock = threading.Lock()

    def get(self) -> int:
        """Take the lowest free index."""
        with self._lock:
            index = 0
            while index in self._used:
                index += 1
            self._used.add(index)
            return index

    def put(self, index: int) -> None:
        """Give an index back."""
        with self._lock:
            self._used.discard(index)
