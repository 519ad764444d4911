"""Which bytes of a disk are in which state: an ordered map from ranges to small integers (Linux: a maple tree).

Neighbours in the same state are one extent, so what is stored is as large as the disk is fragmented, not as the disk.
The map is cut into shards of 64 MiB, each a sorted list: a change moves the extents of one shard only. Holds no lock:
`filters/cow.py` and `filters/volatile.py` call it under theirs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final

SHARD: Final = 64 << 20

#: A range `start` to before `stop`, in bytes, and its state.
Run = tuple[int, int, int]


class ExtentMap:
    """Every byte starts in state 0."""

    def __init__(self) -> None:
        # By shard: where each extent starts (the first at the shard's start) and its state. None where all is in 0.
        self._shards: dict[int, tuple[list[int], list[int]]] = {}

    def runs(self, start: int, stop: int) -> list[Run]:
        """The extents between `start` and `stop`, clipped to it, without gaps; neighbours differ in their state."""
        found: list[Run] = []
        while start < stop:
            base = start - start % SHARD
            end = min(stop, base + SHARD)
            starts, states = self._shards.get(base, ([base], [0]))
            for i in range(bisect_right(starts, start) - 1, len(starts)):
                if starts[i] >= end:
                    break
                last = min(end, starts[i + 1]) if i + 1 < len(starts) else end
                _append(found, max(start, starts[i]), last, states[i])
            start = end
        return found

    def occupied(self) -> list[Run]:
        """All extents that are not in state 0, in order."""
        found: list[Run] = []
        for base in sorted(self._shards):
            starts, states = self._shards[base]
            for i, state in enumerate(states):
                if state:
                    _append(found, starts[i], starts[i + 1] if i + 1 < len(starts) else base + SHARD, state)
        return found

    def assign(self, start: int, stop: int, state: int) -> None:
        """Put `start` to before `stop` into `state`."""
        while start < stop:
            base = start - start % SHARD
            end = min(stop, base + SHARD)
            self._assign_in_shard(base, start, end, state)
            start = end

    def update(self, start: int, stop: int, change: Callable[[int], int]) -> None:
        """Give every byte of the range the state that `change` makes of its own."""
        for first, last, state in self.runs(start, stop):
            changed = change(state)
            if changed != state:
                self.assign(first, last, changed)

    def _assign_in_shard(self, base: int, start: int, stop: int, state: int) -> None:
        if base not in self._shards:
            if state == 0:
                return
            self._shards[base] = ([base], [0])
        starts, states = self._shards[base]
        i, j = bisect_left(starts, start), bisect_left(starts, stop)
        new_starts, new_states = [], []
        if i == 0 or states[i - 1] != state:
            new_starts.append(start)
            new_states.append(state)
        if j < len(starts) and starts[j] == stop:
            if states[j] == state:
                j += 1
        elif stop < base + SHARD and states[j - 1] != state:
            new_starts.append(stop)
            new_states.append(states[j - 1])
        starts[i:j] = new_starts
        states[i:j] = new_states
        if states == [0]:
            del self._shards[base]


def _append(found: list[Run], start: int, stop: int, state: int) -> None:
    if found and found[-1][1] == start and found[-1][2] == state:
        found[-1] = (found[-1][0], stop, state)
    else:
        found.append((start, stop, state))
