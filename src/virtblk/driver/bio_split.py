"""Bios against the limits of one request: how many entries one takes, and the pieces of one over the limits.

Linux: bio_split_to_limits, before it blk_recount_segments. A piece is what one request takes of the bio; where that
request comes from and goes is the path's to say (`driver.request_path`, `driver.mq_path`). Called by submitters,
without any lock.
"""

from __future__ import annotations

from typing import NamedTuple

from virtblk.block.blk_merge import blk_map_sg
from virtblk.block.request import SECTOR_SHIFT
from virtblk.driver.bio_path import EINVAL
from virtblk.jit.kernel import cold_kernel, kernel


class Piece(NamedTuple):
    """What one request takes of a bio."""

    segs: int  # scatter list entries
    size: int  # bytes; 0: the bio is over
    sector: int
    vec: int  # the segment that it begins in, and the offset in that
    offset: int
    next_vec: int  # the same of what is behind it
    next_offset: int
    left: int  # bytes of the bio from the beginning of the piece on


@cold_kernel
def blk_count_segments(d, sub, bio, limit):
    """Scatter list entries and bytes that one request takes of the bio, from the submitter's cursor on."""
    end = d.bios[bio]["vec"] + d.bios[bio]["vcnt"]
    max_segs = d.q.state[0]["max_segs"]
    return blk_map_sg(
        d.vec_addr,
        d.vec_len,
        end,
        d.cursors,
        sub,
        d.q.sg_addr,
        d.q.sg_len,
        sub * max_segs,
        max_segs,
        d.q.state[0]["max_seg_len"],
        limit,
    )


@cold_kernel
def blk_bio_segments(d, sub, bio):
    """Entries of a bio of several segments, or -1 where it is more than one request may be (blk_recount_segments)."""
    d.cursors[sub]["vec"] = d.bios[bio]["vec"]
    d.cursors[sub]["offset"] = 0
    length = d.bios[bio]["length"]
    if length > d.q.state[0]["max_bytes"]:
        return -1
    segs, size = blk_count_segments(d, sub, bio, length)
    return segs if size == length else -1


@kernel
def bio_piece(d, sub, bio, vec, offset, sector, left):
    """The piece that begins at `sector`, `offset` bytes into segment `vec`, where the bio has `left` bytes left.

    A bio whose segments hold fewer bytes than it says ends there, with EINVAL.
    """
    d.cursors[sub]["vec"] = vec
    d.cursors[sub]["offset"] = offset
    segs = 0
    size = 0
    if left > 0:
        segs, size = blk_count_segments(d, sub, bio, min(left, d.q.state[0]["max_bytes"]))
        if size == 0:
            d.bios[bio]["error"] = EINVAL
    return Piece(segs, size, sector, vec, offset, d.cursors[sub]["vec"], d.cursors[sub]["offset"], left)


@kernel
def bio_first_piece(d, sub, bio):
    """The piece that the bio begins with."""
    return bio_piece(d, sub, bio, d.bios[bio]["vec"], 0, d.bios[bio]["sector"], d.bios[bio]["length"])


@kernel
def bio_next_piece(d, sub, bio, piece):
    """The piece behind `piece`. The submitter may have used its cursor in between."""
    sector = piece.sector + (piece.size >> SECTOR_SHIFT)
    return bio_piece(d, sub, bio, piece.next_vec, piece.next_offset, sector, piece.left - piece.size)


@kernel
def blk_rq_of_piece(q, rq, piece):
    """Make the request, which is one of the whole bio, one of the piece. It merges with nothing."""
    q.rq[rq]["partial"] = 1
    q.rq[rq]["sector"] = piece.sector
    q.rq[rq]["bytes"] = piece.size
    q.rq[rq]["vec"] = piece.vec
    q.rq[rq]["offset"] = piece.offset
