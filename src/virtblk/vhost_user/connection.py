"""One vhost-user connection: whole messages with their file descriptors, over a Unix stream socket.

Answers to docs/interop/vhost-user.rst, "Communication". `frontend` and `backend` use one each, on the control thread
of their side; only `peer_gone` and `shutdown` may be called from another thread.

A stream has no message boundaries, and SCM_RIGHTS delivers descriptors with a byte, not with a message. So no read ever
asks for more than the rest of one header or of one payload, and every read has room for the kernel's maximum of
descriptors: those of a hostile peer arrive too, and are closed, instead of being cut off at an unknown number.

The socket is non-blocking and every wait is a poll() with a deadline, so that a silent peer, or one that stops in the
middle of a message, costs its timeout and not the thread. Whatever fails between the first and the last byte of a
message leaves the stream out of step: the connection then refuses all further use.
"""

from __future__ import annotations

import array
import errno
import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final

from virtblk.uapi import vhost_user as uapi
from virtblk.vhost_user.message import Message, ProtocolError, decode_header, encode_header

#: Linux' SCM_MAX_FD: what one sendmsg() can carry, and so the most that one recvmsg() can yield.
SCM_MAX_FD: Final = 253
#: sizeof(sun_path) - 1: the longest path that a Unix socket can be bound to, in bytes.
MAX_SOCKET_PATH: Final = 107
#: Seconds that a receiver waits for the rest of a message, once something of it has come.
REST_SECONDS: Final = 3.0

_FD_SIZE: Final = array.array("i").itemsize
_CONTROL_SPACE: Final = socket.CMSG_SPACE(SCM_MAX_FD * _FD_SIZE)
_TIMEVAL: Final = struct.Struct("@ll")  # struct timeval: seconds, microseconds
_UCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class ConnectionClosed(ConnectionError):
    """The peer is gone, or this connection was closed."""


class Stopped(Exception):
    """The `stop_fd` of a wait became readable."""


def check_socket_path(path: str) -> None:
    """ValueError for a path that no Unix socket can have: empty, or longer than 107 bytes."""
    size = len(os.fsencode(path))
    if not 1 <= size <= MAX_SOCKET_PATH:
        raise ValueError(f"socket path of {size} bytes, 1 to {MAX_SOCKET_PATH} are possible: {path!r}")


class Connection:
    """Owns `sock`, and sends and receives whole messages on it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._closing = threading.Lock()
        self._unusable = ""  # why, once the stream is out of step

    @classmethod
    def connect(cls, path: str, timeout: float) -> Connection:
        """Connect to a listening socket; `timeout` in seconds covers a full backlog.

        Raises OSError with the path (ENOENT, ECONNREFUSED, EACCES, ...), TimeoutError, ValueError for a bad path.
        """
        check_socket_path(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # connect() on a non-blocking Unix socket fails at once when the backlog is full; SO_SNDTIMEO makes the
            # blocking call wait for a bounded time instead.
            timeval = divmod(max(1, int(timeout * 1e6)), 10**6)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(*timeval))
            sock.connect(path)
        except BlockingIOError:
            sock.close()
            raise TimeoutError(errno.ETIMEDOUT, f"not accepted within {timeout:g} s", path) from None
        except OSError as error:
            sock.close()
            raise OSError(error.errno, error.strerror, path) from None
        return cls(sock)

    def send(
        self,
        request: int,
        flags: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        timeout: float | None = None,
        *,
        stop_fd: int = -1,
    ) -> None:
        """Send one message; `fds` stay the caller's. `timeout` in seconds, None for no limit.

        Raises ConnectionClosed, TimeoutError, Stopped, OSError (EBADF) for a descriptor that is not open, and
        ValueError for more than 8 of them.
        """
        if len(fds) > uapi.VHOST_USER_MAX_FDS:
            raise ValueError(f"{len(fds)} file descriptors: a message carries at most {uapi.VHOST_USER_MAX_FDS}")
        self._check_usable()
        deadline = _deadline(timeout)
        rest = memoryview(encode_header(request, flags, len(payload)) + payload)
        whole = len(rest)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            while rest:
                try:
                    sent = self._sock.sendmsg([rest], control, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    self._wait(select.POLLOUT, deadline, stop_fd)
                    continue
                control = []  # the first byte carried them
                rest = rest[sent:]
        except (BrokenPipeError, ConnectionResetError):
            raise ConnectionClosed("the peer closed the connection") from None
        finally:
            if 0 < len(rest) < whole:
                self._unusable = "a message was sent only in part"

    def recv(self, timeout: float | None = None, *, stop_fd: int = -1) -> Message:
        """Receive one message; it owns the descriptors that came with it. `timeout` in seconds, None for no limit.

        Raises ConnectionClosed at the end of the stream, ProtocolError for a header that cannot be or a message whose
        rest stays away, TimeoutError, and Stopped as soon as `stop_fd` is readable. No descriptor survives any of them.
        """
        self._check_usable()
        deadline = _deadline(timeout)
        fds: list[int] = []
        begun = False
        try:
            data = self._recv_exactly(uapi.HEADER.size, fds, deadline, stop_fd, "header")
            begun = True
            header = decode_header(data)
            payload = self._recv_exactly(header.size, fds, deadline, stop_fd, "payload")
        except BaseException as error:
            _close_all(fds)
            # A timeout before the first byte leaves the stream in step; _recv_exactly says so for the header.
            if begun and not self._unusable:
                self._unusable = f"{type(error).__name__} in the middle of a message"
            raise
        surplus = fds[uapi.VHOST_USER_MAX_FDS :]
        _close_all(surplus)
        return Message(header.request, header.flags, payload, fds[: uapi.VHOST_USER_MAX_FDS], len(surplus))

    def fileno(self) -> int:
        """For poll(). -1 once closed."""
        return self._sock.fileno()

    def is_named(self) -> bool:
        """Whether this end has an address, as a connection that was accepted from a socket in the file system has."""
        return bool(self._sock.getsockname())

    def peer_pid(self) -> int | None:
        """The process that connected or, on the connecting side, the one that called listen(). None if unknown."""
        try:
            ucred = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError:
            return None
        pid = int(_UCRED.unpack(ucred)[0])
        return pid if pid > 0 else None  # 0: a process of another PID namespace

    def peer_gone(self) -> bool:
        """Whether the peer hung up, or this side closed: no use of the connection can succeed. Never waits."""
        with self._closing:  # close() on the control thread must not recycle the descriptor in between
            if self._sock.fileno() < 0:
                return True
            poller = select.poll()
            poller.register(self._sock, select.POLLRDHUP)
            return bool(poller.poll(0))

    def shutdown(self) -> None:
        """End the conversation without closing: both sides read the end of the stream, a recv() in progress too."""
        with self._closing, suppress(OSError):  # closed, or the peer did it first
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Harmless when repeated."""
        with self._closing:
            self._unusable = "closed"
            self._sock.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _recv_exactly(self, size: int, fds: list[int], deadline: float | None, stop_fd: int, part: str) -> bytes:
        """`size` bytes; descriptors that come along go into `fds` at once, so that the caller can close them.

        What has begun has to go on within REST_SECONDS: among the descriptors of half a message may be the peer's own
        end, and while we hold that, we do not hear of the peer's death.
        """
        data = bytearray()
        rest = _deadline(REST_SECONDS) if part == "payload" else None
        try:
            while len(data) < size:
                try:
                    piece, control, flags, _ = self._sock.recvmsg(
                        size - len(data), _CONTROL_SPACE, socket.MSG_CMSG_CLOEXEC
                    )
                except BlockingIOError:
                    if rest is None or (deadline is not None and deadline <= rest):
                        self._wait(select.POLLIN, deadline, stop_fd)
                    else:
                        self._wait_for_rest(rest, stop_fd, part)
                    continue
                except ConnectionResetError:
                    piece, control, flags = b"", [], 0
                for level, kind, value in control:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        received = array.array("i")
                        received.frombytes(value[: len(value) // _FD_SIZE * _FD_SIZE])
                        fds.extend(received)
                if flags & socket.MSG_CTRUNC:
                    # There was room for all that can be sent: this process must be out of descriptors.
                    raise ProtocolError("file descriptors of a message were lost: too many open files?")
                if not piece:
                    where = f" after {len(data)} of {size} bytes of a {part}" if data or part != "header" else ""
                    raise ConnectionClosed(f"the peer closed the connection{where}")
                data += piece
                rest = _deadline(REST_SECONDS)
        except BaseException as error:
            if data or fds:
                self._unusable = f"{type(error).__name__} in the middle of a message"
            raise
        return bytes(data)

    def _wait_for_rest(self, until: float, stop_fd: int, part: str) -> None:
        try:
            self._wait(select.POLLIN, until, stop_fd)
        except TimeoutError:
            raise ProtocolError(f"the rest of a {part} did not come within {REST_SECONDS:g} s") from None

    def _wait(self, events: int, deadline: float | None, stop_fd: int) -> None:
        poller = select.poll()
        poller.register(self._sock, events)
        if stop_fd >= 0:
            poller.register(stop_fd, select.POLLIN)
        if deadline is None:
            ready = poller.poll()
        else:
            ready = poller.poll(math.ceil(max(0.0, deadline - time.monotonic()) * 1000))
        if any(fd == stop_fd for fd, _ in ready):
            raise Stopped("asked to stop")
        if not ready:
            raise TimeoutError("the peer did not answer in time")

    def _check_usable(self) -> None:
        if self._unusable:
            raise ConnectionClosed(f"the connection cannot be used any more: {self._unusable}")


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
