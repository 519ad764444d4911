"""An NBD server for tests, in memory: it does on command what real servers do on bad days.

It answers in the order it likes, holds its answers back, crashes and loses what was not flushed, comes back smaller,
does not finish a handshake, refuses. Its protocol is the fixed newstyle handshake with NBD_OPT_GO and simple replies.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Container
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

READ, WRITE, DISC, FLUSH, TRIM, ZEROES = 0, 1, 2, 3, 4, 6
FUA, NO_HOLE = 1, 2
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_ZEROES = 1, 2, 4, 8, 32, 64
ALL = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_ZEROES

EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108

_OPT_GO, _OPT_ABORT = 7, 2
_REP_ACK, _REP_INFO, _REP_ERR_UNSUP = 1, 3, 0x80000001
_OPT_MAGIC, _REP_MAGIC, _REQUEST_MAGIC, _REPLY_MAGIC = b"IHAVEOPT", 0x3E889045565A9, 0x25609513, 0x67446698


class Seen(NamedTuple):
    """A command as it came in."""

    op: int
    flags: int
    offset: int
    length: int


class NbdServer:
    """Serves `data`. What was not flushed is only in `data`; a crash brings back `stable`."""

    def __init__(self, directory: Path, size: int = 1 << 20, flags: int = ALL, *, tcp: bool = False) -> None:
        self.path = directory / "fake-nbd.sock"
        self.name = "" if tcp else f"nbd:nbd+unix:///?socket={self.path}"
        self.data, self.stable = bytearray(size), bytearray(size)
        self.flags = flags
        self.blocks = (0, 0, 0)  # advertised where one is not 0
        self.errors: dict[int, int] = {}  # op: NBD errno
        self.seen: list[Seen] = []
        self.connections = 0
        self.export = ""  # the name that was asked for
        self.handshake = True  # False: connections are accepted and nothing more
        self.dies_of: int | None = None  # an op that makes it hang up
        self.forgets_replies = False  # executes, and never answers
        self.late = False  # what is held is executed when it is released, the first first
        self._holding: Container[int] = ()
        self._held: list[tuple[socket.socket, Callable[[], bytes]]] = []
        self._lock = threading.RLock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None

    def __enter__(self) -> NbdServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        if self.name.startswith("nbd:nbd+unix:"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.path))
        else:
            listener = socket.create_server(("127.0.0.1", 0))
            self.name = f"nbd:nbd://127.0.0.1:{listener.getsockname()[1]}/an%20export"
        listener.listen()
        self._listener = listener
        self._thread(self._accept, listener)

    def stop(self) -> None:
        """Hang up on everybody and listen no more; what was not answered never will be."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            self.path.unlink(missing_ok=True)
            listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()
        if listener is not None:
            listener.close()

    def crash(self) -> None:
        """As stop(), and what was not flushed is gone."""
        self.stop()
        self.data[:] = self.stable

    def hang_up(self) -> None:
        """Close all connections; new ones are welcome."""
        with self._lock:
            self._held.clear()
            for connection in self._sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def hold(self, *ops: int) -> None:
        """Execute commands and answer none of these `ops`, or none at all."""
        with self._lock:
            self._holding = ops or range(ZEROES + 1)

    def release(self) -> None:
        """Answer what was held, the last first (but see `late`), and go on."""
        with self._lock:
            self._holding = ()
            held, self._held = self._held, []
        for connection, reply in held if self.late else reversed(held):
            with suppress(OSError):
                connection.sendall(reply())

    def resize(self, size: int) -> None:
        self.data, self.stable = (bytearray(old[:size].ljust(size, b"\0")) for old in (self.data, self.stable))

    def ops(self) -> list[int]:
        """What has come in so far, good-byes apart."""
        return [command.op for command in list(self.seen) if command.op != DISC]

    def _thread(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with self._lock:
                    if self._listener is not listener:
                        connection.close()
                        return
                    self._sockets.append(connection)
                    self._thread(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError, EOFError), connection.makefile("rb") as stream:
                if not self.handshake:
                    stream.read(1)
                elif self._negotiate(connection, stream):
                    self.connections += 1
                    self._transmit(connection, stream)
        finally:
            with self._lock:
                self._sockets.remove(connection)
                connection.close()

    def _negotiate(self, connection: socket.socket, stream: Any) -> bool:
        connection.sendall(b"NBDMAGIC" + _OPT_MAGIC + struct.pack(">H", 3))
        _read(stream, 4)
        while True:
            magic, option, length = struct.unpack(">8sII", _read(stream, 16))
            assert magic == _OPT_MAGIC
            data = _read(stream, length)

            def reply(kind: int, data: bytes = b"", option: int = option) -> None:
                connection.sendall(struct.pack(">QIII", _REP_MAGIC, option, kind, len(data)) + data)

            if option == _OPT_GO:
                self.export = data[4 : 4 + int.from_bytes(data[:4], "big")].decode()
                reply(_REP_INFO, struct.pack(">HQH", 0, len(self.data), self.flags))
                if any(self.blocks):
                    reply(_REP_INFO, struct.pack(">HIII", 3, *self.blocks))
                reply(_REP_ACK)
                return True
            if option == _OPT_ABORT:
                return False
            reply(_REP_ERR_UNSUP)

    def _transmit(self, connection: socket.socket, stream: Any) -> None:
        while True:
            magic, flags, op, cookie, offset, length = struct.unpack(">IHHQQI", _read(stream, 28))
            assert magic == _REQUEST_MAGIC
            payload = _read(stream, length) if op == WRITE else b""
            with self._lock:
                forgets = self.forgets_replies
                self.seen.append(Seen(op, flags, offset, length))
                if op == DISC or op == self.dies_of:
                    return
                answer = partial(self._answer, Seen(op, flags, offset, length), cookie, payload)
                if op in self._holding and self.late:
                    self._held.append((connection, answer))
                    continue
                reply = answer()
                if op in self._holding:
                    self._held.append((connection, partial(bytes, reply)))
                    continue
            if not forgets:
                connection.sendall(reply)

    def _answer(self, command: Seen, cookie: int, payload: bytes) -> bytes:
        with self._lock:
            error = self.errors.get(command.op, 0)
            data = b"" if error else self._execute(*command, payload)
            return struct.pack(">IIQ", _REPLY_MAGIC, error, cookie) + data

    def _execute(self, op: int, flags: int, offset: int, length: int, payload: bytes) -> bytes:
        minimum = max(self.blocks[0], 1)
        assert not offset % minimum, f"offset {offset}"
        assert not length % minimum, f"length {length}"
        assert offset + length <= len(self.data)
        part = slice(offset, offset + length)
        if op == READ:
            return bytes(self.data[part])
        if op == WRITE:
            self.data[part] = payload
        elif op in (TRIM, ZEROES):
            self.data[part] = bytes(length)
        elif op == FLUSH:
            self.stable[:] = self.data
        if flags & FUA:
            self.stable[part] = self.data[part]
        return b""


def _read(stream: Any, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data
