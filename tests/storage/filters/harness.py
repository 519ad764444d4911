"""A disk to put filters on: plain bytes, which can hold requests back, fail them, and tells what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from virtblk.names import parse_filter
from virtblk.storage.filters import FILTERS
from virtblk.storage.io_request import Request
from virtblk.storage.request import (
    KIND_REQUESTS,
    OP_DISCARD,
    OP_FLUSH,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
)
from virtblk.storage.storage import Storage
from waiting import PATIENCE

SECTOR = 512


class LowerDisk(Storage):
    """Executes at once on the caller's thread, or, while `hold` is set, when `release()` is called."""

    def __init__(self, size: int = 32 * SECTOR, **attributes: Any) -> None:
        self.name, self.size, self.kind, self.address = "ram:test", size, KIND_REQUESTS, 0
        self.block_size, self.physical_block_size, self.min_io_size, self.opt_io_size = 512, 0, 0, 0
        self.alignment_offset, self.read_only, self.can_flush, self.can_fua = 0, False, True, False
        self.can_discard = self.can_write_zeroes = self.can_unmap = True
        self.writeback = self.writeback_settable = True
        for key, value in attributes.items():
            setattr(self, key, value)
        self.data = bytearray(size)
        self.hold = False
        self.held: list[Request] = []
        self.asked: list[Request] = []
        self.fails: Callable[[Request], int] = lambda request: 0
        self.starts = self.closes = self.populates = 0
        self.lock = threading.Lock()

    def submit(self, batch: Sequence[Request]) -> None:
        with self.lock:
            self.asked += batch
            if self.hold:
                self.held += batch
                return
        for request in batch:
            self.execute(request)

    def release(self) -> None:
        """Execute what is held."""
        with self.lock:
            held, self.held = self.held, []
        for request in held:
            self.execute(request)

    def let_go(self) -> None:
        """Hold nothing back any more."""
        with self.lock:
            self.hold = False
        self.release()

    def execute(self, request: Request) -> None:
        error = self.fails(request)
        if not error:
            with self.lock:
                self._move(request)
        request.end(error)

    def _move(self, request: Request) -> None:
        at = request.offset
        if request.op in (OP_DISCARD, OP_WRITE_ZEROES):
            for offset, length in request.ranges:
                self.data[offset : offset + length] = bytes(length)
        elif request.op != OP_FLUSH:
            assert sum(len(piece) for piece in request.pieces) == request.length
            for piece in request.pieces:
                if request.op == OP_READ:
                    piece[:] = self.data[at : at + len(piece)]
                else:
                    self.data[at : at + len(piece)] = piece
                at += len(piece)

    def ops(self) -> list[int]:
        return [request.op for request in self.asked]

    def start(self) -> None:
        self.starts += 1

    def populate(self) -> None:
        self.populates += 1

    def close(self) -> None:
        self.closes += 1

    def counters(self) -> dict[str, float]:
        return {"asked": len(self.asked)}


class Call:
    """A request, and how it ended."""

    def __init__(self, op: int, **fields: Any) -> None:
        self._ended = threading.Event()
        self._errors: list[int] = []
        self.request = Request(op, on_end=self._on_end, **fields)

    def _on_end(self, request: Request, error: int) -> None:
        self._errors.append(error)
        self._ended.set()

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    @property
    def error(self) -> int:
        """The errno it ended with, waited for."""
        assert self._ended.wait(PATIENCE), "the request does not end"
        assert len(self._errors) == 1
        return self._errors[0]


def read_call(offset: int, length: int, cut: int = 0) -> Call:
    """A read into one buffer, or into two pieces of it."""
    buffer = memoryview(bytearray(b"\xee" * length))
    return Call(OP_READ, offset=offset, length=length, pieces=_two(buffer, cut))


def write_call(offset: int, data: bytes, flags: int = 0, cut: int = 0) -> Call:
    return Call(OP_WRITE, offset=offset, length=len(data), pieces=_two(memoryview(data), cut), flags=flags)


def _two(buffer: memoryview, cut: int) -> list[memoryview]:
    return [buffer[:cut], buffer[cut:]] if cut else [buffer]


def content(call: Call) -> bytes:
    """What a read got."""
    assert call.error == 0
    return b"".join(bytes(piece) for piece in call.request.pieces)


def run(disk: Storage, *calls: Call) -> list[int]:
    """Submit them as one batch; how they ended."""
    disk.submit([call.request for call in calls])
    return [call.error for call in calls]


def read(disk: Storage, offset: int, length: int, cut: int = 0) -> bytes:
    call = read_call(offset, length, cut)
    run(disk, call)
    return content(call)


def write(disk: Storage, offset: int, data: bytes, flags: int = 0) -> int:
    return run(disk, write_call(offset, data, flags))[0]


def flush(disk: Storage) -> int:
    return run(disk, Call(OP_FLUSH))[0]


def zero(disk: Storage, *ranges: tuple[int, int], flags: int = 0) -> int:
    return run(disk, Call(OP_WRITE_ZEROES, ranges=list(ranges), flags=flags))[0]


def discard(disk: Storage, *ranges: tuple[int, int]) -> int:
    return run(disk, Call(OP_DISCARD, ranges=list(ranges)))[0]


def sector(fill: int) -> bytes:
    return bytes([fill]) * SECTOR


def filtered(lower: Storage, text: str, **injected: Any) -> Any:
    """One filter on a disk."""
    name = parse_filter(text, FILTERS)
    return FILTERS[name.name](lower, name, **injected)
