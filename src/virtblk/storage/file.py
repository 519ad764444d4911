"""`file:PATH`: a disk in a regular file or on a block device (QEMU: file-posix, host_device; SPDK: bdev_uring).

Here: opening, limits, and each operation as blocking calls. The device's workers use io_uring where there is one
(`device.file_worker`); filters, and systems without io_uring, use the operations here, on `BlockingStorage`'s threads.

A flush is fdatasync(2) on a file description of its own, by one thread at a time: the kernel reports a failed
write-back once to each description, so that no other call can take the report away. After a failed one the kernel may
have dropped what it could not write and would say yes the next time: all later flushes fail too.

cache=none is O_DIRECT. A guest's buffers need not be aligned as that asks: such requests are copied through aligned
memory. Where even the 512 bytes of a sector are too small for it, the page cache reads and writes round the sector,
while `RangeLock` keeps direct writes to the same pages away.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from virtblk.errors import OpenError, UsageError
from virtblk.jit import io_uring
from virtblk.jit.atomics import load_acquire_i64, store_release_i64
from virtblk.jit.table import Table
from virtblk.names import DiskName, format_size
from virtblk.storage.blocking import BlockingStorage
from virtblk.storage.file_calls import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    dio_alignment,
    fallocate,
)
from virtblk.storage.file_state import FILE_DTYPE
from virtblk.storage.io_request import Request
from virtblk.storage.request import KIND_FILE, KIND_REQUESTS
from virtblk.storage.storage import block_size_key

log = logging.getLogger("virtblk.storage")

SECTOR: Final = 512
PAGE: Final = mmap.PAGESIZE
#: A call that did nothing (EINTR, EAGAIN, no bytes of an unaligned rest) is tried this often.
RETRIES: Final = 100
#: Zeroes are written from one buffer of this size, bounced reads and writes go through one.
CHUNK: Final = 1 << 20
#: preadv(2) and pwritev(2) take this many pieces (UIO_MAXIOV).
_IOV_MAX: Final = 1024

CACHES: Final = ("writeback", "writethrough", "none", "unsafe")
_FLAG_VALUES: Final = {"1": True, "on": True, "yes": True, "true": True}
_FLAG_VALUES.update({"0": False, "off": False, "no": False, "false": False})

# linux/fs.h: _IOR(0x12, 114, size_t), _IO(0x12, 104), and so on.
_BLKGETSIZE64, _BLKSSZGET, _BLKPBSZGET = 0x80081272, 0x1268, 0x127B
_BLKIOMIN, _BLKIOOPT, _BLKALIGNOFF, _BLKROGET = 0x1278, 0x1279, 0x127A, 0x125E

_NOT_SUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS)


class RangeLock:
    """Holds byte ranges: sharers together, an exclusive holder alone. Who holds one asks for no other."""

    def __init__(self) -> None:
        self._held: list[tuple[int, int, bool]] = []
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, start: int, stop: int, *, exclusive: bool) -> Iterator[None]:
        """Hold `start` to before `stop` while the body runs."""
        mine = (start, stop, exclusive)
        with self._changed:
            self._changed.wait_for(lambda: not any(self._collide(mine, other) for other in self._held))
            self._held.append(mine)
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(mine)
                self._changed.notify_all()

    @staticmethod
    def _collide(one: tuple[int, int, bool], other: tuple[int, int, bool]) -> bool:
        return one[0] < other[1] and other[0] < one[1] and (one[2] or other[2])


class FileStorage(BlockingStorage):
    """An open file or block device. Made by `open_file`; takes `fd` over.

    `memory_align` and `offset_align`: what direct I/O asks of addresses, and of offsets and lengths; 0 without it.
    """

    can_fua = True
    can_write_zeroes = True

    def __init__(
        self, name: str, fd: int, size: int, *, cache: str, read_only: bool, memory_align: int, offset_align: int
    ) -> None:
        super().__init__()
        self.name, self.size, self.read_only = name, size, read_only
        self.writeback = cache != "writethrough"
        self._fd = fd
        self._unsafe = cache == "unsafe"
        self._memory_align, self._offset_align = memory_align, offset_align
        self.state = Table(1, FILE_DTYPE)
        self._failed = self.state.address + int(FILE_DTYPE.fields["failed"][1])  # type: ignore[index]
        self.address = self.state.address
        self._lock = RangeLock()
        self._flushing = threading.Lock()
        self._buffered_fd = self._flush_fd = -1
        try:
            self._flush_fd = self.description()
            # Page cache for what is smaller than direct I/O can be.
            self._buffered_fd = self.description(direct=False) if offset_align > SECTOR else -1
        except OSError:
            self.close()
            raise
        self.can_discard = self.can_unmap = not read_only and self._can_punch()
        state = self.state[0]
        state["fd"], state["memory_align"], state["unsafe"] = fd, memory_align, self._unsafe
        state["punch"], state["zero"] = self.can_discard, 1

    def description(self, *, direct: bool = True) -> int:
        """A file descriptor with an open file description of its own, the caller's to close; a duplicate where the
        system gives none (no /proc, or privileges dropped since)."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_DIRECT)
        if not direct:
            flags &= ~os.O_DIRECT
        try:
            return os.open(f"/proc/self/fd/{self._fd}", flags | os.O_CLOEXEC)
        except OSError:
            if not direct:
                raise
            return os.dup(self._fd)

    def _can_punch(self) -> bool:
        """Whether holes can be made: ask for one behind the end of a file, read a block device's limit."""
        info = os.fstat(self._fd)
        if stat.S_ISBLK(info.st_mode):
            return _queue_limit(info.st_rdev, "discard_max_bytes") > 0
        behind = -(-max(info.st_size, self.size) // CHUNK) * CHUNK
        return fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, behind, CHUNK) == 0

    def submit(self, batch: Sequence[Request]) -> None:
        if not self._threads:  # a worker's io_uring needs none: they come with the first request here
            super().start()
        super().submit(batch)

    def start(self) -> None:
        """The threads come later."""

    # The operations. All raise OSError.

    def pread(self, pieces: Sequence[memoryview], offset: int) -> None:
        length = sum(len(piece) for piece in pieces)
        if self._is_odd(offset, length):
            _transfer(os.preadv, self._buffered_fd, pieces, offset)
        elif self._is_aligned(pieces):
            _transfer(os.preadv, self._fd, pieces, offset)
        else:
            bounce = mmap.mmap(-1, length)
            _transfer(os.preadv, self._fd, [memoryview(bounce)], offset)
            at = 0
            for piece in pieces:
                piece[:] = bounce[at : at + len(piece)]
                at += len(piece)

    def pwrite(self, pieces: Sequence[memoryview], offset: int, fua: bool) -> None:
        length = sum(len(piece) for piece in pieces)
        flags = os.RWF_DSYNC if fua and not self._unsafe else 0
        if self._offset_align <= SECTOR:
            self._pwrite(self._fd, pieces, offset, flags)
            return
        odd = self._is_odd(offset, length)
        align = max(self._offset_align, PAGE)
        with self._lock.hold(offset // align * align, -(-(offset + length) // align) * align, exclusive=odd):
            self._pwrite(self._buffered_fd if odd else self._fd, pieces, offset, flags)

    def _pwrite(self, fd: int, pieces: Sequence[memoryview], offset: int, flags: int) -> None:
        if fd == self._fd and not self._is_aligned(pieces):
            bounce = mmap.mmap(-1, max(sum(len(piece) for piece in pieces), 1))
            for piece in pieces:
                bounce.write(piece)
            pieces = [memoryview(bounce)[: bounce.tell()]]
        _transfer(lambda fd, pieces, offset: os.pwritev(fd, pieces, offset, flags), fd, pieces, offset)

    def _is_odd(self, offset: int, length: int) -> bool:
        """Smaller or elsewhere than direct I/O can be."""
        return self._offset_align > SECTOR and (offset | length) % self._offset_align != 0

    def _is_aligned(self, pieces: Sequence[memoryview]) -> bool:
        """Direct I/O can use the pieces themselves."""
        align = self._memory_align
        return align == 0 or all(
            len(piece) % max(align, SECTOR) == 0 and np.frombuffer(piece, np.uint8).ctypes.data % align == 0
            for piece in pieces
            if len(piece)
        )

    def flush(self) -> None:
        if self._unsafe:
            return
        with self._flushing:
            if load_acquire_i64(self._failed):
                raise OSError(errno.EIO, "an earlier flush failed")
            try:
                os.fdatasync(self._flush_fd)
            except OSError:
                store_release_i64(self._failed, 1)
                raise

    def discard(self, offset: int, length: int) -> None:
        """Advice: where the file system cannot, nothing happens."""
        if self.can_discard:
            _supported(self._fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length))

    def write_zeroes(self, offset: int, length: int, unmap: bool, fua: bool) -> None:
        modes = [FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE]
        if unmap and self.can_unmap:
            modes.insert(0, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
        if not any(_supported(self._fallocate(mode, offset, length)) for mode in modes):
            zeroes = memoryview(mmap.mmap(-1, min(length, CHUNK)))
            for at in range(offset, offset + length, CHUNK):
                self.pwrite([zeroes[: min(CHUNK, offset + length - at)]], at, False)
        if fua:
            self.flush()

    def _fallocate(self, mode: int, offset: int, length: int) -> int:
        """0 or a positive errno."""
        for _ in range(RETRIES):
            error = -fallocate(self._fd, mode, offset, length)
            if error not in (errno.EINTR, errno.EAGAIN):
                break
        return error

    def close(self) -> None:
        super().close()
        for fd in (self._fd, self._flush_fd, self._buffered_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._flush_fd = self._buffered_fd = -1


def _supported(error: int) -> bool:
    """Whether a way of fallocate(2) worked; False where it is not supported (or, on a block device, not for ranges this
    small: EINVAL). Raises OSError for the rest."""
    if error and error not in _NOT_SUPPORTED and error != errno.EINVAL:
        raise OSError(error, os.strerror(error))
    return error == 0


def _transfer(
    call: Callable[[int, Sequence[memoryview], int], int], fd: int, pieces: Sequence[memoryview], offset: int
) -> None:
    """Repeat preadv(2) or pwritev(2) until all pieces are through. Raises OSError: EIO where a file ends too early."""
    left = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    idle = 0
    while left:
        try:
            moved = call(fd, left[:_IOV_MAX], offset)
        except InterruptedError:
            moved = -1
        except BlockingIOError:
            moved = -1
        if moved == 0:
            raise OSError(errno.EIO, "the file ends before the disk does")
        idle = idle + 1 if moved < 0 else 0
        if idle == RETRIES:
            raise OSError(errno.EIO, f"no progress at offset {offset}")
        moved = max(moved, 0)
        offset += moved
        while moved and left:
            step = min(moved, len(left[0]))
            moved -= step
            left[0] = left[0][step:]
            if not left[0]:
                del left[0]


def open_file(name: DiskName) -> FileStorage:
    """Open the file or block device `name.rest`, for io_uring where there is one.

    Raises UsageError for a key that cannot work, OpenError for a file that cannot be used.
    """
    name.refuse_other_keys("cache", "block_size", "read_only")
    cache = name.keys.get("cache", "writeback")
    if cache not in CACHES:
        raise UsageError(f"disk {name.text!r}: cache {cache!r}: give one of {', '.join(CACHES)}")
    flag = name.keys.get("read_only", "off")
    if flag not in _FLAG_VALUES:
        raise UsageError(f"disk {name.text!r}: read_only {flag!r}: give on or off")
    read_only = _FLAG_VALUES[flag]
    block_size_key(name)
    fd, direct = _open(name, read_only, cache == "none")
    try:
        return _opened(name, fd, cache, read_only, direct)
    except OSError as error:
        if isinstance(error, OpenError):
            raise
        raise _refused(name, error.errno or errno.EIO, error.strerror or str(error)) from error


def _open(name: DiskName, read_only: bool, direct: bool) -> tuple[int, bool]:
    """(fd, whether it is open for direct I/O)."""
    if "\0" in name.rest:
        raise UsageError(f"disk {name.text!r}: a path holds no NUL")
    # O_NONBLOCK: a FIFO must not hold us up before it is refused.
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            fd = os.open(name.rest, flags | (os.O_DIRECT if direct else 0))
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            log.warning("disk %r: no direct I/O on this file system: cache=none goes through the page cache", name.text)
            fd, direct = os.open(name.rest, flags), False
    except OSError as error:
        code, advice = error.errno or errno.EIO, ""
        if code == errno.ENOENT:
            advice = "; make it first, for example with truncate -s 10G"
        elif code in (errno.EACCES, errno.EPERM, errno.EROFS) and not read_only:
            advice = "; to only read it, add ?read_only=on"
        raise _refused(name, code, f"{os.strerror(code)}{advice}") from error
    os.set_blocking(fd, True)
    return fd, direct


def _refused(name: DiskName, code: int, text: str) -> OpenError:
    return OpenError(code, f"disk {name.text!r}: {text}")


def _opened(name: DiskName, fd: int, cache: str, read_only: bool, direct: bool) -> FileStorage:
    try:
        info = os.fstat(fd)
        is_block = stat.S_ISBLK(info.st_mode)
        if stat.S_ISDIR(info.st_mode):
            raise _refused(name, errno.EISDIR, "is a directory; give a file or a block device")
        if not is_block and not stat.S_ISREG(info.st_mode):
            raise _refused(name, errno.EINVAL, "is neither a regular file nor a block device")
        if is_block and not read_only and _ioctl(fd, _BLKROGET, "i"):
            raise _refused(name, errno.EROFS, "is a read-only block device; add ?read_only=on")
        logical = _ioctl(fd, _BLKSSZGET, "i") if is_block else SECTOR
        block_size = block_size_key(name) if "block_size" in name.keys else logical
        size = _ioctl(fd, _BLKGETSIZE64, "Q") if is_block else info.st_size
        if size < block_size:
            raise _refused(name, errno.EINVAL, f"{size} bytes; a disk has one block of {block_size} at least")
        if size % block_size:
            rounded = size - size % block_size
            log.warning("disk %r: the last %d bytes are no whole block: left out", name.text, size - rounded)
            size = rounded
        memory_align, offset_align = _alignment(fd, logical) if direct else (0, 0)
    except BaseException:
        os.close(fd)
        raise
    storage = FileStorage(
        name.text,
        fd,
        size,
        cache=cache,
        read_only=read_only,
        memory_align=memory_align,
        offset_align=offset_align,
    )
    storage.block_size = block_size
    if is_block:
        storage.physical_block_size = _ioctl(fd, _BLKPBSZGET, "I")
        storage.min_io_size, storage.opt_io_size = _ioctl(fd, _BLKIOMIN, "I"), _ioctl(fd, _BLKIOOPT, "I")
        storage.alignment_offset = max(_ioctl(fd, _BLKALIGNOFF, "i"), 0)
    if cache == "unsafe":
        log.warning("disk %r: cache=unsafe: a flush does nothing; a crash of this machine loses data", name.text)
    storage.kind = KIND_REQUESTS
    if offset_align > SECTOR:
        log.info("disk %r: direct I/O in units of %s: threads, no io_uring", name.text, format_size(offset_align))
    elif why := io_uring.unavailable():
        log.warning("disk %r: no io_uring (%s): threads instead, which is slower", name.text, why)
    else:
        storage.kind = KIND_FILE
    return storage


def _ioctl(fd: int, request: int, kind: str) -> int:
    """An integer that the block layer tells, 0 where it does not know."""
    try:
        answer = fcntl.ioctl(fd, request, bytes(struct.calcsize(kind)))
    except OSError:
        return 0
    return int(struct.unpack(kind, answer)[0])


def _alignment(fd: int, logical: int) -> tuple[int, int]:
    """(memory, offset) alignment of direct I/O on `fd`: what statx(2) tells, else the smallest that works."""
    memory, offset = dio_alignment(fd)
    if memory and offset:
        return memory, offset
    for align in (512, 4096):
        if align < logical:
            continue
        try:
            os.preadv(fd, [memoryview(mmap.mmap(-1, align))], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return align, align
    return PAGE, PAGE


def _queue_limit(device: int, limit: str) -> int:
    """A limit of a block device's queue, as sysfs tells it; of a partition, that of its disk. 0 where unknown."""
    base = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for directory in (base, f"{base}/.."):
        try:
            with open(f"{directory}/queue/{limit}", encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            continue
    return 0
