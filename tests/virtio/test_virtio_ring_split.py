"""The driver's half against the naive device, and against used rings that lie."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import INTERPRETED
from naive.ring import Buffer
from virtblk.virtio.virtio_ring_split import (
    BAD_RING_TEXT,
    BAD_USED_ID,
    BAD_USED_LEN,
    ENOSPC,
    NOTHING_USED,
    RING_BROKEN,
    virtqueue_add_direct,
    virtqueue_add_indirect,
    virtqueue_break,
    virtqueue_disable_cb,
    virtqueue_enable_cb,
    virtqueue_get_buf,
    virtqueue_init,
    virtqueue_kick_prepare,
    virtqueue_more_used,
    virtqueue_notify,
    write_indirect,
)
from virtio.halves import SENTINEL, SIZES, CompiledDriver, World, numbers
from virtio.programs import BASES, PROGRAMS, THOROUGH, Step, run

NUM = 8
READ = [(16, False), (512, True), (1, True)]


@pytest.fixture
def world() -> Iterator[World]:
    with World(NUM) as world:
        yield world


@pytest.fixture
def driver(world: World) -> CompiledDriver:
    return CompiledDriver(world)


def add(driver: CompiledDriver, token: int, table: int = 0, what: list[tuple[int, bool]] = READ) -> bool:
    return driver.add([Buffer(0x1000 * place, *w) for place, w in enumerate(what)], token, table)


def complete(world: World, *elements: tuple[int, int], moved: int | None = None) -> None:
    """The device says that these (id, length) are used; `moved` where it lies about how many."""
    idx = world.ring.used_idx
    for place, (head, length) in enumerate(elements):
        world.ring.set_used_elem(idx + place, head, length)
    world.ring.set_used_idx(idx + (len(elements) if moved is None else moved))


def get(driver: CompiledDriver) -> tuple[int, int]:
    token, length = virtqueue_get_buf(driver.vq)
    return int(token), int(length)


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("num", SIZES)
@given(base=BASES, program=PROGRAMS)
def test_against_the_naive_device(num: int, event_idx: bool, base: int, program: list[Step]) -> None:
    run("compiled", "naive", num, base, event_idx, program)


@pytest.mark.parametrize("num", SIZES)
def test_a_new_ring(num: int) -> None:
    base = 65533
    with World(num, base=base) as world:
        ring, driver = world.ring, CompiledDriver(world)
        assert (ring.avail_idx, ring.used_idx, ring.avail_flags) == (base, base, 1)
        assert driver.num_free == num
        assert driver.free_list() == list(range(num))
        assert get(driver) == (NOTHING_USED, 0)
        assert not virtqueue_more_used(driver.vq)


def test_a_direct_chain_in_memory(world: World, driver: CompiledDriver) -> None:
    assert add(driver, 7, what=[(16, False), (8, False), (512, True), (1, True)])
    table = [world.ring.read_desc(world.ring.desc, i) for i in range(4)]
    assert table == [(0, 16, 1, 1), (0x1000, 8, 1, 2), (0x2000, 512, 3, 3), (0x3000, 1, 2, 0)]
    assert world.ring.avail_head(0) == 0
    assert world.ring.avail_idx == 1


def test_an_indirect_table_in_memory(world: World, driver: CompiledDriver) -> None:
    assert add(driver, 7, world.tables)
    assert world.ring.read_desc(world.ring.desc, 0) == (world.tables, 48, 4, 0)
    table = [world.ring.read_desc(world.tables, i) for i in range(3)]
    assert table[:2] == [(0, 16, 1, 1), (0x1000, 512, 3, 2)]
    assert table[2][:3] == (0x2000, 1, 2)  # its next means nothing


def test_lists_of_one_kind_only(world: World) -> None:
    """write_indirect with nothing to read or nothing to write, and from the middle of a longer list."""
    addr, length = numbers(1, 2, 3), numbers(4, 5, 6)
    write_indirect(world.tables, addr, length, 1, 0, 2)
    write_indirect(world.tables + 64, addr, length, 2, 1, 0)
    assert [world.ring.read_desc(world.tables, i)[:3] for i in range(2)] == [(2, 5, 3), (3, 6, 2)]
    assert world.ring.read_desc(world.tables, 4)[:3] == (3, 6, 0)


def test_a_full_ring_refuses_and_changes_nothing(world: World, driver: CompiledDriver) -> None:
    assert add(driver, 1)
    assert add(driver, 2)
    free, idx, memory = driver.free_list(), world.ring.avail_idx, bytes(world.arena.array(world.ring.desc, 16 * NUM))
    assert not add(driver, 3)
    assert (driver.free_list(), world.ring.avail_idx) == (free, idx)
    assert bytes(world.arena.array(world.ring.desc, 16 * NUM)) == memory
    for token in range(3, 5):
        assert add(driver, token, world.tables + 64 * token)
    assert driver.num_free == 0
    addr = numbers(0)
    assert virtqueue_add_indirect(driver.vq, world.tables, 1, 5, 1) == -ENOSPC
    assert virtqueue_add_direct(driver.vq, addr, addr, 0, 1, 0, 5, 0) == -ENOSPC
    assert world.ring.avail_idx == 4


def test_the_driver_relies_on_nothing_that_the_device_can_write(world: World, driver: CompiledDriver) -> None:
    """A hostile device overwrites all descriptors and the available ring: the driver still knows its chains."""
    assert add(driver, 5)
    assert add(driver, 6, world.tables)
    world.arena.array(world.ring.desc, 16 * NUM)[:] = 0xFF
    world.arena.array(world.ring.avail, 4 + 2 * NUM)[:] = 0xFF
    complete(world, (3, 2), (0, 513))
    assert [get(driver), get(driver)] == [(6, 2), (5, 513)]
    assert sorted(driver.free_list()) == list(range(NUM))


# Used rings that lie.


@pytest.fixture
def busy(world: World, driver: CompiledDriver) -> CompiledDriver:
    """Descriptors 0, 1, 2 are token 10 (513 writable bytes), 3 is token 20 (indirect), 4 to 7 are free."""
    assert add(driver, 10)
    assert add(driver, 20, world.tables)
    return driver


@pytest.mark.parametrize(
    ("elements", "moved", "reaped", "text"),
    [
        ([(NUM, 1)], None, 0, "used id 8 is not below the queue size 8"),
        ([(65536, 1)], None, 0, "used id 65536 is not below the queue size 8"),
        ([(2**32 - 1, 1)], None, 0, "used id 4294967295 is not below the queue size 8"),
        ([(4, 1)], None, 0, "used id 4 is not in flight"),
        ([(1, 1)], None, 0, "used id 1 is not in flight"),  # in the middle of a chain
        ([(0, 1), (0, 1)], None, 1, "used id 0 is not in flight"),
        ([(3, 0), (3, 0)], None, 1, "used id 3 is not in flight"),
        ([(0, 514)], None, 0, "used length 514 is more than the request's writable bytes"),
        ([(0, 2**32 - 1)], None, 0, "used length 4294967295 is more than the request's writable bytes"),
        ([(3, 0), (0, 514)], None, 1, "used length 514 is more than the request's writable bytes"),
        ([], 5, 0, "used index moved by 5, more than the requests in flight"),
        ([], NUM + 1, 0, "used index moved by 9, more than the requests in flight"),
        ([], 32768, 0, "used index moved by 32768, more than the requests in flight"),
        ([], -1, 0, "used index moved by 65535, more than the requests in flight"),
        ([(0, 1), (3, 1)], 3, 2, "used id 0 is not in flight"),  # stale third element
    ],
)
def test_a_lie_breaks_the_ring_for_good(
    world: World, busy: CompiledDriver, elements: list[tuple[int, int]], moved: int | None, reaped: int, text: str
) -> None:
    complete(world, *elements, moved=moved)
    for _ in range(reaped):
        assert get(busy)[0] in (10, 20)
        assert busy.queue.broken is None
    assert get(busy) == (RING_BROKEN, 0)
    assert busy.queue.broken == text
    complete(world, (0, 1), moved=1 - world.ring.used_idx)  # the device repents, or lies in another way
    assert get(busy) == (RING_BROKEN, 0)
    complete(world, (NUM + 5, 1), moved=700)
    assert get(busy) == (RING_BROKEN, 0)
    assert busy.queue.broken == text


def test_the_first_reason_stays(busy: CompiledDriver) -> None:
    virtqueue_break(busy.vq, BAD_USED_ID, 17)
    virtqueue_break(busy.vq, BAD_USED_LEN, 18)
    assert busy.queue.broken == "used id 17 is not below the queue size 8"


def test_every_reason_has_a_text_that_names_the_value() -> None:
    for text in BAD_RING_TEXT.values():
        assert "98765" in text.format(value=98765, num=1)


def test_what_is_written_in_full_is_no_lie(world: World, busy: CompiledDriver) -> None:
    complete(world, (0, 513), (3, 513))
    assert [get(busy), get(busy), get(busy)] == [(10, 513), (20, 513), (NOTHING_USED, 0)]


def test_init_heals_a_broken_ring(world: World, busy: CompiledDriver) -> None:
    complete(world, (NUM, 1))
    assert get(busy) == (RING_BROKEN, 0)
    virtqueue_init(busy.vq, 9)
    assert busy.queue.broken is None
    assert busy.free_list() == list(range(NUM))
    assert get(busy) == (NOTHING_USED, 0)
    assert (world.ring.avail_idx, world.ring.used_idx) == (9, 9)


_LIES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.booleans()),
        st.tuples(st.just("complete"), st.integers(0, NUM + 1), st.sampled_from([0, 1, 513, 514])),
        st.tuples(st.just("index"), st.integers(-1, NUM + 1)),
    ),
    max_size=30,
)


@THOROUGH
@given(base=BASES, lies=_LIES)
def test_no_lie_brings_back_what_is_not_in_flight(base: int, lies: list[tuple[str, int, int]]) -> None:
    """A device that completes anything at all: what comes back was in flight, comes back once, and fits."""
    with World(NUM, base=base) as world:
        driver = CompiledDriver(world)
        in_flight: dict[int, int] = {}
        token = 100
        for what, *arguments in lies:
            if what == "add":
                indirect = bool(arguments[0])
                if add(driver, token, world.tables + 64 * (token % 1000) if indirect else 0):
                    in_flight[token] = 1 if indirect else 3
                    token += 1
            elif what == "complete":
                complete(world, (arguments[0], arguments[1]))
            else:
                complete(world, moved=arguments[0])
            found, length = get(driver)
            if found >= 0:
                assert in_flight.pop(found)
                assert length <= 513
            assert driver.num_free == NUM - sum(in_flight.values())
            free = driver.free_list()
            assert len(set(free)) == driver.num_free
            assert set(free) <= set(range(NUM))


# Notifications, word by word; the pairs above hold them against the specification in every order.


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_a_completion_between_enable_and_sleep_is_seen(event_idx: bool) -> None:
    with World(NUM, event_idx=event_idx) as world:
        driver = CompiledDriver(world)
        assert add(driver, 1)
        assert virtqueue_enable_cb(driver.vq)
        complete(world, (0, 1))
        assert not virtqueue_enable_cb(driver.vq)
        assert virtqueue_more_used(driver.vq)
        assert get(driver) == (1, 1)
        assert virtqueue_enable_cb(driver.vq)
        assert world.ring.used_event == (1 if event_idx else 0)
        virtqueue_disable_cb(driver.vq)
        assert world.ring.avail_flags == (0 if event_idx else 1)


def test_with_flags_other_bits_say_nothing(world: World, driver: CompiledDriver) -> None:
    assert add(driver, 1)
    world.ring.set_used_flags(0xFFFE)
    assert virtqueue_kick_prepare(driver.vq)
    world.ring.set_used_flags(0xFFFF)
    assert not virtqueue_kick_prepare(driver.vq)


def test_with_event_idx_flags_say_nothing() -> None:
    """Clause 48's mirror: the low bit is ignored, and one kick covers a batch."""
    with World(NUM, event_idx=True, base=65534) as world:
        driver = CompiledDriver(world)
        world.ring.set_used_flags(1)
        world.ring.set_avail_event(65535)
        assert add(driver, 1, world.tables)
        assert not virtqueue_kick_prepare(driver.vq)
        for token in (2, 3):
            assert add(driver, token, world.tables)
        assert virtqueue_kick_prepare(driver.vq)  # 65535 is among [65535, 1)
        assert not virtqueue_kick_prepare(driver.vq)


def test_notify_writes_the_kick_fd(world: World, driver: CompiledDriver) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        driver.vq.state[0]["kick_fd"] = fd
        virtqueue_notify(driver.vq)
        virtqueue_notify(driver.vq)
        assert os.eventfd_read(fd) == 2
    finally:
        os.close(fd)


def test_regression_notify_does_not_block_on_an_eventfd_that_the_device_filled(
    world: World, driver: CompiledDriver
) -> None:
    """The device shares the file description: it can make it blocking, and full."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        os.eventfd_write(fd, 2**64 - 2)
        driver.vq.state[0]["kick_fd"] = fd
        virtqueue_notify(driver.vq)
        assert os.eventfd_read(fd) == 2**64 - 2, "a signal was pending anyway"
    finally:
        os.close(fd)


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_more_requests_than_the_index_counts(event_idx: bool) -> None:
    """Clause 55: right round the index, from its end to its end, one at a time and with the ring full."""
    laps = 200 if INTERPRETED else 66_000
    with World(4, event_idx=event_idx, base=65535 - laps // 2 % 65536) as world:
        driver = CompiledDriver(world)
        addr = numbers(SENTINEL, world.data)
        used = world.ring.used_idx
        for token in range(laps):
            assert virtqueue_add_direct(driver.vq, addr, addr, 1, 0, 1, token, 8) == 0
            head = world.ring.avail_head(used)
            world.ring.set_used_elem(used, head, token % 9)
            used += 1
            world.ring.set_used_idx(used)
            assert get(driver) == (token, token % 9)
        assert sorted(driver.free_list()) == [0, 1, 2, 3]
        state = driver.vq.state[0]
        assert state["avail_idx"] == state["last_used"] == world.ring.avail_idx
