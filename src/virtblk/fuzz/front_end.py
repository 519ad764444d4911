"""The attacker with the messages: runs the operations of `fuzz.messages` on a device, and looks at what it answers.

Control thread. What is demanded: whatever was sent, a reply has the form of one; a session that was left in step
answers GET_FEATURES or is closed; the next client is accepted and its read is served. A session out of step (a payload
shorter than announced) may be silent: the device waits for the rest.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Final

from virtblk.errors import OpenError
from virtblk.fuzz.case import CRASH, HANG, WRONG, DeviceFailed
from virtblk.fuzz.groups import Coverage
from virtblk.fuzz.messages import (
    FLOOD,
    GUEST,
    HANG_UP,
    IO,
    KICK,
    LAYOUT,
    MEMORY_SIZE,
    REQUESTS_AT,
    RING_SIZE,
    RING_STRIDE,
    RINGS_AT,
    SECOND,
    SEND,
    TRUNCATE,
    Facts,
    Generator,
    Op,
)
from virtblk.fuzz.target import Target
from virtblk.mem.shm import Mapping
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest, ProtocolFeature
from virtblk.uapi.virtio_blk import SECTOR_SIZE, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_IN
from virtblk.uapi.virtio_ring import (
    AVAIL_IDX,
    AVAIL_RING,
    DESC_SIZE,
    USED_IDX,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
)
from virtblk.vhost_user.connection import SCM_MAX_FD, Connection, ConnectionClosed
from virtblk.vhost_user.frontend import Frontend, RequestRefused
from virtblk.vhost_user.message import ProtocolError

_MAX_REPLY: Final = 1 << 16
_MAX_FDS: Final = 32
_DESC: Final = struct.Struct("<QIHH")
#: Bytes of one request in memory: header, data, status.
_REQUEST_STRIDE: Final = 1024
_HEADER_SIZE: Final = 16
#: Requests that a ring of RING_SIZE holds.
_REQUESTS: Final = RING_SIZE // 3
_POLL_SECONDS: Final = 0.0005
_STATUS_UNTOUCHED: Final = 0xEE


class Closed(Exception):
    """The device hung up, which it may."""


class Descriptors:
    """One descriptor of each kind that a message can carry; those of a session come on top."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.fds: dict[str, int] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _keep(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def _open(self) -> None:
        keep, fds = self._keep, self.fds
        fds["empty"] = keep(os.memfd_create("virtblk-fuzz-empty"))
        fds["sealed"] = sealed = keep(os.memfd_create("virtblk-fuzz-sealed", os.MFD_ALLOW_SEALING))
        os.ftruncate(sealed, 4096)
        fds["read-only"] = keep(os.open(f"/proc/self/fd/{sealed}", os.O_RDONLY))
        fds["garbage"] = garbage = keep(os.memfd_create("virtblk-fuzz-garbage"))
        os.pwrite(garbage, b"\xff" * 8192, 0)
        fds["directory"] = keep(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
        fds["null"] = keep(os.open(os.devnull, os.O_RDWR))
        fds["path"] = keep(os.open("/", os.O_PATH))
        fds["pipe-read"], fds["pipe-write"] = map(keep, os.pipe2(os.O_NONBLOCK))
        fds["hung-pipe"], other = os.pipe()
        keep(fds["hung-pipe"])
        os.close(other)
        reader, fds["full-pipe"] = map(keep, os.pipe2(os.O_NONBLOCK))
        with suppress(BlockingIOError):
            while True:
                os.write(fds["full-pipe"], bytes(65536))
        os.set_blocking(reader, False)
        first, second = socket.socketpair()
        self._stack.callback(first.close)
        self._stack.callback(second.close)
        fds["socket"] = first.fileno()
        fds["full-eventfd"] = full = keep(os.eventfd(0, os.EFD_NONBLOCK))
        os.eventfd_write(full, (1 << 64) - 2)
        fds["blocking-eventfd"] = keep(os.eventfd(0))

    def close(self) -> None:
        self._stack.close()


class _Session:
    """One connection, with memory and rings of its own."""

    def __init__(self, sock: socket.socket, timeout: float, shared: Descriptors) -> None:
        self.sock = sock
        self.desynced = False
        self._timeout = timeout
        self._received = b""
        self._stack = ExitStack()
        self._stack.callback(sock.close)
        self._held = b""  # glued to the next message
        self._held_fds: list[int] = []
        try:
            self.memory_fd = os.memfd_create("virtblk-fuzz")
            self._stack.callback(os.close, self.memory_fd)
            os.ftruncate(self.memory_fd, MEMORY_SIZE)
            mapping = Mapping(MEMORY_SIZE, self.memory_fd)
            self._stack.callback(mapping.close)
            self.memory = memoryview(mapping.array(mapping.address, MEMORY_SIZE))  # type: ignore[arg-type]
            fds = {name: os.eventfd(0, os.EFD_NONBLOCK) for name in ("kick", "call", "err")}
            for fd in fds.values():
                self._stack.callback(os.close, fd)
        except BaseException:
            self._stack.close()
            raise
        self.fds = shared.fds | fds | {"memory": self.memory_fd, "own-socket": sock.fileno()}
        self.whole = True  # the memory file has not been truncated
        self._available = [0, 0]

    def close(self) -> None:
        self._stack.close()

    # Messages.

    def send(self, op: Op) -> None:
        """Closed where the device hung up, DeviceFailed where it takes nothing."""
        if len(self._held_fds) + len(op.fds) > SCM_MAX_FD:
            self.flush()
        payload = bytes.fromhex(op.payload)
        size = len(payload) if op.announced is None else op.announced
        data = self._held + uapi.HEADER.pack(op.request, op.flags, size) + payload
        fds = self._held_fds + [self.fds[name] for name in op.fds]
        self.desynced = self.desynced or op.is_desync
        if op.glued:
            self._held, self._held_fds = data, fds
            return
        self._held, self._held_fds = b"", []
        self._write(data, fds, op.bytewise)

    def flush(self) -> None:
        """Send what waits for a message to be glued to."""
        if self._held:
            data, fds = self._held, self._held_fds
            self._held, self._held_fds = b"", []
            self._write(data, fds, False)

    def _write(self, data: bytes, fds: list[int], bytewise: bool) -> None:
        try:
            first = data[:1] if bytewise else data
            sent = socket.send_fds(self.sock, [first], fds, socket.MSG_NOSIGNAL) if fds else 0
            for byte in data[sent:] if bytewise else ():
                self.sock.send(bytes([byte]), socket.MSG_NOSIGNAL)
            if not bytewise:
                self.sock.sendall(data[sent:], socket.MSG_NOSIGNAL)
        except TimeoutError:
            if not self.desynced:
                raise DeviceFailed(HANG, f"the device reads no message for {self._timeout:g} s") from None
            raise Closed from None
        except OSError as error:  # EPIPE, ECONNRESET; ETOOMANYREFS is the kernel's
            if isinstance(error, ConnectionError):
                raise Closed from None
            raise

    def ping(self) -> None:
        """Ask for the features, and read until they come. Closed, or DeviceFailed for silence and nonsense."""
        self.flush()
        if self.desynced:
            return
        request = FrontendRequest.VHOST_USER_GET_FEATURES
        self._write(uapi.HEADER.pack(request, uapi.VHOST_USER_VERSION, 0), [], False)
        deadline = time.monotonic() + self._timeout
        while True:
            if self._read_reply(deadline) == request:
                return

    def _read_reply(self, deadline: float) -> int:
        header = self._read(uapi.HEADER.size, deadline)
        request, flags, size = uapi.HEADER.unpack(header)
        if flags & (uapi.VHOST_USER_VERSION_MASK | uapi.VHOST_USER_REPLY_MASK) != 5:
            raise DeviceFailed(WRONG, f"a reply to request {request} has flags {flags:#x}")
        if size > _MAX_REPLY:
            raise DeviceFailed(WRONG, f"a reply to request {request} announces {size} bytes")
        self._read(size, deadline)
        return int(request)

    def _read(self, size: int, deadline: float) -> bytes:
        while len(self._received) < size:
            self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 4096, _MAX_FDS)
            except TimeoutError:
                raise DeviceFailed(HANG, f"GET_FEATURES is not answered within {self._timeout:g} s") from None
            except ConnectionError:
                raise Closed from None
            finally:
                self.sock.settimeout(self._timeout)
            for fd in fds:
                os.close(fd)
            if not data:
                raise Closed
            self._received += data
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    # The rings.

    def io(self, ring: int, count: int) -> None:
        """Make `count` reads of the first sector available, and kick."""
        if not self.whole:
            return  # the memory is no longer ours to touch
        base = RINGS_AT + ring * RING_STRIDE
        for _ in range(count):
            number = self._available[ring] % _REQUESTS
            at = REQUESTS_AT + (ring * _REQUESTS + number) * _REQUEST_STRIDE
            struct.pack_into("<IIQ", self.memory, at, VIRTIO_BLK_T_IN, 0, 0)
            status = at + _HEADER_SIZE + SECTOR_SIZE
            self.memory[status] = _STATUS_UNTOUCHED
            pieces = (
                (at, _HEADER_SIZE, VRING_DESC_F_NEXT),
                (at + _HEADER_SIZE, SECTOR_SIZE, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE),
                (status, 1, VRING_DESC_F_WRITE),
            )
            head = 3 * number
            for index, (offset, length, flags) in enumerate(pieces, head):
                _DESC.pack_into(
                    self.memory, base + LAYOUT.desc + index * DESC_SIZE, GUEST + offset, length, flags, index + 1
                )
            avail = base + LAYOUT.avail
            struct.pack_into("<H", self.memory, avail + AVAIL_RING + 2 * (self._available[ring] % RING_SIZE), head)
            self._available[ring] += 1
            struct.pack_into("<H", self.memory, avail + AVAIL_IDX, self._available[ring] & 0xFFFF)
        self.kick(1)

    def kick(self, count: int) -> None:
        for _ in range(count):
            with suppress(BlockingIOError):
                os.eventfd_write(self.fds["kick"], 1)

    def truncate(self, size: int) -> None:
        self.whole = False
        os.ftruncate(self.memory_fd, size)

    def used(self) -> int:
        (index,) = struct.unpack_from("<H", self.memory, RINGS_AT + LAYOUT.used + USED_IDX)
        return int(index)

    def status(self) -> int:
        """Of the first read on ring 0."""
        return self.memory[REQUESTS_AT + _HEADER_SIZE + SECTOR_SIZE]


class FrontEnd:
    """Runs cases on `target`; counts messages, and what they were, in `coverage`."""

    def __init__(self, target: Target, coverage: Coverage) -> None:
        self.messages = 0
        self.sessions = 0
        self.hang_ups = 0  # sessions that the device ended
        self._target = target
        self._coverage = coverage
        self._shared = Descriptors()

    def close(self) -> None:
        self._shared.close()

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _session(self) -> Iterator[_Session]:
        session = _Session(self._target.greet(), self._target.timeout, self._shared)
        self.sessions += 1
        try:
            yield session
        finally:
            session.close()

    def run(self, ops: Sequence[Op]) -> None:
        """Do all of it, and see that the device answers after it. Raises DeviceFailed."""
        rest = list(ops)
        while rest:
            at = next((index for index, op in enumerate(rest) if op.kind == HANG_UP), len(rest))
            ended, rest = rest[: at + 1], rest[at + 1 :]
            with self._session() as session:
                try:
                    for op in ended:
                        self._do(session, op)
                    if not ended or ended[-1].kind != HANG_UP:
                        session.ping()
                except Closed:
                    self.hang_ups += 1
        self._target.check_alive()

    def _do(self, session: _Session, op: Op) -> None:
        self._coverage.add(op.items)
        match op.kind:
            case _ if op.kind == SEND:
                self.messages += 1
                session.send(op)
            case _ if op.kind == IO:
                session.io(op.ring, op.value)
            case _ if op.kind == KICK:
                session.kick(op.value)
            case _ if op.kind == TRUNCATE:
                session.truncate(op.value)
            case _ if op.kind == SECOND:
                self._second(session)
            case _ if op.kind == FLOOD:
                for _ in range(op.value):
                    self._target.connect().close()
                    self.sessions += 1
            case _:
                session.flush()
        if op.ping:
            session.ping()

    def _second(self, session: _Session) -> None:
        """Another client asks something while the first one is served; it need not be answered, nor accepted."""
        with suppress(OSError), socket.socket(socket.AF_UNIX) as other:
            other.setblocking(False)
            other.connect(self._target.path)
            other.send(uapi.HEADER.pack(FrontendRequest.VHOST_USER_GET_FEATURES, uapi.VHOST_USER_VERSION, 0))
        session.ping()

    def probe(self, facts: Facts) -> None:
        """An honest client reads the first sector. DeviceFailed where that does not work."""
        with self._session() as session:
            try:
                for op in Generator("probe", facts).sound_session():
                    if op.kind == SEND:
                        session.send(op)
                session.io(0, 1)
                session.ping()
            except Closed:
                self._target.check_alive()
                raise DeviceFailed(CRASH, "an honest client is disconnected") from None
            deadline = time.monotonic() + self._target.timeout
            while session.used() == 0:
                if time.monotonic() > deadline:
                    self._target.check_alive()
                    raise DeviceFailed(HANG, f"a sound read is not answered within {self._target.timeout:g} s")
                time.sleep(_POLL_SECONDS)
            if session.status() != VIRTIO_BLK_S_OK:
                raise DeviceFailed(WRONG, f"a sound read of sector 0 ends with status {session.status()}")


def ask_facts(target: Target) -> Facts:
    """What the device says of itself. Raises OpenError where it says nothing sound."""
    try:
        with Connection(target.greet()) as connection:
            front = Frontend(connection, target.timeout)
            features = front.get_features()
            protocol, queues, capacity = 0, 1, 0
            if features >> uapi.VHOST_USER_F_PROTOCOL_FEATURES & 1:
                protocol = front.get_protocol_features()
                front.set_protocol_features(protocol & _SPOKEN)
                if protocol >> ProtocolFeature.VHOST_USER_PROTOCOL_F_MQ & 1:
                    queues = front.get_queue_num()
                if protocol >> ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIG & 1:
                    capacity = int.from_bytes(front.get_config(60)[:8], "little")
    except (ConnectionClosed, ProtocolError, RequestRefused, OSError, DeviceFailed) as error:
        raise OpenError(getattr(error, "errno", None) or 0, f"{target.path}: {error}") from None
    if capacity == 0:
        raise OpenError(0, f"{target.path}: this is no vhost-user-blk device with a configuration space and a capacity")
    return Facts(features, protocol & _SPOKEN, max(1, queues), capacity)


#: Protocol features that a sound session negotiates.
_SPOKEN: Final = sum(
    1 << bit
    for bit in (
        ProtocolFeature.VHOST_USER_PROTOCOL_F_MQ,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIG,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_BACKEND_REQ,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    )
)
