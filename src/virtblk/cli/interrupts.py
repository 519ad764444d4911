"""What Ctrl-C and SIGTERM do to a command: KeyboardInterrupt, which ends what was begun, and never gets lost.

Used by `main`, in the main thread, where Python runs signal handlers between any two steps of whatever goes on. There
are two states. At rest: a signal that comes is *given*, which is what Ctrl-C does there. If a run has a SIGINT handler
of its own (`bench` ends with what it has so far), that is called; else KeyboardInterrupt is raised. *Put off*: a signal
has come where nothing may be raised, and SIGALRM tries to give it a little later, again and again.

    event                     at rest                       put off
    SIGINT                    given                         given, and no more put off
    SIGTERM, the first        given with care               to be given already
    SIGTERM, within GRACE_S   the same one: nothing         the same
    SIGTERM, a later one      given with care               to be given already
    SIGALRM                   -                             given with care
    swallowed                 put off                       put off

Nothing is raised, but put off,

- while a child or a directory is there that nobody knows yet (`_execute_child`, `mkdtemp`), and would stay;
- in a function that LLVM calls back, since it would be swallowed there, and LLVM would get a wrong answer; or that the
  tracer of coverage calls back, since it would leave that tracer's lock held, which the next new file waits for;
- with care, while something is being ended: a function of that kind runs (`close`, `stop`, ...), or a
  KeyboardInterrupt is being handled. What these would have ended would stay. All of them come to an end, as every wait
  has a bound. Ctrl-C is given there as ever: whoever presses it twice may have a reason, and sees what is left.

What is raised in a finalizer, in a weak reference's callback (importlib's module locks have one) or in a callback from
C is swallowed by Python, which tells `sys.unraisablehook`: here it is put off. What a library swallows in an `except:`
leaves no trace, and looks like a command that has taken note and is about to end. That is why a later SIGTERM counts:
it is given once more, and with the same care, so that it leaves no more behind than the first. One within GRACE_S does
not: timeout(1) signals its child and then the child's group, and a report that is being written should be finished.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

#: Seconds after the first SIGTERM in which another is the same one.
GRACE_S: Final = 5.0
#: Seconds until what was put off is tried again.
AGAIN_S: Final = 0.02
#: Packages of whose functions some are called back, and cannot stand an exception.
CALLED_BACK: Final = ("/llvmlite/", "/coverage/")
#: Functions in which a child or a directory is there that nobody knows yet.
UNKNOWN_YET: Final = ("_execute_child", "mkdtemp")
#: Functions that end something.
ENDING: Final = ("close", "stop", "cleanup", "__exit__")


class Interrupts:
    """While it is entered, Ctrl-C ends the command as said above, and with `terminable` SIGTERM does.

    Where SIGINT is ignored (a shell's background job), it is until SIGTERM has come: from then on a run may put SIGINT
    off, and send it to itself. What others handle already is left to them; outside of the main thread nothing is done.
    """

    def __init__(self, *, terminable: bool) -> None:
        self._terminated: float | None = None  # when SIGTERM came
        self._put_off = False
        before = signal.getsignal(signal.SIGINT)
        self._deaf = terminable and before is signal.SIG_IGN
        self._handlers: dict[int, Callable[[int, FrameType | None], None]] = {}
        if threading.current_thread() is threading.main_thread():
            if self._deaf or before is signal.default_int_handler:
                self._handlers[signal.SIGINT] = self._on_sigint
            if terminable and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._handlers[signal.SIGTERM] = self._on_sigterm
        self._before: dict[int, Any] = {}

    @property
    def terminated(self) -> bool:
        """Whether SIGTERM has come."""
        return self._terminated is not None

    def __enter__(self) -> Interrupts:
        if self._handlers:
            self._outermost = sys._getframe(1).f_code  # what called us has no part in what goes on here
            self._hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
            self._alarm = signal.signal(signal.SIGALRM, self._on_alarm)
            for signo, handler in self._handlers.items():
                self._before[signo] = signal.signal(signo, handler)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._handlers:
            sys.unraisablehook = self._hook
            for signo, before in self._before.items():
                signal.signal(signo, before)
            self._rest()  # an alarm that is on its way already finds nothing, and sets no other
            signal.signal(signal.SIGALRM, self._alarm)

    def _on_sigint(self, signo: int, frame: FrameType | None) -> None:
        if not self._deaf or self.terminated:
            self._give(frame, care=False)

    def _on_sigterm(self, signo: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._terminated is None or now - self._terminated > GRACE_S:
            self._terminated = now
            if not self._put_off:
                self._give(frame, care=True)

    def _on_alarm(self, signo: int, frame: FrameType | None) -> None:
        if self._put_off:
            self._give(frame, care=True)

    def _on_unraisable(self, unraisable: UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._put_off_again()
        else:
            self._hook(unraisable)

    def _give(self, frame: FrameType | None, *, care: bool) -> None:
        """Do what Ctrl-C does here, or put it off."""
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and handler != self._handlers.get(signal.SIGINT):
            self._rest()
            handler(signal.SIGINT, frame)
        elif _must_wait(frame, self._outermost, care):
            self._put_off_again()
        else:
            self._rest()
            raise KeyboardInterrupt

    def _put_off_again(self) -> None:
        self._put_off = True
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)

    def _rest(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # After the timer: a signal in between may have put off itself, and this one stands for it.
        self._put_off = False


#: Ours, where an interrupt would be lost, or would leave the signals half changed.
_OURS: Final[tuple[CodeType, ...]] = (
    Interrupts.__enter__.__code__,
    Interrupts.__exit__.__code__,
    Interrupts._on_unraisable.__code__,
)


def _must_wait(frame: FrameType | None, outermost: CodeType, care: bool) -> bool:
    """Whether nothing may be raised in `frame`, which is `outermost` or was called by it, by the rules above."""
    names = UNKNOWN_YET + ENDING if care else UNKNOWN_YET
    while frame is not None and frame.f_code is not outermost:
        code = frame.f_code
        if code.co_name in names or code in _OURS or any(package in code.co_filename for package in CALLED_BACK):
            return True
        frame = frame.f_back
    return care and _is_interrupted()


def _is_interrupted() -> bool:
    """Whether a KeyboardInterrupt is being handled, further out perhaps."""
    error = sys.exception()
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__context__
    return False
