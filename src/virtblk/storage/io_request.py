"""One request as Python objects: what a storage of kind KIND_REQUESTS is given, and what filters make of their own.

Made by the device's dispatcher threads, already validated, and by filters; ended once, on any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence


class Request:
    """An operation on a range (`offset`, `length` in bytes), or on `ranges` for OP_DISCARD and OP_WRITE_ZEROES."""

    def __init__(
        self,
        op: int,
        *,
        offset: int = 0,
        length: int = 0,
        pieces: Sequence[memoryview] = (),
        ranges: Sequence[tuple[int, int]] = (),
        flags: int = 0,
        on_end: Callable[[Request, int], object] | None = None,
    ) -> None:
        self.op = op
        self.flags = flags
        self.offset = offset
        self.length = length
        self.pieces = list(pieces)  # a read fills them, a write reads them; together `length` bytes
        self.ranges = list(ranges)
        self._on_end = on_end
        self._callbacks: list[Callable[[Request, int], int]] = []
        self._ended = False
        self._lock = threading.Lock()

    def then(self, callback: Callable[[Request, int], int]) -> None:
        """Run `callback(request, error) -> error` when the request ends; the last one added runs first."""
        self._callbacks.append(callback)

    def end(self, error: int = 0) -> None:
        """It is done: 0, or a positive errno. Any thread. Raises RuntimeError the second time."""
        with self._lock:
            if self._ended:
                raise RuntimeError("a request ended twice")
            self._ended = True
        for callback in reversed(self._callbacks):
            error = callback(self, error)
        if self._on_end is not None:
            self._on_end(self, error)
