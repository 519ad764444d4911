"""Translation and the accessors, compiled, against the naive region table."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import CHECKING
from naive.regions import NaiveRegion, pieces, translate
from virtblk.jit.table import Table
from virtblk.mem import regions as compiled
from virtblk.mem.guest_memory import GuestMemory
from virtblk.mem.regions import (
    MAX_REGIONS,
    REGION_DTYPE,
    TABLE_DTYPE,
    GuestRegions,
    find_region,
    guest_fill,
    guest_read,
    guest_store_u8,
    guest_write,
    inside,
    memory_truncated,
)
from virtblk.mem.shm import PAGE, Mapping

TOP = 1 << 63


def table_of(regions: list[NaiveRegion], hits: list[int] | None = None) -> GuestRegions:
    mem = GuestRegions(Table(MAX_REGIONS, REGION_DTYPE), Table(1, TABLE_DTYPE))
    for index, region in enumerate(regions):
        hit = hits[index] if hits else 0
        mem.regions[index] = (region.guest, region.guest + region.size, region.host - region.guest, hit)
    mem.head[0]["count"] = len(regions)
    return mem


def signed(value: int) -> int:
    """The int64 that a u64 is in a kernel."""
    return (value + TOP) % (1 << 64) - TOP


@st.composite
def region_tables(draw: st.DrawFn) -> list[NaiveRegion]:
    """Up to 32 regions in any order, with holes and without, from 0 to just under 2**63."""
    count = draw(st.integers(0, MAX_REGIONS))
    at = draw(st.sampled_from([0, 4096, 1 << 32, TOP - 40 * 9000]))
    regions = []
    for index in range(count):
        at += draw(st.sampled_from([0, 0, 1, 4096]))
        size = draw(st.integers(1, 4096))
        regions.append(NaiveRegion(at, size, 0x7000_0000_0000 + index * 0x10000))
        at += size
    return draw(st.permutations(regions))


@st.composite
def addresses(draw: st.DrawFn, regions: list[NaiveRegion]) -> int:
    edges = [edge for region in regions for edge in (region.guest, region.guest + region.size)]
    near = st.builds(lambda edge, by: edge + by, st.sampled_from(edges or [0]), st.integers(-2, 2))
    odd = st.sampled_from([0, 1, TOP - 1, TOP, TOP + 4096, (1 << 64) - 1])
    return draw(st.one_of(near, near, odd, st.integers(0, (1 << 64) - 1))) % (1 << 64)


@given(st.data())
def test_translate_against_the_naive_twin(data: st.DataObject) -> None:
    regions = data.draw(region_tables())
    mem = table_of(regions)
    for _ in range(10):
        address = data.draw(addresses(regions))
        length = data.draw(st.one_of(st.integers(0, 10_000), st.sampled_from([2**31, 2**32 - 1])))
        found = compiled.translate(mem, signed(address), length)
        assert tuple(map(int, found)) == translate(regions, address, length)
        index = int(find_region(mem, signed(address)))
        assert (index >= 0) == any(region.guest <= address < region.guest + region.size for region in regions)


@given(st.data())
def test_a_buffer_over_several_regions(data: st.DataObject) -> None:
    """Asked again for the rest, translate gives all of a buffer, or stops at the first byte that is nowhere."""
    regions = data.draw(region_tables())
    mem = table_of(regions)
    address = data.draw(addresses(regions))
    left = data.draw(st.integers(1, 20_000))
    expected = pieces(regions, address, left)
    found = []
    while left > 0:
        host, count = map(int, compiled.translate(mem, signed(address), left))
        if count == 0:
            break
        found.append((host, count))
        address += count
        left -= count
    assert (found if left == 0 else None) == expected


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-300, 300), st.integers(-1, 600)), max_size=30),
)
@example([(0, 0, 256), (0, 1, 256), (0, -1, 2), (1, 256, 0), (1, 257, 0), (0, 5, -1)])
def test_inside_is_one_region_and_no_more(asks: list[tuple[int, int, int]]) -> None:
    """The checking build's question: all bytes in one region, or a violation is counted."""
    regions = [NaiveRegion(at, 256, 0x10000 + 256 * index) for index, at in enumerate((0, 256, 8192))]
    mem = table_of(regions)
    violations = 0
    for which, by, length in asks:
        host = 0x10000 + 256 * which + by
        right = length >= 0 and any(r.host <= host and host + length <= r.host + r.size for r in regions)
        violations += not right
        assert bool(inside(mem, host, length)) == right
        assert mem.head[0]["violations"] == violations


def test_any_region_that_was_hit_counts() -> None:
    words = np.zeros(3, np.int64)
    regions = [NaiveRegion(4096 * index, 4096, 0) for index in range(3)]
    mem = table_of(regions, [int(words.ctypes.data) + 8 * index for index in range(3)])
    assert not memory_truncated(mem)
    for index in range(3):
        words[:] = 0
        words[index] = 1
        assert memory_truncated(mem)
    mem.head[0]["count"] = 2
    assert not memory_truncated(mem)


def test_accessors_touch_just_their_bytes() -> None:
    ours = np.arange(100, 164, dtype=np.uint8)
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, PAGE)
        memory = GuestMemory()
        memory.map(0, PAGE, 0, 0, fd)
        host = memory.user_to_host(0, 1)
        guest_write(memory.table, host + 10, ours.ctypes.data, 20)
        guest_fill(memory.table, host + 40, 0xEE, 5)
        guest_store_u8(memory.table, host + 50, 0x1FF)
        guest_write(memory.table, host + 60, ours.ctypes.data, 0)
        expected = bytearray(PAGE)
        expected[10:30], expected[40:45], expected[50] = bytes(range(100, 120)), b"\xee" * 5, 0xFF
        assert os.pread(fd, PAGE, 0) == expected
        guest_read(memory.table, ours.ctypes.data + 1, host + 9, 3)
        assert bytes(ours[:6]) == bytes([100, 0, 100, 101, 104, 105])
        assert memory.violations == 0
        memory.clear()
    finally:
        os.close(fd)


if CHECKING:

    @pytest.mark.parametrize("past", [1, PAGE])
    def test_a_checking_build_counts_and_does_not_touch(past: int) -> None:
        """An access that runs out of its region is not made at all; others have no such check to pay for."""
        mapping = Mapping(3 * PAGE)
        memory = GuestRegions(Table(MAX_REGIONS, REGION_DTYPE), Table(1, TABLE_DTYPE))
        memory.regions[0] = (0, PAGE, mapping.address + PAGE, 0)
        memory.head[0]["count"] = 1
        view = mapping.array(mapping.address, 3 * PAGE)
        ours = np.full(2 * PAGE, 7, np.uint8)
        end = mapping.address + 2 * PAGE
        guest_write(memory, end - 8, ours.ctypes.data, 8)
        assert memory.head[0]["violations"] == 0
        guest_write(memory, end - 8, ours.ctypes.data, 8 + past)
        guest_write(memory, mapping.address + PAGE - 1, ours.ctypes.data, 2)
        guest_fill(memory, end - 8, 7, 8 + past)
        guest_store_u8(memory, end, 7)
        guest_read(memory, ours.ctypes.data, end - 8, 8 + past)
        assert memory.head[0]["violations"] == 5
        assert view.sum() == 8 * 7
        assert (ours == 7).all()
        mapping.close()
