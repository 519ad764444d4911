"""What `cow` and `volatile` keep above the lower disk: a sparse file or sparse memory of the disk's size, and reads
of both.

Byte n of the disk is byte n of the overlay; which bytes count is the caller's ExtentMap (state 0: the lower disk's).
Memory is a memfd: pieces of guest memory are read and written by the kernel, once, and a hole reads as zeroes and
costs nothing. All methods are called under the caller's lock and raise OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final

from virtblk.errors import OpenError
from virtblk.names import FilterName, format_size
from virtblk.storage.extent_map import ExtentMap
from virtblk.storage.io_request import Request
from virtblk.storage.request import OP_READ

_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 0x01, 0x02
#: Zeroes that are written at a time where a file system has no holes.
_ZEROES: Final = bytes(1 << 20)
_IOV_MAX: Final = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Overlay:
    """`size` bytes of zeroes, in memory, or in a new file at `path` that has no name any more once it is open.

    Raises OpenError where the file exists or cannot be made.
    """

    def __init__(self, name: FilterName, size: int, path: str | None = None) -> None:
        where = "memory" if path is None else path
        self._fd = -1
        try:
            if path is None:
                self._fd = os.memfd_create(f"virtblk-{name.name}", os.MFD_CLOEXEC)
            else:
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                os.unlink(path)
            os.ftruncate(self._fd, size)
        except OSError as error:
            self.close()
            text = "it exists; give a path for a new file" if error.errno == errno.EEXIST else error.strerror
            raise OpenError(
                error.errno, f"filter {name.text!r}: no overlay of {format_size(size)} in {where}: {text}"
            ) from error

    def read(self, pieces: Sequence[memoryview], offset: int) -> None:
        """Fill the pieces."""
        _all(os.preadv, self._fd, pieces, offset)

    def write(self, pieces: Sequence[memoryview], offset: int) -> None:
        """Take the bytes of the pieces."""
        _all(os.pwritev, self._fd, pieces, offset)

    def zero(self, offset: int, length: int) -> None:
        """Make it zeroes, and give the space back where that is possible."""
        if _libc.fallocate(self._fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
        zeroes = memoryview(_ZEROES)
        for start in range(offset, offset + length, len(zeroes)):
            self.write([zeroes[: offset + length - start]], start)

    @property
    def allocated(self) -> int:
        """Bytes of memory or of the file system that it takes; 0 once closed."""
        return os.fstat(self._fd).st_blocks * 512 if self._fd >= 0 else 0

    def close(self) -> None:
        """Give all of it back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _all(call: Callable[[int, Sequence[memoryview], int], int], fd: int, pieces: Sequence[memoryview], at: int) -> None:
    """preadv or pwritev until the pieces are done."""
    left = [piece for piece in pieces if len(piece)]
    while left:
        done = call(fd, left[:_IOV_MAX], at)
        if done == 0:
            raise OSError(errno.EIO, "the overlay ended early")
        at += done
        whole = 0
        while whole < len(left) and done >= len(left[whole]):
            done -= len(left[whole])
            whole += 1
        del left[:whole]
        if done:
            left[0] = left[0][done:]


def cut_pieces(pieces: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """The bytes `start` to before `start + length` of what the pieces are together."""
    found = []
    for piece in pieces:
        size = len(piece)
        if start < size and length > 0:
            part = piece[start : start + length]
            found.append(part)
            length -= len(part)
        start = max(0, start - size)
    return found


def read_through(request: Request, extents: ExtentMap, overlay: Overlay) -> list[Request]:
    """Read from the overlay what is there; what has to be read from below, as requests. None: all is there.

    They are `request` itself where nothing is in the overlay, else parts of it, the last of which ends it.
    """
    below: list[tuple[int, int]] = []
    runs = extents.runs(request.offset, request.offset + request.length)
    for start, stop, state in runs:
        if state:
            overlay.read(cut_pieces(request.pieces, start - request.offset, stop - start), start)
        else:
            below.append((start, stop - start))
    if len(below) == len(runs):
        return [request]
    together = Together(len(below), request.end)
    return [
        Request(
            OP_READ,
            offset=start,
            length=length,
            pieces=cut_pieces(request.pieces, start - request.offset, length),
            on_end=together.one_ended,
        )
        for start, length in below
    ]


class Together:
    """Waits for `count` requests, then calls `on_all` with the first error, or 0."""

    def __init__(self, count: int, on_all: Callable[[int], None]) -> None:
        self._left = count
        self._error = 0
        self._on_all = on_all
        self._lock = threading.Lock()

    def one_ended(self, request: Request, error: int) -> None:
        """To be the `on_end` of each of them; any thread."""
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            last = self._left == 0
        if last:
            self._on_all(self._error)
