"""Progress of a cold compile: nothing for a second, then a line on a terminal or a line now and then in a log."""

from __future__ import annotations

import io

import numba
import pytest
from numba.core import event

from conftest import INTERPRETED
from virtblk.jit import warmup
from virtblk.jit.kernel import kernel
from virtblk.jit.table import Table
from virtblk.jit.warmup import ensure, progress


class Stream(io.StringIO):
    """A stream that says whether it is a terminal, and counts its flushes."""

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty, self.flushes = tty, 0

    def isatty(self) -> bool:
        return self.tty

    def flush(self) -> None:
        self.flushes += 1


class Clock:
    """Stands for the time module, where kernels are compiled; the events are the same where they are not."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(warmup, "time", clock)
    monkeypatch.setattr(warmup, "INTERPRETED", False)
    return clock


def compile_at(clock: Clock, *seconds: float) -> None:
    """A compilation begins at each of these times after the start."""
    for second in seconds:
        clock.now = 1000.0 + second
        with event.trigger_event("numba:compile"):
            pass


@pytest.mark.parametrize("tty", [False, True])
def test_what_is_quick_says_nothing(clock: Clock, tty: bool) -> None:
    stream = Stream(tty)
    with progress(stream):
        compile_at(clock, 0, 0.1, 0.5, 0.99)
    with progress(stream):
        pass
    assert stream.getvalue() == ""


def test_a_log_gets_a_line_every_five_seconds(clock: Clock) -> None:
    stream = Stream(False)
    with progress(stream):
        compile_at(clock, 0, 0.5, 1.5, 2, 6, 6.6, 7, 12, 13)
        lines = stream.flushes
    assert stream.getvalue().splitlines() == [
        "virtblk: compiling for this machine, once: 3 functions, 2 s",
        "virtblk: compiling for this machine, once: 6 functions, 7 s",
        "virtblk: compiling for this machine, once: 8 functions, 12 s",
        "virtblk: compiled 9 functions in 13 s; the next start uses the cache",
    ]
    assert lines == 3


def test_a_terminal_has_its_line_rewritten(clock: Clock) -> None:
    stream = Stream(True)
    with progress(stream):
        compile_at(clock, 0.5, 1.0, 1.1, 1.3, 2.6)
        clock.now += 1
    assert stream.getvalue().split("\r") == [
        "",
        "virtblk: compiling for this machine, once: 2 functions, 1 s",
        "virtblk: compiling for this machine, once: 4 functions, 1 s",
        "virtblk: compiling for this machine, once: 5 functions, 3 s",
        "virtblk: compiled 5 functions in 4 s; the next start uses the cache\n",
    ]


def test_after_the_body_nothing_is_reported(clock: Clock) -> None:
    """Nor after a body that failed, which still gets its last line."""
    stream = Stream(False)

    def fail() -> None:
        with progress(stream):
            compile_at(clock, 3)
            raise RuntimeError("no device")

    with pytest.raises(RuntimeError, match="no device"):
        fail()
    text = stream.getvalue()
    assert text.splitlines()[-1].startswith("virtblk: compiled 1 functions")
    compile_at(clock, 20)
    assert stream.getvalue() == text


def test_who_compiles_is_named(clock: Clock) -> None:
    """A child says that it is the child."""
    stream = Stream(False)
    with progress(stream, "virtblk device"):
        compile_at(clock, 2)
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == ["virtblk device"] * 2


def test_the_last_line_covers_the_one_before(clock: Clock) -> None:
    stream = Stream(True)
    with progress(stream):
        compile_at(clock, *(1 + second for second in range(200)))
    lines = stream.getvalue().rstrip("\n").split("\r")
    assert len(lines[-1]) >= max(map(len, lines[:-1]))


@pytest.mark.compiled
def test_real_compilations_are_counted(clock: Clock) -> None:
    stream = Stream(False)
    clock.now = 1000.0
    with progress(stream):
        clock.now = 1002.0
        numba.njit(lambda x: x + 1)(1)
    assert "compiling for this machine, once: 1 functions, 2 s" in stream.getvalue()


def test_interpreted_there_is_nothing_to_tell(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "INTERPRETED", True)
    stream = Stream(False)
    with progress(stream):
        compile_at(clock, 0, 2, 9)
    assert stream.getvalue() == ""


def test_standard_error_is_the_default(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress():
        compile_at(clock, 0.5)
    assert capsys.readouterr() == ("", "")


@kernel
def halve(numbers, index):
    numbers[index] //= 2


def test_ensure_compiles_for_arguments_of_these_types() -> None:
    """And only compiles: no argument is touched. With the JIT off there is nothing to do."""
    numbers = Table(2)
    numbers[1] = 7
    for _ in range(2):
        ensure(halve, numbers, 1)
    assert numbers.tolist() == [0, 7]
    assert INTERPRETED or len(halve.signatures) == 1
    halve(numbers, 1)
    assert numbers.tolist() == [0, 3]
    assert INTERPRETED or len(halve.signatures) == 1
