"""The card of `sim:fusion-io` the slow and obvious way: page reads and programs as intervals on channels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from virtblk.jit.arith import mix64

READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES = 0, 1, 2, 5, 6


@dataclass
class NaiveFusionIo:
    channels: int
    page: int
    read: int
    program: int
    overhead: int
    pages: int  # of the write buffer
    accepted: int = 0
    busy: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    programs: list[int] = field(default_factory=list)  # when each ended, in the order in which they were begun

    def on(self, channel: int, now: int, takes: int) -> int:
        begins = max([now, *(end for _, end in self.busy.get(channel, []))])
        self.busy.setdefault(channel, []).append((begins, begins + takes))
        return begins + takes

    def room(self, t: int) -> int:
        """When there is room for one more page: a program gives its own back once those before it have."""
        ends = [max(self.programs[: n + 1]) for n in range(len(self.programs))]
        while sum(end > t for end in ends) >= self.pages:
            t = min(end for end in ends if end > t)
        return t

    def submit(self, op: int, offset: int, length: int, fua: bool, now: int) -> int:
        ends = now
        if op == READ and length:
            pages = range(offset, offset + length, self.page)
            ends = max(self.on(mix64(page) % self.channels, now, self.read) for page in pages)
        elif op in (WRITE, WRITE_ZEROES):
            ends = max(now, self.accepted)
            for _ in range(math.ceil(length / self.page)):
                ends = self.room(ends)
                self.programs.append(self.on(len(self.programs) % self.channels, ends, self.program))
            self.accepted = ends
        if op == FLUSH or (fua and op in (WRITE, WRITE_ZEROES)):
            ends = max([now, self.accepted, *self.programs])
        return ends + self.overhead
