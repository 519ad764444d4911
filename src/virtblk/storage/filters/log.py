"""`log`: one line for each request that ended (Linux: blktrace; nbdkit: log).

======  ====================================================================================================
file=   append the lines to this file or FIFO; without it they go to the logger `virtblk.storage.log` as INFO
======  ====================================================================================================

A line, times in seconds since the disk was opened::

    t=12.034519 op=write offset=4096 length=8192 flags=fua id=17 latency_us=153.2 errno=0

`ranges=` stands in place of offset and length for discard and write zeroes: `0+4096/16384+512`. One thread writes; it
is the only one that a slow file can stop. At most 8192 lines wait for it: those beyond are dropped and counted
(`log_dropped`).
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Final

from virtblk.errors import OpenError
from virtblk.jit.threads import start_thread
from virtblk.names import FilterName
from virtblk.storage.filters.filter import OP_NAMES, Filter
from virtblk.storage.io_request import Request
from virtblk.storage.request import FLAG_FUA, FLAG_UNMAP
from virtblk.storage.storage import Storage

log = logging.getLogger("virtblk.storage")
lines_log = logging.getLogger("virtblk.storage.log")

#: Lines that may wait for the writer.
QUEUE: Final = 8192
#: Ranges of one request that a line shows.
_RANGES: Final = 8
#: Seconds that close() gives a file that takes nothing.
_CLOSE_SECONDS: Final = 1.0
_POLL_MS: Final = 100


class Log(Filter):
    filter_name: ClassVar[str] = "log"

    def __init__(self, lower: Storage, name: FilterName, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(lower, name)
        name.refuse_other_keys("file")
        path = name.path_key("file")
        self.writer = LineWriter(-1 if path is None else _open(name, path))
        self._clock = clock
        self._opened = clock()
        self._ids = itertools.count(1)

    def start(self) -> None:
        super().start()
        self.writer.start()

    def submit(self, batch: Sequence[Request]) -> None:
        now = self._clock()
        for request in batch:
            request.then(partial(self._ended, next(self._ids), now))
        self.lower.submit(batch)

    def _ended(self, number: int, submitted: float, request: Request, error: int) -> int:
        now = self._clock()
        self.writer.put(_line(request, number, submitted - self._opened, now - submitted, error))
        return error

    def close(self) -> None:
        super().close()
        self.writer.close()

    def own_counters(self) -> dict[str, float]:
        return {"lines": self.writer.written, "dropped": self.writer.dropped}


def _open(name: FilterName, path: str) -> int:
    """The file, to append to. O_NONBLOCK: neither a FIFO without a reader nor a full one holds anybody."""
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise OpenError(error.errno, f"filter {name.text!r}: cannot open {path}: {error.strerror}") from error


def _line(request: Request, number: int, at: float, latency: float, error: int) -> str:
    if request.ranges:
        shown = "/".join(f"{offset}+{length}" for offset, length in request.ranges[:_RANGES])
        where = f"ranges={shown}{'/...' if len(request.ranges) > _RANGES else ''}"
    else:
        where = f"offset={request.offset} length={request.length}"
    flags = "+".join(text for bit, text in ((FLAG_FUA, "fua"), (FLAG_UNMAP, "unmap")) if request.flags & bit) or "-"
    return (
        f"t={at:.6f} op={OP_NAMES.get(request.op, request.op)} {where} flags={flags} id={number}"
        f" latency_us={latency * 1e6:.1f} errno={errno.errorcode.get(error, error)}\n"
    )


class LineWriter:
    """Lines on their way to a file (its `fd` is owned and non-blocking) or, for -1, to the logger."""

    def __init__(self, fd: int) -> None:
        self.written = 0
        self.dropped = 0
        self._fd = fd
        self._lines: list[str] = []
        self._wake = threading.Condition()
        self._closing = False
        self._give_up_at: float | None = None
        self._torn = False  # the file ends in half a line
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread = start_thread(self._run, name="virtblk-log")

    def put(self, line: str) -> None:
        """Take a line, or drop it where too many wait. Never blocks."""
        with self._wake:
            if len(self._lines) >= QUEUE:
                self.dropped += 1
                return
            self._lines.append(line)
            if len(self._lines) == 1:
                self._wake.notify()

    def close(self) -> None:
        """Write what waits, unless the file takes nothing for a second. Idempotent."""
        with self._wake:
            self._give_up_at = self._give_up_at or time.monotonic() + _CLOSE_SECONDS
            self._closing = True
            self._wake.notify()
        if self._thread is None:
            self._close_fd()
        else:
            self._thread.join(2 * _CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    while not self._lines and not self._closing:
                        self._wake.wait()
                    lines, self._lines = self._lines, []
                if not lines:
                    return
                self._write(lines)
        finally:
            self._close_fd()

    def _write(self, lines: list[str]) -> None:
        if self._fd < 0:
            for line in lines:
                lines_log.info("%s", line.rstrip("\n"))
            self.written += len(lines)
            return
        data = memoryview((b"\n" if self._torn else b"") + "".join(lines).encode())
        done = 0
        try:
            while done < len(data) and not self._too_late():
                done += self._write_some(data[done:])
        except OSError as error:
            if not self.dropped:
                log.warning("log filter: lines are dropped: %s", error.strerror)
        if done:
            self._torn = data[done - 1] != ord("\n")
        whole = max(0, len(lines) - bytes(data[done:]).count(b"\n"))
        self.written += whole
        with self._wake:
            self.dropped += len(lines) - whole

    def _write_some(self, data: memoryview) -> int:
        """How much of it the file took; 0 after a wait if it takes nothing now."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll(_POLL_MS)
            return 0

    def _too_late(self) -> bool:
        return self._give_up_at is not None and time.monotonic() > self._give_up_at

    def _close_fd(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
