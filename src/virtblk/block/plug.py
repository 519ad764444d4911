"""The plug: requests that a submitter holds back while it has more to say (Linux: blk_plug, blk_flush_plug_list).

Private to its submitter, so it is filled and merged into without any lock. It is emptied into the elevator, by sector,
when the submitter has said all, before it waits, and at BLK_MAX_REQUEST_COUNT requests.
"""

from __future__ import annotations

from virtblk.block.request import LIST_PLUG, RQ_PLUG, list_add_tail, list_del, list_head
from virtblk.block.rq_merge import NO_MERGE, bio_attempt_merge, blk_try_merge
from virtblk.jit.kernel import cold_kernel, kernel

#: Linux 3.6's.
BLK_MAX_REQUEST_COUNT = 16


@kernel
def blk_plug_add(q, sub, rq):
    """Put a request into the submitter's plug."""
    q.rq[rq]["where"] = RQ_PLUG
    list_add_tail(q, list_head(q, LIST_PLUG + sub), rq)
    q.plugged[sub] += 1


@kernel
def attempt_plug_merge(q, sub, bio, segs):
    """Merge the plain bio into a request of the plug, the latest first: True when it did."""
    if q.plugged[sub] == 0 or q.state[0]["nomerges"] > 1:
        return False
    head = list_head(q, LIST_PLUG + sub)
    rq = q.rq[head]["prev"]
    while rq != head:
        kind = blk_try_merge(q, rq, bio, segs)
        if kind != NO_MERGE:
            bio_attempt_merge(q, rq, bio, segs, kind)
            return True
        rq = q.rq[rq]["prev"]
    return False


@cold_kernel
def blk_plug_sort(q, sub):
    """Order the plug by sector; requests of one sector keep their order."""
    head = list_head(q, LIST_PLUG + sub)
    rq = q.rq[q.rq[head]["next"]]["next"]
    while rq != head:
        following = q.rq[rq]["next"]
        before = q.rq[rq]["prev"]
        if q.rq[before]["sector"] > q.rq[rq]["sector"]:
            while before != head and q.rq[before]["sector"] > q.rq[rq]["sector"]:
                before = q.rq[before]["prev"]
            list_del(q, rq)
            list_add_tail(q, q.rq[before]["next"], rq)
        rq = following
