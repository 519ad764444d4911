"""Ctrl-C and SIGTERM at every bad moment: never lost, never in the way of what ends something."""

from __future__ import annotations

import _imp
import ctypes
import importlib
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from virtblk.cli import interrupts, main
from waiting import PATIENCE, Background, wait_until

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def terminable() -> Iterator[None]:
    """As a program begins."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Calls what is to be done as `virtblk check`, and returns the exit status: 0 where it comes to its end."""

    def call(body: Callable[[], object]) -> int:
        def run(options: Any) -> int:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            body()
            return 0

        monkeypatch.setattr("virtblk.cli.check.run", run)
        return main(["check"])

    return call


Call = Callable[[Callable[[], object]], int]


def send(signo: int = signal.SIGINT) -> None:
    signal.raise_signal(signo)


def wait_for_it() -> None:
    """Until an interrupt comes."""
    time.sleep(PATIENCE)
    raise AssertionError("no interrupt came")


def let_alarms_come() -> None:
    """Long enough for what was put off to be tried again."""
    time.sleep(3 * interrupts.AGAIN_S)


# Where Python swallows what is raised.


class Doomed:
    """A signal comes while its finalizer runs, as it does in those of LLVM's objects."""

    def __init__(self, signo: int) -> None:
        self.signo = signo

    def __del__(self) -> None:
        send(self.signo)


def in_a_finalizer(signo: int) -> None:
    Doomed(signo)


def in_a_weak_reference(signo: int) -> None:
    class Object:
        pass

    one = Object()
    reference = weakref.ref(one, lambda gone: send(signo))
    del one
    assert reference() is None


def in_a_callback_from_c(signo: int) -> None:
    ctypes.CFUNCTYPE(None)(lambda: send(signo))()


@pytest.mark.parametrize(("signo", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("place", [in_a_finalizer, in_a_weak_reference, in_a_callback_from_c])
def test_regression_an_interrupt_that_python_swallows_is_not_lost(
    place: Callable[[int], None], signo: int, status: int, command: Call, capsys: Capture
) -> None:
    """The bench went on, and a traceback was printed."""

    def body() -> None:
        place(signo)
        wait_for_it()

    assert command(body) == status
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("signo", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_regression_an_interrupt_while_a_module_is_imported_is_not_lost(
    signo: int, status: int, command: Call, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When the lock of a module goes, a callback of importlib's takes the global one: there it was lost."""
    (tmp_path / "virtblk_test_imported.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    acquire_lock = _imp.acquire_lock
    sent = []

    def acquire() -> None:
        if sys._getframe(1).f_code.co_name == "cb" and not sent:
            sent.append(signo)
            send(signo)
        acquire_lock()

    def body() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(_imp, "acquire_lock", acquire)
            importlib.import_module("virtblk_test_imported")
        wait_for_it()

    try:
        assert command(body) == status
    finally:
        sys.modules.pop("virtblk_test_imported", None)
    assert sent == [signo]
    assert capsys.readouterr().err == ""


def test_other_errors_that_are_swallowed_are_told_as_ever(command: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))

    class Broken:
        def __del__(self) -> None:
            raise ArithmeticError

    assert command(lambda: (Broken(), None)[1]) == 0
    assert told == [ArithmeticError]


# Where nothing may be raised.


def named(name: str, body: Callable[[], None], file: str = __file__) -> None:
    """Call `body` from a function of that name, of that file."""
    space: dict[str, Any] = {}
    exec(compile(f"def {name}(body): body()", file, "exec"), space)
    space[name](body)


@pytest.mark.parametrize(("signo", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("_execute_child", "subprocess.py"),
        ("mkdtemp", "tempfile.py"),
        ("notify", "/lib/llvmlite/binding/executionengine.py"),
        ("lock_data", "/lib/coverage/collector.py"),
    ],
)
def test_what_is_half_made_is_finished_first(name: str, file: str, signo: int, status: int, command: Call) -> None:
    """And what LLVM asks is answered; and coverage gives back its lock: a bench that was terminated hung for that."""
    done = []

    def make() -> None:
        send(signo)
        done.append(name)

    def body() -> None:
        named(name, make, file)
        wait_for_it()

    assert command(body) == status
    assert done == [name]


def test_what_called_the_command_does_not_matter(command: Call) -> None:
    """`coverage run` does, and so may a function of any name."""
    done = []

    def body() -> None:
        send(signal.SIGTERM)
        done.append("not reached")

    def outside() -> None:
        assert command(body) == 143

    named("run", lambda: named("stop", outside), "/lib/coverage/execfile.py")
    assert done == []


@pytest.mark.parametrize("name", interrupts.ENDING)
def test_sigterm_waits_for_what_is_being_ended(name: str, command: Call) -> None:
    done = []

    def end() -> None:
        send(signal.SIGTERM)
        let_alarms_come()
        done.append(name)

    def body() -> None:
        named(name, end)
        wait_for_it()

    assert command(body) == 143
    assert done == [name]


def test_sigterm_does_not_disturb_what_an_interrupt_ends(command: Call) -> None:
    """In a function of whatever name, also where another error came of it."""
    done = []

    def clean() -> None:
        send(signal.SIGTERM)
        let_alarms_come()
        done.append("cleaned")

    def body() -> None:
        try:
            try:
                send(signal.SIGINT)
            finally:
                raise OSError
        except OSError:
            clean()
        wait_for_it()

    assert command(body) == 143
    assert done == ["cleaned"]


def test_ctrl_c_twice_counts_twice(command: Call) -> None:
    done = []

    def body() -> None:
        try:
            send(signal.SIGINT)
        finally:
            send(signal.SIGINT)
            done.append("cleaned")

    assert command(body) == 130
    assert done == []


# SIGTERM more than once.


def test_sigterm_twice_is_once(command: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """timeout(1) signals its child and then the child's group; a report has to be finished all the same."""
    monkeypatch.setattr(interrupts, "GRACE_S", 1e9)
    done = []

    def body() -> None:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:  # a run that takes note
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        let_alarms_come()
        done.append("reported")

    assert command(body) == 143
    assert done == ["reported"]


def test_a_later_sigterm_ends_what_swallowed_the_first(command: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> None:
        with suppress(BaseException):
            send(signal.SIGTERM)
        let_alarms_come()  # nothing comes of itself
        monkeypatch.setattr(interrupts, "GRACE_S", 0.0)
        send(signal.SIGTERM)
        wait_for_it()

    assert command(body) == 143


def test_a_later_sigterm_waits_for_what_the_first_ends(command: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "GRACE_S", 0.0)
    done = []

    def body() -> None:
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            let_alarms_come()
            done.append("cleaned")

    assert command(body) == 143
    assert done == ["cleaned"]


# Runs that handle SIGINT, and shells that ignore it.


@contextmanager
def sigint(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_that_handles_ctrl_c_gets_sigterm_so(command: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it comes, since nothing is raised; and each that counts."""
    monkeypatch.setattr(interrupts, "GRACE_S", 0.0)
    told = []

    def on_sigint(signo: int, frame: FrameType | None) -> None:
        told.append(signo)

    def body() -> None:
        with sigint(on_sigint):
            named("_execute_child", lambda: send(signal.SIGTERM))
            assert told == [signal.SIGINT]
            send(signal.SIGTERM)

    assert command(body) == 143
    assert told == [signal.SIGINT] * 2


def test_what_was_put_off_goes_to_the_run_that_has_begun(command: Call) -> None:
    told = []

    def body() -> None:
        send()
        with sigint(lambda signo, frame: told.append(signo)):
            wait_until(lambda: told)

    assert command(lambda: named("_execute_child", body)) == 0
    assert told == [signal.SIGINT]


def test_a_background_job_hears_ctrl_c_once_it_is_terminated(command: Call) -> None:
    """A session puts SIGINT off while its child is made, and sends it to itself after that."""
    pending: list[int] = []

    def body() -> None:
        send(signal.SIGINT)
        with sigint(lambda signo, frame: pending.append(signo)):
            send(signal.SIGTERM)
        assert pending
        send(signal.SIGINT)
        wait_for_it()

    with sigint(signal.SIG_IGN):
        assert command(body) == 143
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


# What is left to others.


def test_a_command_leaves_the_signals_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def state() -> tuple[Any, ...]:
        handlers = [signal.getsignal(signo) for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
        return (*handlers, sys.unraisablehook)

    def run(options: Any) -> int:
        seen.append(state())
        return 0

    monkeypatch.setattr("virtblk.cli.info.run", run)
    before = state()
    assert main(["info", "ram:1m"]) == 0
    assert state() == before
    interrupt, terminate, _, _ = seen.pop()
    assert interrupt is not before[0]
    assert terminate is before[1]  # info has nothing to end
    with sigint(signal.SIG_IGN):  # as a shell starts what runs in the background
        assert main(["info", "ram:1m"]) == 0
    assert seen.pop()[0] is signal.SIG_IGN


def test_no_alarm_is_left(command: Call) -> None:
    """What was put off when the command ended is over; the alarm would end the program."""
    assert command(lambda: named("_execute_child", lambda: send(signal.SIGTERM))) == 143
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_outside_of_the_main_thread_nothing_is_handled() -> None:
    before = signal.getsignal(signal.SIGINT)

    def enter() -> bool:
        with interrupts.Interrupts(terminable=True) as entered:
            assert signal.getsignal(signal.SIGINT) is before
            return entered.terminated

    assert Background(enter).result() is False
