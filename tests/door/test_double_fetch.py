"""Bad inputs, group Double fetch (39 to 43): what a request says changes while the device looks at it.

Interpreted, every byte is spoiled the moment the device has read it: whoever reads it again, reads nonsense. Compiled,
a second thread flips one field all the time; whichever value the device saw, it must act on that one alone.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from conftest import INTERPRETED
from device.guest import GUEST, USER, header, segment
from door.rings import CAPACITY, Intruder, RingDoor
from naive.ring import INDIRECT, NEXT, WRITE
from naive.virtio_blk import GET_ID, IN, IOERR, OK, OUT, WRITE_ZEROES
from waiting import PATIENCE, wait_until

ROUNDS = 30 if INTERPRETED else 500


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RingDoor]:
    with RingDoor(str(tmp_path_factory.mktemp("door") / "s")) as door:
        yield door


@pytest.fixture
def guest(shared: RingDoor) -> Iterator[Intruder]:
    with Intruder(shared, start=True) as intruder:
        yield intruder
    shared.check()


if INTERPRETED:

    class Spoiler:
        """Puts 0xFF over guest bytes of `ranges` (guest addresses) once they have been read, through any function."""

        def __init__(self, guest: Intruder, monkeypatch: pytest.MonkeyPatch) -> None:
            self.ranges: list[tuple[int, int]] = []
            self.spoiled = 0
            self._table = guest.device._memory.table
            for module in ("virtblk.virtio.vringh_split", "virtblk.device.request"):
                for name, size in (("load_u16", 2), ("load_u32", 4), ("load_i64", 8)):
                    self._wrap(monkeypatch, f"{module}.{name}", size)
            for target in ("virtblk.device.request.copy", "virtblk.mem.regions.copy"):
                self._wrap_copy(monkeypatch, target)

        def _wrap(self, monkeypatch: pytest.MonkeyPatch, target: str, size: int) -> None:
            load = _named(target)

            def spoiling(address: int) -> Any:
                value = load(address)
                self._spoil(address, size)
                return value

            if load is not None:
                monkeypatch.setattr(target, spoiling)

        def _wrap_copy(self, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
            copy = _named(target)

            def spoiling(destination: int, source: int, length: int) -> None:
                copy(destination, source, length)
                self._spoil(source, length)

            monkeypatch.setattr(target, spoiling)

        def _spoil(self, host: int, length: int) -> None:
            for region in self._table.regions[: int(self._table.head[0]["count"])]:
                guest_address = int(host) - int(region["delta"])
                if region["start"] <= guest_address < region["end"]:
                    for start, size in self.ranges:
                        low, high = max(start, guest_address), min(start + size, guest_address + int(length))
                        if low < high:
                            ctypes.memset(low + int(region["delta"]), 0xFF, high - low)
                            self.spoiled += high - low

    def _named(target: str) -> Any:
        module, _, name = target.rpartition(".")
        return getattr(__import__(module, fromlist=[name]), name, None)

    @pytest.mark.parametrize("pieces", [1, 2, 3])
    @pytest.mark.parametrize("indirect", [False, True])
    @pytest.mark.parametrize(
        ("sent", "room", "effect"),
        [
            pytest.param(header(IN, 3), 512, None, id="read"),
            pytest.param(header(OUT, 3) + b"w" * 512, 0, b"w" * 512, id="write"),
            pytest.param(header(WRITE_ZEROES) + segment(3, 1, 1) + segment(0, 0), 0, bytes(512), id="zero"),
            pytest.param(header(GET_ID), 20, None, id="identity"),
        ],
    )
    def test_39_40_41_nothing_is_read_twice(
        guest: Intruder,
        monkeypatch: pytest.MonkeyPatch,
        sent: bytes,
        room: int,
        effect: bytes | None,
        indirect: bool,
        pieces: int,
    ) -> None:
        """Descriptors, indirect table, header, segments, data."""
        queue = guest.bad
        size = -(-len(sent) // pieces)
        readable = [guest.buffer(sent[at : at + size]) for at in range(0, len(sent), size)]
        writable = guest.room(room + 1)
        table = guest.alloc(16 * 8, 16)
        spoiler = Spoiler(guest, monkeypatch)
        spoiler.ranges = [(queue.ring.desc - USER + GUEST, 16 * queue.ring.num), (table, 16 * 8)]
        spoiler.ranges += [(buffer.address, buffer.length) for buffer in readable]
        queue.tokens += 1
        queue.driver.add([*readable, writable], queue.tokens, table if indirect else 0)
        queue.kick()
        assert queue.wait(queue.tokens) == room + 1
        monkeypatch.undo()
        assert guest.load(writable.address + room, 1) == bytes([OK])
        assert spoiler.spoiled >= 16 * (len(readable) + 1)  # the descriptors were read,
        assert all(guest.load(b.address, 1) == b"\xff" for b in readable)  # and what they name
        if room == 512:
            assert guest.load(writable.address, 512) == guest.door.content[3 * 512 : 4 * 512]
        if effect is not None:
            guest.door.content[3 * 512 : 4 * 512] = effect


@contextmanager
def flipping(*writes: Callable[[], object]) -> Iterator[None]:
    """A second thread of the guest makes these writes in turn, all the time."""
    stop = threading.Event()
    turns = 0

    def run() -> None:
        nonlocal turns
        while not stop.is_set():
            for write in writes:
                write()
            turns += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: turns)
        yield
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def rounds(guest: Intruder) -> Iterator[int]:
    """Offer descriptor 0 again and again; the used lengths, until the ring breaks if it does."""
    queue, ring = guest.bad, guest.bad.ring
    start = ring.used_idx
    for n in range(start, start + ROUNDS):
        ring.set_avail_head(n, 0)
        ring.set_avail_idx(n + 1)
        queue.kick()
        wait_until(lambda n=n: ring.used_idx == n + 1 or queue.broke(0))
        if ring.used_idx != n + 1:
            return
        yield ring.used_elem(n)[1]


def once(guest: Intruder) -> int:
    """Before anything flips: the used length."""
    return next(rounds(guest))


def test_39_the_sector_flips(guest: Intruder) -> None:
    sent, room = guest.buffer(header(IN, 1)), guest.room(513)
    guest.describe((sent.address, 16, NEXT, 1), (room.address, 513, WRITE, 0))
    sector = sent.address + 8
    beyond = (CAPACITY, 1 << 55, (1 << 64) - 1)
    with flipping(*(lambda v=v: guest.memory.store(sector, 8, v) for bad in beyond for v in (1, bad))):
        for used in rounds(guest):
            status = guest.load(room.address + 512, 1)[0]
            assert (used, status) in ((513, OK), (0, IOERR))
            assert status == IOERR or guest.load(room.address, 512) == guest.door.content[512:1024]
    assert guest.device.queues[0].broken is None


def test_39_the_type_flips(guest: Intruder) -> None:
    """Between a read and a write of the same sector: both may happen, and nothing else."""
    guest.door.content[512:1024] = b"w" * 512
    sent, room = guest.buffer(header(OUT, 1) + b"w" * 512), guest.room(513)
    guest.describe((sent.address, 528, NEXT, 1), (room.address, 513, WRITE, 0))
    assert once(guest) == 0  # it is a write at first
    with flipping(*(lambda v=v: guest.memory.store(sent.address, 4, v) for v in (IN, OUT))):
        for used in rounds(guest):
            assert used in (0, 513)
            assert guest.load(room.address + 512, 1)[0] == OK
    assert guest.device.queues[0].broken is None


def test_39_a_segment_flips(guest: Intruder) -> None:
    """Its sector, its length and its flags: sector 2 is zeroed, and no other ever."""
    sent, status = guest.buffer(header(WRITE_ZEROES) + segment(2, 1)), guest.room(1)
    guest.describe((sent.address, 32, NEXT, 1), (status.address, 1, WRITE, 0))
    guest.door.content[2 * 512 : 3 * 512] = bytes(512)
    assert once(guest) == 1
    at = sent.address + 16
    store = guest.memory.store
    with flipping(
        lambda: store(at, 8, CAPACITY),
        lambda: store(at, 8, 2),
        lambda: store(at + 8, 4, 1 << 23),
        lambda: store(at + 8, 4, 1),
        lambda: store(at + 12, 4, 2),
        lambda: store(at + 12, 4, 1),
    ):
        seen = {(used, guest.load(status.address, 1)[0]) for used in rounds(guest)}
    assert seen <= {(1, OK), (1, IOERR), (1, 2)}
    assert guest.device.queues[0].broken is None


FLIPS = {
    "addr": (0, 8, (0, (1 << 64) - 256), "is in no memory region"),
    "len": (8, 4, ((1 << 32) - 1, 0), "over 2**32"),
    "flags": (12, 2, (INDIRECT | NEXT, 0xFFFF, 0), "both INDIRECT and NEXT"),
    "next": (14, 2, (64, 65535, 1), "is outside its table"),
}


@pytest.mark.parametrize("field", FLIPS)
def test_40_a_descriptor_flips(guest: Intruder, field: str) -> None:
    """Answered in full, answered as what it was for a moment, or broken for one of the values that it had."""
    offset, size, bad, words = FLIPS[field]
    sent, room = guest.buffer(header(IN, 1)), guest.room(513)
    guest.describe((sent.address, 16, NEXT, 1), (room.address, 513, WRITE, 0))
    at = guest.bad.ring.desc + offset
    good = guest.memory.load(at, size)
    with flipping(*(lambda v=v: guest.memory.store(at, size, v) for value in bad for v in (good, value))):
        assert {*rounds(guest)} <= {0, 1, 513}
    broken = guest.device.queues[0].broken
    assert broken is None or words in broken or "in no memory region" in broken or "a loop" in broken


def test_41_the_length_of_an_indirect_table_flips(guest: Intruder) -> None:
    sent, room = guest.buffer(header(IN, 1)), guest.room(513)
    table = guest.table((sent.address, 16, NEXT, 1), (room.address, 513, WRITE, 0))
    guest.describe((table, 32, INDIRECT, 0))
    at = guest.bad.ring.desc + 8
    lengths = (32, 16, 32, 16 * 1024, 32, 8)
    with flipping(*(lambda v=v: guest.memory.store(at, 4, v) for v in lengths)):
        assert {*rounds(guest)} <= {513}
    broken = guest.device.queues[0].broken
    assert broken in (None, "descriptor's next 1 is outside its table", "indirect table of 8 bytes")


def test_42_the_used_index_is_rewritten(guest: Intruder) -> None:
    """The device keeps its own, and never reads it back while it runs."""
    sent, room = guest.buffer(header(IN, 1)), guest.room(513)
    guest.describe((sent.address, 16, NEXT, 1), (room.address, 513, WRITE, 0))
    for n, _ in enumerate(rounds(guest)):
        if n == ROUNDS - 2:
            break
        guest.bad.ring.set_used_idx(n * 7919 + 5000)
    assert guest.bad.ring.used_idx == ROUNDS - 1
    assert guest.device.queues[0].broken is None


def test_43_used_event_has_every_value(guest: Intruder) -> None:
    """It says when to interrupt, and no more: all is answered, whatever it says."""
    sent, room = guest.buffer(header(IN, 1)), guest.room(513)
    guest.describe((sent.address, 16, NEXT, 1), (room.address, 513, WRITE, 0))
    ring = guest.bad.ring
    with flipping(*(lambda v=v: ring.set_used_event(v) for v in range(0, 65536, 255))):
        assert len(list(rounds(guest))) == ROUNDS
    assert guest.device.queues[0].broken is None
