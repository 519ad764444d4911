"""The device's half against guests that break the rules: the right reason, for good, and nothing else touched.

The naive device is the judge: whatever is in the ring, both accept it with the same pieces, or both refuse it for the
same reason. Then the named cases, one by one, so that a reader finds them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naive.ring import INDIRECT, NEXT, WRITE, Buffer
from virtblk.virtio import vringh_split
from virtblk.virtio.vringh_split import (
    BAD_VRING_TEXT,
    MAX_INDIRECT,
    RING_BROKEN,
    vringh_available,
    vringh_break,
    vringh_init,
)
from virtio.halves import DATA, END, TABLES, World
from virtio.hostile import HOLE, NUM, REGIONS, Desc, Guest, data
from virtio.programs import BASES, THOROUGH


@pytest.fixture
def world() -> Iterator[World]:
    with World(NUM, REGIONS) as world:
        yield world


@pytest.fixture
def guest(world: World) -> Guest:
    return Guest(world)


_ADDRESS = st.one_of(
    st.sampled_from(
        [DATA, DATA + 1000, DATA + 65535, HOLE - 1, HOLE, TABLES, TABLES + 16, 0, END, -1, 1 << 62, 1 << 63]
    ),
    st.integers(DATA, DATA + 66000),
    st.integers(-(1 << 63), (1 << 63) - 1),
)
_LENGTH = st.one_of(
    st.sampled_from([0, 1, 16, 48, 160, 16 * 1024, 16 * 1025, 2**31, 2**32 - 16, 2**32 - 1]), st.integers(0, 3000)
)
_FLAGS = st.one_of(
    st.sampled_from([0, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT]), st.integers(0, 7), st.integers(0, 65535)
)
_DESC = st.tuples(_ADDRESS, _LENGTH, _FLAGS, st.one_of(st.integers(0, NUM), st.integers(0, 65535)))
#: What is mostly right goes deeper than what is mostly wrong.
_FAIR_DESC = st.tuples(
    st.integers(DATA, DATA + 2000),
    st.integers(0, 3000),
    st.sampled_from([NEXT, NEXT | WRITE, WRITE]),
    st.integers(0, NUM - 1),
)
_TO_TABLE = st.tuples(
    st.sampled_from([TABLES, TABLES + 4096, HOLE - 64]), st.sampled_from([16, 64, 128]), st.just(4), st.just(0)
)
_TABLE = st.lists(st.one_of(_FAIR_DESC, _FAIR_DESC, _FAIR_DESC, _TO_TABLE, _DESC), min_size=NUM, max_size=NUM)


@THOROUGH
@given(
    st.booleans(),
    BASES,
    _TABLE,
    _TABLE,
    st.lists(st.tuples(st.integers(0, NUM + 1), st.sampled_from([1, 1, 1, 0, 2, NUM, NUM + 1, 32768, -1])), max_size=5),
)
def test_the_same_verdict_as_the_naive_device(
    indirect: bool, base: int, descs: list[Desc], table: list[Desc], offers: list[tuple[int, int]]
) -> None:
    with World(NUM, REGIONS, base=base) as world:
        guest = Guest(world, indirect=indirect, base=base)
        for index in range(NUM):
            guest.write(index, descs[index])
            for at in (TABLES, TABLES + 4096):
                guest.write(index, table[index], at)
        for head, moved in offers:
            guest.offer(head, moved)
            guest.verdict()
            if guest.device.broken:
                break


@THOROUGH
@given(st.binary(min_size=16 * NUM, max_size=16 * NUM), st.binary(max_size=100), st.integers(0, 65535))
def test_any_bytes_at_all(descs: bytes, avail: bytes, idx: int) -> None:
    with World(NUM, REGIONS) as world:
        guest = Guest(world)
        world.arena.array(world.ring.desc, len(descs))[:] = list(descs)
        avail = avail[: 2 * NUM]
        world.arena.array(world.ring.avail + 4, len(avail))[:] = list(avail)
        world.ring.set_avail_idx(idx)
        for _ in range(3):
            guest.verdict()
            if guest.device.broken:
                break


# Chain.


@pytest.mark.parametrize("nodes", [1, 2, 3, NUM])
def test_loops(guest: Guest, nodes: int) -> None:
    guest.chain(*(data(1, NEXT, (index + 1) % nodes) for index in range(nodes)))
    assert guest.verdict() == ("BAD_LOOP", NUM)


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("back_to", [0, 1, 2])
def test_a_loop_in_an_indirect_table(guest: Guest, back_to: int, length: int) -> None:
    at, size = guest.table(data(1, NEXT, 1), data(length, NEXT, 2), data(1, NEXT, back_to))
    guest.chain((at, size, INDIRECT, 0))
    assert guest.verdict() == ("BAD_LOOP", 3)


@pytest.mark.parametrize("following", [NUM, NUM + 1, 65535])
def test_next_outside_the_table(guest: Guest, following: int) -> None:
    guest.chain(data(1, NEXT, following))
    assert guest.verdict() == ("BAD_NEXT", following)


@pytest.mark.parametrize("following", [2, 8, 65535])
def test_next_outside_the_indirect_table(guest: Guest, following: int) -> None:
    """The table's end counts, not the ring's."""
    at, size = guest.table(data(1, NEXT, following), data(1))
    guest.chain((at, size, INDIRECT, 0))
    assert guest.verdict() == ("BAD_NEXT", following)


@pytest.mark.parametrize("head", [NUM, NUM + 1, 65535])
def test_head_outside_the_ring(guest: Guest, head: int) -> None:
    guest.offer(head)
    assert guest.verdict() == ("BAD_HEAD", head)


def test_the_same_head_twice_is_taken_twice(guest: Guest) -> None:
    """Nothing of ours depends on heads: the guest harms its own request only."""
    guest.chain(data(5))
    guest.offer(0)
    assert guest.verdict() == guest.verdict() == (0, [Buffer(guest.start + DATA, 5, False)])


@pytest.mark.parametrize("base", [0, 3, 65530])
@pytest.mark.parametrize("moved", [NUM + 1, 32768, 65535, -1, -NUM])
def test_available_index_jumps(moved: int, base: int) -> None:
    with World(NUM, REGIONS, base=base) as world:
        guest = Guest(world, base=base)
        guest.write(0, data(5))
        guest.offer(0, moved)
        assert guest.verdict() == ("BAD_AVAIL_IDX", moved % 65536)


def test_a_full_ring_is_no_jump(guest: Guest) -> None:
    guest.write(0, data(5))
    guest.offer(0, NUM)
    assert vringh_available(guest.device.vr) == NUM
    assert guest.verdict()[0] == 0


def test_a_chain_as_long_as_the_ring(guest: Guest) -> None:
    descs = [data(1, NEXT if index + 1 < NUM else 0, index + 1) for index in range(NUM)]
    guest.chain(*descs)
    assert guest.verdict()[0] == 0
    guest.chain(*descs[:-1], data(1, NEXT, 0))  # and one more
    assert guest.verdict() == ("BAD_LOOP", NUM)


@pytest.mark.parametrize(
    "lengths",
    [[16], [16, 512], [16, 0], [16, 2], [15, 1], [17, 1], [1, 15, 1], [8, 8, 512, 1], [0], [0, 0, 0]],
    ids=lambda lengths: "+".join(map(str, lengths)),
)
@pytest.mark.parametrize("writable", [0, 1, 99])
def test_what_only_a_block_device_minds(guest: Guest, lengths: list[int], writable: int) -> None:
    """Head only, no status, header of a strange size, all writable, empty: legal chains; the request decides."""
    last = len(lengths) - 1
    for index, length in enumerate(lengths):
        flags = (NEXT if index < last else 0) | (WRITE if index > last - writable else 0)
        guest.write(index, data(length, flags, index + 1))
    guest.offer(0)
    head, pieces = guest.verdict()
    assert head == 0
    assert isinstance(pieces, list)
    assert [piece.length for piece in pieces] == [length for length in lengths if length]


@pytest.mark.parametrize("middle", [0, 5])
def test_writable_before_readable(guest: Guest, middle: int) -> None:
    """Even if the writable one is empty."""
    guest.chain(data(16, NEXT, 1), data(middle, NEXT | WRITE, 2), data(1))
    assert guest.verdict() == ("BAD_ORDER", 2)


def test_writable_before_an_indirect_that_starts_readable(guest: Guest) -> None:
    at, size = guest.table(data(1, WRITE | NEXT, 1), data(1))
    guest.chain(data(16, NEXT | WRITE, 1), (at, size, INDIRECT, 0))
    assert guest.verdict() == ("BAD_ORDER", 1)


@pytest.mark.parametrize("plain", [0, 1])
def test_indirect_and_next(guest: Guest, plain: int) -> None:
    at, size = guest.table(data(1), data(1))
    guest.chain(*[data(1, NEXT, 1)] * plain, (at, size, INDIRECT | NEXT, plain + 1), data(1))
    assert guest.verdict() == ("BAD_INDIRECT_NEXT", plain)


def test_indirect_in_indirect(guest: Guest) -> None:
    inner, size = guest.table(data(1), at=TABLES + 4096)
    outer, _ = guest.table(data(1, NEXT, 1), (inner, size, INDIRECT, 0))
    guest.chain((outer, 32, INDIRECT, 0))
    assert guest.verdict() == ("BAD_INDIRECT_NESTED", 1)


@pytest.mark.parametrize("length", [0, 8, 15, 17, 16 * MAX_INDIRECT + 16, 2**32 - 16, 2**32 - 1])
def test_tables_of_impossible_length(guest: Guest, length: int) -> None:
    at, _ = guest.table(data(1), data(1))
    guest.chain((at, length, INDIRECT, 0))
    assert guest.verdict() == ("BAD_INDIRECT_LEN", length)


def test_a_table_past_the_end_of_its_region(guest: Guest) -> None:
    """As long as the chain stays inside it goes; the first entry outside breaks it."""
    at = HOLE - 48
    guest.table(data(1, NEXT, 1), data(1, NEXT, 2), data(1, 0, 3), at=at)
    guest.chain((at, 160, INDIRECT, 0))
    assert guest.verdict()[0] == 0
    guest.write(2, data(1, NEXT, 3), at)
    guest.chain((at, 160, INDIRECT, 0))
    assert guest.verdict() == ("BAD_ADDRESS", guest.start + HOLE)


def test_a_table_entry_across_the_end_of_its_region(guest: Guest) -> None:
    at = HOLE - 24
    guest.write(0, data(1, NEXT, 1), at)
    guest.chain((at, 32, INDIRECT, 0))
    assert guest.verdict() == ("BAD_ADDRESS", guest.start + HOLE - 8)


@pytest.mark.parametrize("entries", [NUM + 1, MAX_INDIRECT])
def test_a_table_longer_than_the_ring(guest: Guest, entries: int) -> None:
    """Windows guests send these (spdk#2330), and QEMU takes 1024."""
    at = DATA + 2048
    guest.table(*(data(1, NEXT if index + 1 < entries else 0, index + 1) for index in range(entries)), at=at)
    guest.chain((at, 16 * entries, INDIRECT, 0))
    head, pieces = guest.verdict()
    assert head == 0
    assert isinstance(pieces, list)
    assert len(pieces) == entries


def test_indirect_without_the_feature(world: World) -> None:
    guest = Guest(world, indirect=False)
    guest.chain(data(1, NEXT, 1), (TABLES, 16, INDIRECT, 0))
    assert guest.verdict() == ("BAD_INDIRECT_OFF", 1)


def test_more_than_4_gib(guest: Guest) -> None:
    """Told before any address is looked at: the third would be outside."""
    guest.chain(data(40000, NEXT, 1), data(2**32 - 40001, NEXT, 2), data(1))
    assert guest.verdict()[0] == "BAD_ADDRESS"
    other = Guest(guest.world, base=guest.idx)
    other.chain(data(40000, NEXT, 1), data(2**32 - 40000, NEXT, 2))
    assert other.verdict() == ("BAD_LENGTH", 1 << 32)


def test_init_heals(guest: Guest) -> None:
    guest.offer(NUM)
    assert guest.verdict() == ("BAD_HEAD", NUM)
    vringh_init(guest.device.vr, guest.idx)
    assert guest.device.broken is None
    guest.chain(data(1))
    assert guest.device.take() == (0, [Buffer(guest.start + DATA, 1, False)])


def test_the_first_reason_stays(guest: Guest) -> None:
    for value in (17, 18):
        assert vringh_break(guest.device.vr, value - 15, value) == RING_BROKEN
    assert guest.device.broken == ("BAD_HEAD", 17)


def test_every_reason_has_a_text_that_names_the_value() -> None:
    names = [name for name in dir(vringh_split) if name.startswith("BAD_") and name != "BAD_VRING_TEXT"]
    assert set(BAD_VRING_TEXT) == {getattr(vringh_split, name) for name in names}
    for text in BAD_VRING_TEXT.values():
        assert format(98765, "#x" if ":#x" in text else "") in text.format(value=98765)
