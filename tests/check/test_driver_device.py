"""The device of `virtblk check --driver` by itself: it serves a sound driver, and complains of one that is not."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

import pytest

from naive.ring import INDIRECT, NEXT, WRITE, Buffer, Memory, NaiveDriver, Ring
from naive.virtio_blk import EVENT_IDX, FLUSH, GET_ID, IN, OUT
from naive.virtio_blk import INDIRECT as INDIRECT_DESC
from virtblk.check.driver_device import CAPACITY, FEATURES, PROTOCOL_FEATURES, SERIAL, Device, Plan
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.frontend import Frontend, Region
from waiting import PATIENCE, wait_until

SIZE = 1 << 16
BASE = 0x7F12_0000_0000
NUM = 8
DESC, AVAIL, USED, TABLE, DATA = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000


class Driver:
    """A naive driver of one session, with one region of memory."""

    def __init__(self, *, features: int = FEATURES, protocol: int = PROTOCOL_FEATURES) -> None:
        ours, theirs = socket.socketpair()
        self._stop_fd = os.eventfd(0)
        self.device = Device(Plan(), Connection(ours), bytearray(CAPACITY * 512), self._stop_fd)
        self._thread = threading.Thread(target=self.device.run)
        self._thread.start()
        self._conn = Connection(theirs)
        self.front = Frontend(self._conn, PATIENCE)
        self.fd = os.memfd_create("driver")
        os.ftruncate(self.fd, SIZE)
        self._map = mmap.mmap(self.fd, SIZE)
        self.memory = Memory(self._map, BASE)
        self.kick_fd, self.call_fd = os.eventfd(0), os.eventfd(0)
        self.features, self.protocol = features, protocol
        self.ring = Ring(self.memory, NUM, BASE + DESC, BASE + AVAIL, BASE + USED)
        self.half = NaiveDriver(self.ring, event_idx=bool(features & EVENT_IDX))

    def negotiate(self) -> None:
        front = self.front
        assert front.get_features() == FEATURES
        assert front.get_protocol_features() == PROTOCOL_FEATURES
        front.set_protocol_features(self.protocol)
        front.set_owner()
        assert front.get_queue_num() == 1
        assert front.get_max_mem_slots() == 8
        assert len(front.get_config(60)) == 60
        front.set_features(self.features)

    def share(self, *, table: bool = False, size: int = SIZE) -> None:
        region = Region(BASE, size, BASE, 0, self.fd)
        if table:
            self.front.set_mem_table([region])
        else:
            self.front.add_mem_reg(region)

    def start(self, num: int = NUM, desc: int = DESC, avail: int = AVAIL, used: int = USED) -> None:
        ring = num, 0, BASE + desc, BASE + avail, BASE + used
        self.front.start_vring(0, *ring, self.kick_fd, self.call_fd)

    def come_up(self, **how: bool) -> None:
        self.negotiate()
        self.share(**how)
        self.start()

    def request(self, kind: int, sector: int, data: bytes = b"", room: int = 0, table: int = 0) -> tuple[int, bytes]:
        """One request to its end: (status, data)."""
        at = BASE + DATA
        self.memory.store(at, 16, int.from_bytes(struct.pack("<IIQ", kind, 0, sector), "little"))
        self.memory.store(at + 16, len(data), int.from_bytes(data, "little"))
        self.memory.store(at + 0x1000, room + 1, (1 << 8 * (room + 1)) - 1)
        buffers = [Buffer(at, 16, False)]
        buffers += [Buffer(at + 16, len(data), False)] if data else []
        buffers += [Buffer(at + 0x1000, room, True)] if room else []
        buffers += [Buffer(at + 0x1000 + room, 1, True)]
        assert self.half.add(buffers, 7, table)
        self.kick()
        wait_until(lambda: self.ring.used_idx != self.half.last_used % 65536)
        token, _ = self.half.get() or (None, 0)
        assert token == 7
        found = self.memory.load(at + 0x1000, room + 1).to_bytes(room + 1, "little")
        return found[-1], found[:-1]

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def complaint(self) -> str:
        """What the device complains of when the session is over."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        [told] = self.device.complaints
        return told

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join(PATIENCE)
        self._conn.close()
        self.memory._bytes.release()
        self._map.close()
        for fd in (self._stop_fd, self.fd, self.kick_fd, self.call_fd):
            os.close(fd)


@pytest.fixture
def up() -> Iterator[Driver]:
    with Driver() as driver:
        driver.come_up()
        yield driver


@pytest.mark.parametrize("table", [False, True], ids=["add_mem_reg", "set_mem_table"])
@pytest.mark.parametrize("without", [0, EVENT_IDX], ids=["event_idx", "flags"])
def test_a_sound_driver_is_served(table: bool, without: int) -> None:
    with Driver(features=FEATURES & ~without) as driver:
        driver.come_up(table=table)
        data = bytes(range(256)) * 2
        for _ in range(2 * NUM):
            assert driver.request(OUT, 5, data) == (0, b"")
            assert driver.request(IN, 5, room=512, table=BASE + TABLE) == (0, data)
        assert driver.request(FLUSH, 0) == (0, b"")
        assert driver.request(GET_ID, 0, room=20) == (0, SERIAL.ljust(20, b"\0"))
        assert driver.request(IN, CAPACITY, room=512)[0] == 1
        assert driver.request(OUT, CAPACITY, data)[0] == 1
        assert driver.request(99, 0)[0] == 2
        assert driver.front.get_vring_base(0) == driver.half.idx
        driver.front.rem_mem_reg(Region(BASE, SIZE, BASE, 0, driver.fd))
        assert driver.device.complaints == []


def test_features_that_were_not_offered() -> None:
    with Driver(features=FEATURES | 1 << 40, protocol=PROTOCOL_FEATURES | 1 << 60) as driver:
        driver.negotiate()
        assert driver.device.complaints == [
            "SET_PROTOCOL_FEATURES accepts 0x1000000000000000, which was not offered",
            "SET_FEATURES accepts 0x10000000000, which was not offered",
        ]


@pytest.mark.parametrize(
    ("ring", "told"),
    [
        ({"num": 3}, "a ring of 3 entries"),
        ({"num": 0}, "a ring of 0 entries"),
        ({"num": 65536}, "a ring of 65536 entries"),
        ({"desc": DESC + 8}, "are not aligned to 16, 2 and 4"),
        ({"avail": AVAIL + 1}, "are not aligned to 16, 2 and 4"),
        ({"used": USED + 2}, "are not aligned to 16, 2 and 4"),
        ({"used": SIZE - 16}, "70 bytes at user address 0x7f120000fff0 are not in the memory that was shared"),
    ],
)
def test_rings_that_cannot_be(ring: dict[str, int], told: str) -> None:
    with Driver() as driver:
        driver.negotiate()
        driver.share()
        with pytest.raises(ConnectionClosed):
            driver.start(**ring)
        assert told in driver.complaint()


def test_memory_that_cannot_be_mapped() -> None:
    with Driver() as driver:
        driver.negotiate()
        with pytest.raises(ConnectionClosed):
            driver.share(size=SIZE * 1024)
        assert "cannot be mapped" in driver.complaint()


def chain(*descs: tuple[int, int, int, int]) -> Callable[[Driver], None]:
    """Descriptors from 0 on (addresses are offsets), and the head 0."""

    def put(driver: Driver) -> None:
        for index, (offset, length, flags, following) in enumerate(descs):
            driver.ring.write_desc(driver.ring.desc, index, BASE + offset, length, flags, following)
        driver.ring.set_avail_head(0, 0)
        driver.ring.set_avail_idx(1)

    return put


def bad_head(driver: Driver) -> None:
    driver.ring.set_avail_head(0, NUM)
    driver.ring.set_avail_idx(1)


def jump(driver: Driver) -> None:
    driver.ring.set_avail_idx(NUM + 1)


@pytest.mark.parametrize(
    ("put", "told"),
    [
        (bad_head, "head 8 in a ring of 8"),
        (jump, "the available index moved to 9 from 0, in a ring of 8"),
        (chain((DATA, 16, NEXT, 0)), "the chain at head 0 loops, or leaves its table at 0"),
        (chain((DATA, 16, NEXT, NUM)), "the chain at head 0 loops, or leaves its table at 8"),
        (chain((SIZE, 16, NEXT, 1)), "16 bytes at guest address 0x7f1200010000 are not in the memory"),
        (chain((DATA, 1, NEXT | WRITE, 1), (DATA, 16, 0, 0)), "head 0 has a readable descriptor after a writable one"),
        (chain((DATA, 16, NEXT, 1), (DATA, 0, WRITE, 0)), "a request of 16 readable and 0 writable bytes"),
        (chain((DATA, 15, NEXT, 1), (DATA, 1, WRITE, 0)), "a request of 15 readable and 1 writable bytes"),
        (chain((TABLE, 8, INDIRECT, 0)), "head 0 has an indirect descriptor of 8 bytes with flags 4"),
        (chain((TABLE, 16, INDIRECT | NEXT, 0)), "head 0 has an indirect descriptor of 16 bytes with flags 5"),
    ],
)
def test_chains_that_cannot_be(put: Callable[[Driver], None], told: str, up: Driver) -> None:
    put(up)
    up.kick()
    assert told in up.complaint()


def test_an_indirect_descriptor_that_was_not_negotiated() -> None:
    with Driver(features=FEATURES & ~INDIRECT_DESC) as driver:
        driver.come_up()
        chain((TABLE, 16, INDIRECT, 0))(driver)
        driver.kick()
        assert driver.complaint() == "an indirect descriptor, though the driver did not accept INDIRECT_DESC"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (struct.pack("<III", 1, 2, 0), "a message that cannot be: VHOST_USER_GET_FEATURES has protocol version 2"),
        (struct.pack("<IIII", 8, 1, 4, 0), "a message that cannot be: vring state payload has 4 bytes, expected 8"),
        (struct.pack("<IIIIIQQQQ", 5, 1, 40, 1, 0, 0, 1, 0, 0), "1 memory regions come with 0 file descriptors"),
    ],
)
def test_messages_that_cannot_be(message: bytes, told: str) -> None:
    with Driver() as driver:
        driver._conn._sock.send(message)
        assert told in driver.complaint()


def test_a_driver_that_hangs_up_is_no_complaint() -> None:
    with Driver() as driver:
        driver.negotiate()
        driver._conn.shutdown()
        driver._thread.join(PATIENCE)
        assert driver.device.complaints == []
