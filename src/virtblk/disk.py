"""Disk: what programs hold. `open()` connects to a device by name; reads, writes and flushes are thread-safe.

Each call crosses into compiled code once per piece of at most 1 MiB: copy into the arena, submit a bio,
wait by the one waiting rule (spin `poll_us`, then block), copy out. Called on any thread.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final

import numpy as np

from virtblk.block.bio import (
    REQ_FUA,
    REQ_OP_DISCARD,
    REQ_OP_FLUSH,
    REQ_OP_READ,
    REQ_OP_WRITE,
    REQ_OP_WRITE_ZEROES,
)
from virtblk.driver.map_queues import MQ_PATHS
from virtblk.driver.submit_bio import do_bio
from virtblk.driver.sysfs import QueueAttributes
from virtblk.driver.virtio_blk import MAX_QUEUES, PATHS, DriverOptions, Topology, VirtioBlk
from virtblk.errors import DeviceError, OpenError, UsageError, VirtblkError
from virtblk.jit.warmup import progress
from virtblk.names import parse_name
from virtblk.server import LocalDevice, local_device
from virtblk.status import bio_to_os_errno, text_of
from virtblk.uapi.vhost_user import PROTOCOL_FEATURE_NAMES
from virtblk.uapi.virtio_blk import (
    BLK_FEATURE_NAMES,
    DISCARD_WRITE_ZEROES,
    SECTOR_SHIFT,
    SECTOR_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
)
from virtblk.uapi.virtio_config import RING_FEATURE_NAMES
from virtblk.vhost_user.connection import Connection, ConnectionClosed

DEFAULT_POLL_US: Final = 20
DEFAULT_TIMEOUT: Final = 30.0
#: Calls that may be under way at once; more wait for one to end.
CALLERS: Final = 16
#: Bytes that one bio of a Disk carries at most.
CHUNK: Final = 1 << 20
_VERBS: Final = {
    REQ_OP_READ: "read",
    REQ_OP_WRITE: "write",
    REQ_OP_FLUSH: "flush",
    REQ_OP_DISCARD: "discard",
    REQ_OP_WRITE_ZEROES: "write zeroes",
}
#: What else may be behind a device that does not answer: most serve one client at a time (README, qemu-storage-daemon).
_HELD: Final = "; another client may hold it"
#: Seconds that calls have to end once the queue is over.
CLOSE_TIMEOUT: Final = 10.0


def feature_name(bit: int) -> str:
    """The specification's name of a feature bit of a block device, or `bit N`."""
    return BLK_FEATURE_NAMES.get(bit) or RING_FEATURE_NAMES.get(bit) or f"bit {bit}"


def feature_names(bits: int) -> list[str]:
    """Names of all bits set, lowest first."""
    return [feature_name(bit) for bit in range(64) if bits >> bit & 1]


@contextmanager
def _opening(name: str) -> Iterator[None]:
    """What the system refuses meanwhile (descriptors, memory, threads) means that there is no session."""
    try:
        yield
    except VirtblkError:
        raise
    except OSError as error:
        raise OpenError(error.errno or errno.EIO, f"{name}: {error.strerror or error}") from error


def connect(name: str, options: DriverOptions) -> tuple[VirtioBlk, LocalDevice | None]:
    """Open the device behind `name` for driver use: the probed device, and what serves it if that is this process.

    Raises UsageError for a bad name or option, OpenError where no session comes about.
    """
    parsed = parse_name(name)
    if not 0 < options.timeout <= 86400:
        raise UsageError(f"timeout {options.timeout:g}: give seconds, more than 0 and at most 86400")
    if parsed.scheme != "vhost-user":
        with _opening(name):
            local = local_device(name, queues=options.queues)
        try:
            with progress(), _opening(name):
                return VirtioBlk(local.client, name, options), local
        except BaseException:
            local.close()
            raise
    parsed.refuse_other_keys()
    try:
        connection = Connection.connect(parsed.rest, options.timeout)
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if code == errno.ECONNREFUSED:
            text = "nobody listens there" if _is_socket(parsed.rest) else "it is not a socket"
        held = _HELD if code == errno.ETIMEDOUT else ""
        raise OpenError(code, f"{name}: cannot connect: {text}{held}") from error
    try:
        with progress(), _opening(name):
            return VirtioBlk(connection, name, options), None
    except OpenError as error:
        connection.close()
        if isinstance(error.__cause__, ConnectionClosed | TimeoutError):
            raise OpenError(error.errno, f"{error.strerror}{_HELD}") from error
        raise
    except BaseException:
        connection.close()
        raise


def _is_socket(path: str) -> bool:
    with suppress(OSError, ValueError):
        return stat.S_ISSOCK(os.stat(path).st_mode)
    return True


def _path(path: str | None, use_bio: bool | None) -> str:
    if path is not None and path not in PATHS:
        raise UsageError(f"path {path!r}: give one of {', '.join(PATHS)}")
    chosen = None if use_bio is None else "bio" if use_bio else "request"
    if path and chosen and path != chosen:
        raise UsageError(f"use_bio {use_bio} is path {chosen!r}, but path {path!r} was given too")
    return path or chosen or "auto"


def open(
    name: str,
    *,
    read_only: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    poll_us: int | None = DEFAULT_POLL_US,
    queue_size: int | None = None,
    queues: int = 1,
    path: str | None = None,
    use_bio: bool | None = None,
) -> Disk:
    """Open the disk `name` (`ram:512m`, `null:1g`, `vhost-user:/path/to/socket`).

    `timeout` in seconds bounds every wait for the device; `poll_us` is how long a call spins before it blocks (0:
    interrupts, after a glance of 10 us at most where that helps; None: polling only); `queue_size` is the ring's (a
    power of two from 4 to 32768, default 128); `queues` is how many virtqueues to use, over which the calls that are
    under way are spread (docs/queues.md); `path` is the way that bios take: `bio` straight to the ring; `request`
    through plug, elevator and request; `mq` through a plug to tags, with an elevator only if that is asked for; `auto`,
    the default, is `mq` that merges and sorts where it finds that to be faster. `Disk.queue` tunes all but `bio`.
    `use_bio` is the posting's parameter: True is path `bio`, False path `request`.

    Raises UsageError for values that cannot work, OpenError (an OSError) where no session comes about.
    """
    if poll_us is not None and not 0 <= poll_us <= 10_000_000:
        raise UsageError(f"poll_us {poll_us}: give microseconds from 0 to 10000000, or None to poll only")
    path = _path(path, use_bio)
    if not 1 <= queues <= MAX_QUEUES:
        raise UsageError(f"queues {queues}: give 1 to {MAX_QUEUES}")
    if queues > 1 and path not in MQ_PATHS:
        raise UsageError(f"queues {queues}: path {path!r} has one virtqueue; give path {' or '.join(MQ_PATHS)}")
    options = DriverOptions(
        queues=queues,
        queue_size=queue_size,
        timeout=timeout,
        poll_us=poll_us,
        read_only=read_only,
        submitters=CALLERS,
        data_bytes=CALLERS * CHUNK,
        path=path,
    )
    return Disk(name, *connect(name, options))


class Disk:
    """An open disk; `virtblk.open` makes it. A context manager: leaving it ends the session.

    Offsets and lengths are bytes, multiples of 512. A failed I/O raises OSError: EIO for what the device could not do,
    EOPNOTSUPP for what it does not know, EROFS on a read-only disk, EINVAL for a misaligned range or a read past the
    end, ENOSPC for a write past the end. DeviceError (an OSError too) says that the session is over: ENODEV the device
    went away, ETIMEDOUT it stopped answering, EPROTO it broke the ring.
    """

    def __init__(self, name: str, device: VirtioBlk, local: LocalDevice | None) -> None:
        self._title = name
        self._device = device
        self._local = local
        self._free = list(range(CALLERS))
        self._changed = threading.Condition()
        self._closing = False
        self._over = False  # a call met the end of the session

    # What it is.

    @property
    def name(self) -> str:
        """The disk's name among this process's disks: vda, vdb, ..."""
        return self._device.name

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        return self._device.size

    @property
    def block_size(self) -> int:
        """The device's logical block size in bytes: what I/O should be a multiple of to be fast."""
        return self._device.topology.block_size

    @property
    def topology(self) -> Topology:
        """Physical block size, alignment, preferred I/O sizes, in bytes."""
        return self._device.topology

    @property
    def serial(self) -> str:
        """The device's answer to GET_ID, up to 20 characters; empty where it has none."""
        return self._device.serial

    @property
    def features(self) -> frozenset[str]:
        """Names of the negotiated features."""
        return frozenset(feature_names(self._device.features))

    @property
    def protocol_features(self) -> frozenset[str]:
        """Names of the negotiated vhost-user protocol features."""
        bits = self._device.protocol_features
        return frozenset(name for bit, name in PROTOCOL_FEATURE_NAMES.items() if bits >> bit & 1)

    @property
    def read_only(self) -> bool:
        """True when the device is read-only, or was opened so."""
        return self._device.read_only

    @property
    def cache_type(self) -> str:
        """`write back` or `write through`, as the device's config says (sysfs cache_type). flush() works in both.

        May be set where the device offers CONFIG_WCE; UsageError elsewhere, OSError where the device will not.
        """
        return "write back" if self._device.writeback else "write through"

    @cache_type.setter
    def cache_type(self, text: str) -> None:
        self._check_open()
        self._device.sysfs.write("cache_type", text)

    @property
    def path(self) -> str:
        """The way that bios take: auto, mq, bio or request."""
        return self._device.path

    @property
    def queues(self) -> int:
        """How many virtqueues are in use."""
        return len(self._device.queues)

    @property
    def use_bio(self) -> bool:
        """True on the bio path, False on the others (the posting's module parameter)."""
        return self._device.path == "bio"

    @property
    def queue(self) -> QueueAttributes:
        """The attributes of the other paths than bio: scheduler, nr_requests, nomerges, iosched; read and set."""
        return QueueAttributes(self._device.sysfs)

    # I/O.

    def pread(self, n: int, offset: int) -> bytes:
        """Read `n` bytes at `offset`. Raises OSError; all of it or nothing."""
        self._check(n, offset, write=False)
        parts = []
        for start in range(0, n, CHUNK):
            size = min(CHUNK, n - start)
            with self._caller() as caller:
                self._submit(caller, REQ_OP_READ, 0, offset + start, size)
                parts.append(self._buffer(caller)[:size].tobytes())
        return b"".join(parts)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> int:
        """Write `data` at `offset`; returns its length in bytes. With `fua` it is durable on return.

        Raises OSError. Where a write of more than 1 MiB fails, part of it may have been written.
        """
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # cast() refuses a shape with zeros
        self._check(len(view), offset, write=True)
        for start in range(0, len(view), CHUNK):
            piece = view[start : start + CHUNK]
            with self._caller() as caller:
                self._buffer(caller).data.cast("B")[: len(piece)] = piece
                self._submit(caller, REQ_OP_WRITE, REQ_FUA if fua else 0, offset + start, len(piece))
        return len(view)

    def flush(self) -> None:
        """Make all writes that ended before durable. Sends FLUSH whenever it was negotiated, whatever `cache_type`
        says.

        A device without FLUSH has stable writes (5.2.6.2), and there is nothing to do. Raises OSError.
        """
        self._check_open()
        if not self._device.has(VIRTIO_BLK_F_FLUSH):
            return
        with self._caller() as caller:
            self._submit(caller, REQ_OP_FLUSH, 0, 0, 0)

    def discard(self, n: int, offset: int) -> None:
        """Say that the `n` bytes at `offset` are not needed any more; what they read as then is the device's choice.

        Raises OSError: EOPNOTSUPP where the device offers no discard.
        """
        limit = self._device.max_discard_sectors
        self._ranges(REQ_OP_DISCARD, VIRTIO_BLK_F_DISCARD, n, offset, limit, 0)

    def write_zeroes(self, n: int, offset: int, *, unmap: bool = False, fua: bool = False) -> None:
        """Make the `n` bytes at `offset` read as zeroes, without sending them.

        With `unmap` the device may give their space back; with `fua` they are durable on return. Raises OSError:
        EOPNOTSUPP where the device cannot.
        """
        limit = self._device.max_write_zeroes_sectors
        flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP if unmap else 0
        self._ranges(REQ_OP_WRITE_ZEROES, VIRTIO_BLK_F_WRITE_ZEROES, n, offset, limit, flags)
        if fua:
            self.flush()

    # Inside.

    def _ranges(self, op: int, feature: int, n: int, offset: int, limit: int, flags: int) -> None:
        """A discard or write zeroes, in requests of at most `limit` sectors (5.2.6: one segment each)."""
        self._check(n, offset, write=True)
        verb = _VERBS[op]
        if not self._device.has(feature):
            raise OSError(errno.EOPNOTSUPP, f"{self._title}: {verb}: the device does not offer {feature_name(feature)}")
        block = self.block_size >> SECTOR_SHIFT
        limit = max(limit - limit % block, block)  # pieces that end on the device's blocks: it may not do parts of one
        sector, left = offset >> SECTOR_SHIFT, n >> SECTOR_SHIFT
        while left > 0:
            count = min(left, limit)
            with self._caller() as caller:
                payload = np.array([(sector, count, flags)], DISCARD_WRITE_ZEROES).tobytes()
                self._buffer(caller)[: len(payload)] = np.frombuffer(payload, np.uint8)
                place = f" of {count << SECTOR_SHIFT} bytes at offset {sector << SECTOR_SHIFT}"
                self._submit(caller, op, 0, 0, len(payload), place)
            sector += count
            left -= count

    def _check_open(self) -> None:
        if self._closing:
            raise ValueError(f"{self._title}: the disk is closed")

    def _check(self, n: int, offset: int, *, write: bool) -> None:
        self._check_open()
        if n < 0 or offset < 0 or n % SECTOR_SIZE or offset % SECTOR_SIZE:
            text = f"{self._title}: {n} bytes at offset {offset}: give multiples of {SECTOR_SIZE}"
            raise OSError(errno.EINVAL, text)
        if write and self.read_only:
            raise OSError(errno.EROFS, f"{self._title}: the disk is read-only")
        if offset + n > self.size:
            code = errno.ENOSPC if write else errno.EINVAL
            raise OSError(code, f"{self._title}: {n} bytes at offset {offset} end past the end ({self.size})")

    @contextmanager
    def _caller(self) -> Iterator[int]:
        """A submitter of the queue for one call; waits for one while CALLERS calls are under way."""
        with self._changed:
            deadline = time.monotonic() + self._device.options.timeout
            while not self._free:
                self._check_open()
                if not self._changed.wait(deadline - time.monotonic()):
                    raise DeviceError(errno.ETIMEDOUT, f"{self._title}: {CALLERS} calls are under way, and none ended")
            self._check_open()
            if self._over:  # memory of a request that timed out is not reused: the device may still read it
                raise self._device.broken_error()
            caller = self._free.pop()
        try:
            yield caller
        finally:
            with self._changed:
                self._free.append(caller)
                self._changed.notify_all()

    def _buffer_address(self, caller: int) -> int:
        return self._device.data + caller * CHUNK

    def _buffer(self, caller: int):  # type: ignore[no-untyped-def]  # a NumPy view of the caller's bounce buffer
        return self._device.arena.array(self._buffer_address(caller), CHUNK)

    def _submit(self, caller: int, op: int, flags: int, offset: int, size: int, place: str = "") -> None:
        """One bio from the caller's bounce buffer, to its end. Raises OSError or DeviceError.

        `place` says what the I/O is about, where that is not `size` bytes at `offset`.
        """
        queue, number = self._device.map_submitter(caller)
        code = do_bio(queue.handle, number, op, flags, offset >> SECTOR_SHIFT, self._buffer_address(caller), size)
        if code < 0:
            self._over = True
            raise self._device.broken_error()
        if code > 0:
            os_errno = bio_to_os_errno(code)
            place = place or (f" of {size} bytes at offset {offset}" if size else "")
            raise OSError(os_errno, f"{self._title}: {_VERBS[op]}{place}: {text_of(os_errno)}")

    # The end.

    def close(self) -> None:
        """End the session; calls under way end first, with an error if the device does not answer. Repeatable."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            if not self._callers_left(self._device.options.timeout + 1):
                self._device.break_queue(errno.ESHUTDOWN)  # wakes whoever waits, for good
                self._device.abandoned = not self._callers_left(CLOSE_TIMEOUT)
        self._device.close()
        if self._local is not None:
            self._local.close()

    def _callers_left(self, seconds: float) -> bool:
        """Wait until no call is under way; False if one still is after `seconds`. Under the condition's lock."""
        return self._changed.wait_for(lambda: len(self._free) == CALLERS, seconds)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"{self.size} bytes"
        return f"<virtblk.Disk {self._title} ({self.name}, {state})>"
