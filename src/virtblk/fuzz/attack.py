"""What a campaign asks of an attacker, and the attacker with the messages as one: cases from a seed, run in order.

Control thread. `fuzz.guest_attack` is the other one.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final, Protocol

from virtblk.fuzz.case import LEAK, Case, DeviceFailed
from virtblk.fuzz.front_end import FrontEnd
from virtblk.fuzz.groups import FRONT_END, Coverage
from virtblk.fuzz.messages import HANG_UP, Facts, Generator, Op
from virtblk.fuzz.target import Target, Usage

#: Cases between two honest clients, which also look at what the process holds.
_CASES_PER_PROBE: Final = 50
#: What an attacker remembers of what it did last: the failure may be an earlier case's.
_REMEMBERED: Final = 16
#: Cases before the first look at what the process holds.
_SETTLED: Final = 2 * _CASES_PER_PROBE
#: How often a case that leaks is run to see it grow, and by how much it then has to.
LEAK_ROUNDS: Final = 24
_LEAK_GROWTH: Final = 20


class Attack(Protocol):
    """One attacker."""

    @property
    def name(self) -> str:
        """As `fuzz.groups` calls it."""

    @property
    def inputs(self) -> int:
        """Requests or messages that were sent so far."""

    def attack(self, deadline: float, count: int) -> None:
        """Go on from the last case until `deadline` (time.monotonic) or `count` more inputs. Raises DeviceFailed."""

    def probe(self) -> None:
        """See that the device still serves honest clients, and holds no more than it did. Raises DeviceFailed."""

    def suspects(self) -> list[Case]:
        """Cases that may have caused what happened last, the least of them first."""

    def run(self, case: Case) -> None:
        """Run one case on a device that no other case ran on. Raises DeviceFailed."""

    def notes(self, case: Case) -> list[str]:
        """The case for a reader."""

    def restarted(self) -> None:
        """The device is another process now."""

    def close(self) -> None:
        """Give everything back. Repeatable."""


class FrontEndAttack:
    """Cases of messages: case `n` of a seed is always the same, for a device that says the same of itself."""

    name = FRONT_END

    def __init__(self, target: Target, facts: Facts, seed: int, coverage: Coverage) -> None:
        self._target = target
        self._facts = facts
        self._seed = seed
        self._front = FrontEnd(target, coverage)
        self._number = 0
        self._recent: deque[list[Op]] = deque(maxlen=_REMEMBERED)
        self._baseline: Usage | None = None

    @property
    def inputs(self) -> int:
        return self._front.messages

    @property
    def sessions(self) -> int:
        return self._front.sessions

    @property
    def hang_ups(self) -> int:
        return self._front.hang_ups

    def attack(self, deadline: float, count: int) -> None:
        end = self.inputs + count
        while time.monotonic() < deadline and self.inputs < end:
            ops = Generator(f"{self._seed}/{self._number}", self._facts).case()
            self._number += 1
            self._recent.append(ops)
            self._front.run(ops)
            if self._number % _CASES_PER_PROBE == 0:
                self.probe()

    def probe(self) -> None:
        self._front.probe(self._facts)
        if self._number >= _SETTLED:
            if self._baseline is None:
                self._baseline = self._target.usage()
            self._target.check_usage(self._baseline)

    def suspects(self) -> list[Case]:
        cases = [list(ops) for ops in self._recent]
        found = []
        for count in (1, 4, _REMEMBERED):
            steps: list[Op] = []
            for ops in cases[-count:]:
                steps += [Op(HANG_UP), *ops] if steps else ops
            found.append(Case(self.name, [op.as_json() for op in steps], self._seed))
            if count >= len(cases):
                break
        return found

    def run(self, case: Case) -> None:
        ops = [Op.from_json(step) for step in case.steps]
        self._front.run(ops)
        self._front.probe(self._facts)

    def run_for_leak(self, case: Case) -> None:
        """Run a case many times: DeviceFailed if what the process holds grows along."""
        ops = [Op.from_json(step) for step in case.steps]
        for _ in range(3):
            self._front.run(ops)
        before = self._target.settled_usage(None)
        for _ in range(LEAK_ROUNDS):
            self._front.run(ops)
        if before is None:
            return
        after = self._target.settled_usage(Usage(*(value + _LEAK_GROWTH - 1 for value in before)))
        for name, old, new in zip(Usage._fields, before, after or before, strict=True):
            if new - old >= _LEAK_GROWTH:
                raise DeviceFailed(LEAK, f"{name} of the device grew from {old} to {new} in {LEAK_ROUNDS} runs")

    def notes(self, case: Case) -> list[str]:
        return [Op.from_json(step).text() for step in case.steps]

    def restarted(self) -> None:
        self._baseline = None
        self._number += -self._number % _CASES_PER_PROBE  # a new process settles anew

    def close(self) -> None:
        self._front.close()
