"""The device's half against addresses: nowhere, past the end, over a hole, over regions, or the ring itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from naive.ring import INDIRECT, MAX_PIECES, NEXT, WRITE, Buffer
from virtblk.virtio.vringh_split import MAX_INDIRECT
from virtio.halves import DATA, END, World
from virtio.hostile import HOLE, NUM, REGIONS, Guest, data


@pytest.fixture
def world() -> Iterator[World]:
    with World(NUM, REGIONS) as world:
        yield world


@pytest.fixture
def guest(world: World) -> Guest:
    return Guest(world)


@pytest.mark.parametrize("address", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096])
@pytest.mark.parametrize("length", [1, 4096, 2**32 - 1])
@pytest.mark.parametrize("kind", ["buffer", "table"])
def test_impossible_addresses(guest: Guest, address: int, length: int, kind: str) -> None:
    if kind == "table":
        length = 16 * 1024
    guest.ring.write_desc(guest.ring.desc, 0, address, length, INDIRECT if kind == "table" else WRITE, 0)
    guest.offer(0)
    assert guest.verdict() == ("BAD_ADDRESS", address)


def test_the_last_byte_and_one_more(guest: Guest) -> None:
    guest.chain(data(100, WRITE, 0, DATA + 65536 - 100))
    assert guest.verdict() == (0, [Buffer(guest.start + DATA + 65436, 100, True)])
    guest.chain(data(101, WRITE, 0, DATA + 65536 - 100))
    assert guest.verdict() == ("BAD_ADDRESS", guest.start + DATA + 65536)


def test_regions_that_touch_and_a_hole(guest: Guest) -> None:
    guest.chain(data(20, WRITE, 0, DATA + 991))
    assert guest.verdict()[1] == [Buffer(guest.start + DATA + at, 10, True) for at in (991, 1001)]
    guest.chain(data(8192, WRITE, 0, HOLE - 4096))
    assert guest.verdict() == ("BAD_ADDRESS", guest.start + HOLE)


@pytest.mark.parametrize("target", ["desc", "avail", "used"])
def test_a_buffer_that_is_the_ring(guest: Guest, target: str) -> None:
    """It is the guest's memory, all of it: the guest may have its ring overwritten."""
    at = getattr(guest.ring, target) - guest.start
    guest.chain(data(64, WRITE, 0, at))
    assert guest.verdict() == (0, [Buffer(guest.start + at, 64, True)])


def test_a_table_that_lies_in_the_descriptor_table(guest: Guest) -> None:
    """The descriptor that names it is its first entry."""
    guest.chain((0, 16 * NUM, INDIRECT, 0))
    assert guest.verdict() == ("BAD_INDIRECT_NESTED", 0)


def test_empty_buffers_anywhere(guest: Guest) -> None:
    """Length 0: no piece, whatever the address says."""
    guest.chain(data(0, NEXT, 1, -1), data(16, NEXT, 2), (HOLE, 0, NEXT, 3), data(0, WRITE))
    assert guest.verdict() == (0, [Buffer(guest.start + DATA, 16, False)])
    assert guest.device.state["readable"] == 1


def test_regression_more_pieces_than_a_chain_may_have() -> None:
    """Each of 1024 buffers crosses from one region to the next: refused, by its name (it was called a loop)."""
    with World(NUM, [(0, DATA), (DATA, DATA + 8), (DATA + 8, DATA + 65536)]) as world:
        guest = Guest(world)
        entries = [data(16, NEXT, index + 1) for index in range(MAX_INDIRECT)]
        at, size = guest.table(*entries)
        guest.chain((at, size, INDIRECT, 0))
        assert guest.verdict() == ("BAD_PIECES", MAX_PIECES)


def test_the_lists_have_room_for_the_worst_buffer() -> None:
    """MAX_PIECES - 1 pieces, then a buffer over all 32 regions: MAX_REGIONS more, as vringh_getdesc promises."""
    edges = [0, *(DATA + 100 * place for place in range(1, 32)), END]
    with World(2048, list(itertools.pairwise(edges))) as world:
        guest = Guest(world)
        descs = [data(1, NEXT, index + 1) for index in range(MAX_PIECES - 1)]
        descs.append(data(4000, 0, 0, DATA + 50))
        guest.chain(*descs)
        assert guest.verdict() == ("BAD_PIECES", MAX_PIECES - 1 + 32)
