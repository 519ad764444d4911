"""The rule of the path `auto`, as docs/auto.md has it, the slow and obvious way."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Window:
    requests: int
    ios: int
    mergeable: int
    full: int
    ns: int

    @property
    def speed(self) -> float:
        return self.ios / self.ns


@dataclass
class Knob:
    """One setting, and how long until it is tried turned over."""

    on: bool
    wait: int
    pause: int = 64


@dataclass
class NaiveAuto:
    merging: Knob = field(default_factory=lambda: Knob(True, 32))
    elevator: Knob = field(default_factory=lambda: Knob(False, 2))
    trial: Knob | None = None
    windows: list[Window] = field(default_factory=list)  # of the trial, with the one before it
    trials: int = 0
    changes: int = 0

    def state(self) -> tuple[bool, bool]:
        """Merging and elevator in the window to come."""
        turned = self.trial if len(self.windows) in (1, 3) else None
        return self.merging.on != (self.merging is turned), self.elevator.on != (self.elevator is turned)

    def close(self, window: Window) -> None:
        if self.trial is None:
            self.settled(window)
            return
        self.windows.append(window)
        pairs = zip(self.windows[::2], self.windows[1::2], strict=False)
        verdicts = [new.ios * old.ns * 100 >= old.ios * new.ns * 105 for old, new in pairs]
        if False in verdicts:
            self.trial.wait = self.trial.pause
            self.trial.pause = min(1024, self.trial.pause * 2)
            self.trial = None
        elif len(verdicts) == 2:
            self.trial.on = not self.trial.on
            self.trial.wait, self.trial.pause = 64, 128
            self.changes += 1
            self.trial = None

    def settled(self, window: Window) -> None:
        if self.elevator.on and (window.full == 0 or window.ns < 10_000 * window.requests):
            self.elevator.on, self.elevator.wait = False, 2
            self.changes += 1
        if not self.merging.on and (window.ns < 2_000 * window.ios or window.mergeable * 16 < window.ios):
            self.merging.on, self.merging.wait = True, 32
            self.changes += 1
        for knob in (self.elevator, self.merging):
            knob.wait = max(0, knob.wait - 1)
        if self.elevator.wait == 0 and window.full and window.ns >= 20_000 * window.requests:
            self.trial = self.elevator
        elif self.merging.wait == 0 and window.mergeable * 8 >= window.ios and window.ns >= 4_000 * window.ios:
            self.trial = self.merging
        if self.trial is not None:
            self.windows = [window]
            self.trials += 1
