"""Parse, validate, complete: requests in every framing and of every kind, through the ring, against a naive disk."""

from __future__ import annotations

import ctypes
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import INTERPRETED
from device.guest import FEATURES, FRESH, Answer, Guest, header, segment
from naive.blk_request import NaiveDisk
from naive.ring import Buffer
from naive.virtio_blk import (
    DISCARD,
    F_DISCARD,
    F_FLUSH,
    F_WRITE_ZEROES,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    UNSUPP,
    WRITE_ZEROES,
)
from virtblk.names import parse_name
from virtblk.storage.open import open_storage

SERIAL = b"device under test"
CAPACITY = 64  # sectors
SIZE = CAPACITY * 512


@pytest.fixture(scope="module")
def guest():
    with Guest(f"ram:{SIZE}", num=256) as running:
        yield running


@pytest.fixture(scope="module")
def disk(guest: Guest) -> NaiveDisk:
    """What the guest's disk holds, as far as the naive disk is asked the same."""
    return NaiveDisk(bytearray(SIZE), SERIAL)


def content(guest: Guest) -> bytes:
    """The bytes of a memory disk, not read through the ring."""
    return ctypes.string_at(guest.storage.address, guest.storage.size)


def check(disk: NaiveDisk, guest: Guest, sent: bytes, answer: Answer) -> None:
    """The answer is the naive disk's; only what is claimed was written, and no more was claimed than written."""
    room = len(answer.written)
    status, data = disk.serve(sent, room)
    assert content(guest) == disk.content
    if status is None:
        assert answer == (0, b"")
        return
    expected = data.ljust(room - 1, bytes([FRESH])) + bytes([status])
    assert answer.written == expected
    assert answer.used == (room if len(data) == room - 1 else len(data))


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """`data` in pieces, cut at offsets (taken modulo its length); equal offsets give empty pieces."""
    edges = [0, *sorted(offset % (len(data) + 1) for offset in at), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


# Framing.

CUTS = st.lists(st.integers(0, 2000), max_size=6)


@given(
    kind=st.sampled_from([IN, OUT, OUT, FLUSH, GET_ID, 11, 13]),
    sector=st.integers(0, CAPACITY + 1),
    sectors=st.integers(0, 4),
    odd=st.sampled_from([0, 0, 0, 0, 1, 511]),
    readable_cuts=CUTS,
    writable_cuts=CUTS,
    seed=st.integers(0, 255),
    indirect=st.booleans(),
)
def test_any_framing(
    guest: Guest,
    disk: NaiveDisk,
    kind: int,
    sector: int,
    sectors: int,
    odd: int,
    readable_cuts: list[int],
    writable_cuts: list[int],
    seed: int,
    indirect: bool,
) -> None:
    """2.7.4.1: no assumption on framing. Header and data in one piece, in many, in empty ones; the status anywhere."""
    length = sectors * 512 + odd
    data = bytes((seed + i) & 0xFF for i in range(length))
    sent = header(kind, sector) + (data if kind == OUT else b"")
    room = 1 + (0 if kind == OUT else length)
    writable = [len(piece) for piece in cut(bytes(room), writable_cuts)]
    answer = guest.queue.framed(cut(sent, readable_cuts), writable, indirect=indirect)
    check(disk, guest, sent, answer)


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize(
    ("kind", "readable", "writable"),
    [
        pytest.param(OUT, [[16 + 512]], [1], id="header and data in one"),
        pytest.param(OUT, [[8, 8, 512]], [1], id="header in two"),
        pytest.param(OUT, [[15, 1 + 511, 1]], [1], id="header runs into data"),
        pytest.param(OUT, [[1] * 64 + [464]], [1], id="header and data in bytes"),
        pytest.param(IN, [[16]], [513], id="status joined to data"),
        pytest.param(IN, [[16]], [512, 1], id="canonical"),
        pytest.param(IN, [[1] * 16], [*([1] * 100), 413], id="data in bytes, status joined"),
        pytest.param(IN, [[16]], [0, 512, 0, 1, 0], id="empty pieces"),
        pytest.param(GET_ID, [[4, 4, 8]], [7, 7, 7], id="identity in pieces"),
        pytest.param(FLUSH, [[1] * 16], [1], id="flush in bytes"),
    ],
)
def test_framings_by_hand(
    guest: Guest, disk: NaiveDisk, kind: int, readable: list[list[int]], writable: list[int], indirect: bool
) -> None:
    sizes = readable[0]
    sent = (header(kind, 3) + bytes(range(256)) * 2)[: sum(sizes)]
    pieces, rest = [], sent
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    check(disk, guest, sent, guest.queue.framed(pieces, writable, indirect=indirect))


#: First sector, sectors, flags: mostly what goes, and all kinds of what does not.
SEGMENT = st.tuples(
    st.one_of(
        st.integers(0, CAPACITY), st.sampled_from([CAPACITY + 1, (1 << 55) - 1, 1 << 55, (1 << 63) - 1, (1 << 64) - 1])
    ),
    st.one_of(
        st.integers(0, 4), st.integers(0, 4), st.sampled_from([CAPACITY, CAPACITY + 1, 1 << 23, 1 << 31, (1 << 32) - 1])
    ),
    st.sampled_from([0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 1 << 31]),
)


@given(
    kind=st.sampled_from([DISCARD, WRITE_ZEROES]),
    segments=st.one_of(st.lists(SEGMENT, max_size=4), st.lists(SEGMENT, min_size=30, max_size=35)),
    odd=st.sampled_from([0, 0, 0, 0, 0, 1, 8, 15]),
    readable_cuts=CUTS,
    writable_cuts=CUTS,
    seed=st.integers(1, 255),
    indirect=st.booleans(),
)
def test_segments_in_any_framing(
    guest: Guest,
    disk: NaiveDisk,
    kind: int,
    segments: list[tuple[int, int, int]],
    odd: int,
    readable_cuts: list[int],
    writable_cuts: list[int],
    seed: int,
    indirect: bool,
) -> None:
    """Discard and write zeroes: the ranges are zeroed, all of them or, where one segment is wrong, none."""
    fill_disk(guest, disk, seed)
    sent = header(kind, 1) + b"".join(segment(*each) for each in segments) + bytes(odd)
    writable = [len(piece) for piece in cut(bytes(1), writable_cuts)]
    check(disk, guest, sent, guest.queue.framed(cut(sent, readable_cuts), writable, indirect=indirect))


def fill_disk(guest: Guest, disk: NaiveDisk, seed: int) -> None:
    """No byte of the disk is zero."""
    disk.content[:] = bytes(1 + (seed + i) % 255 for i in range(255)) * (SIZE // 255) + bytes([seed]) * (SIZE % 255)
    ctypes.memmove(guest.storage.address, bytes(disk.content), SIZE)


# Sectors and lengths.


@pytest.mark.parametrize("kind", [IN, OUT])
@pytest.mark.parametrize(
    "sector",
    [
        *(0, 1, CAPACITY - 2, CAPACITY - 1, CAPACITY, CAPACITY + 1),
        *(1 << shift for shift in (23, 31, 32, 54, 55, 56, 62, 63)),
        *((1 << 55) - 1, (1 << 55) + 1, (1 << 63) - 1, (1 << 64) - 1, (1 << 64) - 2),
    ],
)
def test_sectors_beyond_the_end_and_those_that_wrap(guest: Guest, disk: NaiveDisk, kind: int, sector: int) -> None:
    for length in (0, 512, 1024):
        sent = header(kind, sector) + (b"\xa5" * length if kind == OUT else b"")
        check(disk, guest, sent, guest.queue.request(sent, 1 + (length if kind == IN else 0)))


@pytest.mark.parametrize("kind", [IN, OUT])
@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 1023, 1024, SIZE, SIZE + 512])
def test_lengths(guest: Guest, disk: NaiveDisk, kind: int, length: int) -> None:
    sent = header(kind) + (b"\x5a" * length if kind == OUT else b"")
    check(disk, guest, sent, guest.queue.request(sent, 1 + (length if kind == IN else 0)))


def test_a_disk_of_many_petabytes() -> None:
    last = (4 << 50) // 512 - 1
    with Guest("null:4p") as guest:
        assert guest.queue.request(header(IN, last), 513).status == OK
        assert guest.queue.request(header(IN, last), 1025).status == IOERR
        assert guest.queue.request(header(OUT, last + 1) + bytes(512), 1).status == IOERR


# Types.


@pytest.mark.parametrize("kind", [*range(64), 1 << 31, (1 << 31) | 1, (1 << 32) - 1])
def test_types(guest: Guest, disk: NaiveDisk, kind: int) -> None:
    """5.2.6: an unknown type is UNSUPP. 2 and 3 are SCSI commands, bit 31 the barrier of old."""
    check(disk, guest, header(kind), guest.queue.request(header(kind), 513))
    sent = header(kind) + b"\x77" * 512
    check(disk, guest, sent, guest.queue.request(sent, 1))


@pytest.mark.parametrize("room", [1, 2, 513])
@pytest.mark.parametrize("sector", [0, 5, (1 << 64) - 1])
def test_a_flush_with_sector_and_data_is_a_flush(guest: Guest, disk: NaiveDisk, room: int, sector: int) -> None:
    for data in (b"", b"data" * 128):
        sent = header(FLUSH, sector) + data
        check(disk, guest, sent, guest.queue.request(sent, room))


def test_a_flush_that_was_not_negotiated_is_unsupported() -> None:
    with Guest(features=FEATURES & ~F_FLUSH) as guest:
        assert guest.queue.request(header(FLUSH), 1) == (1, bytes([UNSUPP]))


@pytest.mark.parametrize("length", [0, 1, 19, 20, 21, 4096])
def test_get_id_of_any_length(guest: Guest, disk: NaiveDisk, length: int) -> None:
    answer = guest.queue.request(header(GET_ID), length + 1)
    assert answer.data[:20] == SERIAL.ljust(20, b"\0")[:length]
    check(disk, guest, header(GET_ID), answer)


# Discard and write zeroes.


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
@pytest.mark.parametrize(
    ("payload", "status"),
    [
        pytest.param(segment(3, 2), OK, id="one segment"),
        pytest.param(segment(3, 2) + segment(0, 0) + segment(CAPACITY - 1, 1), OK, id="one of them empty"),
        pytest.param(segment(3, 0), OK, id="nothing"),
        pytest.param(segment(CAPACITY, 0), OK, id="nothing at the end"),
        pytest.param(segment(0, CAPACITY), OK, id="everything"),
        pytest.param(segment(1, 1) * 32, OK, id="32 segments"),
        pytest.param(segment(1, 1) * 33, IOERR, id="33 segments"),
        pytest.param(segment(1, 1) * 4096, IOERR, id="4096 segments"),
        pytest.param(b"", IOERR, id="none"),
        pytest.param(bytes(1), IOERR, id="1 byte"),
        pytest.param(segment(3, 2)[:15], IOERR, id="15 bytes"),
        pytest.param(segment(3, 2) + b"x", IOERR, id="17 bytes"),
        pytest.param(segment(CAPACITY, 1), IOERR, id="behind the end"),
        pytest.param(segment(CAPACITY + 1, 0), IOERR, id="nothing behind the end"),
        pytest.param(segment(3, 2) + segment(1, CAPACITY), IOERR, id="the second too long"),
        pytest.param(segment(1 << 55, 1), IOERR, id="sector * 512 wraps to 0"),
        pytest.param(segment(-1, 2), IOERR, id="sector + n wraps to 1"),
        pytest.param(segment(1 << 63, 1), IOERR, id="sector 2^63"),
        pytest.param(segment(0, 1 << 23), IOERR, id="n * 512 wraps to 0 in 32 bits"),
        pytest.param(segment(0, -1), IOERR, id="n 2^32-1"),
        pytest.param(segment(1, 1, 2), UNSUPP, id="flag 2"),
        pytest.param(segment(1, 1, 1 << 31), UNSUPP, id="flag 31"),
        pytest.param(segment(1, 1) + segment(1, 1, -1), UNSUPP, id="all flags"),
        pytest.param(segment(CAPACITY, 1) + segment(1, 1, 4), UNSUPP, id="outside, and an unknown flag"),
    ],
)
def test_segments_by_hand(guest: Guest, disk: NaiveDisk, kind: int, payload: bytes, status: int) -> None:
    """5.2.6.2, and bad inputs 30 to 34; nothing changes where it is refused."""
    fill_disk(guest, disk, 7)
    answer = guest.queue.request(header(kind) + payload, 1)
    assert answer == (1, bytes([status]))
    check(disk, guest, header(kind) + payload, answer)


@pytest.mark.parametrize(("kind", "status"), [(DISCARD, UNSUPP), (WRITE_ZEROES, OK)])
def test_only_write_zeroes_may_unmap(guest: Guest, disk: NaiveDisk, kind: int, status: int) -> None:
    fill_disk(guest, disk, 8)
    sent = header(kind) + segment(2, 2, 1)
    answer = guest.queue.request(sent, 1)
    assert answer.status == status
    check(disk, guest, sent, answer)


@pytest.mark.parametrize("first", [1, 8, 15])
def test_a_segment_whose_first_piece_is_short(guest: Guest, disk: NaiveDisk, first: int) -> None:
    """Bad input 32: SPDK's back end reads 16 bytes from the first piece, whatever its length is."""
    fill_disk(guest, disk, 9)
    payload = segment(5, 3) + segment(9, 1)
    pieces = [header(WRITE_ZEROES), payload[:first], payload[first:]]
    check(disk, guest, b"".join(pieces), guest.queue.framed(pieces, [1]))
    assert not any(disk.content[5 * 512 : 8 * 512])
    assert not any(disk.content[9 * 512 : 10 * 512])


def test_one_segment_is_no_longer_than_the_configuration_says() -> None:
    """5.2.5.2: the limit is what holds, on both sides of it."""
    with Guest("ram:16m") as guest:
        config = guest.front.get_config(60)
        for kind, at in ((DISCARD, 36), (WRITE_ZEROES, 48)):
            most, segments = struct.unpack_from("<II", config, at)
            assert (most, segments) == (16384, 32)
            ctypes.memset(guest.storage.address, 1, guest.storage.size)
            assert guest.queue.request(header(kind) + segment(1, most + 1), 1).status == IOERR
            assert content(guest) == b"\1" * guest.storage.size
            assert guest.queue.request(header(kind) + segment(1, most), 1).status == OK
            assert content(guest) == b"\1" * 512 + bytes(most * 512) + b"\1" * (guest.storage.size - (most + 1) * 512)


@pytest.mark.parametrize(("feature", "kind"), [(F_DISCARD, DISCARD), (F_WRITE_ZEROES, WRITE_ZEROES)])
def test_what_was_not_negotiated_is_unsupported_and_the_other_is_not(feature: int, kind: int) -> None:
    """5.2.3: the features are independent of each other."""
    with Guest(f"ram:{SIZE}", features=FEATURES & ~feature) as guest:
        disk = NaiveDisk(bytearray(SIZE), SERIAL, ranges=tuple({DISCARD, WRITE_ZEROES} - {kind}))
        fill_disk(guest, disk, 3)
        for each in (DISCARD, WRITE_ZEROES):
            sent = header(each) + segment(each, 1)
            check(disk, guest, sent, guest.queue.request(sent, 1))
        assert disk.content[kind * 512]


def test_a_write_after_write_zeroes_in_one_batch_is_not_zeroed(guest: Guest, disk: NaiveDisk) -> None:
    """And the batch's other records keep their own scratch: every header comes in two pieces."""
    fill_disk(guest, disk, 4)
    queue = guest.queue
    queue.stop()
    mark = guest.mark()
    tokens = []
    for sector in range(8):
        for kind, payload in ((WRITE_ZEROES, segment(sector, 2)), (OUT, bytes([0x40 + sector]) * 512)):
            sent = header(kind, sector) + payload
            pieces = [guest.buffer(sent[:5]), guest.buffer(sent[5:])]
            tokens.append(queue.add([*pieces, guest.room(1)], guest.alloc(48, 16)))
            disk.serve(sent, 1)
    queue.start()
    assert [queue.wait(token) for token in tokens] == [1] * 16
    assert content(guest) == disk.content
    guest.release(mark)


# Chains without what a request needs.


@pytest.mark.parametrize("sent", [b"", b"\0", header(IN)[:15]])
@pytest.mark.parametrize("room", [1, 513])
def test_a_header_that_is_short(guest: Guest, disk: NaiveDisk, sent: bytes, room: int) -> None:
    check(disk, guest, sent, guest.queue.framed([sent] if sent else [], [room]))
    check(disk, guest, sent, guest.queue.framed([sent[:3], sent[3:]] if sent else [b""], [0, room - 1, 1]))


def test_a_header_in_writable_memory_is_no_header(guest: Guest) -> None:
    buffer = guest.room(16)
    guest.store(buffer.address, header(OUT))
    status = guest.room(1)
    before = content(guest)
    token = guest.queue.add([buffer, status])
    assert guest.queue.wait(token) == 0
    assert guest.load(status.address, 1) == bytes([IOERR])
    assert guest.load(buffer.address, 16) == header(OUT)
    assert content(guest) == before


@pytest.mark.parametrize("sent", [header(IN), header(OUT) + b"\x11" * 512, header(FLUSH), header(GET_ID)])
def test_no_room_for_a_status(guest: Guest, disk: NaiveDisk, sent: bytes) -> None:
    """The head comes back with length 0, nothing is written, nothing is executed."""
    check(disk, guest, sent, guest.queue.framed([sent], []))
    check(disk, guest, sent, guest.queue.framed([sent[:16], sent[16:]], [0]))


def test_bad_chains_leak_no_descriptors(guest: Guest) -> None:
    """cloud-hypervisor#8401: as many bad chains as the ring holds, then a good one."""
    for _ in range(guest.queue.ring.num + 1):
        assert guest.queue.framed([b"short"], [1]) == (1, bytes([IOERR]))
    assert guest.queue.request(header(IN), 513).status == OK


# Read-only.


@pytest.mark.parametrize("accepted", [True, False], ids=["RO accepted", "RO not accepted"])
def test_a_read_only_disk_refuses_writes_and_does_not_change(accepted: bool) -> None:
    storage = open_storage(parse_name(f"ram:{SIZE}"))
    storage.read_only = True
    features = FEATURES | 1 << 5 if accepted else FEATURES
    with Guest(storage, features=features) as guest:
        assert guest.offered >> 5 & 1
        ctypes.memset(storage.address, 6, SIZE)
        for sent in (
            header(OUT) + b"\xff" * 512,
            header(DISCARD) + segment(0, 1),
            header(WRITE_ZEROES) + segment(0, 1),
        ):
            assert guest.queue.request(sent, 1) == (1, bytes([IOERR]))
            assert content(guest) == b"\6" * SIZE
        assert guest.queue.read(0, 512) == b"\6" * 512
        assert guest.queue.request(header(FLUSH), 1).status == OK


# Several regions.


@given(
    at=st.integers(4 * 4096 - 600, 4 * 4096 + 100),
    length=st.sampled_from([512, 1024, 8192]),
    sector=st.integers(0, 8),
    seed=st.integers(0, 255),
)
@settings(max_examples=10 if INTERPRETED else 40)
def test_buffers_that_cross_regions(crossing: Guest, at: int, length: int, sector: int, seed: int) -> None:
    """Bad input 22: guest addresses are contiguous, the mappings are not."""
    guest = crossing
    data = bytes((seed + i) & 0xFF for i in range(length))
    region = guest.size // 32
    address = guest.regions[16].guest_addr - region + at % region
    guest.store(address, data)
    mark = guest.mark()
    head, status = guest.buffer(header(OUT, sector)), guest.room(1)
    guest.queue.wait(guest.queue.add([head, Buffer(address, length, False), status]))
    assert guest.load(status.address, 1) == bytes([OK])
    assert content(guest)[sector * 512 : sector * 512 + length] == data
    guest.store(address, bytes(length))
    head, room = guest.buffer(header(IN, sector)), Buffer(address, length, True)
    assert guest.queue.wait(guest.queue.add([head, room, status])) == length + 1
    assert guest.load(address, length) == data
    guest.release(mark)


@pytest.fixture(scope="module")
def crossing():
    with Guest(f"ram:{SIZE}", regions=32, size=32 * 4096 * 8) as running:
        yield running


def test_null_disk_executes_nothing_and_says_yes() -> None:
    with Guest("null:1m") as guest:
        answer = guest.queue.request(header(IN), 513)
        assert answer.status == OK
        assert set(answer.data) == {FRESH}
        assert guest.queue.write(0, b"x" * 512) == OK
        assert guest.queue.request(header(IN, 2048), 513).status == IOERR
        for kind in (DISCARD, WRITE_ZEROES):
            assert guest.queue.request(header(kind) + segment(0, 2048), 1).status == OK
            assert guest.queue.request(header(kind) + segment(0, 2049), 1).status == IOERR


def test_the_naive_disk_is_not_the_kernel_in_disguise() -> None:
    """One vector by hand for the twin itself."""
    disk = NaiveDisk(bytearray(1024), b"id")
    assert disk.serve(struct.pack("<IIQ", OUT, 0, 1) + b"z" * 512, 1) == (OK, b"")
    assert disk.serve(header(IN, 1), 513) == (OK, b"z" * 512)
    assert disk.serve(header(IN, 2), 513) == (IOERR, b"")
    assert disk.serve(header(WRITE_ZEROES) + segment(1, 1, 2), 1) == (UNSUPP, b"")
    assert disk.serve(header(DISCARD) + segment(1, 2), 1) == (IOERR, b"")
    assert disk.serve(header(DISCARD) + segment(0, 1, 0), 1) == (OK, b"")
    assert np.frombuffer(disk.content, np.uint8).sum() == 512 * ord("z")
