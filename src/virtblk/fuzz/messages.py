"""What the front end that lies sends: operations, made sound and then broken in one place or few.

An operation is all that a replay needs: the bytes of a message, what its header announces, which kinds of descriptors
come with it. A sequence of them is one session after the other (`HANG_UP` parts them), made from a seed and from what
the device said of itself. Sent by `fuzz.front_end`.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, field, fields, replace
from random import Random
from typing import Any, Final

from virtblk.errors import UsageError
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest as Request
from virtblk.uapi.vhost_user import ProtocolFeature
from virtblk.uapi.virtio_blk import VIRTIO_BLK_F_ZONED
from virtblk.uapi.virtio_config import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from virtblk.vhost_user.connection import SCM_MAX_FD
from virtblk.virtio.virtqueue import SplitLayout

SEND: Final = "send"
IO: Final = "io"  # `value` sound reads, made available on a ring and kicked
KICK: Final = "kick"  # the kick descriptor, `value` times
TRUNCATE: Final = "truncate"  # the memory file, to `value` bytes
SECOND: Final = "second"  # another client that connects and asks something
FLOOD: Final = "flood"  # `value` clients that connect and hang up
HANG_UP: Final = "hang up"  # the end of a session; the next operation begins another
KINDS: Final = (SEND, IO, KICK, TRUNCATE, SECOND, FLOOD, HANG_UP)

#: The front end's memory: three kinds of addresses for the same bytes, as with a real guest.
GUEST: Final = 0x4000_0000
USER: Final = 0x7000_0000_0000
MEMORY_SIZE: Final = 1 << 20
RING_SIZE: Final = 64
#: Where rings begin in the memory, and their distance; requests follow.
RINGS_AT: Final = 0x1000
RING_STRIDE: Final = 0x4000
REQUESTS_AT: Final = 0x10000
LAYOUT: Final = SplitLayout.of(RING_SIZE)

#: Kinds of descriptors that `fuzz.front_end` can send, sound ones first.
SOUND_FDS: Final = ("memory", "kick", "call", "err")
WRONG_FDS: Final = (
    "empty",
    "sealed",
    "read-only",
    "directory",
    "pipe-read",
    "pipe-write",
    "hung-pipe",
    "full-pipe",
    "socket",
    "own-socket",
    "full-eventfd",
    "blocking-eventfd",
    "null",
    "path",
    "garbage",
)

#: Every message with the layout of its payload, descriptors that belong to it, and the item that its fields are.
_FORMATS: Final[dict[int, tuple[str, int]]] = {
    Request.VHOST_USER_SET_FEATURES: ("<Q", 60),
    Request.VHOST_USER_SET_PROTOCOL_FEATURES: ("<Q", 60),
    Request.VHOST_USER_SET_VRING_NUM: ("<II", 55),
    Request.VHOST_USER_SET_VRING_BASE: ("<II", 56),
    Request.VHOST_USER_GET_VRING_BASE: ("<II", 54),
    Request.VHOST_USER_SET_VRING_ENABLE: ("<II", 54),
    Request.VHOST_USER_SET_VRING_ADDR: ("<IIQQQQ", 57),
    Request.VHOST_USER_SET_VRING_KICK: ("<Q", 54),
    Request.VHOST_USER_SET_VRING_CALL: ("<Q", 54),
    Request.VHOST_USER_SET_VRING_ERR: ("<Q", 54),
    Request.VHOST_USER_ADD_MEM_REG: ("<QQQQQ", 58),
    Request.VHOST_USER_REM_MEM_REG: ("<QQQQQ", 58),
}
#: Messages whose first field is a ring's index.
_RING_MESSAGES: Final = (
    Request.VHOST_USER_SET_VRING_NUM,
    Request.VHOST_USER_SET_VRING_BASE,
    Request.VHOST_USER_GET_VRING_BASE,
    Request.VHOST_USER_SET_VRING_ENABLE,
    Request.VHOST_USER_SET_VRING_ADDR,
    Request.VHOST_USER_SET_VRING_KICK,
    Request.VHOST_USER_SET_VRING_CALL,
    Request.VHOST_USER_SET_VRING_ERR,
)
_VRING_FDS: Final = (
    Request.VHOST_USER_SET_VRING_KICK,
    Request.VHOST_USER_SET_VRING_CALL,
    Request.VHOST_USER_SET_VRING_ERR,
)
_RING_INDICES: Final = (1, 2, 7, 255, 256, 257, 65535, 1 << 31, (1 << 32) - 1)
_NUMS: Final = (0, 1, 2, 3, 48, 128, 32768, 32769, 65535, 65536, (1 << 32) - 1)
_BASES: Final = (1, RING_SIZE, RING_SIZE + 1, 32768, 65535, 65536, (1 << 32) - 1)
_INTERESTING: Final = (
    0,
    1,
    2,
    7,
    255,
    256,
    4095,
    4096,
    65535,
    65536,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 4096,
    (1 << 64) - 1,
)
#: Device feature bits that nobody negotiates here: RING_PACKED, IN_ORDER, LOG_ALL, and one that does not exist.
_ODD_FEATURES: Final = (VIRTIO_F_RING_PACKED, VIRTIO_F_IN_ORDER, uapi.VHOST_F_LOG_ALL, 27, 63)
#: What a sound session accepts of what is offered: nothing that changes what a split ring or a request is.
_ACCEPTED: Final = (
    (1 << uapi.VHOST_F_LOG_ALL) - 1 & ~(1 << VIRTIO_BLK_F_ZONED)
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << uapi.VHOST_USER_F_PROTOCOL_FEATURES
    | 1 << VIRTIO_F_VERSION_1
)
_U32: Final = (1 << 32) - 1

ACKED: Final = uapi.VHOST_USER_VERSION | uapi.VHOST_USER_NEED_REPLY_MASK


@dataclass
class Op:
    """One thing that a front end does. `items` are the numbers of `fuzz.groups` that it counts for."""

    kind: str = SEND
    request: int = 0
    flags: int = uapi.VHOST_USER_VERSION
    payload: str = ""  # hexadecimal
    announced: int | None = None  # bytes of payload in the header; None: as many as there are
    fds: list[str] = field(default_factory=list)
    bytewise: bool = False  # each byte in a write of its own
    glued: bool = False  # in one write with the message that follows
    ping: bool = False  # and wait until the device answers GET_FEATURES
    value: int = 0
    ring: int = 0
    items: list[int] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Only what differs from the defaults."""
        default = Op()
        return {name: value for name, value in asdict(self).items() if value != getattr(default, name)}

    @classmethod
    def from_json(cls, value: Any) -> Op:
        """UsageError for what is no operation."""
        names = {known.name for known in fields(cls)}
        try:
            op = cls(**value)
            bytes.fromhex(op.payload)
            if op.kind not in KINDS or not set(value) <= names or not set(op.fds) <= {*SOUND_FDS, *WRONG_FDS}:
                raise ValueError(value)
            return op
        except (TypeError, ValueError):
            raise UsageError(f"--replay: {value!r} is no operation of a front end") from None

    def copy(self) -> Op:
        return replace(self, fds=list(self.fds), items=list(self.items))

    @property
    def is_desync(self) -> bool:
        """After this the device waits for bytes of a payload, or takes what follows for them."""
        return self.announced is not None and self.announced != len(self.payload) // 2

    def text(self) -> str:
        """One line for a reader."""
        if self.kind != SEND:
            return f"{self.kind} {self.value}" if self.value else self.kind
        name = uapi.REQUEST_NAMES.get(self.request, f"request {self.request}")
        parts = [name, f"flags {self.flags:#x}", f"payload {self.payload or 'empty'}"]
        if self.announced is not None:
            parts.append(f"announced {self.announced} bytes")
        if self.fds:
            parts.append("with " + ", ".join(self.fds))
        return ", ".join(parts)


@dataclass(frozen=True)
class Facts:
    """What the device says of itself."""

    features: int
    protocol_features: int
    queues: int
    capacity: int  # sectors

    @property
    def acks(self) -> bool:
        return bool(self.protocol_features >> ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK & 1)

    @property
    def session_features(self) -> int:
        """What a sound session of ours accepts."""
        return self.features & _ACCEPTED


def ring_addresses(ring: int) -> tuple[int, int, int]:
    """User addresses of the descriptor table, the available and the used ring."""
    base = USER + RINGS_AT + ring * RING_STRIDE
    return base + LAYOUT.desc, base + LAYOUT.avail, base + LAYOUT.used


class Generator:
    """Makes the operations of one case from a seed."""

    def __init__(self, seed: str, facts: Facts) -> None:
        self._random = Random(seed)
        self._facts = facts
        self._flags = ACKED if facts.acks else uapi.VHOST_USER_VERSION

    def case(self) -> list[Op]:
        """One session, or a few short ones."""
        roll = self._random.random()
        if roll < 0.6:
            ops = self._session()
        elif roll < 0.8:
            ops = self._negotiation() + [self._random_message() for _ in range(self._random.randint(4, 16))]
        else:
            ops = self._lifecycle()
        ops = self._disorder(ops)
        return [self._maybe_broken(op) for op in ops]

    # Sound messages.

    def send(self, request: int, layout: str = "", *values: int, fds: tuple[str, ...] = (), reply: bool = False) -> Op:
        """A message; `reply` if it has one of its own."""
        payload = struct.pack(layout, *values).hex() if layout else ""
        return Op(SEND, request, uapi.VHOST_USER_VERSION if reply else self._flags, payload, fds=list(fds))

    def _negotiation(self) -> list[Op]:
        facts = self._facts
        ops = [self.send(Request.VHOST_USER_GET_FEATURES, reply=True)]
        if facts.features >> uapi.VHOST_USER_F_PROTOCOL_FEATURES & 1:
            ops.append(self.send(Request.VHOST_USER_GET_PROTOCOL_FEATURES, reply=True))
            ops.append(self.send(Request.VHOST_USER_SET_PROTOCOL_FEATURES, "<Q", facts.protocol_features))
        ops.append(self.send(Request.VHOST_USER_SET_OWNER))
        ops.append(self.send(Request.VHOST_USER_SET_FEATURES, "<Q", facts.session_features))
        return ops

    def _memory(self) -> Op:
        region = (GUEST, MEMORY_SIZE, USER, 0)
        slots = self._facts.protocol_features >> ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS & 1
        if slots and self._random.random() < 0.5:
            return self.send(Request.VHOST_USER_ADD_MEM_REG, "<QQQQQ", 0, *region, fds=("memory",))
        count = self._random.choice((1, 1, 2, 8))
        step = MEMORY_SIZE // count
        table = [(GUEST + at, step, USER + at, at) for at in range(0, MEMORY_SIZE, step)]
        values = [value for entry in table for value in entry]
        return self.send(
            Request.VHOST_USER_SET_MEM_TABLE, "<II" + "QQQQ" * count, count, 0, *values, fds=("memory",) * count
        )

    def _start_ring(self, ring: int) -> list[Op]:
        desc, avail, used = ring_addresses(ring)
        ops = [
            self.send(Request.VHOST_USER_SET_VRING_NUM, "<II", ring, RING_SIZE),
            self.send(Request.VHOST_USER_SET_VRING_BASE, "<II", ring, 0),
            self.send(Request.VHOST_USER_SET_VRING_ADDR, "<IIQQQQ", ring, 0, desc, used, avail, 0),
            self.send(Request.VHOST_USER_SET_VRING_CALL, "<Q", ring, fds=("call",)),
            self.send(Request.VHOST_USER_SET_VRING_ERR, "<Q", ring, fds=("err",)),
            self.send(Request.VHOST_USER_SET_VRING_KICK, "<Q", ring, fds=("kick",)),
        ]
        if self._facts.features >> uapi.VHOST_USER_F_PROTOCOL_FEATURES & 1:
            ops.append(self.send(Request.VHOST_USER_SET_VRING_ENABLE, "<II", ring, 1))
        return ops

    def sound_session(self) -> list[Op]:
        """Everything up to a ring that runs: what an honest front end sends."""
        ops = [*self._negotiation(), self._memory(), *self._start_ring(0)]
        return [*ops, Op(KICK, value=1)]

    def _session(self) -> list[Op]:
        rings = self._random.randint(1, min(2, self._facts.queues))
        ops = [*self._negotiation(), self._memory()]
        for ring in range(rings):
            ops += self._start_ring(ring)
            ops.append(Op(IO, value=self._random.randint(1, 4), ring=ring))
        extras = [self._random_message() for _ in range(self._random.randint(0, 6))]
        ops += extras
        if self._random.random() < 0.7:
            ops.append(Op(IO, value=1))
            ops.append(self.send(Request.VHOST_USER_GET_VRING_BASE, "<II", 0, 0, reply=True))
        return ops

    def _random_message(self) -> Op:
        """Any message of the protocol, sound as far as it can be by itself."""
        ring = self._random.randrange(self._facts.queues) if self._facts.queues < 3 else self._random.randrange(2)
        roll = self._random.randrange(22)
        match roll:
            case 0:
                return self._config(Request.VHOST_USER_GET_CONFIG)
            case 1:
                return self._config(Request.VHOST_USER_SET_CONFIG)
            case 2 | 3 | 4 | 5:
                return self._random.choice(self._start_ring(ring))
            case 6:
                return self.send(Request.VHOST_USER_GET_VRING_BASE, "<II", ring, 0, reply=True)
            case 7:
                return self._memory()
            case 8:
                region = (0, GUEST, MEMORY_SIZE, USER, 0)
                return self.send(Request.VHOST_USER_REM_MEM_REG, "<QQQQQ", *region)
            case 9:
                return self._inflight()
            case 10:
                return self._log()
            case 11:
                return self.send(Request.VHOST_USER_GET_QUEUE_NUM, reply=True)
            case 12:
                return self.send(Request.VHOST_USER_GET_MAX_MEM_SLOTS, reply=True)
            case 13:
                op = self.send(Request.VHOST_USER_SET_BACKEND_REQ_FD, fds=(self._random.choice(("socket", "call")),))
                op.items.append(66)
                return op
            case 14:
                op = self.send(Request.VHOST_USER_RESET_OWNER)
                op.items.append(73)
                return op
            case 15:
                op = self.send(Request.VHOST_USER_RESET_DEVICE)
                op.items.append(73)
                return op
            case 16 | 17:
                op = self.send(self._random.choice(list(Request)), reply=self._random.random() < 0.3)
                op.payload = self._random.randbytes(self._random.choice((0, 4, 8, 12, 40))).hex()
                op.items.append(51)
                return op
            case 18:
                return Op(KICK, value=self._random.choice((1, 1, 3, 100)))
            case 19:
                return Op(IO, value=self._random.randint(1, 8), ring=ring)
            case 20:
                op = self.send(Request.VHOST_USER_SET_FEATURES, "<Q", self._facts.session_features)
                op.items.append(60)
                return op
            case _:
                op = self.send(Request.VHOST_USER_SET_VRING_ENABLE, "<II", ring, self._random.randint(0, 1))
                op.items.append(72)
                return op

    def _config(self, request: int) -> Op:
        size = self._random.choice((8, 8, 36, 60, 1))
        offset = self._random.choice((0, 0, 0, 32, 20))
        op = self.send(request, f"<III{size}x", offset, size, 0, reply=request == Request.VHOST_USER_GET_CONFIG)
        if self._random.random() < 0.4:
            offset, size = self._random.choice(((_U32, 1), (0, 0), (0, 257), (_U32 - 3, 8), (59, 2), (0, 256), (60, 1)))
            op.payload = struct.pack(f"<III{min(size, 300)}x", offset, size, self._random.choice((0, 1, 2))).hex()
            op.items.append(59)
        return op

    def _inflight(self) -> Op:
        """GET_INFLIGHT_FD or SET_INFLIGHT_FD, which nobody negotiated: le64 size, offset, le16 queues, queue size."""
        queues = self._random.choice((0, 1, 2, 65535))
        num = self._random.choice((0, RING_SIZE, 65535))
        size = self._random.choice((0, 1, 4096, MEMORY_SIZE, 1 << 63))
        offset = self._random.choice((0, 0, 1, (1 << 64) - 1))
        values = (size, offset, queues, num)
        if self._random.random() < 0.4:
            op = self.send(Request.VHOST_USER_GET_INFLIGHT_FD, "<QQHH", *values, reply=True)
            op.items.append(65)
        else:
            fds = (self._random.choice(("garbage", "empty", "memory")),)
            op = self.send(Request.VHOST_USER_SET_INFLIGHT_FD, "<QQHH", *values, fds=fds)
            op.items += [67, 68]
        return op

    def _log(self) -> Op:
        if self._random.random() < 0.3:
            op = self.send(Request.VHOST_USER_SET_LOG_FD, fds=("call",))
        else:
            size = self._random.choice((0, 1, 8, 4096, 1 << 63))
            offset = self._random.choice((0, 1, 4096, 1 << 40, (1 << 64) - 1))
            fds = (self._random.choice(("memory", "empty")),)
            op = self.send(Request.VHOST_USER_SET_LOG_BASE, "<QQ", size, offset, fds=fds)
        op.items.append(69)
        return op

    # Lifecycles.

    def _lifecycle(self) -> list[Op]:
        ops = self.sound_session()
        ring = 0
        busy = Op(IO, value=8)
        match self._random.randrange(9):
            case 0:
                cut = self._random.randrange(len(ops) + 1)
                return [*ops[:cut], Op(HANG_UP, items=[70]), *self.sound_session(), Op(IO, value=1)]
            case 1:
                return [*ops, busy, Op(HANG_UP, items=[70])]
            case 2:
                stop = self.send(Request.VHOST_USER_GET_VRING_BASE, "<II", ring, 0, reply=True)
                stop.items.append(71)
                return [*ops, busy, stop, *self._start_ring(ring), Op(KICK, value=1)]
            case 3:
                storm = [
                    self.send(Request.VHOST_USER_SET_VRING_ENABLE, "<II", ring, number & 1)
                    for number in range(self._random.randint(4, 24))
                ]
                for op in storm:
                    op.items.append(72)
                return [*ops, busy, *storm]
            case 4:
                request = self._random.choice((Request.VHOST_USER_RESET_OWNER, Request.VHOST_USER_RESET_DEVICE))
                reset = self.send(request)
                reset.items.append(73)
                return [*ops, busy, reset, *self._start_ring(ring)]
            case 5:
                return [*ops, Op(SECOND, items=[74]), busy]
            case 6:
                return [Op(FLOOD, value=self._random.randint(1, 16), items=[75]), *ops]
            case 7:
                size = self._random.choice((0, 0, 4096, MEMORY_SIZE // 2))
                return [*ops, busy, Op(TRUNCATE, value=size, items=[26]), Op(IO, value=4)]
            case _:
                region = (0, GUEST, MEMORY_SIZE, USER, 0)
                memory = self.send(Request.VHOST_USER_ADD_MEM_REG, "<QQQQQ", *region, fds=("memory",))
                gone = self.send(Request.VHOST_USER_REM_MEM_REG, "<QQQQQ", *region)
                gone.items.append(27)
                return [*self._negotiation(), memory, *self._start_ring(ring), busy, gone, memory, Op(IO, value=2)]

    # Breaking.

    def _disorder(self, ops: list[Op]) -> list[Op]:
        """Mostly leaves the order as it is."""
        while self._random.random() < 0.12 and len(ops) > 2:
            at = self._random.randrange(len(ops))
            match self._random.randrange(3):
                case 0:
                    moved = ops.pop(at)
                    ops.insert(self._random.randrange(len(ops) + 1), moved)
                case 1:
                    ops.insert(at, ops[at])
                case _:
                    moved = ops.pop(at)
            at = min(at, len(ops) - 1)
            ops[at] = ops[at].copy()
            ops[at].items.append(53)
        return ops

    def _maybe_broken(self, op: Op) -> Op:
        """Most operations as they are, some with one thing wrong, a few with more."""
        op = op.copy()  # the same message may stand twice in a sequence
        op.ping = self._random.random() < 0.15
        if op.kind != SEND:
            return op
        while self._random.random() < 0.12:
            self._break(op)
        return op

    def _break(self, op: Op) -> None:
        match self._random.randrange(12):
            case 0 | 1 | 2 | 3 | 4:
                self._break_field(op)
            case 5:
                self._break_size(op)
            case 6:
                op.flags = self._random.choice((0, 2, 3, 5, 9, 13, 0xFFFFFFFF, 0x11))
                op.items.append(52)
            case 7:
                op.request = self._random.choice((0, 46, 99, 255, 256, 1 << 16, 1 << 31, _U32))
                op.items.append(52)
            case 8 | 9:
                self._break_fds(op)
            case 10:
                op.bytewise = True
                op.items.append(51)
            case _:
                op.glued = True
                op.items.append(51)

    def _break_field(self, op: Op) -> None:
        layout, item = _FORMATS.get(op.request, ("", 0))
        if op.request == Request.VHOST_USER_SET_MEM_TABLE:
            count = (len(op.payload) // 2 - 8) // 32
            layout, item = "<II" + "QQQQ" * count, 58
        if not layout or struct.calcsize(layout) * 2 != len(op.payload):
            return self._break_size(op)
        values = list(struct.unpack(layout, bytes.fromhex(op.payload)))
        widths = [8 if letter == "Q" else 4 for letter in layout[1:]]
        at = self._random.randrange(len(values))
        values[at] = self._interesting(op.request, at, values[at]) & ((1 << 8 * widths[at]) - 1)
        if item == 54 or (at == 0 and op.request in _RING_MESSAGES):
            item = 54
        op.payload = struct.pack(layout, *values).hex()
        op.items.append(item)
        if op.request == Request.VHOST_USER_SET_FEATURES:
            op.items.append(44 if values[at] >> VIRTIO_F_RING_PACKED & 1 else 60)
        if op.request == Request.VHOST_USER_SET_VRING_NUM and values[1] & (values[1] - 1):
            op.items.append(50)
        return None

    def _interesting(self, request: int, at: int, value: int) -> int:
        if request in _RING_MESSAGES and at == 0:
            return self._random.choice(_RING_INDICES)
        if request == Request.VHOST_USER_SET_VRING_NUM:
            return self._random.choice(_NUMS)
        if request == Request.VHOST_USER_SET_VRING_BASE:
            return self._random.choice(_BASES)
        if request in (Request.VHOST_USER_SET_FEATURES, Request.VHOST_USER_SET_PROTOCOL_FEATURES):
            return value ^ 1 << self._random.choice((*_ODD_FEATURES, self._random.randrange(64)))
        roll = self._random.randrange(6)
        if roll < 3:
            return self._random.choice(_INTERESTING)
        if roll == 3:
            return value + self._random.choice((-4096, -16, -1, 1, 2, 16, 4096, MEMORY_SIZE))
        if roll == 4:
            return value ^ 1 << self._random.randrange(64)
        return self._random.getrandbits(64)

    def _break_size(self, op: Op) -> None:
        size = len(op.payload) // 2
        match self._random.randrange(4):
            case 0:
                op.payload = op.payload[: 2 * self._random.randrange(size)] if size else ""
            case 1:
                op.payload += self._random.randbytes(self._random.choice((1, 4, 8, 256))).hex()
            case 2:
                op.announced = self._random.choice((0, size + 1, max(size - 1, 0), 4096, 4097, 1 << 31, _U32))
            case _:
                op.payload = self._random.randbytes(size).hex()
        op.items.append(51)

    def _break_fds(self, op: Op) -> None:
        match self._random.randrange(4):
            case 0:
                op.fds = []
                op.items.append(61)
            case 1:
                extra = self._random.choice((1, 2, 8, 9, 33, 64, SCM_MAX_FD))
                op.fds = (op.fds + [self._random.choice(SOUND_FDS)] * extra)[:SCM_MAX_FD]
                op.items.append(61)
            case 2 if op.request == Request.VHOST_USER_SET_VRING_KICK:
                op.fds = [self._random.choice(("full-eventfd", "hung-pipe", "blocking-eventfd", "pipe-read"))]
                op.items.append(63)
            case 2 if op.request in _VRING_FDS:
                op.fds = [self._random.choice(("full-eventfd", "full-pipe", "blocking-eventfd", "pipe-write"))]
                op.items.append(64)
            case _:
                op.fds = [self._random.choice(WRONG_FDS)] * max(1, len(op.fds))
                op.items.append(62)
