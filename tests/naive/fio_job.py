"""A job of a job file once more: the list of its I/Os, written down before any of them is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from naive.fio_map import order, splitmix64

IO = tuple[str, int]
_DIRECTIONS: Final = 0x5DEECE66D


@dataclass(frozen=True)
class NaiveJob:
    """`rw` as fio has it; a range of `blocks`; `share` is rwmixread."""

    rw: str
    blocks: int
    seed: int
    loops: int = 1
    share: int = 50
    fsync: int = 0
    norandommap: bool = False
    verify: bool = False

    def _op(self, n: int) -> str:
        if self.rw.removeprefix("rand") == "rw":
            return "read" if splitmix64(self.seed ^ _DIRECTIONS ^ splitmix64(n)) % 100 < self.share else "write"
        return self.rw.removeprefix("rand")

    def _pass(self, number: int) -> list[IO]:
        """One pass: each of `blocks` I/Os with its block."""
        ops = [self._op(number * self.blocks + index) for index in range(self.blocks)]
        if not self.rw.startswith("rand"):
            return [(op, ops[:index].count(op)) for index, op in enumerate(ops)]
        if self.norandommap:
            chosen = [
                splitmix64(self.seed ^ splitmix64(number * self.blocks + i)) % self.blocks for i in range(self.blocks)
            ]
        else:
            chosen = order(self.blocks, splitmix64(self.seed ^ number))
        return list(zip(ops, chosen, strict=True))

    def ios(self) -> list[IO]:
        """All of it, flushes and what is read back included."""
        found: list[IO] = []
        writes = 0
        flush = False
        for number in range(self.loops):
            ios = self._pass(number)
            for op, block in ios:
                if flush:
                    found.append(("flush", 0))
                flush = False
                found.append((op, block))
                if op == "write" and self.fsync:
                    writes += 1
                    flush = writes % self.fsync == 0
            if self.verify:
                found += [("read", block) for op, block in ios if op == "write"]
        return found
