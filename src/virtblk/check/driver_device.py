"""A vhost-user-blk device for `virtblk check --driver`: honest by itself, and as wrong as its plan wants it to be.

One `Device` serves one connection: messages by vhost-user.rst, one split ring by virtio 1.2 (2.7), a disk in memory
that outlives the connection. What it does at each message and at each request is asked of a `Plan`, whose methods are
the honest ones; the misbehaviours are plans that differ in one place. Whatever the driver itself does wrong is kept as
a complaint. It shares no code with the driver's own half of a ring, nor with the device that `virtblk serve` is.

Runs on a thread of its own (`driver_trial`); plain Python, one word of shared memory per load and store.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from virtblk.uapi import vhost_user as uapi
from virtblk.uapi import virtio_blk as blk
from virtblk.uapi.vhost_user import FrontendRequest as R
from virtblk.uapi.vhost_user import ProtocolFeature
from virtblk.uapi.virtio_config import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from virtblk.uapi.virtio_ring import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    avail_size,
    desc_table_size,
    used_size,
)
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.message import (
    MemoryRegion,
    Message,
    ProtocolError,
    decode_mem_reg,
    decode_memory,
    decode_vring_addr,
    decode_vring_state,
)

REPLY: Final = uapi.VHOST_USER_VERSION | uapi.VHOST_USER_REPLY_MASK
#: Seconds that a message may take once it has begun.
MESSAGE_TIMEOUT: Final = 10.0
#: The disk, in sectors.
CAPACITY: Final = 16384
SERIAL: Final = b"misbehaving"

FEATURES: Final = sum(
    1 << bit
    for bit in (
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        uapi.VHOST_USER_F_PROTOCOL_FEATURES,
        blk.VIRTIO_BLK_F_SEG_MAX,
        blk.VIRTIO_BLK_F_BLK_SIZE,
        blk.VIRTIO_BLK_F_FLUSH,
        blk.VIRTIO_BLK_F_MQ,
    )
)
PROTOCOL_FEATURES: Final = sum(
    1 << bit
    for bit in (
        ProtocolFeature.VHOST_USER_PROTOCOL_F_MQ,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIG,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    )
)
_CONFIG: Final = struct.Struct("<QIIHBBIBBHIBBH")
_DESC: Final = struct.Struct("<QIHH")
_USED: Final = struct.Struct("<II")
_HEADER: Final = struct.Struct("<IIQ")


def blk_config(
    capacity: int = CAPACITY,
    size_max: int = 0,
    seg_max: int = 32,
    blk_size: int = 512,
    physical_block_exp: int = 0,
    num_queues: int = 1,
) -> bytes:
    """A configuration space of 60 bytes."""
    head = _CONFIG.pack(capacity, size_max, seg_max, 0, 0, 0, blk_size, physical_block_exp, 0, 0, 0, 0, 0, num_queues)
    return head.ljust(blk.BLK_CONFIG_SIZE_1_1, b"\0")


class Wrong(Exception):
    """The driver did something that no device can serve; the session ends, and the complaint stays."""


class _Region(NamedTuple):
    region: MemoryRegion
    view: memoryview
    map: mmap.mmap


class GuestMemory:
    """What the driver shared."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []
        self._views: list[memoryview] = []

    def add(self, region: MemoryRegion, fd: int) -> None:
        inner = region.mmap_offset % mmap.PAGESIZE
        try:
            mapped = mmap.mmap(fd, region.size + inner, offset=region.mmap_offset - inner)
        except (OSError, ValueError) as error:
            raise Wrong(f"the memory region {region} cannot be mapped: {error}") from None
        self._regions.append(_Region(region, memoryview(mapped)[inner:], mapped))

    def remove(self, region: MemoryRegion) -> None:
        for each in self._regions:
            if each.region[:3] == region[:3]:
                self._regions.remove(each)
                return

    def at(self, address: int, length: int) -> memoryview:
        """The bytes at a guest address."""
        for region, view, _ in self._regions:
            start = address - region.guest_addr
            if 0 <= start <= region.size - length:
                return view[start : start + length]
        raise Wrong(f"{length} bytes at guest address {address:#x} are not in the memory that was shared")

    def at_user(self, address: int, length: int) -> memoryview:
        """The bytes at a user address of the driver."""
        for region, view, _ in self._regions:
            start = address - region.user_addr
            if 0 <= start <= region.size - length:
                return view[start : start + length]
        raise Wrong(f"{length} bytes at user address {address:#x} are not in the memory that was shared")

    def words(self, view: memoryview) -> memoryview:
        """The same bytes as 16-bit words, each loaded and stored in one piece."""
        self._views.append(view.cast("H"))
        return self._views[-1]

    def close(self) -> None:
        for view in self._views:
            view.release()
        for _, view, mapped in self._regions:
            view.release()
            with suppress(BufferError):  # a request that was never answered still shows parts of it
                mapped.close()
        self._views.clear()
        self._regions.clear()


@dataclass
class Request:
    """One request as it came. `room` is how many bytes of data the device may write."""

    head: int
    type: int
    sector: int
    data: bytes
    room: int
    writable: list[memoryview] = field(repr=False)

    @property
    def is_io(self) -> bool:
        return self.type != blk.VIRTIO_BLK_T_GET_ID


class Ring:
    """The device's half of a split ring, and its place in memory."""

    def __init__(self, memory: GuestMemory, num: int, desc: int, avail: int, used: int, base: int) -> None:
        if num < 1 or num & (num - 1) or num > 32768:
            raise Wrong(f"a ring of {num} entries")
        if desc % 16 or avail % 2 or used % 4:
            raise Wrong(f"ring addresses {desc:#x}, {avail:#x}, {used:#x} are not aligned to 16, 2 and 4")
        self.num = num
        self.desc = memory.at_user(desc, desc_table_size(num))
        self.avail = memory.words(memory.at_user(avail, avail_size(num)))
        self.used_bytes = memory.at_user(used, used_size(num))
        self.used = memory.words(self.used_bytes[: 4 + 8 * num + 2])
        self.last_avail = base
        self.used_idx = self.used[1]
        self.signalled = self.used_idx
        self.taken = 0

    def waiting(self) -> int:
        """Chains that are available; Wrong where more are than fit."""
        count = (self.avail[1] - self.last_avail) & 0xFFFF
        if count > self.num:
            raise Wrong(f"the available index moved to {self.avail[1]} from {self.last_avail}, in a ring of {self.num}")
        return count

    def next_head(self) -> int:
        head = self.avail[2 + self.last_avail % self.num]
        if head >= self.num:
            raise Wrong(f"head {head} in a ring of {self.num}")
        self.last_avail = (self.last_avail + 1) & 0xFFFF
        self.taken += 1
        return head

    def put_used(self, head: int, length: int) -> None:
        _USED.pack_into(self.used_bytes, 4 + 8 * (self.used_idx % self.num), head & 0xFFFFFFFF, length & 0xFFFFFFFF)
        self.used_idx = (self.used_idx + 1) & 0xFFFF

    def show(self, ahead: int = 0) -> None:
        self.used[1] = (self.used_idx + ahead) & 0xFFFF

    def ask_for_kicks(self, event_idx: bool) -> None:
        if event_idx:
            self.used[2 + 4 * self.num] = self.last_avail
        else:
            self.used[0] = 0

    def wants_call(self, event_idx: bool) -> bool:
        old, self.signalled = self.signalled, self.used_idx
        if not event_idx:
            return not self.avail[0] & VRING_AVAIL_F_NO_INTERRUPT
        event = self.avail[2 + self.num]
        return (self.used_idx - event - 1) & 0xFFFF < (self.used_idx - old) & 0xFFFF


class Plan:
    """What a device does; this one is honest. One plan may serve several connections, one after the other."""

    features: int = FEATURES
    protocol_features: int = PROTOCOL_FEATURES
    config: bytes = blk_config()
    queue_num: int = 1

    def on_message(self, device: Device, msg: Message) -> None:
        device.obey(msg)
        device.respond(msg)

    def on_request(self, device: Device, request: Request) -> None:
        device.complete(request)

    def on_start(self, device: Device) -> None:
        """The ring has just started."""

    def on_idle(self, device: Device) -> None:
        """Everything that was available is answered, or held."""


class Device:
    """One session. `spoilt` says what was done to the driver, "" as long as nothing was."""

    def __init__(self, plan: Plan, conn: Connection, disk: bytearray, stop_fd: int) -> None:
        self.plan, self.conn, self.disk = plan, conn, disk
        self._stop_fd = stop_fd
        self.memory = GuestMemory()
        self.memory_fds: list[int] = []
        self.ring: Ring | None = None
        self.accepted = self.accepted_protocol = 0
        self.features_set = False
        self.num = self.base = 0
        self.addr = (0, 0, 0)
        self.kick_fd = self.call_fd = -1
        self.running = False
        self.requests = 0
        self.messages: list[int] = []
        self.complaints: list[str] = []
        self.held: list[Request] = []
        self.spoilt = ""
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._fence = threading.Lock()

    @property
    def event_idx(self) -> bool:
        return bool(self.accepted >> VIRTIO_RING_F_EVENT_IDX & 1)

    def spoil(self, what: str) -> None:
        """Note that the driver was lied to, the first time."""
        if not self.spoilt:
            self.spoilt = what

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after a while, on this thread."""
        self._later.append((time.monotonic() + seconds, action))

    # The session.

    def run(self) -> None:
        """Serve until the driver hangs up, the plan does, or the stop fd is readable."""
        try:
            self._serve()
        except (ConnectionClosed, ConnectionError):
            pass
        except Wrong as wrong:
            self.complaints.append(str(wrong))
        except ProtocolError as error:
            self.complaints.append(f"a message that cannot be: {error}")
        except TimeoutError:
            self.complaints.append("a message was begun and not finished")
        finally:
            self.close()

    def _serve(self) -> None:
        while True:
            poller = select.poll()
            for fd in (self.conn.fileno(), self._stop_fd, self.kick_fd if self.running else -1):
                if fd >= 0:
                    poller.register(fd, select.POLLIN)
            if self.conn.fileno() < 0:
                return
            ready = {fd for fd, _ in poller.poll(self._until_due())}
            if self._stop_fd in ready:
                return
            self._do_due()
            if self.kick_fd in ready:
                with suppress(BlockingIOError):
                    os.read(self.kick_fd, 8)
                self.process()
            if self.conn.fileno() >= 0 and self.conn.fileno() in ready:
                with self.conn.recv(MESSAGE_TIMEOUT) as msg:
                    self.messages.append(msg.request)
                    self.plan.on_message(self, msg)

    def _until_due(self) -> float | None:
        if not self._later:
            return None
        return max(0.0, min(due for due, _ in self._later) - time.monotonic()) * 1000 + 1

    def _do_due(self) -> None:
        now = time.monotonic()
        due = [action for when, action in self._later if when <= now]
        self._later = [each for each in self._later if each[0] > now]
        for action in due:
            if self.conn.fileno() >= 0:
                action()

    def hang_up(self) -> None:
        """Close the connection now."""
        self.conn.close()
        self._later.clear()

    def close(self) -> None:
        self.conn.close()
        self.ring = None
        self.held.clear()
        self.memory.close()
        for fd in (self.kick_fd, self.call_fd, *self.memory_fds):
            if fd >= 0:
                os.close(fd)
        self.kick_fd = self.call_fd = -1
        self.memory_fds.clear()

    # Messages.

    def respond(self, msg: Message) -> None:
        """The honest answer to a message, if it has one."""
        payload = self.answer_of(msg)
        if payload is not None:
            self.reply(msg.request, payload)

    def answer_of(self, msg: Message) -> bytes | None:
        """The payload of the honest answer: a reply, an acknowledgement that was asked for, or None."""
        match msg.request:
            case R.VHOST_USER_GET_FEATURES:
                return uapi.U64.pack(self.plan.features)
            case R.VHOST_USER_GET_PROTOCOL_FEATURES:
                return uapi.U64.pack(self.plan.protocol_features)
            case R.VHOST_USER_GET_QUEUE_NUM:
                return uapi.U64.pack(self.plan.queue_num)
            case R.VHOST_USER_GET_MAX_MEM_SLOTS:
                return uapi.U64.pack(8)
            case R.VHOST_USER_GET_VRING_BASE:
                return uapi.VRING_STATE.pack(msg.payload[0], self.base)
            case R.VHOST_USER_GET_CONFIG:
                size = len(msg.payload) - uapi.CONFIG_HEADER.size
                return msg.payload[: uapi.CONFIG_HEADER.size] + self.plan.config[:size].ljust(size, b"\0")
        if msg.needs_reply and self.accepted_protocol >> ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK & 1:
            return uapi.U64.pack(0)
        return None

    def reply(self, request: int, payload: bytes) -> None:
        self.send(uapi.HEADER.pack(request, REPLY, len(payload)) + payload)

    def send(self, data: bytes) -> None:
        """Any bytes at all; a driver that has hung up gets none."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.conn._sock.setblocking(True)
            try:
                self.conn._sock.sendall(data)
            finally:
                self.conn._sock.setblocking(False)

    def obey(self, msg: Message) -> None:
        """Do what a message asks for. Wrong where it asks for what cannot be."""
        match msg.request:
            case R.VHOST_USER_SET_FEATURES:
                self.accepted = int(uapi.U64.unpack(msg.payload)[0])
                self.features_set = True
                if extra := self.accepted & ~self.plan.features:
                    self.complaints.append(f"SET_FEATURES accepts {extra:#x}, which was not offered")
            case R.VHOST_USER_SET_PROTOCOL_FEATURES:
                self.accepted_protocol = int(uapi.U64.unpack(msg.payload)[0])
                if extra := self.accepted_protocol & ~self.plan.protocol_features:
                    self.complaints.append(f"SET_PROTOCOL_FEATURES accepts {extra:#x}, which was not offered")
            case R.VHOST_USER_ADD_MEM_REG:
                self._share([decode_mem_reg(msg.payload)], msg)
            case R.VHOST_USER_REM_MEM_REG:
                self.memory.remove(decode_mem_reg(msg.payload))
            case R.VHOST_USER_SET_MEM_TABLE:
                self._share(decode_memory(msg.payload), msg)
            case R.VHOST_USER_SET_VRING_NUM:
                self.num = decode_vring_state(msg.payload).num
            case R.VHOST_USER_SET_VRING_BASE:
                self.base = decode_vring_state(msg.payload).num
            case R.VHOST_USER_SET_VRING_ADDR:
                addr = decode_vring_addr(msg.payload)
                self.addr = addr.desc, addr.avail, addr.used
            case R.VHOST_USER_SET_VRING_CALL:
                self.call_fd = self._swap(self.call_fd, msg)
            case R.VHOST_USER_SET_VRING_KICK:
                self.kick_fd = self._swap(self.kick_fd, msg)
                self.ring = Ring(self.memory, self.num, *self.addr, self.base)
                self.running = not self.accepted >> uapi.VHOST_USER_F_PROTOCOL_FEATURES & 1
                self._began()
            case R.VHOST_USER_SET_VRING_ENABLE:
                self.running = decode_vring_state(msg.payload).num == 1
                self._began()
            case R.VHOST_USER_GET_VRING_BASE:
                if self.ring is not None:
                    self.base = self.ring.last_avail
                self.ring = None
                self.running = False

    def _share(self, regions: list[MemoryRegion], msg: Message) -> None:
        if len(regions) != len(msg.fds):
            raise Wrong(f"{len(regions)} memory regions come with {len(msg.fds)} file descriptors")
        for region in regions:
            fd = msg.take_fd(0)
            self.memory_fds.append(fd)
            self.memory.add(region, fd)

    def _swap(self, old: int, msg: Message) -> int:
        if old >= 0:
            os.close(old)
        return msg.take_fd(0) if msg.fds else -1

    def _began(self) -> None:
        if self.running and self.ring is not None:
            self.plan.on_start(self)
            self.process()

    # Requests.

    def process(self) -> None:
        """Take all that is available, until the driver knows that it has to kick for more."""
        while (ring := self.ring) is not None and self.running:
            if not ring.waiting():
                ring.ask_for_kicks(self.event_idx)
                self.fence()
                if not ring.waiting():
                    self.plan.on_idle(self)
                    return
            request = self._parse(ring, ring.next_head())
            self.requests += 1
            self.plan.on_request(self, request)

    def _parse(self, ring: Ring, head: int) -> Request:
        readable, writable = bytearray(), []
        table: memoryview = ring.desc
        entries, index, left = ring.num, head, ring.num
        while True:
            if left == 0 or index >= entries:
                raise Wrong(f"the chain at head {head} loops, or leaves its table at {index}")
            left -= 1
            address, length, flags, following = _DESC.unpack_from(table, 16 * index)
            if flags & VRING_DESC_F_INDIRECT:
                if table is not ring.desc or flags & VRING_DESC_F_NEXT or not length or length % 16:
                    raise Wrong(f"head {head} has an indirect descriptor of {length} bytes with flags {flags}")
                if not self.accepted >> VIRTIO_RING_F_INDIRECT_DESC & 1:
                    raise Wrong("an indirect descriptor, though the driver did not accept INDIRECT_DESC")
                table, index, entries = self.memory.at(address, length), 0, length // 16
                left = entries
                continue
            piece = self.memory.at(address, length)
            if flags & VRING_DESC_F_WRITE:
                writable.append(piece)
            elif writable:
                raise Wrong(f"head {head} has a readable descriptor after a writable one")
            else:
                readable += piece
            if not flags & VRING_DESC_F_NEXT:
                break
            index = following
        room = sum(len(piece) for piece in writable) - 1
        if len(readable) < blk.OUTHDR_SIZE or room < 0:
            raise Wrong(f"a request of {len(readable)} readable and {room + 1} writable bytes")
        kind, _, sector = _HEADER.unpack_from(readable)
        return Request(head, kind, sector, bytes(readable[blk.OUTHDR_SIZE :]), room, writable)

    def honest(self, request: Request) -> tuple[int, bytes]:
        """(status, data) of a request that is served."""
        start = request.sector * blk.SECTOR_SIZE
        if request.type == blk.VIRTIO_BLK_T_IN and start + request.room <= len(self.disk):
            return blk.VIRTIO_BLK_S_OK, bytes(self.disk[start : start + request.room])
        if request.type == blk.VIRTIO_BLK_T_OUT and start + len(request.data) <= len(self.disk):
            self.disk[start : start + len(request.data)] = request.data
            return blk.VIRTIO_BLK_S_OK, b""
        if request.type == blk.VIRTIO_BLK_T_FLUSH:
            return blk.VIRTIO_BLK_S_OK, b""
        if request.type == blk.VIRTIO_BLK_T_GET_ID:
            return blk.VIRTIO_BLK_S_OK, SERIAL.ljust(blk.VIRTIO_BLK_ID_BYTES, b"\0")[: request.room]
        if request.type in (blk.VIRTIO_BLK_T_IN, blk.VIRTIO_BLK_T_OUT):
            return blk.VIRTIO_BLK_S_IOERR, b""
        return blk.VIRTIO_BLK_S_UNSUPP, b""

    def complete(
        self,
        request: Request,
        status: int | None = None,
        *,
        write_status: bool = True,
        used_id: int | None = None,
        used_len: int | None = None,
        show: bool = True,
        call: bool = True,
    ) -> None:
        """Answer a request, honestly in all that is not given. An error does not touch the disk."""
        if status is None:
            status, data = self.honest(request)
        else:
            data = b""
        rest = data
        for piece in request.writable[:-1]:
            part, rest = rest[: len(piece)], rest[len(piece) :]
            piece[: len(part)] = part
        last = request.writable[-1]
        last[: len(rest)] = rest
        if write_status:
            last[-1] = status
        ring = self.ring
        if ring is None:
            return
        # Counted as the specification has it: what was written from the beginning on, the status with it.
        length = request.room + 1 if len(data) == request.room else len(data)
        head = request.head if used_id is None else used_id
        ring.put_used(head, length if used_len is None else used_len)
        if show:
            self.publish(call=call)

    def publish(self, ahead: int = 0, *, call: bool = True) -> None:
        """Show what was used, and `ahead` more that was not; interrupt the driver if it wants that."""
        ring = self.ring
        if ring is None:
            return
        ring.show(ahead)
        self.fence()
        if ring.wants_call(self.event_idx) and call:
            self.call()

    def call(self) -> None:
        """Interrupt the driver."""
        if self.call_fd >= 0:
            with suppress(BlockingIOError):
                os.write(self.call_fd, (1).to_bytes(8, "little"))

    def fence(self) -> None:
        """Stores before are seen before loads after: taking a lock is a locked instruction."""
        with self._fence:
            pass
