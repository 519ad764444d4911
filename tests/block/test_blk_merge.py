"""Mapping and splitting: the kernel and its twin that goes byte by byte agree, and what both promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from naive.blk_merge import Entry, blk_split
from virtblk.block.blk_merge import CURSOR_DTYPE, blk_map_sg
from virtblk.jit.table import Table

FIRST = 3  # scatter lists of several requests share one array
CANARY = -77
BEFORE, AFTER = 2, 3  # segments of other bios round ours


def kernel_split(segments: list[Entry], max_segs: int, max_seg_len: int, max_bytes: int) -> list[list[Entry]]:
    """All requests that the kernel makes of a bio, each in a fresh scatter list with canaries round it."""
    around = [(CANARY, 512)]
    lists = around * BEFORE + segments + around * AFTER
    vec_addr = Table.of(np.array([address for address, _ in lists], np.int64))
    vec_len = Table.of(np.array([length for _, length in lists], np.int64))
    cursor = Table(2, CURSOR_DTYPE)
    cursor[1]["vec"] = BEFORE
    end = BEFORE + len(segments)
    left = sum(length for _, length in segments)
    requests = []
    while left > 0:
        sg_addr, sg_len = (Table.of(np.full(FIRST + max_segs + 2, CANARY, np.int64)) for _ in range(2))
        count, size = blk_map_sg(
            vec_addr, vec_len, end, cursor, 1, sg_addr, sg_len, FIRST, max_segs, max_seg_len, max_bytes
        )
        for array in (sg_addr, sg_len):
            assert (array[:FIRST] == CANARY).all()
            assert (array[FIRST + max_segs :] == CANARY).all()
        entries = [(int(sg_addr[FIRST + i]), int(sg_len[FIRST + i])) for i in range(count)]
        assert sum(length for _, length in entries) == size
        if size == 0:
            assert count == 0
            break
        requests.append(entries)
        left -= size
    return requests


def bytes_of(entries: list[Entry]) -> list[int]:
    """Every address that a list of entries covers, in order."""
    return [address + i for address, length in entries for i in range(length)]


LENGTHS = st.one_of(st.sampled_from([512, 1024, 1536, 4096]), st.integers(0, 1700))


@st.composite
def bios(draw: st.DrawFn) -> list[Entry]:
    """Up to eight segments; some begin where the one before ended; all of them together may be no whole sector."""
    segments: list[Entry] = []
    address = 1 << 20
    for _ in range(draw(st.integers(1, 8))):
        length = draw(LENGTHS)
        segments.append((address, length))
        address += length + draw(st.sampled_from([0, 0, 1, 512, -1 << 18]))
    return segments


LIMITS = st.tuples(
    st.integers(1, 6),
    st.sampled_from([1, 100, 511, 512, 1024, 4096, 1 << 20]),
    st.sampled_from([512, 1024, 2048, 1 << 20]),
)


@given(bios(), LIMITS)
@example([(1 << 20, 512), (1 << 21, 100), (1 << 22, 412)], (2, 4096, 1 << 20))  # cut in the middle of a sector
@example([(1 << 20, 700), ((1 << 20) + 700, 324), (5, 512)], (3, 512, 1024))  # adjacent, no sectors
@example([(1 << 20, 100)] * 6, (6, 512, 1024))  # 600 bytes: 88 of them are left over
def test_the_kernel_agrees_with_its_twin(segments: list[Entry], limits: tuple[int, int, int]) -> None:
    assert kernel_split(segments, *limits) == blk_split(segments, *limits)


@given(bios(), LIMITS)
def test_pieces_are_whole_sectors_within_the_limits_and_nothing_is_lost(
    segments: list[Entry], limits: tuple[int, int, int]
) -> None:
    max_segs, max_seg_len, max_bytes = limits
    requests = kernel_split(segments, *limits)
    for entries in requests:
        assert 1 <= len(entries) <= max_segs
        assert all(1 <= length <= max_seg_len for _, length in entries)
        size = sum(length for _, length in entries)
        assert size % 512 == 0
        assert size <= max_bytes
    sent = [byte for entries in requests for byte in bytes_of(entries)]
    assert sent == bytes_of(segments)[: len(sent)]
    left = sum(length for _, length in segments) - len(sent)
    if max_seg_len >= 512 and all(length % 512 == 0 for _, length in segments):
        assert left == 0  # nothing can stop segments that are whole sectors


@pytest.mark.parametrize(
    ("segments", "limits", "expected"),
    [
        pytest.param(
            [(0x1000, 512), (0x1200, 512)], (4, 4096, 8192), [[(0x1000, 1024)]], id="adjacent segments coalesce"
        ),
        pytest.param(
            [(0x1000, 512), (0x1201, 512)], (4, 4096, 8192), [[(0x1000, 512), (0x1201, 512)]], id="one byte apart"
        ),
        pytest.param(
            [(0x1200, 512), (0x1000, 512)], (4, 4096, 8192), [[(0x1200, 512), (0x1000, 512)]], id="not backwards"
        ),
        pytest.param(
            [(0x1000, 512), (0x1200, 1024)],
            (4, 1024, 8192),
            [[(0x1000, 1024), (0x1400, 512)]],
            id="coalesced as far as one entry goes",
        ),
        pytest.param([(0x1000, 1536)], (1, 512, 8192), [[(0x1000, 512)], [(0x1200, 512)], [(0x1400, 512)]], id="segs"),
        pytest.param([(0x1000, 2048)], (8, 4096, 1536), [[(0x1000, 1536)], [(0x1600, 512)]], id="bytes"),
        pytest.param([(0x1000, 0), (0x2000, 512), (0x3000, 0)], (1, 512, 512), [[(0x2000, 512)]], id="empty segments"),
        pytest.param(
            [(0x1000, 256), (0x2000, 256), (0x3000, 256), (0x4000, 256)],
            (3, 512, 8192),
            [[(0x1000, 256), (0x2000, 256)], [(0x3000, 256), (0x4000, 256)]],
            id="half a sector is given back",
        ),
        pytest.param([(0x1000, 256), (0x2000, 256)], (1, 512, 8192), [], id="no sector fits"),
    ],
)
def test_by_hand(segments: list[Entry], limits: tuple[int, int, int], expected: list[list[Entry]]) -> None:
    assert kernel_split(segments, *limits) == expected
