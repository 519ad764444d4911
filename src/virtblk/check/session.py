"""A session of the raw front end: negotiated as told, rings of its own layout, requests in any framing, an account.

`Session` is what most checks work with. It keeps the rules unless it is told otherwise, always kicks, and looks at the
used ring itself, so that a device whose notifications are wrong fails the checks of notifications and no others.
`account` is the end of each: every head is back, and the device wrote nowhere but where it may.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from virtblk.check.memory import Memory
from virtblk.check.peer import PROTOCOL_FEATURES_BIT, Gone, Peer, Silent
from virtblk.check.requirement import Failed, Rejected
from virtblk.check.ring import Buffer, Chain, Ring
from virtblk.check.target import UNDERSTOOD_PROTOCOL, Target
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi import virtio_blk as blk
from virtblk.uapi.vhost_user import FrontendRequest
from virtblk.uapi.virtio_config import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from virtblk.vhost_user.message import MemoryRegion

#: What a device that never wrote the status byte leaves there.
NO_STATUS: Final = 0xE7
#: What a device that never wrote a data buffer leaves there.
UNTOUCHED: Final = 0xB6

HEADER: Final = struct.Struct("<IIQ")

#: The device features that sessions accept where they are offered. EVENT_IDX and IN_ORDER only when asked for.
UNDERSTOOD: Final = sum(
    1 << bit
    for bit in (
        blk.VIRTIO_BLK_F_SIZE_MAX,
        blk.VIRTIO_BLK_F_SEG_MAX,
        blk.VIRTIO_BLK_F_GEOMETRY,
        blk.VIRTIO_BLK_F_RO,
        blk.VIRTIO_BLK_F_BLK_SIZE,
        blk.VIRTIO_BLK_F_FLUSH,
        blk.VIRTIO_BLK_F_TOPOLOGY,
        blk.VIRTIO_BLK_F_CONFIG_WCE,
        blk.VIRTIO_BLK_F_MQ,
        blk.VIRTIO_BLK_F_DISCARD,
        blk.VIRTIO_BLK_F_WRITE_ZEROES,
        blk.VIRTIO_BLK_F_LIFETIME,
        blk.VIRTIO_BLK_F_SECURE_ERASE,
        VIRTIO_RING_F_INDIRECT_DESC,
        uapi.VHOST_USER_F_PROTOCOL_FEATURES,
        VIRTIO_F_VERSION_1,
    )
)
ON_REQUEST: Final = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_F_IN_ORDER


@dataclass
class Request:
    """A request that is out, or came back. `data_at` are the pieces of its data that the device may write."""

    session: Session
    ring: Ring
    chain: Chain
    status_at: int | None
    data_at: list[Buffer]

    @property
    def done(self) -> bool:
        return self.chain.used_len is not None

    @property
    def used_len(self) -> int:
        assert self.chain.used_len is not None
        return self.chain.used_len

    @property
    def status(self) -> int:
        """The status byte, NO_STATUS where the device did not write it."""
        return NO_STATUS if self.status_at is None else self.session.memory.read(self.status_at, 1)[0]

    @property
    def data(self) -> bytes:
        return b"".join(self.session.memory.read(b.addr, b.len) for b in self.data_at)

    def expect(self, *statuses: int) -> Request:
        """Wait for it; Failed unless its status is one of those. Returns itself."""
        self.session.wait(self)
        if self.status not in statuses:
            wanted = " or ".join(str(s) for s in statuses)
            got = "was not written" if self.status == NO_STATUS else f"is {self.status}"
            raise Failed(f"the status {got}, expected {wanted} (used length {self.used_len})")
        return self

    def ok(self) -> Request:
        return self.expect(blk.VIRTIO_BLK_S_OK)


class Session:
    """One connection with memory and rings. Leaving its context settles the account and gives everything back."""

    def __init__(
        self,
        target: Target,
        *,
        features: int | None = None,
        plus: Sequence[int] = (),
        without: Sequence[int] = (),
        protocol: int = UNDERSTOOD_PROTOCOL,
        num: int = 64,
        base: int = 0,
        queues: int = 1,
        memory: Memory | None = None,
        slots: bool = False,
        start: bool = True,
    ) -> None:
        """`features` None: all that are understood and offered, `plus` and `without` some bits. `slots`: ADD_MEM_REG
        instead of SET_MEM_TABLE. `start` False: negotiated, and nothing more."""
        self.timeout = target.timeout
        self.closed = False
        facts = target.facts
        wanted = UNDERSTOOD if features is None else features
        for bit in plus:
            wanted |= 1 << bit
        for bit in without:
            wanted &= ~(1 << bit)
        self.features = wanted & facts.features
        self._stack = ExitStack()
        self.rings: list[Ring] = []
        self.kick_fds: dict[int, int] = {}
        self.call_fds: dict[int, int] = {}
        self.err_fds: dict[int, int] = {}
        try:
            self.memory = memory if memory is not None else Memory()
            self._stack.callback(self.memory.close)
            self.peer: Peer = self._stack.enter_context(target.connect())
            self.protocol = protocol & facts.protocol_features
            self.peer.get_features()
            if facts.features & PROTOCOL_FEATURES_BIT:
                self.peer.get_protocol_features()
                self.peer.set_protocol_features(self.protocol)
            self.peer.tell(FrontendRequest.VHOST_USER_SET_OWNER)
            self.peer.set_features(self.features)
            if start:
                if slots:
                    for region in self.memory.regions:
                        self.add_region(region)
                else:
                    self.set_mem_table()
                for index in range(queues):
                    self.start_ring(self.make_ring(index, num, base))
        except BaseException:
            self.close()
            raise

    # Messages.

    def set_mem_table(self, memory: Memory | None = None) -> None:
        memory = memory or self.memory
        payload = uapi.MEMORY_HEADER.pack(len(memory.regions), 0)
        payload += b"".join(uapi.MEMORY_REGION.pack(*region) for region in memory.regions)
        self.peer.tell(FrontendRequest.VHOST_USER_SET_MEM_TABLE, payload, [memory.fd] * len(memory.regions))

    def add_region(self, region: MemoryRegion) -> None:
        self.peer.tell(FrontendRequest.VHOST_USER_ADD_MEM_REG, uapi.MEM_REG.pack(0, *region), [self.memory.fd])

    def make_ring(self, index: int, num: int = 64, base: int = 0) -> Ring:
        """A ring in memory that the device does not know yet."""
        ring = Ring(self.memory, index, num, base)
        self.rings.append(ring)
        return ring

    def addresses(self, ring: Ring) -> bytes:
        """The payload of SET_VRING_ADDR."""
        user = self.memory.user
        return uapi.VRING_ADDR.pack(ring.index, 0, user(ring.desc), user(ring.used), user(ring.avail), 0)

    def describe_ring(self, ring: Ring) -> None:
        """Size, base, addresses and call descriptor: all but the start."""
        self.peer.set_vring(FrontendRequest.VHOST_USER_SET_VRING_NUM, ring.index, ring.num)
        self.peer.set_vring(FrontendRequest.VHOST_USER_SET_VRING_BASE, ring.index, ring.avail_idx)
        self.peer.tell(FrontendRequest.VHOST_USER_SET_VRING_ADDR, self.addresses(ring))
        self.set_call(ring)
        self.err_fds[ring.index] = self.event_fd()
        self.peer.tell(FrontendRequest.VHOST_USER_SET_VRING_ERR, uapi.U64.pack(ring.index), [self.err_fds[ring.index]])

    def start_ring(self, ring: Ring, *, kick: bool = True) -> None:
        """Describe it, start it, enable it, and kick it once, as front ends of the newer rule do."""
        self.describe_ring(ring)
        self.set_kick(ring)
        if self.features & PROTOCOL_FEATURES_BIT:
            self.enable(ring)
        if kick:
            self.kick(ring)

    def set_kick(self, ring: Ring) -> None:
        self.kick_fds[ring.index] = fd = self.event_fd()
        self.peer.tell(FrontendRequest.VHOST_USER_SET_VRING_KICK, uapi.U64.pack(ring.index), [fd])

    def set_call(self, ring: Ring) -> None:
        self.call_fds[ring.index] = fd = self.event_fd()
        self.peer.tell(FrontendRequest.VHOST_USER_SET_VRING_CALL, uapi.U64.pack(ring.index), [fd])

    def enable(self, ring: Ring, on: bool = True) -> None:
        self.peer.set_vring(FrontendRequest.VHOST_USER_SET_VRING_ENABLE, ring.index, int(on))

    def stop_ring(self, ring: Ring) -> int:
        """Stop it; the available index that comes next."""
        return self.peer.get_vring_base(ring.index)

    def event_fd(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stack.callback(os.close, fd)
        return fd

    def socketpair(self) -> tuple[int, int]:
        """The two ends of a connection, closed with the session."""
        ends = socket.socketpair()
        for end in ends:
            self._stack.callback(end.close)
        return ends[0].fileno(), ends[1].fileno()

    # Notifications.

    def kick(self, ring: Ring | None = None) -> None:
        os.eventfd_write(self.kick_fds[(ring or self.rings[0]).index], 1)

    def calls(self, ring: Ring | None = None) -> int:
        """How often the device notified since the last time."""
        return _counted(self.call_fds[(ring or self.rings[0]).index])

    def errors(self, ring: Ring | None = None) -> int:
        """How often it reported the ring as broken."""
        return _counted(self.err_fds[(ring or self.rings[0]).index])

    def wait_call(self, ring: Ring | None = None) -> None:
        """Wait for a notification. Failed if none comes in time."""
        deadline = time.monotonic() + self.timeout
        while not self.calls(ring):
            if self.peer.gone():
                raise Gone("the device closed the connection")
            if time.monotonic() > deadline:
                raise Failed(f"no notification within {self.timeout:g} s")
            time.sleep(0.0005)

    # Requests.

    def buffer(self, data: bytes, *, gap: int = 64, align: int = 16) -> Buffer:
        """A device-readable buffer."""
        at = self.memory.alloc(len(data), align, gap=gap)
        self.memory.write(at, data)
        return Buffer(at, len(data))

    def room(self, length: int, fill: int = UNTOUCHED, *, gap: int = 64, align: int = 16) -> Buffer:
        """A device-writable buffer."""
        at = self.memory.alloc(length, align, gap=gap)
        self.memory.write(at, bytes([fill]) * length)
        return Buffer(at, length, True)

    def add(
        self,
        readable: Sequence[Buffer],
        writable: Sequence[Buffer],
        *,
        ring: Ring | None = None,
        status_at: int | None = None,
        indirect: int | None = None,
        flags: int = 0,
    ) -> Request:
        """Any buffers as a request, available and not published. `status_at` None: the last writable byte."""
        ring = ring or self.rings[0]
        if status_at is None and writable:
            status_at = writable[-1].addr + writable[-1].len - 1
        chain = ring.add([*readable, *writable], indirect=indirect, flags=flags)
        data = [Buffer(b.addr, b.len - (b is writable[-1])) for b in writable]
        return Request(self, ring, chain, status_at, [b for b in data if b.len])

    def prepare(
        self,
        kind: int,
        sector: int = 0,
        out: bytes | Sequence[bytes] = b"",
        room: int | Sequence[int] = 0,
        *,
        ring: Ring | None = None,
        indirect: int | None = None,
    ) -> Request:
        """A request in the framing that all devices know: header, data (one buffer or several), status."""
        outs = [out] if isinstance(out, bytes) else out
        rooms = [room] if isinstance(room, int) else room
        readable = [self.buffer(HEADER.pack(kind, 0, sector)), *(self.buffer(data) for data in outs if data)]
        writable = [*(self.room(length) for length in rooms if length), self.room(1, NO_STATUS)]
        return self.add(readable, writable, ring=ring, indirect=indirect)

    def submit(self, *requests: Request, kick: bool = True) -> None:
        """Show the device all that is prepared."""
        for ring in self.rings:
            if not requests or any(r.ring is ring for r in requests):
                ring.publish()
                if kick:
                    self.kick(ring)

    def send(
        self, kind: int, sector: int = 0, out: bytes | Sequence[bytes] = b"", room: int | Sequence[int] = 0
    ) -> Request:
        """Prepare and submit."""
        request = self.prepare(kind, sector, out, room)
        self.submit(request)
        return request

    def wait(self, *requests: Request) -> None:
        """Until all of them are back. Silent, Gone."""
        deadline = time.monotonic() + self.timeout
        while True:
            for ring in self.rings:
                ring.reap()
            if all(request.done for request in requests):
                return
            if self.peer.gone():
                raise Gone(f"the device closed the connection{self._reason()}")
            if time.monotonic() > deadline:
                heads = ", ".join(str(r.chain.head) for r in requests if not r.done)
                raise Silent(f"no completion of head {heads} within {self.timeout:g} s{self._reason()}")
            time.sleep(0.0002)

    def _reason(self) -> str:
        broken = [str(ring.index) for ring in self.rings if ring.index in self.err_fds and self.errors(ring)]
        return f" (it reported ring {', '.join(broken)} as broken)" if broken else ""

    def read(self, sector: int, sectors: int = 1) -> bytes:
        """Read, successfully."""
        return self.send(blk.VIRTIO_BLK_T_IN, sector, room=512 * sectors).ok().data

    def write(self, sector: int, data: bytes) -> None:
        """Write, successfully."""
        self.send(blk.VIRTIO_BLK_T_OUT, sector, data).ok()

    # What must not happen.

    def settle(self, seconds: float, request: Request | None = None, *, ring: Ring | None = None) -> str:
        """After something unsound was offered: how the device answered it. Rejected where it refused to.

        A refusal is a session that was closed, or a ring that stands still while the device still answers messages.
        """
        ring = ring or self.rings[0]
        ring.lost = True
        before = ring.seen
        deadline = time.monotonic() + seconds
        while ring.used_idx == before and time.monotonic() < deadline:
            if self.peer.gone():
                raise Rejected("the session was closed")
            if self.errors(ring):
                raise Rejected("the ring was reported as broken, and stopped")
            time.sleep(0.0005)
        if ring.used_idx == before:
            try:
                self.stop_ring(ring)
            except Gone:
                raise Rejected("the session was closed") from None
            if ring.used_idx == before:
                raise Rejected("the ring stopped, and nothing was returned")
        head, length = ring.used_elem(before)
        ring.reap()
        answer = f"head {head} came back with length {length}"
        if request is not None and request.status_at is not None:
            answer += ", status not written" if request.status == NO_STATUS else f", status {request.status}"
        return answer

    def account(self) -> None:
        """Every head is back, and nothing was written that must not be. Failed if not."""
        with suppress(Gone):
            if not self.peer.gone():
                self.drain()
        changes = self.memory.changes()
        if changes:
            raise Failed("; ".join(str(change) for change in changes))

    def drain(self) -> None:
        """Wait for all heads. Failed for those that do not come."""
        deadline = time.monotonic() + self.timeout
        while True:
            left = []
            for ring in self.rings:
                ring.reap()
                if not ring.lost:
                    left += [f"{head} of ring {ring.index}" for head in ring.out]
            if not left or self.peer.gone():
                return
            if time.monotonic() > deadline:
                raise Failed(f"heads never returned: {', '.join(left[:8])}")
            time.sleep(0.0002)

    def close(self) -> None:
        """Harmless when repeated."""
        self.closed = True
        self._stack.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.account()
        finally:
            self.close()


def _counted(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
