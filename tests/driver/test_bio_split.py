"""Bios and the limits of one request, without a device: whole ones are counted, larger ones cut as the twin does."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from naive.blk_merge import Entry, blk_split
from virtblk.block.bio import REQ_OP_READ, bio_init
from virtblk.driver.bio_split import bio_first_piece, bio_next_piece, blk_bio_segments
from virtblk.driver.queue import QueueLimits, QueueSetup
from virtblk.jit.kernel import kernel
from virtblk.jit.table import Table
from virtblk.mem.shm import Arena

SEGMENTS = 8
FIELDS = 5
SECTOR = 77


@kernel
def cut(d, bio, found):
    """All pieces, as (entries, bytes, sector, segment, offset); the cursor serves somebody else in between."""
    count = 0
    piece = bio_first_piece(d, 0, bio)
    while piece.size > 0:
        at = count * 5
        found[at] = piece.segs
        found[at + 1] = piece.size
        found[at + 2] = piece.sector
        found[at + 3] = piece.vec
        found[at + 4] = piece.offset
        count += 1
        d.cursors[0]["vec"] = 3
        d.cursors[0]["offset"] = 99
        piece = bio_next_piece(d, 0, bio, piece)
    return count


@kernel
def count_segments(d, bio):
    return blk_bio_segments(d, 0, bio)


@pytest.fixture(scope="module", params=[(4, 4096, 8192), (2, 1024, 4096), (1, 512, 1024), (3, 1024, 1536)])
def queue(request: pytest.FixtureRequest) -> Iterator[QueueSetup]:
    max_segs, max_seg_len, max_bytes = request.param
    limits = QueueLimits(
        num=16,
        max_segs=max_segs,
        max_seg_len=max_seg_len,
        max_bytes=max_bytes,
        event_idx=True,
        indirect=True,
        can_flush=True,
        submitters=1,
        bios_each=1,
        segments_each=SEGMENTS,
        data_bytes=0,
    )
    arena = Arena(limits.arena_bytes)
    setup = QueueSetup(arena, limits, timeout_ns=10**9, poll_ns=-1)
    yield setup
    setup.close()
    arena.close()


LENGTHS = st.one_of(st.sampled_from([512, 1024, 1536, 4096]), st.integers(1, 1700))


@given(st.lists(st.tuples(LENGTHS, st.booleans()), min_size=1, max_size=SEGMENTS), st.sampled_from([0, 0, 512]))
@example([(512, False)], 0)
@example([(4096, False), (4096, True)], 0)
@example([(300, False), (212, False), (4096, False)], 512)
def test_pieces_are_those_of_the_twin(queue: QueueSetup, segments: list[tuple[int, bool]], missing: int) -> None:
    """`missing`: bytes that the bio says it has, beyond what its segments hold."""
    d, limits = queue.kernel_view, queue.limits
    address = 1 << 20
    entries: list[Entry] = []
    for number, (length, adjacent) in enumerate(segments):
        address += 0 if adjacent else 8192
        entries.append((address, length))
        d.vec_addr[number], d.vec_len[number] = address, length
        address += length
    total = sum(length for _, length in entries)
    bio_init(d.bios, 0, REQ_OP_READ, 0, SECTOR, 0, len(entries), total + missing, 0)
    expected = blk_split(entries, limits.max_segs, limits.max_seg_len, limits.max_bytes)
    sizes = [sum(length for _, length in piece) for piece in expected]

    whole = sizes == [total + missing]
    assert count_segments(d, 0) == (len(expected[0]) if whole else -1)

    found = Table(FIELDS * (total // 512 + 1))
    count = int(cut(d, 0, found))
    pieces = found[: FIELDS * count].reshape(-1, FIELDS).tolist()
    assert [piece[:2] for piece in pieces] == [[len(part), size] for part, size in zip(expected, sizes, strict=True)]
    assert [piece[2] for piece in pieces] == [SECTOR + sum(sizes[:n]) // 512 for n in range(count)]
    assert [int(d.vec_addr[vec]) + offset for _, _, _, vec, offset in pieces] == [part[0][0] for part in expected]
    assert d.bios[0]["error"] == (0 if sum(sizes) == total + missing else errno.EINVAL)
