"""Merged requests: what joins, the limits, and that mapping covers every byte of every bio, in order."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from block.harness import bios_of, queue
from naive.blk_merge import Entry, blk_map
from virtblk.block.bio import REQ_OP_WRITE, bio_init
from virtblk.block.blk_merge import CURSOR_DTYPE
from virtblk.block.request import get_request, init_request_from_bio
from virtblk.block.rq_merge import (
    BACK_MERGE,
    FRONT_MERGE,
    NO_MERGE,
    attempt_merge,
    bio_attempt_merge,
    blk_rq_map_sg,
    blk_try_merge,
)
from virtblk.jit.table import Table

HUGE = 1 << 20


@st.composite
def memories(draw: st.DrawFn) -> list[list[Entry]]:
    """The segments of one to five bios of whole sectors; some begin where the one before ended."""
    address = 1 << 20
    bios = []
    for _ in range(draw(st.integers(1, 5))):
        cuts = sorted(draw(st.lists(st.integers(1, 1535), max_size=3)))
        bounds = [0, *cuts, 1536]
        segments = []
        for start, end in itertools.pairwise(bounds):
            address += draw(st.sampled_from([0, 0, 64]))
            segments.append((address, end - start))
            address += end - start
        bios.append(segments)
    return bios


@given(memories(), st.lists(st.booleans(), min_size=5, max_size=5), st.sampled_from([512, 700, 2048, HUGE]))
def test_mapping_covers_every_bio_in_order(bios: list[list[Entry]], front: list[bool], max_seg_len: int) -> None:
    q = queue(max_seg_len=max_seg_len)
    counts = [len(blk_map(segments, 0, 128, max_seg_len, HUGE)) for segments in bios]
    # Lay the bios out so that each joins at the front or the back of what there is.
    line: list[int] = []
    for number in range(len(bios)):
        line.insert(0 if front[number] else len(line), number)
    vec = 0
    for number, segments in enumerate(bios):
        for i, (address, length) in enumerate(segments):
            q.vec_addr[vec + i], q.vec_len[vec + i] = address, length
        bio_init(q.bios, number, REQ_OP_WRITE, 0, 100 + 3 * line.index(number), vec, len(segments), 1536, 0)
        vec += len(segments)
    rq = int(get_request(q))
    init_request_from_bio(q, rq, 0, counts[0], 0)
    for number in range(1, len(bios)):
        kind = int(blk_try_merge(q, rq, number, counts[number]))
        assert kind == (FRONT_MERGE if front[number] else BACK_MERGE)
        bio_attempt_merge(q, rq, number, counts[number], kind)
    assert bios_of(q, rq) == line
    assert q.rq[rq]["segs"] == sum(counts)

    sg_addr, sg_len = Table(200), Table(200)
    count = int(blk_rq_map_sg(q, rq, Table(2, CURSOR_DTYPE), 1, sg_addr, sg_len, 7))
    expected: list[Entry] = []
    for number in line:
        entries = blk_map(bios[number], 0, 128, max_seg_len, HUGE)
        if expected and sum(expected[-1]) == entries[0][0] and expected[-1][1] + entries[0][1] <= max_seg_len:
            entries[0] = (expected[-1][0], expected.pop()[1] + entries[0][1])
        expected += entries
    assert [(int(sg_addr[7 + i]), int(sg_len[7 + i])) for i in range(count)] == expected
    assert count <= sum(counts)
    assert (sg_len[:7] == 0).all()


def pair(first: tuple[int, int, int, int], second: tuple[int, int, int, int], **given: int) -> tuple[bool, int]:
    """Whether request (op, flags, sector, sectors) `second` can be appended to `first`, and how a bio like it joins."""
    q = queue(**given)
    rqs = []
    for number, (op, flags, sector, sectors) in enumerate((first, second)):
        bio_init(q.bios, number, op, flags, sector, number, 1, sectors * 512, 0)
        rqs.append(int(get_request(q)))
        init_request_from_bio(q, rqs[-1], number, 1, 50 - number)
    kind = int(blk_try_merge(q, rqs[0], 1, 1))
    merged = bool(attempt_merge(q, *rqs))
    assert bios_of(q, rqs[0]) == ([0, 1] if merged else [0])
    assert q.rq[rqs[0]]["start_ns"] == (49 if merged else 50)
    return merged, kind


def test_what_joins() -> None:
    assert pair((0, 0, 8, 2), (0, 0, 10, 2)) == (True, BACK_MERGE)
    assert pair((0, 0, 8, 2), (0, 0, 6, 2)) == (False, FRONT_MERGE)
    assert pair((0, 0, 8, 2), (0, 0, 11, 2)) == (False, NO_MERGE)
    assert pair((0, 0, 8, 2), (0, 0, 9, 2)) == (False, NO_MERGE)
    assert pair((0, 0, 8, 2), (1, 0, 10, 2)) == (False, NO_MERGE)
    assert pair((1, 2, 8, 2), (1, 0, 10, 2)) == (False, NO_MERGE)
    assert pair((0, 0, 8, 2), (0, 0, 10, 2), max_bytes=1536) == (False, NO_MERGE)
    assert pair((0, 0, 8, 2), (0, 0, 10, 2), max_bytes=2048) == (True, BACK_MERGE)
    assert pair((0, 0, 8, 2), (0, 0, 10, 2), max_segs=1) == (False, NO_MERGE)
    assert pair((0, 0, 8, 2), (0, 0, 6, 2), max_segs=1) == (False, NO_MERGE)
