"""Both of our halves on one ring, and where that ring lies in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import INTERPRETED
from naive.ring import Buffer
from virtblk.errors import UsageError
from virtblk.jit.arith import mix64
from virtblk.jit.kernel import kernel
from virtblk.jit.table import Table
from virtblk.mem.shm import CACHE_LINE, Arena
from virtblk.virtio.virtio_ring_split import (
    NOTHING_USED,
    virtqueue_add_direct,
    virtqueue_add_indirect,
    virtqueue_get_buf,
    write_indirect,
)
from virtblk.virtio.virtqueue import SplitLayout, SplitVirtqueue
from virtblk.virtio.vringh_split import vringh_add_used, vringh_getdesc, vringh_publish_used
from virtio.halves import SIZES, CompiledDevice, CompiledDriver, World, numbers
from virtio.programs import BASES, PROGRAMS, THOROUGH, Step, run


@THOROUGH
@given(num=st.sampled_from(SIZES), event_idx=st.booleans(), base=BASES, program=PROGRAMS)
def test_our_halves_understand_each_other(num: int, event_idx: bool, base: int, program: list[Step]) -> None:
    run("compiled", "compiled", num, base, event_idx, program)


@given(num=st.sampled_from(SIZES), event_idx=st.booleans(), base=BASES, program=PROGRAMS)
def test_the_naive_halves_understand_each_other(num: int, event_idx: bool, base: int, program: list[Step]) -> None:
    """Else they would prove nothing about ours."""
    run("naive", "naive", num, base, event_idx, program)


@kernel
def many_requests(vq, vr, mem, tables, sg_addr, sg_len, seed, times):
    """Submit, complete and reap `times` requests: as many at a time as fit, used in the order of the dice.

    Returns the first token that came back wrong, or -1. `sg_*` are three entries each, `tables` 64 bytes for each head.
    """
    submitted = 0
    reaped = 0
    held = 0
    while reaped < times:
        dice = mix64(seed + submitted + reaped)
        room = True
        while room and submitted < times:
            if dice & 1:
                table = tables + 64 * (submitted & 4095)
                write_indirect(table, sg_addr, sg_len, 0, 1, 2)
                room = virtqueue_add_indirect(vq, table, 3, submitted, 513) == 0
            else:
                room = virtqueue_add_direct(vq, sg_addr, sg_len, 0, 1, 2, submitted, 513) == 0
            submitted += room
            dice = mix64(dice)
            if dice & 7 == 0:
                break
        while True:
            head = vringh_getdesc(vr, mem, 0)
            if head < 0:
                break
            vringh_add_used(vr, head, vr.state[0]["pieces"] + 100 * vr.state[0]["readable"])
            held += 1
        vringh_publish_used(vr)
        while held > 0:
            token, length = virtqueue_get_buf(vq)
            if token != reaped or length != 103:
                return reaped
            reaped += 1
            held -= 1
        token, length = virtqueue_get_buf(vq)
        if token != NOTHING_USED:
            return reaped
    return -1


@pytest.mark.parametrize("num", [4, 128, 4096])
def test_round_the_index_at_speed(num: int) -> None:
    """Clause 55, more than 65536 requests, direct and indirect mixed, ring full or not."""
    times = 300 if INTERPRETED else 150_000
    with World(num, [(0, 2 << 20)], base=65536 - 150) as world:
        driver = CompiledDriver(world)
        device = CompiledDevice(world, base=65536 - 150)
        addr, length = numbers(world.data, world.data + 16, world.data + 528), numbers(16, 512, 1)
        assert many_requests(driver.vq, device.vr, device.mem, world.tables, addr, length, num, times) == -1
        assert sorted(driver.free_list()) == list(range(num))
        assert (driver.queue.broken, device.broken) == (None, None)
        assert world.ring.avail_idx == world.ring.used_idx == (65536 - 150 + times) % 65536


@pytest.mark.parametrize("num", SIZES)
@pytest.mark.parametrize("indirect", [False, True])
def test_a_ring_filled_to_the_last_descriptor(num: int, indirect: bool) -> None:
    with World(num, base=65535) as world:
        driver, device = CompiledDriver(world), CompiledDevice(world, base=65535)
        count = min(num, 512)
        each = 1 if indirect else num // count
        buffers = [Buffer(world.data + 8 * place, 8, True) for place in range(each)]
        for token in range(count):
            assert driver.add(buffers, token, world.tables + 512 * token if indirect else 0)
        assert driver.num_free == num - count * each
        taken = [device.take() for _ in range(count)]
        assert device.take() is None
        for chain in reversed(taken):
            assert chain is not None
            device.use(chain[0], 8)
        device.publish()
        assert [driver.get() for _ in range(count)] == [(token, 8) for token in reversed(range(count))]
        assert driver.num_free == num


# Layout.


@pytest.mark.parametrize("num", [2**n for n in range(16)])
def test_areas_share_no_cache_line_and_have_room(num: int) -> None:
    """2.7: 16 * num, 6 + 2 * num, 6 + 8 * num bytes, aligned to 16, 2, 4."""
    layout = SplitLayout.of(num)
    assert (layout.num, layout.desc) == (num, 0)
    assert layout.avail >= 16 * num
    assert layout.used >= layout.avail + 6 + 2 * num
    assert layout.size >= layout.used + 6 + 8 * num
    assert all(at % CACHE_LINE == 0 for at in layout[1:])
    assert layout.size <= 26 * num + 12 + 3 * CACHE_LINE


@pytest.mark.parametrize("num", [0, -1, -4, 3, 5, 100, 32767, 32769, 65536])
def test_sizes_that_cannot_be(num: int) -> None:
    with pytest.raises(UsageError, match=f"queue size {num}: give a power of two from 1 to 32768"):
        SplitLayout.of(num)


def test_a_queue_as_it_was_asked_for() -> None:
    arena = Arena(1)
    try:
        arena.alloc(5)
        queue = SplitVirtqueue(arena, 16, event_idx=True, indirect=False, kick_fd=77, base=3)
        state = queue.vring.state[0]
        assert queue.desc % 4096 == 0
        assert (queue.avail, queue.used) == (
            queue.desc + SplitLayout.of(16).avail,
            queue.desc + SplitLayout.of(16).used,
        )
        assert (state["desc"], state["avail"], state["used"]) == (queue.desc, queue.avail, queue.used)
        wanted = {
            "num": 16,
            "event_idx": 1,
            "indirect": 0,
            "kick_fd": 77,
            "avail_idx": 3,
            "last_used": 3,
            "num_free": 16,
        }
        assert {name: state[name] for name in wanted} == wanted
        assert queue.broken is None
        assert all(isinstance(table, Table) for table in queue.vring)
    finally:
        arena.close()


def test_an_arena_without_room_for_the_ring() -> None:
    arena = Arena(1)
    try:
        SplitVirtqueue(arena, 32768, event_idx=True, indirect=True)
        SplitVirtqueue(arena, 32768, event_idx=True, indirect=True)
        with pytest.raises(MemoryError, match="has no room for"):
            SplitVirtqueue(arena, 32768, event_idx=True, indirect=True)
    finally:
        arena.close()
