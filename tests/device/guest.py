"""A guest made by hand: our front end, memory in a memfd, and naive rings, against a device of ours in this process.

User addresses (where the rings are said to be), guest addresses (where the buffers are) and the device's own mapping
are three different things here, as they are with a real guest. Every buffer has canaries round it.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from naive.ring import Buffer, Memory, NaiveDriver, Ring
from naive.virtio_blk import (
    EVENT_IDX,
    F_DISCARD,
    F_FLUSH,
    F_MQ,
    F_WRITE_ZEROES,
    IN,
    INDIRECT,
    OUT,
    VERSION_1,
    VHOST_PROTOCOL,
)
from virtblk.mem import shm
from virtblk.names import parse_name
from virtblk.server import LocalDevice
from virtblk.storage.open import open_storage
from virtblk.storage.storage import Storage
from virtblk.vhost_user.frontend import Frontend, Region
from waiting import PATIENCE

USER, GUEST = 0x7000_0000_0000, 0x4000_0000
FEATURES = VERSION_1 | VHOST_PROTOCOL | INDIRECT | EVENT_IDX | F_FLUSH | F_MQ | F_DISCARD | F_WRITE_ZEROES
#: The ring features in all combinations, and their names for test ids.
RINGS = [FEATURES, FEATURES & ~EVENT_IDX, FEATURES & ~INDIRECT, FEATURES & ~EVENT_IDX & ~INDIRECT]
RING_NAMES = ["both", "no event_idx", "no indirect", "neither"]
GAP = 32  # canaries between two buffers
CANARY = 0xC5
FRESH = 0xEE  # what device-writable bytes hold before


def header(kind: int, sector: int = 0) -> bytes:
    """struct virtio_blk_outhdr; a sector of any size, modulo 2^64."""
    return struct.pack("<IIQ", kind & 0xFFFFFFFF, 0, sector % (1 << 64))


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    """struct virtio_blk_discard_write_zeroes; each number modulo its width."""
    return struct.pack("<QII", sector % (1 << 64), sectors % (1 << 32), flags % (1 << 32))


class Answer(NamedTuple):
    """How a request came back: used length, and all bytes that the device could write, status included."""

    used: int
    written: bytes

    @property
    def status(self) -> int:
        return self.written[-1]

    @property
    def data(self) -> bytes:
        return self.written[:-1]


class Windows(Memory):
    """Guest memory at user addresses and at guest addresses alike: rings are told by the one, buffers by the other."""

    def _at(self, address: int, size: int) -> memoryview:
        return super()._at(address - USER + GUEST if address >= USER else address, size)


class Queue:
    """One ring of the guest, with its three event fds."""

    def __init__(self, guest: Guest, index: int, num: int, base: int = 0) -> None:
        self.guest, self.index, self.base = guest, index, base
        desc, avail, used = guest.alloc(16 * num, 4096), guest.alloc(6 + 2 * num), guest.alloc(6 + 8 * num)
        self.ring = Ring(guest.memory, num, *(address - GUEST + USER for address in (desc, avail, used)))
        self.driver = NaiveDriver(self.ring, event_idx=bool(guest.features & EVENT_IDX), base=base)
        self.kick_fd, self.call_fd, self.err_fd = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
        self.tokens = 0
        self.done: dict[int, int] = {}  # token -> used length

    def start(self) -> None:
        ring = self.ring
        fds = self.kick_fd, self.call_fd, self.err_fd
        self.guest.front.start_vring(self.index, ring.num, self.base, ring.desc, ring.avail, ring.used, *fds)

    def stop(self) -> int:
        """GET_VRING_BASE; the ring goes on from there when it is started again."""
        self.base = self.guest.front.get_vring_base(self.index)
        return self.base

    def kick(self) -> None:
        """Whether the device asked for it or not."""
        os.eventfd_write(self.kick_fd, 1)

    def add(self, buffers: Sequence[Buffer], table: int = 0) -> int:
        """Make a chain available and kick. Returns its token."""
        self.tokens += 1
        assert self.driver.add(buffers, self.tokens, table), "the ring is full"
        self.kick()
        return self.tokens

    def raw(self, *descriptors: tuple[int, int, int, int], head: int = 0) -> int:
        """Write (address, length, flags, next) from descriptor 0 on, whatever they say; then as `add`."""
        for index, fields in enumerate(descriptors):
            self.ring.write_desc(self.ring.desc, index, *fields)
        self.tokens += 1
        self.driver.in_flight[head] = self.tokens, []
        self.ring.set_avail_head(self.driver.idx, head)
        self.driver.idx += 1
        self.ring.set_avail_idx(self.driver.idx)
        self.kick()
        return self.tokens

    def reap(self) -> int:
        """Collect what is used; returns how much there was."""
        count = 0
        while (got := self.driver.get()) is not None:
            assert got[0] not in self.done, "used twice"
            self.done[got[0]] = got[1]
            count += 1
        return count

    def wait(self, token: int, seconds: float = PATIENCE) -> int:
        """Wait for a request; its used length."""
        deadline = time.monotonic() + seconds
        while token not in self.done:
            assert time.monotonic() < deadline, f"request {token} was not used"
            if not self.reap():
                time.sleep(0)
        return self.done.pop(token)

    def is_quiet(self, seconds: float = 0.05) -> bool:
        """Nothing is used for a while."""
        time.sleep(seconds)
        return self.reap() == 0

    def called(self, seconds: float = PATIENCE) -> bool:
        """Wait for an interrupt, and take it."""
        return _readable(self.call_fd, seconds) and os.eventfd_read(self.call_fd) > 0

    def broke(self, seconds: float = PATIENCE) -> bool:
        """Wait for the device to say on the err fd that this ring is broken."""
        return _readable(self.err_fd, seconds)

    def request(self, sent: bytes, room: int, *, indirect: bool = False) -> Answer:
        """One request in canonical framing: header, data, status each in a buffer of its own."""
        readable = [sent[:16], sent[16:]] if len(sent) > 16 else [sent]
        return self.framed(readable, [room - 1, 1] if room > 1 else [room], indirect=indirect)

    def framed(self, readable: Sequence[bytes], writable: Sequence[int], *, indirect: bool = False) -> Answer:
        """One request in any framing; checks that nothing was written but what may be."""
        guest = self.guest
        mark = guest.mark()
        buffers = [guest.buffer(data) for data in readable] + [guest.room(size) for size in writable]
        table = guest.alloc(16 * len(buffers), 16) if indirect else 0
        token = self.add(buffers, table)
        tables = self._tables(table, len(buffers))
        used = self.wait(token)
        assert self._tables(table, len(buffers)) == tables, "a descriptor was written"
        assert [guest.load(b.address, b.length) for b in buffers if not b.writable] == list(readable), "device wrote"
        guest.check_canaries(buffers)
        answer = Answer(used, b"".join(guest.load(b.address, b.length) for b in buffers if b.writable))
        guest.release(mark)
        return answer

    def _tables(self, table: int, entries: int) -> bytes:
        load = self.guest.load
        return load(self.ring.desc, 16 * self.ring.num) + (load(table, 16 * entries) if table else b"")

    def read(self, sector: int, length: int) -> bytes:
        answer = self.request(header(IN, sector), length + 1)
        assert answer.status == 0, answer.status
        assert answer.used == length + 1
        return answer.data

    def write(self, sector: int, data: bytes) -> int:
        """The status."""
        return self.request(header(OUT, sector) + data, 1).status

    def close(self) -> None:
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)


class Guest:
    """A session with a device on `disk` (a name or a storage); `queues` rings of `num` entries, started."""

    def __init__(
        self,
        disk: str | Storage = "ram:1m",
        *,
        queues: int = 1,
        num: int = 64,
        features: int = FEATURES,
        size: int = 4 << 20,
        regions: int = 1,
        poll_us: int = 32,
        base: int = 0,
        serial: str = "device under test",
        start: bool = True,
        local: LocalDevice | None = None,
    ) -> None:
        storage = open_storage(parse_name(disk)) if isinstance(disk, str) else disk
        self.storage, self.features, self.size = storage, features, size
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, size)
        self._mapping = shm.Mapping(size, self.fd)
        self.memory = Windows(self._mapping.array(self._mapping.address, size), GUEST)
        self._next = GUEST
        self.local = local or LocalDevice(storage, queues=queues, poll_us=poll_us, serial=serial)
        self.device = self.local.device
        self.front = Frontend(self.local.client, PATIENCE)
        step = size // regions
        self.regions = [Region(GUEST + at, step, USER + at, at, self.fd) for at in range(0, size, step)]
        self.queues = [Queue(self, index, num, base) for index in range(queues)]
        try:
            self.offered = self.front.get_features()
            self.front.set_protocol_features(self.front.get_protocol_features())
            self.front.set_owner()
            self.front.set_features(features & self.offered)
            for region in self.regions:
                self.front.add_mem_reg(region)
            for queue in self.queues if start else []:
                queue.start()
        except BaseException:
            self.close()
            raise

    @property
    def queue(self) -> Queue:
        return self.queues[0]

    # Memory.

    def alloc(self, size: int, alignment: int = 64) -> int:
        """The guest address of `size` bytes, with canaries before and after."""
        start = shm.align_up(self._next + GAP, alignment)
        self._next = start + size + GAP
        assert self._next <= GUEST + self.size, "out of guest memory"
        self.store(start - GAP, bytes([CANARY]) * GAP)
        self.store(start + size, bytes([CANARY]) * GAP)
        return start

    def mark(self) -> int:
        return self._next

    def release(self, mark: int) -> None:
        """Everything allocated since `mark` is free again."""
        self._next = mark

    def load(self, address: int, size: int) -> bytes:
        return self.memory.load(address, size).to_bytes(size, "little")

    def store(self, address: int, data: bytes) -> None:
        self.memory.store(address, len(data), int.from_bytes(data, "little"))

    def buffer(self, data: bytes, alignment: int = 1) -> Buffer:
        """A device-readable buffer."""
        address = self.alloc(len(data), alignment)
        self.store(address, data)
        return Buffer(address, len(data), False)

    def room(self, size: int, alignment: int = 1) -> Buffer:
        """A device-writable buffer."""
        address = self.alloc(size, alignment)
        self.store(address, bytes([FRESH]) * size)
        return Buffer(address, size, True)

    def check_canaries(self, buffers: Sequence[Buffer]) -> None:
        for address, length, _ in buffers:
            for start in (address - GAP, address + length):
                assert self.load(start, GAP) == bytes([CANARY]) * GAP, f"written next to {length} bytes at {address:#x}"

    def close(self) -> None:
        self.local.client.close()
        self.local.close()
        assert self.device._memory.violations == 0, "a checking build saw an access outside guest memory"
        for queue in self.queues:
            queue.close()
        self._mapping.close()
        os.close(self.fd)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _readable(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))
