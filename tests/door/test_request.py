"""Bad inputs, group Request (29 to 38), against the whole device: each is answered with an error, and does nothing.

The rules one by one, against a naive disk, are in device/test_request.py; here it is what else could be harmed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from device.guest import header, segment
from door.rings import CAPACITY, SIZE, Intruder, RingDoor
from naive.virtio_blk import DISCARD, FLUSH, GET_ID, IN, IOERR, OK, OUT, UNSUPP, WRITE_ZEROES


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RingDoor]:
    with RingDoor(str(tmp_path_factory.mktemp("door") / "s")) as door:
        yield door


@pytest.fixture
def guest(shared: RingDoor) -> Iterator[Intruder]:
    with Intruder(shared, num=256) as intruder:
        yield intruder
    shared.check()


def statuses(guest: Intruder, requests: list[tuple[list[bytes], int]]) -> list[int]:
    """All requests in one go, each as (readable pieces, bytes for data); their statuses in order."""
    rooms = []
    for pieces, room in requests:
        rooms.append(guest.room(room + 1))
        guest.offer_chain([*(guest.buffer(piece) for piece in pieces), rooms[-1]])
    broken, used = guest.attack(rooms, answers=len(requests))
    assert broken is None
    assert all(length <= room.length for (_, length), room in zip(used, rooms, strict=True))
    return [guest.load(room.address + room.length - 1, 1)[0] for room in rooms]


SECTORS = [CAPACITY, CAPACITY - 1, 1 << 23, 1 << 54, 1 << 55, (1 << 55) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 2]


@pytest.mark.parametrize("kind", [IN, OUT])
def test_29_sectors_that_wrap(guest: Intruder, kind: int) -> None:
    data = [b"w" * 1024] if kind == OUT else []
    requests = [([header(kind, sector), *data], 1024 if kind == IN else 0) for sector in SECTORS]
    assert statuses(guest, requests) == [IOERR] * len(SECTORS)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_30_31_segments_that_wrap(guest: Intruder, kind: int) -> None:
    """One that is sound before each: nothing of the request is done."""
    bad = [(sector, 2) for sector in SECTORS] + [(0, 1 << 23), (1, (1 << 32) - 1), (0, CAPACITY + 1), (1, CAPACITY)]
    requests = [([header(kind), segment(0, 1) + segment(*each)], 0) for each in bad]
    assert statuses(guest, requests) == [IOERR] * len(bad)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_32_a_segment_in_pieces(guest: Intruder, kind: int) -> None:
    """The first is 1 byte long, with the sector behind it that SPDK's back end would have read."""
    payload = segment(CAPACITY - 3, 2)
    guest.door.content[(CAPACITY - 3) * 512 : (CAPACITY - 1) * 512] = bytes(1024)
    assert statuses(guest, [([header(kind), payload[:1], payload[1:15], payload[15:]], 0)]) == [OK]


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_33_payloads_that_are_no_segments(guest: Intruder, kind: int) -> None:
    one = segment(0, 1)
    bad = [b"", one[:1], one[:15], one + b"\0", one * 32 + b"\0", one * 33, one * 1024]
    assert statuses(guest, [([header(kind), payload], 0) for payload in bad]) == [IOERR] * len(bad)


@pytest.mark.parametrize(("kind", "known"), [(DISCARD, 0), (WRITE_ZEROES, 1)])
def test_34_all_flags(guest: Intruder, kind: int, known: int) -> None:
    bad = [1 << bit for bit in range(32) if 1 << bit != known] + [(1 << 32) - 1]
    assert statuses(guest, [([header(kind), segment(0, 1, flags)], 0) for flags in bad]) == [UNSUPP] * len(bad)


@pytest.mark.parametrize("kind", [IN, OUT])
def test_35_odd_lengths(guest: Intruder, kind: int) -> None:
    lengths = [1, 511, 513, 1023]
    requests = [([header(kind), *([b"w" * n] if kind == OUT else [])], n if kind == IN else 0) for n in lengths]
    assert statuses(guest, requests) == [IOERR] * 4


@pytest.mark.parametrize("bit", [0, 1 << 31], ids=["plain", "with the barrier bit"])
def test_36_types_that_are_none(guest: Intruder, bit: int) -> None:
    known = (IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES)
    kinds = [kind | bit for kind in range(64) if bit or kind not in known]
    assert statuses(guest, [([header(kind), b"w" * 512], 0) for kind in kinds]) == [UNSUPP] * len(kinds)


def test_37_a_flood_of_flushes(guest: Intruder) -> None:
    assert statuses(guest, [([header(FLUSH, n)], 0) for n in range(32)]) == [OK] * 32


def test_37_identities_of_any_length(guest: Intruder) -> None:
    assert statuses(guest, [([header(GET_ID)], length) for length in (0, 1, 19, 20, 21, 4096)]) == [OK] * 6


@pytest.mark.parametrize("features", [0x3FFFFFFFF, 0x3FFFFFFFF & ~(1 << 5)], ids=["RO accepted", "RO not accepted"])
def test_38_a_read_only_disk_does_not_change(tmp_path_factory: pytest.TempPathFactory, features: int) -> None:
    with RingDoor(str(tmp_path_factory.mktemp("door") / "s")) as door:
        door.storage.read_only = True
        with Intruder(door, features=features, read_only=True) as guest:
            changing = [(OUT, b"w" * 512), (DISCARD, segment(0, 1)), (WRITE_ZEROES, segment(0, 1, 1))]
            requests = [([header(kind), payload], 0) for kind, payload in changing]
            assert statuses(guest, requests) == [IOERR] * 3
        assert ctypes.string_at(door.storage.address, SIZE) == door.content
