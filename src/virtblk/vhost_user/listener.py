"""Who may connect: a listening Unix socket that serves one client at a time.

Answers to docs/interop/vhost-user.rst, "Backend program conventions" (--socket-path, --fd) for its part. `server` makes
one and calls `serve` on the thread that it wants to spend on accepting; each session has a thread of its own.

    free --connect--> busy --disconnect, error--> free
    busy --connect--> busy: the new client is accepted and closed at once, so that it reads an end of file and does not
                      wait in the backlog for a device that is taken
    busy, but its client is gone: the new client waits until what is left of the old session is cleared away

A socket file is taken over only if nobody answers behind it, and removed only if it is still ours.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Protocol

from virtblk.vhost_user.connection import Connection, check_socket_path

log = logging.getLogger("virtblk.vhost_user")

#: Clients that may wait to be accepted, which means: to be refused.
BACKLOG: Final = 16
#: Seconds before another try when accept() fails for want of descriptors or memory.
ACCEPT_RETRY: Final = 0.2


class Session(Protocol):
    """What serves one client; `backend.Backend` is one."""

    def run(self, stop_fd: int) -> str:
        """Serve until the client is gone or `stop_fd` is readable, close the connection, and say in one line why."""


class Listener:
    """Owns a listening socket and, if it made one, its file."""

    def __init__(self, path: str, mode: int = 0o600) -> None:
        """Bind to `path` and listen. The file has exactly `mode`, whatever the umask is.

        Raises ValueError for a path that no socket can have, and OSError with the path: EADDRINUSE if another server
        answers there, EEXIST if something else than a socket is there, and what bind() says.
        """
        check_socket_path(path)
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Linux gives the file the mode of the unbound socket: unlike umask(), this touches no other thread.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(path)
            if mode != 0o600:
                _set_mode(path, mode)  # before listen(): nobody has connected yet
            sock.listen(BACKLOG)
            # Absolute, since the process may change its directory before it removes the file.
            self._file: tuple[str, os.stat_result] | None = (os.path.abspath(path), os.stat(path))
        except OSError as error:
            sock.close()
            raise OSError(error.errno, error.strerror, path) from None
        sock.setblocking(False)
        self._sock = sock

    @classmethod
    def on(cls, sock: socket.socket) -> Listener:
        """Take over a socket that listens already, and has no file that were ours to remove."""
        sock.setblocking(False)
        listener = cls.__new__(cls)
        listener._file = None
        listener._sock = sock
        return listener

    @property
    def path(self) -> str | None:
        """The file, absolute, while it is ours; None without one."""
        return self._file[0] if self._file is not None else None

    def serve(self, make_session: Callable[[Connection], Session], stop_fd: int) -> None:
        """Accept until `stop_fd` is readable, and return once the last session has ended.

        `make_session` is called here, its `run` on a thread of its own; `stop_fd` must stay readable for both, so
        nobody may read it. A client for which `make_session` raises is logged and closed.
        """
        ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        current: _Current | None = None
        try:
            while True:
                poller = select.poll()
                poller.register(stop_fd, select.POLLIN)
                poller.register(ended, select.POLLIN)
                if current is None or not current.is_ending():
                    poller.register(self._sock, select.POLLIN)
                ready = {fd for fd, _ in poller.poll()}
                if stop_fd in ready:
                    return
                if ended in ready and current is not None:
                    os.eventfd_read(ended)
                    current.thread.join()
                    current = None
                elif current is None:
                    conn = self._accept(stop_fd)
                    if conn is not None:
                        current = _begin(conn, make_session, stop_fd, ended)
                elif not current.is_ending():
                    # Asked again, after the new client was seen: one that connects when the old one has hung up waits
                    # for its turn in the backlog, and is never refused.
                    conn = self._accept(stop_fd)
                    if conn is not None:
                        pid = conn.peer_pid()
                        text = "a second client (pid %s) is refused: another is being served"
                        log.warning(text, pid, extra={"event": "session_refused", "pid": pid})
                        conn.close()
        except BaseException:
            if current is not None:
                current.conn.shutdown()  # Ctrl-C: nobody has told the session to stop
            raise
        finally:
            if current is not None:
                current.thread.join()
            os.close(ended)

    def fileno(self) -> int:
        """-1 once closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Stop listening and remove the file, if it is still the one that was made. Harmless when repeated."""
        if self._file is not None:
            path, made = self._file
            self._file = None
            try:
                if os.path.samestat(os.lstat(path), made):
                    os.unlink(path)
            except FileNotFoundError:
                pass
        self._sock.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _accept(self, stop_fd: int) -> Connection | None:
        """The next client, or None if it thought better of it or cannot be accepted now."""
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            # Out of descriptors, most likely. The client stays in the backlog, so poll() would return at once for ever.
            log.warning("cannot accept a client: %s", error, extra={"event": "accept_failed"})
            poller = select.poll()
            poller.register(stop_fd, select.POLLIN)
            poller.poll(ACCEPT_RETRY * 1000)
            return None
        return Connection(sock)


class _Current(NamedTuple):
    """The session being served."""

    conn: Connection
    thread: threading.Thread

    def is_ending(self) -> bool:
        return self.conn.peer_gone() or not self.thread.is_alive()


def _begin(
    conn: Connection, make_session: Callable[[Connection], Session], stop_fd: int, ended: int
) -> _Current | None:
    """Start a session's thread, which writes to `ended` as the last thing it does. None if there can be no session."""

    def run() -> None:
        try:
            reason = session.run(stop_fd)
            log.info("session ended: %s", reason, extra={"event": "session_end", "reason": reason})
        except Exception:
            log.exception("session failed", extra={"event": "session_failed"})
        finally:
            conn.close()
            os.eventfd_write(ended, 1)

    try:
        pid = conn.peer_pid()
        session = make_session(conn)
        log.info("session begun by pid %s", pid, extra={"event": "session_begin", "pid": pid})
        thread = threading.Thread(target=run, name="vhost-user session")
        thread.start()
    except Exception:
        log.exception("no session for a client (pid %s)", conn.peer_pid(), extra={"event": "session_failed"})
        conn.close()
        return None
    return _Current(conn, thread)


def inherited_socket(fd: int) -> tuple[socket.socket, bool]:
    """The Unix stream socket behind an inherited descriptor, and whether it listens (or else is connected).

    Raises ValueError for anything else, and leaves that alone.
    """
    try:
        sock = socket.socket(fileno=fd)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is negative"
        raise ValueError(f"file descriptor {fd} is not a socket: {reason}") from None
    fits = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
    listening = fits and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if fits and not listening:
        try:
            sock.getpeername()
        except OSError:
            fits = False
    if not fits:
        sock.detach()  # not ours to close
        raise ValueError(f"file descriptor {fd} is neither a listening nor a connected Unix stream socket")
    sock.set_inheritable(False)
    return sock, listening


def _set_mode(path: str, mode: int) -> None:
    """chmod() of a socket and of nothing else: in a directory of others, a symbolic link may have taken its place."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise FileExistsError(errno.EEXIST, "was replaced by something that is not a socket", path)
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _remove_stale(path: str) -> None:
    """Make way for a new socket: remove the file of one whose server is gone, and nothing else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "exists and is not a socket", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return  # its server removed it meanwhile
        except BlockingIOError:
            pass  # a full backlog is a sign of life, too
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
    raise OSError(errno.EADDRINUSE, "another server answers there", path)
