"""A device and a memory that write down what they are told, and a back end running on them over a socketpair."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest
from virtblk.vhost_user.backend import Backend, Vring
from virtblk.vhost_user.connection import Connection
from virtblk.vhost_user.frontend import Frontend
from virtblk.vhost_user.message import Message, decode_u64
from waiting import PATIENCE

VERSION_1 = 1 << 32
PROTOCOL_FEATURES = 1 << uapi.VHOST_USER_F_PROTOCOL_FEATURES
FEATURES = VERSION_1 | 1 << 9 | 1 << 29
CONFIG = bytes(range(60))

#: Request flags of a front end that wants an acknowledgement, or does not.
ACKED = uapi.VHOST_USER_VERSION | uapi.VHOST_USER_NEED_REPLY_MASK
UNACKED = uapi.VHOST_USER_VERSION


def open_fds() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


class FakeDevice:
    """Records calls as tuples. A ring that runs advances by 5; addresses below `lowest` cannot be translated."""

    features = FEATURES
    max_queues = 2

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.bases: dict[int, int] = {}
        self.lowest = 0
        self.config = CONFIG

    def set_features(self, bits: int) -> None:
        assert not self.bases, "features changed while a ring ran"
        if bits and not bits & VERSION_1:
            raise ValueError("VERSION_1 is needed")
        self.calls.append(("set_features", bits))

    def get_config(self) -> bytes:
        return self.config

    def set_config(self, offset: int, data: bytes, flags: int) -> None:
        if offset != 32 and not flags:
            raise ValueError("read-only")
        self.calls.append(("set_config", offset, data, flags))

    def start_queue(self, index: int, vring: Vring) -> None:
        assert index not in self.bases, "started twice"
        if vring.desc < self.lowest:
            raise ValueError(f"descriptor table at {vring.desc:#x} lies in no region")
        for fd in (vring.kick_fd, vring.call_fd, vring.err_fd):
            if fd >= 0:
                os.fstat(fd)
        self.bases[index] = vring.base
        self.calls.append(("start", index, vring.num, vring.base, vring.desc, vring.avail, vring.used))

    def stop_queue(self, index: int) -> int:
        self.calls.append(("stop", index))
        return (self.bases.pop(index) + 5) & 0xFFFF

    def set_call(self, index: int, fd: int) -> None:
        assert index in self.bases
        if fd >= 0:
            os.fstat(fd)
        self.calls.append(("set_call", index, fd >= 0))


class FakeMemory:
    """Records regions by guest address; refuses descriptors of files that are shorter than what is mapped."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.regions: dict[int, tuple[int, int]] = {}

    def map(self, guest_addr: int, size: int, user_addr: int, mmap_offset: int, fd: int) -> None:
        assert not self.device.bases, "memory changed while a ring ran"
        if os.fstat(fd).st_size < mmap_offset + size:
            raise ValueError(f"the file ends before {mmap_offset + size:#x}")
        self.regions[guest_addr] = (size, user_addr)

    def unmap(self, guest_addr: int, size: int, user_addr: int) -> None:
        assert not self.device.bases, "memory changed while a ring ran"
        assert self.regions.pop(guest_addr) == (size, user_addr)

    def clear(self) -> None:
        assert not self.device.bases, "memory cleared while a ring ran"
        self.regions.clear()


class Session:
    """A back end on a thread of its own, and the peer's end of its connection."""

    def __init__(self, device: FakeDevice | None = None) -> None:
        ours, theirs = socket.socketpair()
        self.sock = ours
        self.conn = Connection(ours)
        self.frontend = Frontend(self.conn, PATIENCE)
        self.device = device or FakeDevice()
        self.memory = FakeMemory(self.device)
        self.reason = ""
        self.error: BaseException | None = None
        self.stop_fd = os.eventfd(0)
        self.backend = Backend(Connection(theirs), self.device, self.memory)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.reason = self.backend.run(self.stop_fd)
        except BaseException as error:
            self.error = error

    def negotiate(self, features: int = FEATURES | PROTOCOL_FEATURES) -> Frontend:
        """The front end with REPLY_ACK and all else that is offered."""
        self.frontend.set_protocol_features(self.frontend.get_protocol_features())
        self.frontend.set_features(features)
        return self.frontend

    def ask(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = ACKED) -> Message:
        """Send any bytes, and return the answer."""
        self.conn.send(request, flags, payload, fds, 10)
        return self.conn.recv(PATIENCE)

    def ack(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> int:
        """The acknowledgement of a message, which must come in the right form."""
        reply = self.ask(request, payload, fds)
        assert (reply.request, reply.flags, reply.fds) == (request, 5, [])
        return decode_u64(reply.payload)

    def is_alive(self) -> bool:
        """Whether the session still answers."""
        return len(self.ask(FrontendRequest.VHOST_USER_GET_FEATURES, flags=UNACKED).payload) == 8

    def wait(self) -> str:
        """The end of a session that ends by itself; its reason."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.reason

    def close(self) -> None:
        self.conn.close()
        self.thread.join(PATIENCE)
        os.close(self.stop_fd)
        assert not self.thread.is_alive()
        assert not self.device.bases, "a ring was left running"
        assert not self.memory.regions, "memory was left mapped"
        if self.error is not None:
            raise self.error


@contextmanager
def session(device: FakeDevice | None = None) -> Iterator[Session]:
    """A session that is over, cleanly and without a leak, at the end of the block."""
    before = open_fds()
    running = Session(device)
    try:
        yield running
    finally:
        running.close()
    assert open_fds() == before


@contextmanager
def memfd(size: int = 1 << 20) -> Iterator[int]:
    fd = os.memfd_create("guest")
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    fds = [os.eventfd(0) for _ in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)
