"""`nbd:URI`: a disk that an NBD server exports (nbdkit, qemu-nbd: qcow2, Ceph RBD, S3, ssh), through libnbd.

One I/O thread per disk sends commands, many at a time, and ends requests; nothing else touches the connection. Data
goes through a buffer per command: a request that was given up leaves no pointer to a guest's memory behind.

What happens when the connection is lost:

- What was in flight is sent again on the next connection (the same bytes to the same place: doing it twice is doing it
  once). A request that has seen a loss is given up, with EIO, where there is no connection `retry` seconds after it.
- Writes that the server acknowledged and that were neither FUA nor flushed since may be lost: it may have crashed.
  Every flush that could vouch for them fails with EIO, the one under way or the next one, once (as fsync(2) after a
  write-back error); a guest's file system then knows.
- `storage.nbd_connector` goes on trying for as long as the disk is open, so that later requests work again.
- An export that comes back smaller is another disk: everything fails with EIO from then on.

A server that says nothing at all for `silence` seconds while commands wait, or leaves a single one without an answer
for `answer` seconds, counts as lost too: every request ends.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from virtblk.errors import OpenError
from virtblk.jit.threads import start_thread
from virtblk.names import DiskName, format_size
from virtblk.storage.io_request import Request
from virtblk.storage.nbd_commands import Command, commands_of, gather, limits_of, needs_patching, scatter
from virtblk.storage.nbd_connection import GONE, Connection, connect
from virtblk.storage.nbd_connector import Connector
from virtblk.storage.request import FLAG_FUA, FLAG_UNMAP, OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES
from virtblk.storage.storage import Storage

log = logging.getLogger("virtblk.storage")

#: Commands on their way at once, and bytes of their buffers: enough for a fast network's round trip.
WINDOW: Final = 128
WINDOW_BYTES: Final = 64 << 20

#: The I/O thread looks at once when it is told to end; this is for a machine that is busy.
_JOIN_SECONDS: Final = 5.0

_LARGEST_BLOCK: Final = 65536  # NBD protocol, "Block size constraints"


class Times(NamedTuple):
    """How long things may take, in seconds."""

    connect: float = 10.0  # one attempt
    retry: float = 3.0  # a request without a connection, from the first loss it saw
    silence: float = 60.0  # a server that has commands to answer; a flush of a slow disk takes its time
    answer: float = 300.0  # one command, whatever else the server answers meanwhile
    first_delay: float = 0.05  # between attempts to connect
    longest_delay: float = 1.0  # shorter than `retry`, so that a request finds a server that is back
    goodbye: float = 1.0  # for the server to hang up at close()


_TIMES: Final = Times()


def open_nbd(name: DiskName, times: Times = _TIMES) -> Storage:
    """Connect to the server. Raises UsageError for a bad URI, OpenError for everything else that is wrong."""
    connection = connect(name.text, name.rest, times.connect)
    try:
        return NbdStorage(name.text, name.rest, connection, times)
    except BaseException:
        connection.close()
        raise


@dataclass(slots=True, eq=False)
class _Job:
    """A request and where it stands. Owned by the I/O thread."""

    request: Request
    serial: int
    commands: Iterator[Command] | None = None  # None before it has begun
    alone: bool = False  # patches blocks: no other job beside it
    out: int = 0  # commands that are in flight or to be sent again
    made: bool = False  # there are no more commands to make
    error: int = 0
    ended: bool = False
    deadline: float | None = None  # to be given up then, where there is no connection


@dataclass(slots=True, eq=False)
class _Sent:
    """A command that has been sent, or will be again."""

    job: _Job
    command: Command
    op: int  # what is sent: OP_READ first for a patch
    fua: bool
    buffer: bytearray | None = None
    pin: Any = None  # holds the buffer's address
    covers: int = 0  # of a flush: the writes acknowledged when it was sent
    at: float = 0.0  # when it was sent (CLOCK_MONOTONIC, seconds)


class NbdStorage(Storage):
    """A disk behind an NBD server. Takes over `connection`, which is ready."""

    def __init__(self, name: str, uri: str, connection: Connection, times: Times = _TIMES) -> None:
        export = connection.export
        block_size = max(export.minimum, 512)
        if block_size & (block_size - 1) or block_size > _LARGEST_BLOCK:
            raise OpenError(errno.EINVAL, f"disk {name!r}: the server's smallest block is {export.minimum} bytes")
        size = export.size // block_size * block_size
        if not size:
            raise OpenError(errno.EINVAL, f"disk {name!r}: the export has {export.size} bytes, less than one block")
        self.name, self.size, self.block_size = name, size, block_size
        if export.preferred > block_size and export.preferred % block_size == 0:
            self.opt_io_size = export.preferred
        self.read_only = export.read_only
        self.can_flush, self.can_fua = export.can_flush, export.can_fua
        self.can_discard = export.can_trim and not export.read_only
        self.can_write_zeroes = self.can_unmap = export.can_zero and not export.read_only
        self._uri, self._times = uri, times
        # Shared, under the lock:
        self._lock = threading.Lock()
        self._inbox: list[_Job] = []
        self._arrived: Connection | None = None
        self._closing = False
        self._over = False  # nobody takes from the inbox any more
        self._serial = 0
        # The I/O thread's:
        self._connection: Connection | None = connection
        self._limits = limits_of(export.minimum, export.maximum)
        self._queue: deque[_Job] = deque()  # not begun
        self._current: _Job | None = None  # begun, and has commands to make
        self._active: dict[_Job, None] = {}  # begun, with commands out
        self._again: deque[_Sent] = deque()  # to be sent before anything new
        self._in_flight: dict[int, _Sent] = {}
        self._bytes = 0  # of all buffers
        self._acknowledged = 0  # changes that the server acknowledged, FUA apart
        self._flushed = 0  # those that a flush has made durable
        self._lost_writes = False  # the next flush has to say so
        self._suspect = 0  # as have flushes up to this serial
        self._broken = 0  # errno of every request, once the export is another one
        self._gone = False  # the connection is, or will be
        # What happened, for metrics:
        self._reconnects = self._sent_again = self._failed_flushes = self._given_up = 0
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._connector: Connector | None = None

    # Control context

    def start(self) -> None:
        """Start the threads. Raises OSError where the system has none to give."""
        times = self._times
        delays = (times.first_delay, times.longest_delay)
        self._connector = Connector(self.name, self._uri, times.connect, delays, self._deliver)
        self._thread = start_thread(self._run, name="virtblk-nbd")

    def close(self) -> None:
        """End the threads and the connection, within a few seconds whatever the server does. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            os.eventfd_write(self._wake_fd, 1)
        if self._connector is not None:
            self._connector.close(self._times.goodbye)
        if self._thread is None:
            self._finish()
        else:
            self._thread.join(self._times.goodbye + _JOIN_SECONDS)
            if self._thread.is_alive():  # whoever it tells of a request's end holds it
                log.error("disk %r: the I/O thread does not end", self.name)
                return
        os.close(self._wake_fd)

    def counters(self) -> dict[str, float]:
        """For metrics; read without a lock, each figure for itself."""
        return {
            "nbd_connected": int(self._connection is not None),
            "nbd_reconnects": self._reconnects,
            "nbd_commands_in_flight": len(self._in_flight),
            "nbd_commands_sent_again": self._sent_again,
            "nbd_requests_given_up": self._given_up,
            "nbd_flushes_failed_for_lost_writes": self._failed_flushes,
        }

    # Any thread

    def submit(self, batch: Sequence[Request]) -> None:
        """Queue the requests and wake the I/O thread, which ends them. Never blocks."""
        with self._lock:
            over = self._over or self._closing
            if not over:
                for request in batch:
                    self._serial += 1
                    self._inbox.append(_Job(request, self._serial))
                os.eventfd_write(self._wake_fd, 1)
        if over:
            for request in batch:
                request.end(errno.EIO)

    def _deliver(self, connection: Connection) -> None:
        """The next connection, from the connector's thread."""
        with self._lock:
            if not (self._over or self._closing):
                self._arrived = connection
                os.eventfd_write(self._wake_fd, 1)
                return
        connection.close()

    # The I/O thread

    def _run(self) -> None:
        try:
            while not self._closing:
                self._send_all()
                if self._wait():
                    self._take()
                self._reap()
                self._give_up()
        except Exception:
            log.exception("disk %r: the I/O thread ends; every request fails", self.name)
        finally:
            self._finish()

    def _finish(self) -> None:
        """Leave nothing behind: no connection, no request that has not ended."""
        with self._lock:
            self._over = True
            jobs, self._inbox = self._inbox, []
            arrived, self._arrived = self._arrived, None
        if arrived is not None:
            arrived.close()
        if self._connection is not None:
            if not self._in_flight:
                self._connection.disconnect(self._times.goodbye)
            self._connection.close()
            self._connection = None
        self._in_flight.clear()
        for job in [*self._outstanding(), *jobs]:
            self._end(job, errno.EIO)

    def _outstanding(self) -> list[_Job]:
        return [*self._active, *self._queue]

    def _wait(self) -> bool:
        """Wait for another thread, the server, or the time to give something up. True where it was another thread."""
        now = time.monotonic()
        if self._connection is not None:
            limit = self._limit(self._connection)
            left = None if limit is None else limit - now
            return self._connection.wait(self._wake_fd, 0 if self._gone else left)
        deadlines = [job.deadline for job in self._outstanding() if job.deadline is not None and not job.ended]
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        return bool(poller.poll(max(min(deadlines) - now, 0) * 1000 if deadlines else None))

    def _limit(self, connection: Connection) -> float | None:
        """When the server will have been silent for too long (CLOCK_MONOTONIC, seconds)."""
        if not self._in_flight:
            return None
        oldest = next(iter(self._in_flight.values()))
        return min(connection.heard + self._times.silence, oldest.at + self._times.answer)

    def _take(self) -> None:
        """What other threads have left: requests, a connection."""
        with self._lock:
            jobs, self._inbox = self._inbox, []
            arrived, self._arrived = self._arrived, None
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        for job in jobs:
            if refused := self._broken or _refusal(self, job.request):
                self._end(job, refused)
                continue
            if self._connection is None:
                job.deadline = time.monotonic() + self._times.retry
            self._queue.append(job)
        if any(job.request.op == OP_FLUSH for job in jobs):
            self._fail_flushes()
        if arrived is not None:
            self._adopt(arrived)

    def _adopt(self, connection: Connection) -> None:
        export = connection.export
        if export.size < self.size:
            connection.close()
            self._broken = errno.EIO
            log.error(
                "disk %r: the export came back with size %s instead of %s: no longer the same disk, all I/O fails now",
                self.name,
                format_size(export.size),
                format_size(self.size),
                extra={"event": "nbd_shrunk", "disk": self.name},
            )
            for job in self._outstanding():
                self._end(job, errno.EIO)
            self._drop_ended()
            return
        self._connection, self._gone = connection, False
        self._limits = limits_of(export.minimum, export.maximum)
        self._reconnects += 1
        log.warning(
            "disk %r: connected again, %d commands are sent again",
            self.name,
            len(self._again),
            extra={"event": "nbd_connected", "disk": self.name},
        )

    def _send_all(self) -> None:
        """Send what there is, as far as the window goes."""
        while self._connection is not None and not self._gone and len(self._in_flight) < WINDOW:
            if self._again:
                self._sent_again += 1
                self._send(self._again.popleft())
                continue
            if self._bytes >= WINDOW_BYTES or not self._make():
                return

    def _make(self) -> bool:
        """Make the next command, of the current job or the next, and send it. False where there is none, or not yet."""
        job = self._current
        if job is None:
            if not self._queue:
                return False
            job = self._queue[0]
            job.alone = needs_patching(job.request, self._limits)
            if self._active and (job.alone or next(iter(self._active)).alone):
                return False
            self._queue.popleft()
            job.commands = commands_of(job.request, self._limits)
            self._current = job
        elif job.alone and job.out:
            return False
        assert job.commands is not None
        command = None if job.error or job.ended else next(job.commands, None)
        if command is None:
            job.made, self._current = True, None
            self._settle(job)
            return True
        job.out += 1
        self._active[job] = None
        op = OP_READ if command.patch else command.op
        fua = bool(job.request.flags & FLAG_FUA) and command.op in (OP_WRITE, OP_WRITE_ZEROES)
        sent = _Sent(job, command, op, fua)
        if command.op in (OP_READ, OP_WRITE):
            sent.buffer = bytearray(command.length)
            sent.pin = ctypes.c_char.from_buffer(sent.buffer)
            self._bytes += command.length
            if op == OP_WRITE:
                gather(job.request.pieces, command.at, memoryview(sent.buffer))
        self._send(sent)
        return True

    def _send(self, sent: _Sent) -> None:
        connection, command = self._connection, sent.command
        assert connection is not None
        address = ctypes.addressof(sent.pin) if sent.pin is not None else 0
        sent.covers = self._acknowledged
        sent.at = time.monotonic()
        hole = bool(sent.job.request.flags & FLAG_UNMAP)
        if not self._in_flight:
            connection.heard = sent.at  # it had nothing to say so far
        try:
            cookie = connection.send(sent.op, address, command.offset, command.length, fua=sent.fua, hole=hole)
        except OSError as error:
            if error.errno == GONE:
                self._gone = True
                self._again.appendleft(sent)
            else:
                log.warning("disk %r: %s", self.name, error.strerror)
                self._done(sent, error.errno or errno.EIO)
            return
        self._in_flight[cookie] = sent

    def _reap(self) -> None:
        """End what the server has answered; find out whether the connection is lost."""
        connection = self._connection
        if connection is None:
            return
        if self._in_flight:
            self._reap_from(connection)
        limit = self._limit(connection)
        silent = limit is not None and time.monotonic() >= limit
        if self._gone or silent or connection.lost:
            self._lose(connection, "no answer in time" if silent else connection.reason or "the server hung up")

    def _reap_from(self, connection: Connection) -> None:
        for cookie, error in connection.reap():
            sent = self._in_flight[cookie]
            if error == GONE:
                self._gone = True  # stays in flight, for _lose
                continue
            del self._in_flight[cookie]
            self._done(sent, error)

    def _done(self, sent: _Sent, error: int) -> None:
        """A command has ended."""
        job, command = sent.job, sent.command
        if not error and not job.ended and sent.op != command.op:  # a patch has been read: put in what is new, write
            assert sent.buffer is not None
            inner = memoryview(sent.buffer)[command.skip : command.skip + command.size]
            if command.zeroes:
                inner[:] = bytes(command.size)
            else:
                gather(job.request.pieces, command.at, inner)
            sent.op = command.op
            self._send(sent)
            return
        if not error:
            if command.op == OP_READ and not job.ended:
                assert sent.buffer is not None
                scatter(job.request.pieces, command.at, memoryview(sent.buffer)[command.skip :][: command.size])
            elif command.op == OP_FLUSH:
                self._flushed = max(self._flushed, sent.covers)
            elif sent.op != OP_READ and not sent.fua:
                self._acknowledged += 1
        self._forget(sent)
        job.error = job.error or error
        self._settle(job)

    def _forget(self, sent: _Sent) -> None:
        if sent.buffer is not None:
            self._bytes -= len(sent.buffer)
            sent.buffer = sent.pin = None
        sent.job.out -= 1

    def _settle(self, job: _Job) -> None:
        """End a job that has no command left."""
        if not job.out and (job.made or job.error or job.ended):
            self._active.pop(job, None)
            if self._current is job:
                self._current = None
            self._end(job, job.error)

    def _end(self, job: _Job, error: int) -> None:
        if not job.ended:
            job.ended = True
            try:
                job.request.end(error)
            except Exception:  # somebody else's code: it must not stop the other requests
                log.exception("disk %r: a request's end failed", self.name)

    # The connection is lost

    def _lose(self, connection: Connection, reason: str) -> None:
        self._connection, self._gone = None, True
        connection.close()  # and with it libnbd's hold on the buffers
        self._again = deque([*(self._in_flight[cookie] for cookie in sorted(self._in_flight)), *self._again])
        self._in_flight.clear()
        unflushed = self._acknowledged - self._flushed
        deadline = time.monotonic() + self._times.retry
        for job in self._outstanding():
            if job.deadline is None:
                job.deadline = deadline
        log.warning(
            "disk %r: connection lost (%s): %d commands to send again, %d acknowledged writes were not flushed",
            self.name,
            reason,
            len(self._again),
            unflushed,
            extra={"event": "nbd_lost", "disk": self.name, "unflushed": unflushed},
        )
        if unflushed:
            self._flushed = self._acknowledged
            self._lost_writes = True
            self._fail_flushes()
        self._drop_ended()
        if self._connector is not None:
            self._connector.want()

    def _fail_flushes(self) -> None:
        """End with EIO what would vouch for lost writes: all flushes submitted before the first of them has ended."""
        failed = False
        for job in self._outstanding():
            if job.request.op == OP_FLUSH and not job.ended and (self._lost_writes or job.serial <= self._suspect):
                self._end(job, errno.EIO)
                self._failed_flushes += 1
                failed = True
        if failed and self._lost_writes:
            self._lost_writes = False
            with self._lock:
                self._suspect = self._serial
        self._drop_ended()

    def _give_up(self) -> None:
        """Without a connection, end what has waited long enough."""
        if self._connection is None:
            now = time.monotonic()
            for job in self._outstanding():
                if job.deadline is not None and job.deadline <= now and not job.ended:
                    self._given_up += 1
                    self._end(job, errno.EIO)
            self._drop_ended()

    def _drop_ended(self) -> None:
        """Forget what belongs to requests that have ended and is not in flight."""
        if all(not job.ended for job in self._outstanding()):
            return
        self._queue = deque(job for job in self._queue if not job.ended)
        dropped = [sent for sent in self._again if sent.job.ended]
        self._again = deque(sent for sent in self._again if not sent.job.ended)
        for sent in dropped:
            self._forget(sent)
        for job in [job for job in self._active if job.ended]:
            self._settle(job)


def _refusal(storage: NbdStorage, request: Request) -> int:
    """The errno for what the export cannot do, 0 where it can."""
    if request.op == OP_FLUSH:
        return 0 if storage.can_flush else errno.EOPNOTSUPP
    if request.op == OP_READ:
        return 0
    if storage.read_only:
        return errno.EROFS
    able = {OP_WRITE: True, OP_WRITE_ZEROES: storage.can_write_zeroes, OP_DISCARD: storage.can_discard}
    if request.flags & FLAG_FUA and request.op != OP_DISCARD and not storage.can_fua:
        return errno.EOPNOTSUPP
    return 0 if able.get(request.op) else errno.EOPNOTSUPP
