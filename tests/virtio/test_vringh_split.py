"""The device's half against the naive driver: chains of every legal shape, what they come out as, notifications.

Rings that break the rules are in test_vringh_hostile.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naive.ring import Buffer, NaiveDriver
from virtblk.virtio.vringh_split import (
    MAX_INDIRECT,
    RING_BROKEN,
    vringh_add_used,
    vringh_available,
    vringh_init,
    vringh_need_notify,
    vringh_notify_disable,
    vringh_notify_enable,
    vringh_publish_used,
)
from virtio.halves import CUTS, DATA, SENTINEL, SIZES, CompiledDevice, World
from virtio.pair import bytes_of
from virtio.programs import BASES, PROGRAMS, THOROUGH, Step, run

NUM = 8


@pytest.fixture
def world() -> Iterator[World]:
    with World(NUM) as world:
        yield world


@pytest.fixture
def driver(world: World) -> NaiveDriver:
    return NaiveDriver(world.ring)


@pytest.fixture
def device(world: World, driver: NaiveDriver) -> CompiledDevice:
    """Started after the driver has set its ring up."""
    return CompiledDevice(world)


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("num", SIZES)
@given(base=BASES, program=PROGRAMS)
def test_against_the_naive_driver(num: int, event_idx: bool, base: int, program: list[Step]) -> None:
    run("naive", "compiled", num, base, event_idx, program)


@pytest.mark.parametrize("base", [0, 65535])
def test_start_goes_on_where_both_indices_stand(base: int) -> None:
    """After a stop, the available index comes from the front end, the used index from the ring; they may differ."""
    with World(NUM) as world:
        driver = NaiveDriver(world.ring, base=base)
        driver.add([Buffer(world.data, 1, False)], 1)
        world.ring.set_used_idx(77)
        device = CompiledDevice(world, base=base)
        taken = device.take()
        assert taken is not None
        device.use(taken[0], 5)
        device.publish()
        assert world.ring.used_idx == 78
        assert world.ring.used_elem(77) == (taken[0], 5)
        vringh_init(device.vr, base)
        assert vringh_available(device.vr) == 1


@THOROUGH
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 2500)), max_size=12),
    st.integers(0, 12),
    st.integers(0, 12),
    st.booleans(),
)
def test_pieces_are_the_chain_in_order(parts: list[tuple[int, int]], writable: int, plain: int, indirect: bool) -> None:
    """Buffers anywhere, empty ones too, over the places where regions meet: each comes out as pieces of one region."""
    with World(16) as world:
        driver = NaiveDriver(world.ring)
        device = CompiledDevice(world)
        begin = max(len(parts) - writable, 0)
        buffers = [Buffer(world.data - 500 + at, length, place >= begin) for place, (at, length) in enumerate(parts)]
        buffers = buffers or [Buffer(world.data, 0, False)]
        plain = min(plain, len(buffers) - 1)
        assert driver.add(buffers, 1, world.tables if indirect else 0, plain)
        taken = device.take()
        assert taken is not None
        assert bytes_of(taken[1]) == bytes_of(buffers)
        assert all(piece.length > 0 for piece in taken[1])
        for piece in taken[1]:
            assert any(a <= piece.address and piece.address + piece.length <= b for a, b in world.regions)
        assert device.broken is None
        room = len(device.vr.piece_addr)
        assert list(device.vr.piece_addr[: device.first]) == [SENTINEL] * device.first
        assert room > device.first + device.state["pieces"]


def test_a_buffer_over_three_regions(world: World, driver: NaiveDriver, device: CompiledDevice) -> None:
    at = world.data + 990
    driver.add([Buffer(at, 1000, True)], 1)
    taken = device.take()
    first, second = (world.arena.address + cut for cut in CUTS[1:3])
    expected = [(at, first - at), (first, second - first), (second, at + 1000 - second)]
    assert taken is not None
    assert taken[1] == [Buffer(address, length, True) for address, length in expected]


@pytest.mark.parametrize("plain", range(NUM))
def test_plain_descriptors_then_one_indirect(
    plain: int, world: World, driver: NaiveDriver, device: CompiledDevice
) -> None:
    """Clause 46; and the whole may be longer than the ring."""
    buffers = [Buffer(world.data + 100 * place, 100, place > plain + 1) for place in range(plain + 9)]
    driver.add(buffers, 1, world.tables, plain)
    taken = device.take()
    assert taken is not None
    assert bytes_of(taken[1]) == bytes_of(buffers)
    assert device.state["readable"] == plain + 2


@pytest.mark.parametrize("flags", [2, 0xFFF8, 0xFFFA])
def test_write_and_unknown_flags_beside_indirect_are_ignored(
    flags: int, world: World, driver: NaiveDriver, device: CompiledDevice
) -> None:
    """Clause 45: the chain may even start with readable buffers."""
    buffers = [Buffer(world.data, 16, False), Buffer(world.data + 100, 1, True)]
    driver.add(buffers, 1, world.tables, odd_flags=flags)
    taken = device.take()
    assert taken is not None
    assert taken[1] == buffers
    assert device.broken is None


def test_the_longest_chains(world: World, device: CompiledDevice) -> None:
    """A chain of as many descriptors as the ring has, and a table of MAX_INDIRECT entries."""
    driver = NaiveDriver(world.ring)
    for buffers, table in (
        ([Buffer(world.data + place, 1, False) for place in range(NUM)], 0),
        ([Buffer(world.data + place, 1, place > 500) for place in range(MAX_INDIRECT)], world.tables),
    ):
        assert driver.add(buffers, 1, table)
        taken = device.take()
        assert taken is not None
        assert taken[1] == buffers
        device.use(taken[0], 0)
        device.publish()
        driver.get()


def test_an_indirect_table_over_two_regions(world: World, driver: NaiveDriver, device: CompiledDevice) -> None:
    """Its entries are found one by one; the table ends at the last byte of a region, or goes on in the next."""
    edge = world.arena.address + DATA
    for entries_before in (2, 5):
        table = edge - 16 * entries_before
        buffers = [Buffer(world.data + 4000 + place, 1, place > 2) for place in range(5)]
        driver.add(buffers, 1, table)
        taken = device.take()
        assert taken is not None
        assert taken[1] == buffers


def test_used_elements_show_when_published(world: World, driver: NaiveDriver, device: CompiledDevice) -> None:
    for token in range(NUM):
        driver.add([Buffer(world.data, 9, True)], token)
    heads = [taken[0] for _ in range(NUM) if (taken := device.take())]
    for place, head in enumerate(reversed(heads)):
        vringh_add_used(device.vr, head, place)
        assert world.ring.used_idx == 0
    vringh_publish_used(device.vr)
    assert world.ring.used_idx == NUM
    assert [driver.get() for _ in range(NUM)] == [(NUM - 1 - place, place) for place in range(NUM)]


# Notifications, word by word (clauses 47, 48, 52).


def test_with_flags(world: World, driver: NaiveDriver, device: CompiledDevice) -> None:
    driver.enable()
    assert not vringh_need_notify(device.vr)  # nothing was used
    for flags, wanted in ((0, True), (1, False), (0xFFFE, True), (0xFFFF, False)):
        world.ring.set_avail_flags(flags)
        event = int(device.state["used_idx"]) + 40 * wanted
        world.ring.set_used_event(event)  # means nothing here
        device.use(0, 0)
        device.publish()
        assert vringh_need_notify(device.vr) == wanted
        assert not vringh_need_notify(device.vr)


@pytest.mark.parametrize("base", [0, 65530, 65535])
def test_with_event_idx(base: int) -> None:
    """Two are used at a time: an interrupt if the event is one of them, whatever the low flag bit says."""
    with World(NUM, event_idx=True, base=base) as world:
        driver = NaiveDriver(world.ring, event_idx=True, base=base)
        device = CompiledDevice(world, event_idx=True, base=base)
        driver.ring.set_avail_flags(1)
        for round_ in range(12):
            used = base + 2 * round_
            event = used + (-1, 0, 1, 2, 32768, 40000)[round_ % 6]
            world.ring.set_used_event(event)
            device.use(0, 0)
            device.use(1, 0)
            device.publish()
            assert vringh_need_notify(device.vr) == (event in (used, used + 1))
            assert not vringh_need_notify(device.vr)


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_a_chain_between_enable_and_sleep_is_seen(event_idx: bool) -> None:
    with World(NUM, event_idx=event_idx) as world:
        driver = NaiveDriver(world.ring, event_idx=event_idx)
        device = CompiledDevice(world, event_idx=event_idx)
        vringh_notify_disable(device.vr)
        assert world.ring.used_flags == (0 if event_idx else 1)
        assert vringh_notify_enable(device.vr)
        assert world.ring.used_flags == 0
        driver.add([Buffer(world.data, 9, True)], 1)
        assert driver.kick()
        assert not vringh_notify_enable(device.vr)
        assert device.take()
        assert vringh_notify_enable(device.vr)
        assert world.ring.avail_event == (1 if event_idx else 0)


def test_the_device_reads_the_index_once_per_batch(world: World, driver: NaiveDriver, device: CompiledDevice) -> None:
    """What was announced stays announced: an index that goes back does not undo chains that were seen."""
    for token in range(3):
        driver.add([Buffer(world.data, 9, True)], token)
    assert vringh_available(device.vr) == 3
    world.ring.set_avail_idx(0)
    for left in (2, 1):
        assert device.take()
        assert vringh_available(device.vr) == left
    assert device.take()
    assert vringh_available(device.vr) == RING_BROKEN
    assert device.broken == ("BAD_AVAIL_IDX", 65533)


def test_canaries(world: World, driver: NaiveDriver, device: CompiledDevice) -> None:
    """Clauses 43 and 44: the device half writes neither descriptors nor the available ring nor any buffer."""
    driver.add([Buffer(world.data, 100, False), Buffer(world.data + 100, 100, True)], 1)
    driver.add([Buffer(world.data, 100, False), Buffer(world.data + 100, 100, True)], 2, world.tables)
    start = world.arena.address
    areas = [(start, world.ring.used - start), (world.tables, 4096), (world.data, 4096)]
    before = [bytes(world.arena.array(*area)) for area in areas]
    for _ in range(2):
        taken = device.take()
        assert taken
        device.use(taken[0], 100)
    device.publish()
    device.notify()
    device.enable()
    device.disable()
    assert [bytes(world.arena.array(*area)) for area in areas] == before
