"""The plug and the scheduler's door of blk-mq, which replaced request queue and bio path (Linux: blk-mq.c).

A submitter gathers bios in its plug: a few request records of its own, so that neither lock nor pool is touched before
it has said all. Only the request that it began last is tried for a merge, at either end (blk_attempt_plug_merge):
what a submitter sends in order merges, and what it sends at random is not searched for. What becomes of a plug is the
driver's to say (driver.mq_path): each request gets a tag of the driver's, or goes through a scheduler first, where it
takes a request of the queue's pool (Linux: a scheduler tag) under the queue lock.
"""

from __future__ import annotations

from virtblk.block.elevator import elv_add_request, elv_merge
from virtblk.block.request import get_request, init_request_from_bio, rq_mergeable
from virtblk.block.rq_merge import NO_MERGE, bio_attempt_merge, blk_try_merge
from virtblk.jit.kernel import cold_kernel, kernel

#: Requests in a plug: Linux's BLK_MAX_REQUEST_COUNT, and what a submitter of few bios has for the pieces of large ones.
BLK_MQ_PLUG_MOST = 32
BLK_MQ_PLUG_LEAST = 4

#: What came of trying to merge a bio into a plug.
PLUG_APART = 0
PLUG_MERGED = 1
PLUG_MERGEABLE = 2


@kernel
def blk_mq_plug_rq(q, sub, index):
    """Record number `index` of the submitter's plug."""
    return q.state[0]["mq_plugs"] + sub * q.state[0]["plug_size"] + index


@kernel
def blk_mq_attempt_plug_merge(q, sub, bio, segs):
    """Merge the plain bio into the latest request of the plug: PLUG_MERGED, PLUG_MERGEABLE where that is switched off,
    or PLUG_APART."""
    count = q.plugged[sub]
    if count == 0 or q.state[0]["nomerges"] > 1:
        return PLUG_APART
    rq = blk_mq_plug_rq(q, sub, count - 1)
    kind = blk_try_merge(q, rq, bio, segs)
    if kind == NO_MERGE:
        return PLUG_APART
    if q.state[0]["plug_merges"] == 0:
        return PLUG_MERGEABLE
    bio_attempt_merge(q, rq, bio, segs, kind)
    return PLUG_MERGED


@kernel
def blk_mq_plug_bio(q, sub, bio, segs, now_ns):
    """Begin a request of one whole bio in the plug, which has room: its record."""
    count = q.plugged[sub]
    rq = blk_mq_plug_rq(q, sub, count)
    init_request_from_bio(q, rq, bio, segs, now_ns)
    q.plugged[sub] = count + 1
    return rq


@cold_kernel
def blk_mq_sched_insert(q, plugged):
    """Hand a request of a plug to the scheduler, or let it merge there; False while the pool is empty.

    Under the queue lock (Linux: blk_mq_sched_bio_merge, blk_mq_insert_request).
    """
    bio = q.rq[plugged]["bio"]
    single = bio == q.rq[plugged]["bio_tail"]
    if single and rq_mergeable(q, plugged) and elv_merge(q, bio, q.rq[plugged]["segs"]):
        return True
    rq = get_request(q)
    if rq < 0:
        return False
    q.rq[rq]["op"] = q.rq[plugged]["op"]
    q.rq[rq]["flags"] = q.rq[plugged]["flags"]
    q.rq[rq]["sector"] = q.rq[plugged]["sector"]
    q.rq[rq]["bytes"] = q.rq[plugged]["bytes"]
    q.rq[rq]["segs"] = q.rq[plugged]["segs"]
    q.rq[rq]["bio"] = bio
    q.rq[rq]["bio_tail"] = q.rq[plugged]["bio_tail"]
    q.rq[rq]["partial"] = q.rq[plugged]["partial"]
    q.rq[rq]["vec"] = q.rq[plugged]["vec"]
    q.rq[rq]["offset"] = q.rq[plugged]["offset"]
    q.rq[rq]["start_ns"] = q.rq[plugged]["start_ns"]
    q.rq[rq]["error"] = 0
    q.rq[rq]["hash_prev"] = -1
    q.rq[rq]["seq"] = 0
    elv_add_request(q, rq)
    return True
