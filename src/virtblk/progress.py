"""Long work that tells of itself: a bar on one line of a terminal, a line now and then in a log. Control context."""

from __future__ import annotations

import time
from typing import Final, TextIO

#: Seconds between two lines in a log, and between two looks of a bar.
LOG_SECONDS: Final = 5.0
TTY_SECONDS: Final = 0.2
BAR: Final = 24


class StatusLine:
    """One line on `stream`, rewritten where that is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._tty = stream.isatty()
        self._width = 0
        self.begin()

    def begin(self) -> None:
        """Something new begins: told at once on a terminal, after a while in a log."""
        self._last = 0.0 if self._tty else time.monotonic()

    def due(self) -> bool:
        """Whether it is time for another line; if so, the next is due a while from now."""
        now = time.monotonic()
        if now - self._last < (TTY_SECONDS if self._tty else LOG_SECONDS):
            return False
        self._last = now
        return True

    def write(self, text: str, share: float | None = None) -> None:
        """The line, with a bar of `share` (0 to 1) where that is known."""
        if self._tty:
            if share is not None:
                done = round(share * BAR)
                text = f"[{'#' * done}{'.' * (BAR - done)}] {text}"
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def clear(self) -> None:
        """Take the line off the terminal."""
        if self._tty and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0
