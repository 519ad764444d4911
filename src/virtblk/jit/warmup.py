"""Compile before threads start, and say so while it takes long.

Compiling holds a global lock and takes seconds on a machine that has never run virtblk (tens of milliseconds from the
cache after that), so control code calls `ensure` on its own thread before it hands a kernel to others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from numba import typeof
from numba.core import event

from virtblk.jit.kernel import INTERPRETED

_QUIET_SECONDS = 1.0


def ensure(kernel: Any, *arguments: Any) -> None:
    """Compile `kernel` for arguments of these types, or load it from the cache. Nothing to do with the JIT off."""
    if not INTERPRETED:
        kernel.compile(tuple(typeof(argument) for argument in arguments))


class _Progress(event.Listener):
    """Counts compilations; after a second of them prints one line, rewritten on a terminal, every 5 s in a log."""

    def __init__(self, stream: TextIO, who: str) -> None:
        self.stream = stream
        self.who = who
        self.count = 0
        self.began = time.monotonic()
        self.printed = 0.0
        self.tty = stream.isatty()

    def on_start(self, event: Any) -> None:
        self.count += 1
        now = time.monotonic()
        if now - self.began < _QUIET_SECONDS or now - self.printed < (0.2 if self.tty else 5.0):
            return
        self.printed = now
        text = f"{self.who}: compiling for this machine, once: {self.count} functions, {now - self.began:.0f} s"
        self.stream.write(f"\r{text}" if self.tty else f"{text}\n")
        self.stream.flush()

    def on_end(self, event: Any) -> None:
        pass

    def close(self) -> None:
        if self.printed:
            seconds = time.monotonic() - self.began
            text = f"{self.who}: compiled {self.count} functions in {seconds:.0f} s; the next start uses the cache"
            self.stream.write(f"\r{text}\n" if self.tty else f"{text}\n")
            self.stream.flush()


@contextmanager
def progress(stream: TextIO | None = None, who: str = "virtblk") -> Iterator[None]:
    """While the body runs, report compilation on `stream` (standard error) if it takes more than a second."""
    if INTERPRETED:
        yield
        return
    listener = _Progress(stream or sys.stderr, who)
    with event.install_listener("numba:compile", listener):
        try:
            yield
        finally:
            listener.close()
