"""One connection to an NBD server: made, asked what its export can do, fed with commands, asked which have ended.

A Connection is a libnbd handle and never comes back from the dead: whoever wants another makes a new one. It belongs to
one thread at a time. Nothing here blocks beyond its bound, save that libnbd resolves a host's name in `connect`. Called
by `storage.nbd` on the thread that opens the disk, then on its threads.
"""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from virtblk.errors import OpenError, UsageError
from virtblk.storage import libnbd
from virtblk.storage.request import OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES

_NO_CALLBACK: Final = libnbd.CompletionCallback()
_HUNG_UP: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL

#: What a failed command means to a caller; anything else is EIO.
_ERRNO: Final = {
    errno.EPERM: errno.EROFS,
    errno.EROFS: errno.EROFS,
    errno.ENOSPC: errno.ENOSPC,
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.ENOSPC,
    errno.EOPNOTSUPP: errno.EOPNOTSUPP,
    errno.ENOSYS: errno.EOPNOTSUPP,
}

#: The server goes away (NBD_ESHUTDOWN), or is gone: this command has not failed, its connection has.
GONE: Final = errno.ESHUTDOWN


class Export(NamedTuple):
    """What a server says of an export. Sizes in bytes, 0 where it says nothing."""

    size: int
    minimum: int
    preferred: int
    maximum: int
    read_only: bool
    can_flush: bool
    can_fua: bool
    can_trim: bool
    can_zero: bool


def connect(disk: str, uri: str, seconds: float, stop_fd: int = -1) -> Connection:
    """Connect within `seconds`, or until `stop_fd` is readable.

    Raises UsageError for a URI that libnbd does not take and OpenError for all else, both naming `disk`.
    """
    library = libnbd.load(disk)
    handle = library.nbd_create()
    if not handle:
        raise OpenError(errno.ENOMEM, f"disk {disk!r}: nbd_create: {_text(library)}")
    connection = Connection(library, handle)
    try:
        connection.connect(disk, uri, time.monotonic() + seconds, seconds, stop_fd)
    except BaseException:
        connection.close()
        raise
    return connection


class Connection:
    """A libnbd handle. `export` is what the server said of the export when it was connected."""

    export: Export

    def __init__(self, library: SimpleNamespace, handle: Any) -> None:
        self._library = library
        self._handle = handle
        #: Why the connection was lost, as libnbd puts it; empty where the server just hung up.
        self.reason = ""
        #: When the server last took or gave anything (CLOCK_MONOTONIC, seconds).
        self.heard = time.monotonic()
        self._code = errno.ECONNREFUSED  # of the last step that failed

    def connect(self, disk: str, uri: str, deadline: float, seconds: float, stop_fd: int) -> None:
        """See connect(). The handle is new."""
        library, handle = self._library, self._handle
        library.nbd_set_uri_allow_local_file(handle, True)  # the key files of TLS: the URI is the operator's
        if library.nbd_aio_connect_uri(handle, uri.encode(errors="surrogateescape")) < 0:
            code, text = self._error(), _text(library)
            if code == errno.EINVAL:
                raise UsageError(f"disk {disk!r}: {text}")
            raise OpenError(code, f"disk {disk!r}: cannot connect: {text}")
        while not self.ready:
            if self.lost:
                raise OpenError(self._code, f"disk {disk!r}: cannot connect: {self.reason or 'the server hung up'}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise OpenError(errno.ETIMEDOUT, f"disk {disk!r}: cannot connect: no answer within {seconds:g} s")
            if self.wait(stop_fd, left):
                raise OpenError(errno.ECANCELED, f"disk {disk!r}: closed while it connected")
        size = library.nbd_get_size(handle)
        if size < 0:
            raise OpenError(self._error(), f"disk {disk!r}: {_text(library)}")
        blocks = (libnbd.SIZE_MINIMUM, libnbd.SIZE_PREFERRED, libnbd.SIZE_MAXIMUM)
        abilities = [library.nbd_is_read_only, library.nbd_can_flush, library.nbd_can_fua]
        abilities += [library.nbd_can_trim, library.nbd_can_zero]
        self.export = Export(
            size,
            *(max(library.nbd_get_block_size(handle, which), 0) for which in blocks),
            *(ability(handle) == 1 for ability in abilities),
        )

    def _error(self) -> int:
        return self._library.nbd_get_errno() or errno.EIO

    @property
    def ready(self) -> bool:
        """Whether commands can be sent."""
        library, handle = self._library, self._handle
        return library.nbd_aio_is_ready(handle) == 1 or library.nbd_aio_is_processing(handle) == 1

    @property
    def lost(self) -> bool:
        """Whether it is over: the server closed it, or broke the protocol."""
        library, handle = self._library, self._handle
        return library.nbd_aio_is_dead(handle) == 1 or library.nbd_aio_is_closed(handle) == 1

    def wait(self, other_fd: int, seconds: float | None) -> bool:
        """Wait until libnbd has something to do, let it do one step, and return; or until `other_fd` is readable.

        True where `other_fd` is. A negative fd is ignored; `seconds` None waits for ever.
        """
        library, handle = self._library, self._handle
        fd = library.nbd_aio_get_fd(handle)
        direction = library.nbd_aio_get_direction(handle)
        poller = select.poll()
        if other_fd >= 0:
            poller.register(other_fd, select.POLLIN)
        if fd >= 0:
            mask = select.POLLIN if direction & libnbd.DIRECTION_READ else 0
            poller.register(fd, mask | (select.POLLOUT if direction & libnbd.DIRECTION_WRITE else 0))
        fired = dict(poller.poll(None if seconds is None else max(seconds, 0) * 1000))
        events = fired.get(fd, 0) if fd >= 0 else 0
        if events & (select.POLLIN | _HUNG_UP) and direction & libnbd.DIRECTION_READ:
            self._step(library.nbd_aio_notify_read)
        elif events & (select.POLLOUT | _HUNG_UP) and direction & libnbd.DIRECTION_WRITE:
            self._step(library.nbd_aio_notify_write)
        return other_fd in fired

    def _step(self, notify: Any) -> None:
        self.heard = time.monotonic()
        if notify(self._handle) < 0:
            self._code, self.reason = self._error(), _text(self._library)

    def send(self, op: int, address: int, offset: int, length: int, *, fua: bool = False, hole: bool = False) -> int:
        """Start a command; its cookie. Raises OSError with the errno to report where libnbd refuses.

        `address` is the buffer of a read or write, which stays until the command is reaped or the connection closed.
        """
        library, handle = self._library, self._handle
        flags = libnbd.CMD_FLAG_FUA if fua else 0
        if op == OP_READ:
            cookie = library.nbd_aio_pread(handle, address, length, offset, _NO_CALLBACK, 0)
        elif op == OP_WRITE:
            cookie = library.nbd_aio_pwrite(handle, address, length, offset, _NO_CALLBACK, flags)
        elif op == OP_FLUSH:
            cookie = library.nbd_aio_flush(handle, _NO_CALLBACK, 0)
        elif op == OP_DISCARD:
            cookie = library.nbd_aio_trim(handle, length, offset, _NO_CALLBACK, flags)
        else:
            assert op == OP_WRITE_ZEROES
            flags |= 0 if hole else libnbd.CMD_FLAG_NO_HOLE
            cookie = library.nbd_aio_zero(handle, length, offset, _NO_CALLBACK, flags)
        if cookie < 0:
            code = self._error()
            raise OSError(GONE if self.lost else _ERRNO.get(code, errno.EIO), _text(library))
        return cookie

    def reap(self) -> Iterator[tuple[int, int]]:
        """The commands that have ended, each once: (cookie, 0 or errno), GONE where the connection took it down.

        To be called while at least one command has neither ended nor been reaped.
        """
        library, handle = self._library, self._handle
        while (cookie := library.nbd_aio_peek_command_completed(handle)) > 0:
            if library.nbd_aio_command_completed(handle, cookie) == 1:
                yield cookie, 0
                continue
            code = self._error()
            yield cookie, GONE if code == errno.ESHUTDOWN or self.lost else _ERRNO.get(code, errno.EIO)

    def disconnect(self, seconds: float) -> None:
        """Say good-bye (NBD_CMD_DISC) and let the server hang up, within `seconds`. No command is in flight."""
        if self.ready and self._library.nbd_aio_disconnect(self._handle, 0) == 0:
            deadline = time.monotonic() + seconds
            while not self.lost and (left := deadline - time.monotonic()) > 0:
                self.wait(-1, left)

    def close(self) -> None:
        """Give everything back; commands in flight are forgotten. Idempotent."""
        if self._handle is not None:
            self._library.nbd_close(self._handle)
            self._handle = None


def _text(library: SimpleNamespace) -> str:
    """libnbd's words for the error of this thread, on one line."""
    return " ".join((library.nbd_get_error() or b"").decode(errors="replace").split())
