"""A vhost-user-blk device that does as it is told: it answers by a script, lies on request, and keeps what it saw.

`FakeDevice` runs on a thread of its own at one end of a socketpair; `client` is the driver's end. Its ring is the naive
one, so that a driver under test meets nothing of its own making. Without a script it is an honest disk in memory:

    with FakeDevice() as device, VirtioBlk(device.client, "fake", DriverOptions()) ...

A script is called with each request (GET_ID included) on the device's thread, and returns what to do: None serves it
honestly, HOLD leaves it for `complete` (from any thread, in any order, or never), an int is a status byte, an Answer
says everything, lies included. `faults` and `close_at` spoil the handshake; `hang_up` closes the socket at any time.
With `queue_num` above 1 (and a config that says so) it has as many rings; a request knows its own.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Final

from naive.blk_request import NaiveDisk
from naive.ring import Buffer, Memory, NaiveDevice, Ring
from naive.virtio_blk import EVENT_IDX, FEATURES, GET_ID, INDIRECT, OK, P_REPLY_ACK, PROTOCOL_FEATURES, blk_config
from virtblk.jit.atomics import fence_seq_cst
from virtblk.mem import shm
from virtblk.uapi.vhost_user import FrontendRequest as R
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.message import Message, decode_mem_reg, decode_memory, decode_vring_addr, decode_vring_state
from waiting import PATIENCE

SERIAL: Final = b"fake\0"
#: Answers of a script, besides None, a status and an Answer.
HOLD: Final = object()


class Fault(Enum):
    CLOSE = 1  # hang up instead of answering
    SILENT = 2  # never answer
    REFUSE = 3  # acknowledge with 1; an empty configuration


@dataclass
class Request:
    """One request as the device saw it. `room` is how many bytes of data it may write."""

    head: int
    type: int
    sector: int
    data: bytes
    room: int
    buffers: list[Buffer] = field(repr=False)
    queue: int = 0
    answered: bool = False

    @property
    def brief(self) -> tuple[int, int, int]:
        """Type, sector, bytes of data in either direction."""
        return self.type, self.sector, len(self.data) or self.room


@dataclass(frozen=True)
class Answer:
    """`status` None leaves the byte as the driver filled it; lengths and ids are the honest ones unless given."""

    status: int | None = OK
    data: bytes = b""
    used_len: int | None = None
    used_id: int | None = None


Script = Callable[[Request], object]


@dataclass
class Vring:
    """One virtqueue: what the driver said of it, and the device's half once it was started."""

    num: int = 0
    base: int = 0
    ring: Ring | None = None
    half: NaiveDevice | None = None
    kick_fd: int = -1
    call_fd: int = -1
    err_fd: int = -1


class FakeDevice:
    """See above. `requests` holds all requests in order of arrival, `messages` the handshake's message ids."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        features: int = FEATURES,
        protocol_features: int = PROTOCOL_FEATURES,
        config: bytes | None = None,
        queue_num: int = 1,
        serial: bytes = SERIAL,
        faults: Mapping[R, Fault | bytes] | None = None,
        close_at: int = -1,
        always_call: bool = False,
    ) -> None:
        self.script = script
        self.features, self.protocol_features = features, protocol_features
        self.config = blk_config() if config is None else config
        self.queue_num = queue_num
        self.faults = dict(faults or {})
        self.close_at = close_at  # hang up on the message with this number, counted from 0
        self.always_call = always_call  # interrupt whether the driver wants it or not
        self.disk = bytearray(min(struct.unpack_from("<Q", self.config)[0], 1 << 14) * 512)
        self._naive = NaiveDisk(self.disk, serial)
        self.messages: list[int] = []
        self.requests: list[Request] = []
        self.calls = self.kicks = 0
        self.accepted = self.accepted_protocol = 0
        self.vrings = [Vring() for _ in range(max(1, queue_num))]
        self.error: BaseException | None = None
        self._changed = threading.Condition(threading.RLock())
        self._mappings: list[tuple[int, int, shm.Mapping]] = []  # user address, size
        ours, theirs = socket.socketpair()
        self.conn, self.client = Connection(ours), Connection(theirs)
        self._stop_fd = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name="fake device")
        self._thread.start()

    # For tests.

    @property
    def ring(self) -> Ring | None:
        """The first ring."""
        return self.vrings[0].ring

    @property
    def io(self) -> list[Request]:
        """All requests but GET_ID."""
        return [request for request in self.requests if request.type != GET_ID]

    @property
    def seen(self) -> list[tuple[int, int, int]]:
        """`io` as (type, sector, bytes)."""
        return [request.brief for request in self.io]

    def wait_for(self, count: int) -> list[Request]:
        """Wait until `count` requests besides GET_ID have come; returns all of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.io) >= count, PATIENCE), f"only {len(self.io)} requests came"
            return self.io

    def complete(self, request: Request, answer: object = None) -> None:
        """Answer a held request as a script would have. None: honestly."""
        with self._changed:
            assert not request.answered
            request.answered = True
            self._answer(request, answer)
            self.publish(queue=request.queue)

    def complete_all(self, requests: Sequence[Request]) -> None:
        """Answer held requests of one queue honestly, and show all of them at once."""
        with self._changed:
            for request in requests:
                assert not request.answered
                request.answered = True
                self._answer(request, None)
            self.publish(queue=requests[0].queue)

    def put_used(self, head: int, length: int, queue: int = 0) -> None:
        """Any used element at all; `publish` shows it."""
        with self._changed:
            half = self.vrings[queue].half
            assert half is not None
            half.use(head, length)

    def publish(self, ahead: int = 0, queue: int = 0) -> None:
        """Show what was used, and `ahead` more that was not; interrupt the driver if it asked for it."""
        with self._changed:
            vring = self.vrings[queue]
            assert vring.half is not None
            assert vring.ring is not None
            vring.ring.set_used_idx(vring.half.used_idx + ahead)
            fence_seq_cst()
            if (vring.half.notify() or self.always_call) and vring.call_fd >= 0:
                self.calls += 1
                os.eventfd_write(vring.call_fd, 1)

    def hang_up(self) -> None:
        """Close the connection, now. Memory stays mapped until `close`, as in a process that is slow to die."""
        self.conn.shutdown()

    def close(self) -> None:
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        with self._changed:
            for vring in self.vrings:
                vring.ring = vring.half = None
            for _, _, mapping in self._mappings:
                mapping.close()
            self._mappings.clear()
        self.client.close()
        os.close(self._stop_fd)
        for vring in self.vrings:
            for fd in (vring.kick_fd, vring.call_fd, vring.err_fd):
                if fd >= 0:
                    os.close(fd)
        if self.error is not None:
            raise self.error

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # The session.

    def _run(self) -> None:
        try:
            self._serve()
        except (ConnectionClosed, ConnectionError):
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.conn.close()

    def _serve(self) -> None:
        while True:
            poller = select.poll()
            for fd in (self.conn.fileno(), self._stop_fd, *(vring.kick_fd for vring in self.vrings)):
                if fd >= 0:
                    poller.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poller.poll()}
            if self._stop_fd in ready:
                return
            for queue, vring in enumerate(self.vrings):
                if vring.kick_fd in ready:
                    with suppress(BlockingIOError):
                        os.eventfd_read(vring.kick_fd)
                    self.kicks += 1
                    self._process(queue)
            if self.conn.fileno() in ready:
                with self.conn.recv(PATIENCE) as msg:
                    if not self._message(msg):
                        return

    def _message(self, msg: Message) -> bool:
        """Handle one message; False when this is the one to hang up on."""
        request = R(msg.request)
        self.messages.append(request)
        fault = self.faults.get(request)
        if fault is Fault.CLOSE or len(self.messages) == self.close_at + 1:
            return False
        if fault is Fault.SILENT:
            return True
        if isinstance(fault, bytes):
            self.conn.send(request, 5, fault)
            return True
        refused = fault is Fault.REFUSE
        if not refused:
            self._obey(request, msg)
        replies = {
            R.VHOST_USER_GET_FEATURES: struct.pack("<Q", self.features),
            R.VHOST_USER_GET_PROTOCOL_FEATURES: struct.pack("<Q", self.protocol_features),
            R.VHOST_USER_GET_QUEUE_NUM: struct.pack("<Q", self.queue_num),
            R.VHOST_USER_GET_VRING_BASE: self._base_of(msg) if request is R.VHOST_USER_GET_VRING_BASE else b"",
            R.VHOST_USER_GET_CONFIG: b"" if refused else msg.payload[:12] + self.config[: len(msg.payload) - 12],
        }
        if request in replies:
            self.conn.send(request, 5, replies[request])
        elif msg.needs_reply and self.accepted_protocol & P_REPLY_ACK:
            self.conn.send(request, 5, struct.pack("<Q", int(refused)))
        if request in (R.VHOST_USER_SET_VRING_KICK, R.VHOST_USER_SET_VRING_ENABLE):
            for queue in range(len(self.vrings)):
                self._process(queue)
        return True

    def _base_of(self, msg: Message) -> bytes:
        index = decode_vring_state(msg.payload).index
        return struct.pack("<II", index, self.vrings[index].base)

    def _obey(self, request: R, msg: Message) -> None:
        match request:
            case R.VHOST_USER_SET_FEATURES:
                (self.accepted,) = struct.unpack("<Q", msg.payload)
            case R.VHOST_USER_SET_PROTOCOL_FEATURES:
                (self.accepted_protocol,) = struct.unpack("<Q", msg.payload)
            case R.VHOST_USER_SET_CONFIG:
                offset, size, _ = struct.unpack_from("<III", msg.payload)
                self.config = self.config[:offset] + msg.payload[12 : 12 + size] + self.config[offset + size :]
            case R.VHOST_USER_ADD_MEM_REG:
                self._map([decode_mem_reg(msg.payload)], msg.fds)
            case R.VHOST_USER_SET_MEM_TABLE:
                self._map(decode_memory(msg.payload), msg.fds)
            case R.VHOST_USER_SET_VRING_NUM:
                state = decode_vring_state(msg.payload)
                self.vrings[state.index].num = state.num
            case R.VHOST_USER_SET_VRING_BASE:
                state = decode_vring_state(msg.payload)
                self.vrings[state.index].base = state.num
            case R.VHOST_USER_SET_VRING_ADDR:
                addr = decode_vring_addr(msg.payload)
                user, _, mapping = self._mappings[0]
                memory = Memory(mapping.array(mapping.address, mapping.length), user)
                vring = self.vrings[addr.index]
                with self._changed:
                    vring.ring = Ring(memory, vring.num, addr.desc, addr.avail, addr.used)
            case R.VHOST_USER_SET_VRING_CALL if msg.fds:
                self._vring_of(msg).call_fd = msg.take_fd(0)
            case R.VHOST_USER_SET_VRING_ERR if msg.fds:
                self._vring_of(msg).err_fd = msg.take_fd(0)
            case R.VHOST_USER_SET_VRING_KICK:
                vring = self._vring_of(msg)
                vring.kick_fd = msg.take_fd(0)
                self._start(vring)
            case R.VHOST_USER_GET_VRING_BASE:
                vring = self.vrings[decode_vring_state(msg.payload).index]
                with self._changed:
                    vring.base = vring.half.last_avail % 65536 if vring.half else vring.base
                    vring.half = None

    def _vring_of(self, msg: Message) -> Vring:
        return self.vrings[struct.unpack("<Q", msg.payload)[0] & 0xFF]

    def _map(self, regions: Sequence[object], fds: Sequence[int]) -> None:
        for region, fd in zip(regions, fds, strict=True):
            _, size, user, offset = region  # type: ignore[misc]
            self._mappings.append((user, size, shm.Mapping(size, fd, offset)))

    def _start(self, vring: Vring) -> None:
        assert vring.ring is not None
        regions = [(user, user + size) for user, size, _ in self._mappings]
        event_idx, indirect = bool(self.accepted & EVENT_IDX), bool(self.accepted & INDIRECT)
        with self._changed:
            vring.half = NaiveDevice(vring.ring, regions, event_idx=event_idx, indirect=indirect, base=vring.base)

    # The ring.

    def _process(self, queue: int) -> None:
        """Take all that is available, until the driver knows that it has to kick for more."""
        vring = self.vrings[queue]
        while vring.half is not None:
            with self._changed:
                if vring.half is None:
                    return
                chain = vring.half.take()
                if chain is None:
                    vring.half.enable()
                    fence_seq_cst()
                    chain = vring.half.take()
                if chain is None:
                    return
                request = self._parse(queue, *chain)
                self.requests.append(request)
                self._changed.notify_all()
            answer = self.script(request) if self.script else None
            if answer is not HOLD and vring.half is not None:
                self.complete(request, answer)

    def _parse(self, queue: int, head: int, buffers: list[Buffer]) -> Request:
        """The naive way to read a request: 16 readable bytes are the header, the last writable one the status."""
        ring = self.vrings[queue].ring
        assert ring is not None
        load = ring.memory.load
        readable = b"".join(load(b.address, b.length).to_bytes(b.length, "little") for b in buffers if not b.writable)
        room = sum(b.length for b in buffers if b.writable) - 1
        assert room >= 0, f"no status byte: {buffers}"
        kind, _, sector = struct.unpack_from("<IIQ", readable)
        return Request(head, kind, sector, readable[16:], room, buffers, queue)

    def _answer(self, request: Request, answer: object) -> None:
        if answer is None:
            answer = self._honest(request)
        if isinstance(answer, int):
            answer = Answer(answer)
        assert isinstance(answer, Answer)
        ring = self.vrings[request.queue].ring
        assert ring is not None
        rest, status = answer.data, b"" if answer.status is None else bytes([answer.status])
        writable = [[b.address, b.length] for b in request.buffers if b.writable]
        writable[-1][1] -= 1
        store = ring.memory.store
        if status:
            store(sum(writable[-1]), 1, status[0])
        for address, length in writable:
            part, rest = rest[:length], rest[length:]
            store(address, len(part), int.from_bytes(part, "little"))
        assert not rest, "more data than the request has room for"
        used_len = len(answer.data) + (len(answer.data) == request.room)
        self.put_used(
            request.head if answer.used_id is None else answer.used_id,
            used_len if answer.used_len is None else answer.used_len,
            request.queue,
        )

    def _honest(self, request: Request) -> Answer:
        sent = struct.pack("<IIQ", request.type, 0, request.sector) + request.data
        status, data = self._naive.serve(sent, request.room + 1)
        return Answer(status, data)
