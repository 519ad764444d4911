"""Requests to a storage, and waiting for how they end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise

from virtblk.storage.io_request import Request
from virtblk.storage.request import OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES
from virtblk.storage.storage import Storage
from waiting import PATIENCE


class Pending(Request):
    """A request that remembers how it ended. Its pieces are writable and held here."""

    def __init__(
        self,
        op: int,
        offset: int = 0,
        data: bytes = b"",
        *,
        cuts: Sequence[int] = (),
        ranges: Sequence[tuple[int, int]] = (),
        flags: int = 0,
    ) -> None:
        self.buffer = bytearray(data)
        bounds = [0, *sorted(cuts), len(data)]
        view = memoryview(self.buffer)
        pieces = [view[start:stop] for start, stop in pairwise(bounds)]
        super().__init__(
            op, offset=offset, length=len(data), pieces=pieces, ranges=list(ranges), flags=flags, on_end=self._note
        )
        self._error = 0
        self._done = threading.Event()

    def _note(self, _: Request, error: int) -> None:
        self._error = error
        self._done.set()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def result(self) -> int:
        """The errno it ended with."""
        assert self._done.wait(PATIENCE), "the request has not ended"
        return self._error


def read(offset: int, length: int, cuts: Sequence[int] = ()) -> Pending:
    return Pending(OP_READ, offset, b"\xee" * length, cuts=cuts)


def write(offset: int, data: bytes, cuts: Sequence[int] = (), flags: int = 0) -> Pending:
    return Pending(OP_WRITE, offset, data, cuts=cuts, flags=flags)


def flush() -> Pending:
    return Pending(OP_FLUSH)


def discard(*ranges: tuple[int, int]) -> Pending:
    return Pending(OP_DISCARD, ranges=ranges)


def write_zeroes(*ranges: tuple[int, int], flags: int = 0) -> Pending:
    return Pending(OP_WRITE_ZEROES, ranges=ranges, flags=flags)


def run(storage: Storage, *requests: Pending) -> int:
    """Submit as one batch and wait for all: the first errno that is not 0, or 0."""
    storage.submit(list(requests))
    errors = [request.result() for request in requests]
    return next(filter(None, errors), 0)


def pread(storage: Storage, offset: int, length: int) -> bytes:
    request = read(offset, length)
    assert run(storage, request) == 0
    return bytes(request.buffer)
