"""Judges a disk after power cuts: is a write missing that was promised to be there, is a sector torn.

A `PowerLog` takes down when each write and flush was submitted and acknowledged, and when the power was cut, in the
order in which it is told; that order is all it knows of time. It holds for any disk that is observed from outside: a
filter in this process, or a device below a guest.

What is promised: a write that was acknowledged before a flush was submitted which was acknowledged in turn, all that
without a cut in between; and a FUA write that was acknowledged, without a cut in between. A sector may hold the
content of any write to it except those that ended before a promised one began; anything else is either missing (the
content of such a write) or torn (the content of none).
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SECTOR = 512
NEVER = 1 << 62


@dataclass
class Logged:
    """One write (`data` None: a discard, which leaves anything) or flush."""

    submitted: int
    offset: int = 0
    length: int = 0
    data: bytes | None = None
    fua: bool = False
    ended: int = NEVER
    error: int = 0

    @property
    def acknowledged(self) -> int:
        return NEVER if self.error else self.ended


@dataclass
class Verdict:
    """Sector numbers."""

    missing: list[int] = field(default_factory=list)  # promised, and not there
    torn: list[int] = field(default_factory=list)  # the content of no write
    forgotten: list[int] = field(default_factory=list)  # acknowledged, not promised, and not there: no fault


class PowerLog:
    """What was done to a disk that began as `initial`. Thread-safe: told before a submission, and after an end."""

    def __init__(self, initial: bytes) -> None:
        self.initial = initial
        self._time = itertools.count(1)
        self._writes: list[Logged] = [Logged(0, 0, len(initial), initial, ended=0)]
        self._flushes: list[Logged] = []
        self._cuts: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def write(self, offset: int, data: bytes, fua: bool = False) -> Logged:
        """A write, or write zeroes, is about to be submitted."""
        return self._add(self._writes, offset, len(data), data, fua)

    def discard(self, offset: int, length: int) -> Logged:
        return self._add(self._writes, offset, length, None, False)

    def flush(self) -> Logged:
        return self._add(self._flushes, 0, 0, None, False)

    def _add(self, where: list[Logged], offset: int, length: int, data: bytes | None, fua: bool) -> Logged:
        with self._lock:
            entry = Logged(next(self._time), offset, length, data, fua)
            where.append(entry)
            return entry

    def ended(self, entry: Logged, error: int = 0) -> None:
        """It has ended."""
        with self._lock:
            entry.ended, entry.error = next(self._time), error

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Within it the power is cut, once, at some instant."""
        with self._lock:
            begun = next(self._time)
        yield
        with self._lock:
            self._cuts.append((begun, next(self._time)))

    def judge(self, disk: bytes) -> Verdict:
        """Compare the disk as it is now with what it may be."""
        with self._lock:
            writes, flushes = list(self._writes), list(self._flushes)
        # earliest[i]: when the first of the flushes from the i-th on was acknowledged; they are in order of submission.
        earliest = [NEVER] * (len(flushes) + 1)
        for i in range(len(flushes) - 1, -1, -1):
            earliest[i] = min(earliest[i + 1], flushes[i].acknowledged)
        submitted = [entry.submitted for entry in flushes]
        by_sector: dict[int, list[tuple[Logged, bool]]] = {}
        for entry in writes:
            kept_at = entry.acknowledged
            if not entry.fua and kept_at != NEVER:
                kept_at = earliest[bisect.bisect_right(submitted, entry.acknowledged)]
            promised = entry.submitted == 0 or kept_at < self._next_cut(entry.submitted)
            for number in range(entry.offset // SECTOR, (entry.offset + entry.length) // SECTOR):
                by_sector.setdefault(number, []).append((entry, promised))
        verdict = Verdict()
        for number, versions in sorted(by_sector.items()):
            self._judge_sector(number, versions, disk[number * SECTOR : (number + 1) * SECTOR], verdict)
        return verdict

    def _next_cut(self, time: int) -> int:
        """When the first cut began that was not over at `time`; the end of time without one."""
        return min((begun for begun, over in self._cuts if over > time), default=NEVER)

    @staticmethod
    def _judge_sector(number: int, versions: list[tuple[Logged, bool]], found: bytes, verdict: Verdict) -> None:
        def allowed(since: int) -> bool:
            return any(_holds(entry, number, found) for entry, _promised in versions if entry.ended >= since)

        if not allowed(max(entry.submitted for entry, promised in versions if promised)):
            (verdict.missing if allowed(0) else verdict.torn).append(number)
        elif not allowed(max(entry.submitted for entry, _promised in versions if entry.acknowledged != NEVER)):
            verdict.forgotten.append(number)


def _holds(entry: Logged, number: int, found: bytes) -> bool:
    if entry.data is None:
        return True
    start = number * SECTOR - entry.offset
    return entry.data[start : start + SECTOR] == found
