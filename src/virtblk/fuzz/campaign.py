"""A run of `virtblk fuzz`: both attackers in turns, until the time or the count is over or the device failed.

A failure is looked into at once: its case is run again on a fresh device, made shorter while it still fails, and saved.
Without a device that can be restarted the case is only saved, unless the device is still there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from virtblk.fuzz.attack import Attack, FrontEndAttack
from virtblk.fuzz.case import CRASH, HANG, LEAK, Case, DeviceFailed, Finding, save
from virtblk.fuzz.front_end import ask_facts
from virtblk.fuzz.groups import FRONT_END, GROUPS, GUEST, Coverage
from virtblk.fuzz.guest_attack import GuestAttack
from virtblk.fuzz.messages import Facts
from virtblk.fuzz.minimise import minimise
from virtblk.fuzz.target import Target

#: Seconds of a turn. Messages cost the device a session each, requests of a guest next to nothing.
_TURNS: Final = {FRONT_END: 0.25, GUEST: 0.75}
#: With only a count to reach: a turn is not bounded by an end of time.
_NEVER: Final = float("inf")
_SAVED_NAME: Final = "fuzz-{kind}-{attacker}-{seed}.json"


@dataclass(frozen=True)
class FuzzOptions:
    """What a campaign does. `runtime` in seconds, 0 for no limit; `count` inputs of all attackers, 0 for no limit."""

    seed: int = 1
    runtime: float = 60.0
    count: int = 0
    attackers: tuple[str, ...] = (FRONT_END, GUEST)
    save_in: str = "."


@dataclass
class Report:
    """What was done, and found."""

    device: dict[str, Any]
    seed: int
    seconds: float = 0.0
    inputs: dict[str, int] = field(default_factory=dict)
    details: dict[str, int] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=Coverage)
    findings: list[Finding] = field(default_factory=list)
    interrupted: bool = False

    def as_dict(self) -> dict[str, Any]:
        total = sum(self.inputs.values())
        return {
            "device": self.device,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "inputs": {**self.inputs, "total": total},
            "rate": round(total / self.seconds, 1) if self.seconds else 0.0,
            "details": self.details,
            "groups": self.coverage.as_dict(),
            "findings": [finding.as_dict() for finding in self.findings],
            "interrupted": self.interrupted,
        }


class Campaign:
    """Both attackers on `target`, which is started. `tell(passed seconds, report)` is called between turns, and
    `tell_minimising(runs, steps left)` while a case is made shorter. Raises OpenError for what is no such device."""

    def __init__(
        self,
        target: Target,
        options: FuzzOptions,
        tell: Callable[[float, Report], None] = lambda passed, report: None,
        tell_minimising: Callable[[int, int], None] = lambda runs, left: None,
    ) -> None:
        self._target = target
        self._options = options
        self._tell = tell
        self._tell_minimising = tell_minimising
        self._facts = ask_facts(target)
        self.report = Report(_device(target, self._facts), options.seed)
        self._attacks: dict[str, Attack] = {}
        try:
            for name in options.attackers:
                self._attacks[name] = self._attack(name, self._facts)
        except BaseException:
            self.close()
            raise

    def _attack(self, name: str, facts: Facts) -> Attack:
        if name == FRONT_END:
            return FrontEndAttack(self._target, facts, self._options.seed, self.report.coverage)
        return GuestAttack(self._target, facts, self._options.seed, self.report.coverage)

    def close(self) -> None:
        """Give everything back; the target stays its maker's."""
        for attack in self._attacks.values():
            attack.close()

    def run(self) -> Report:
        """Until the end, the first failure, or Ctrl-C, which `report.interrupted` then says."""
        began = time.monotonic()
        try:
            self._run(began)
        except KeyboardInterrupt:
            self.report.interrupted = True
        self._count(began)
        return self.report

    def _count(self, began: float) -> None:
        report = self.report
        report.seconds = time.monotonic() - began
        report.inputs = {name: attack.inputs for name, attack in self._attacks.items()}
        report.details = {"device_restarts": max(0, self._target.restarts)}
        for attack in self._attacks.values():
            if isinstance(attack, FrontEndAttack):
                report.details |= {"sessions": attack.sessions, "hang_ups": attack.hang_ups}
            elif isinstance(attack, GuestAttack):
                report.details |= attack.details()

    def _run(self, began: float) -> None:
        options = self._options
        deadline = began + options.runtime if options.runtime else _NEVER
        while True:
            for attack in self._attacks.values():
                done = sum(each.inputs for each in self._attacks.values())
                left = options.count - done if options.count else 1 << 60
                if time.monotonic() >= deadline or left <= 0:
                    self._last_probe()
                    return
                try:
                    attack.attack(min(deadline, time.monotonic() + _TURNS[attack.name]), left)
                except DeviceFailed as failure:
                    self._look_into(attack, failure)
                    return
                self._count(began)
                self._tell(self.report.seconds, self.report)

    def _last_probe(self) -> None:
        for attack in self._attacks.values():
            try:
                attack.probe()
            except DeviceFailed as failure:
                self._look_into(attack, failure)
                return

    def _look_into(self, attack: Attack, failure: DeviceFailed) -> None:
        """Reproduce, minimise, save."""
        suspects = attack.suspects()
        finding = Finding(failure.kind, failure.detail, suspects[0], notes=self._target.last_words())
        self.report.findings.append(finding)
        try:
            self._reproduce(attack, finding, suspects)
        finally:  # Ctrl-C while a case is made shorter leaves what there is
            finding.notes = [*attack.notes(finding.case), *(f"device: {line}" for line in finding.notes)]
            name = _SAVED_NAME.format(kind=finding.kind.replace(" ", "-"), attacker=attack.name, seed=finding.case.seed)
            save(finding, Path(self._options.save_in) / name)

    def _reproduce(self, attack: Attack, finding: Finding, suspects: list[Case]) -> None:
        if not self._target.can_restart and finding.kind in (CRASH, HANG, LEAK):
            finding.case = suspects[-1]
            finding.steps_before = len(finding.case.steps)
            return
        for case in suspects:
            if self.fails(attack, case, finding.kind):
                finding.reproduced = True
                finding.case = case
                break
        finding.steps_before = len(finding.case.steps)
        if not finding.reproduced:
            return

        def fails(steps: list[Any]) -> bool:
            if not self.fails(attack, case.with_steps(steps), finding.kind):
                return False
            finding.case = case.with_steps(steps)
            return True

        minimise(case.steps, fails, progress=self._tell_minimising)

    def fails(self, attack: Attack, case: Case, kind: str) -> bool:
        """Whether a case makes a fresh device fail in this way."""
        if self._target.can_restart:
            self._target.start()
        attack.restarted()
        try:
            if kind == LEAK and isinstance(attack, FrontEndAttack):
                attack.run_for_leak(case)
            else:
                attack.run(case)
        except DeviceFailed as failure:
            return failure.kind == kind
        return False

    def replay(self, case: Case, kind: str) -> Report:
        """Run one case, once; what it does to the device is the report's finding."""
        began = time.monotonic()
        attack = self._attacks.setdefault(case.attacker, self._attack(case.attacker, self._facts))
        try:
            if kind == LEAK and isinstance(attack, FrontEndAttack):
                attack.run_for_leak(case)
            else:
                attack.run(case)
        except DeviceFailed as failure:
            finding = Finding(failure.kind, failure.detail, case, True, len(case.steps), notes=attack.notes(case))
            self.report.findings.append(finding)
        self._count(began)
        return self.report


def _device(target: Target, facts: Facts) -> dict[str, Any]:
    return {
        "socket": target.path,
        "features": f"{facts.features:#x}",
        "protocol_features": f"{facts.protocol_features:#x}",
        "queues": facts.queues,
        "capacity": facts.capacity,
    }


def groups_total(coverage: Coverage, attackers: tuple[str, ...]) -> tuple[int, int]:
    """(items covered, items) of these attackers."""
    mine = [group for group in GROUPS if set(group.attackers) & set(attackers)]
    return sum(map(coverage.covered, mine)), sum(len(group.items) for group in mine)
