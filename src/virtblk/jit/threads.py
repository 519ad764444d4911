"""Threads that run kernels: starting them, and getting them out of a system call that a peer made to block.

A peer shares the file descriptions of the eventfds between us: it can take O_NONBLOCK off one, fill or empty it, and so
catch a thread of ours between its poll() and its read() or write(). A signal with an empty handler, installed without
SA_RESTART, makes such a call return -EINTR; the thread then sees its stop word. Control context only.
"""

from __future__ import annotations

import ctypes
import errno
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from virtblk.jit.atomics import load_acquire_i64
from virtblk.jit.sigbus import SigAction

#: Nobody's: neither glibc's, nor Python's, nor any that a program sends by accident.
_SIGNAL: Final = signal.SIGRTMIN + 8
_POKE_SECONDS: Final = 0.05
_PR_SET_TIMERSLACK: Final = 29
_libc = ctypes.CDLL(None, use_errno=True)
_lock = threading.Lock()
_installed = False


def _install() -> None:
    """An empty handler, once per process. It is getpid(), which does nothing and may be called in a handler."""
    global _installed
    with _lock:
        if not _installed:
            action = SigAction(ctypes.cast(_libc.getpid, ctypes.c_void_p).value)
            if _libc.sigaction(int(_SIGNAL), ctypes.byref(action), None):
                raise OSError(ctypes.get_errno(), "sigaction")
            _installed = True


def fine_timers() -> None:
    """Have this thread's timed waits end on time (prctl(2), PR_SET_TIMERSLACK): the default is 50 us late."""
    _libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1))


def start_thread(target: Callable[..., Any], *arguments: Any, name: str) -> threading.Thread:
    """A running daemon thread. Raises OSError (EAGAIN) where the system has none to give."""
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"no thread for {name}: {error}") from error
    return thread


def end_thread(thread: threading.Thread, done: int, seconds: float) -> bool:
    """Wait for a thread whose stop word is set until the word at address `done` is; out of blocked calls, if need be.

    False where it does not end within `seconds`: then its memory must stay.
    """
    deadline = time.monotonic() + seconds
    thread.join(_POKE_SECONDS)
    while thread.is_alive() and time.monotonic() < deadline:
        _install()
        if thread.ident is not None:
            signal.pthread_kill(thread.ident, _SIGNAL)
        thread.join(_POKE_SECONDS)
    return load_acquire_i64(done) != 0
