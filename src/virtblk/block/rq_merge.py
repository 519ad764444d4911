"""Merging bios into requests, requests into each other, and mapping what came of it (Linux: blk-merge.c, blk-core.c).

Back merge: the bio goes on where the request ends; front merge: it ends where the request begins. Limits are those of
one request; entries are counted as if nothing coalesced, mapping then coalesces what lies side by side in memory. On
requests in a plug the caller is the submitter; on all others it holds the queue lock.
"""

from __future__ import annotations

from virtblk.block.blk_merge import blk_map_sg
from virtblk.block.request import SECTOR_SHIFT, blk_rq_end, rq_mergeable
from virtblk.jit.kernel import cold_kernel, kernel

NO_MERGE = 0
BACK_MERGE = 1
FRONT_MERGE = 2


@kernel
def fits(q, rq, size, segs):
    """Whether the request can take `size` bytes in `segs` entries more (ll_back_merge_fn, ll_front_merge_fn)."""
    if q.rq[rq]["bytes"] + size > q.state[0]["max_bytes"]:
        return False
    return q.rq[rq]["segs"] + segs <= q.state[0]["max_segs"]


@kernel
def blk_try_merge(q, rq, bio, segs):
    """How the plain bio of `segs` entries can join `rq`: BACK_MERGE, FRONT_MERGE or NO_MERGE."""
    sector = q.bios[bio]["sector"]
    length = q.bios[bio]["length"]
    kind = NO_MERGE
    if blk_rq_end(q, rq) == sector:
        kind = BACK_MERGE
    elif q.rq[rq]["sector"] == sector + (length >> SECTOR_SHIFT):
        kind = FRONT_MERGE
    if kind == NO_MERGE or q.rq[rq]["op"] != q.bios[bio]["op"] or not rq_mergeable(q, rq):
        return NO_MERGE
    return kind if fits(q, rq, length, segs) else NO_MERGE


@kernel
def bio_attempt_merge(q, rq, bio, segs, kind):
    """Let the bio join `rq`, behind its last bio or before its first."""
    if kind == BACK_MERGE:
        q.bios[q.rq[rq]["bio_tail"]]["next"] = bio
        q.bios[bio]["next"] = -1
        q.rq[rq]["bio_tail"] = bio
    else:
        q.bios[bio]["next"] = q.rq[rq]["bio"]
        q.rq[rq]["bio"] = bio
        q.rq[rq]["sector"] = q.bios[bio]["sector"]
    q.rq[rq]["bytes"] += q.bios[bio]["length"]
    q.rq[rq]["segs"] += segs


@cold_kernel
def attempt_merge(q, rq, following):
    """Append request `following` to `rq` if it goes on where `rq` ends and the limits allow: True when it did."""
    if not (rq_mergeable(q, rq) and rq_mergeable(q, following)) or q.rq[rq]["op"] != q.rq[following]["op"]:
        return False
    if blk_rq_end(q, rq) != q.rq[following]["sector"]:
        return False
    if not fits(q, rq, q.rq[following]["bytes"], q.rq[following]["segs"]):
        return False
    q.bios[q.rq[rq]["bio_tail"]]["next"] = q.rq[following]["bio"]
    q.rq[rq]["bio_tail"] = q.rq[following]["bio_tail"]
    q.rq[rq]["bytes"] += q.rq[following]["bytes"]
    q.rq[rq]["segs"] += q.rq[following]["segs"]
    q.rq[rq]["start_ns"] = min(q.rq[rq]["start_ns"], q.rq[following]["start_ns"])
    return True


@kernel
def blk_rq_map_sg(q, rq, cursor, c, sg_addr, sg_len, first):
    """Map the request's data into the scatter list at `first`: how many entries. `cursor` `c` is the caller's to use.

    Entries of neighbouring bios coalesce as segments of one bio do.
    """
    max_segs = q.state[0]["max_segs"]
    max_seg_len = q.state[0]["max_seg_len"]
    bio = q.rq[rq]["bio"]
    left = q.rq[rq]["bytes"]
    cursor[c]["vec"] = q.rq[rq]["vec"] if q.rq[rq]["partial"] else q.bios[bio]["vec"]
    cursor[c]["offset"] = q.rq[rq]["offset"] if q.rq[rq]["partial"] else 0
    count = 0
    while True:
        end = q.bios[bio]["vec"] + q.bios[bio]["vcnt"]
        want = left if q.rq[rq]["partial"] else q.bios[bio]["length"]
        at = first + count
        entries, size = blk_map_sg(
            q.vec_addr, q.vec_len, end, cursor, c, sg_addr, sg_len, at, max_segs - count, max_seg_len, want
        )
        if count and entries and sg_addr[at - 1] + sg_len[at - 1] == sg_addr[at]:
            if sg_len[at - 1] + sg_len[at] <= max_seg_len:
                sg_len[at - 1] += sg_len[at]
                for i in range(at, at + entries - 1):
                    sg_addr[i] = sg_addr[i + 1]
                    sg_len[i] = sg_len[i + 1]
                entries -= 1
        count += entries
        left -= size
        if left <= 0 or bio == q.rq[rq]["bio_tail"]:
            return count
        bio = q.bios[bio]["next"]
        cursor[c]["vec"] = q.bios[bio]["vec"]
        cursor[c]["offset"] = 0
