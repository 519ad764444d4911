"""The flush machinery the obvious way: each request is a list of steps; one FLUSH at a time serves who waits."""

from __future__ import annotations

from dataclasses import dataclass, field

PRE, DATA, POST = "PREFLUSH", "DATA", "POSTFLUSH"
TIMEOUT = 5_000_000_000


@dataclass(eq=False)
class Sequence:
    number: int
    steps: list[str]
    error: int = 0


@dataclass
class NaiveFlush:
    """`dispatch` holds what the driver takes next: a Sequence (its data), or None for the machinery's own FLUSH."""

    pending: list[Sequence] = field(default_factory=list)
    served: list[Sequence] | None = None  # whom the FLUSH that is out serves
    data: list[Sequence] = field(default_factory=list)
    dispatch: list[Sequence | None] = field(default_factory=list)
    done: list[tuple[int, int]] = field(default_factory=list)
    since: int = 0

    def kick(self, now: int) -> None:
        if self.served is not None or not self.pending:
            return
        if self.data and now - self.since < TIMEOUT:
            return
        self.served, self.pending = self.pending, []
        self.dispatch.append(None)

    def next_step(self, seq: Sequence, now: int) -> None:
        step = seq.steps[0] if seq.steps and not seq.error else None
        if step == DATA:
            self.data.append(seq)
            self.dispatch.insert(0, seq)
        elif step:
            if not self.pending:
                self.since = now
            self.pending.append(seq)
        else:
            self.done.append((seq.number, seq.error))
        self.kick(now)

    def insert(self, number: int, steps: list[str], now: int) -> None:
        self.next_step(Sequence(number, list(steps)), now)

    def step_ended(self, seq: Sequence, error: int, now: int) -> None:
        seq.error = seq.error or error
        seq.steps.pop(0)
        self.next_step(seq, now)

    def data_ended(self, seq: Sequence, error: int, now: int) -> None:
        self.data.remove(seq)
        self.step_ended(seq, error, now)

    def flush_ended(self, error: int, now: int) -> None:
        assert self.served is not None
        served, self.served = self.served, None
        for seq in served:
            self.step_ended(seq, error, now)
        self.kick(now)
