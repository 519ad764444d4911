"""The naive twin of the `volatile` filter: a dictionary of the sectors that are not flushed, over plain bytes."""

from __future__ import annotations

SECTOR = 512


class NaiveVolatile:
    """One request at a time."""

    def __init__(self, durable: bytes) -> None:
        self.durable = bytearray(durable)
        self.cache: dict[int, bytes] = {}

    def write(self, offset: int, data: bytes, fua: bool = False) -> None:
        for at in range(0, len(data), SECTOR):
            self.cache[offset + at] = data[at : at + SECTOR]
        if fua:
            self._settle(range(offset, offset + len(data), SECTOR))

    def discard(self, offset: int, length: int) -> None:
        """The disk below makes zeroes of what is discarded."""
        for at in range(offset, offset + length, SECTOR):
            self.cache.pop(at, None)
        self.durable[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self._settle(list(self.cache))

    def cut(self, found: bytes) -> int:
        """Believe the disk as it is `found` after a cut, unless a sector is neither old nor new; how many are lost."""
        lost = 0
        for at in range(0, len(found), SECTOR):
            seen, old = found[at : at + SECTOR], self.durable[at : at + SECTOR]
            assert seen in (old, self.cache.get(at, old))
            lost += at in self.cache and seen != self.cache[at]
        self.durable[:] = found
        self.cache.clear()
        return lost

    def content(self) -> bytes:
        """What reads see."""
        seen = bytearray(self.durable)
        for at, data in self.cache.items():
            seen[at : at + SECTOR] = data
        return bytes(seen)

    def _settle(self, sectors: list[int] | range) -> None:
        for at in sectors:
            if at in self.cache:
                self.durable[at : at + SECTOR] = self.cache.pop(at)
