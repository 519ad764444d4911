"""The elevator's frame: finding merges, inserting, dispatching, whichever scheduler is set (Linux: elevator.c).

Requests that can take a bio at their end are found by a hash of the sector behind them; the last one that took a bio is
tried first. A scheduler is an integer, tested once per call; `noop` and `deadline` hold their own rules. Under the
queue lock.
"""

from __future__ import annotations

from virtblk.block.bio import REQ_OP_READ
from virtblk.block.deadline import (
    deadline_add_request,
    deadline_dispatch,
    deadline_front_merge,
    deadline_front_merged,
    deadline_merged_requests,
)
from virtblk.block.elv_rb import elv_rb_former, elv_rb_latter
from virtblk.block.noop import noop_add_request, noop_dispatch, noop_neighbour
from virtblk.block.request import (
    ELEVATOR_DEADLINE,
    LIST_DISPATCH,
    RQ_DRIVER,
    RQ_ELEVATOR,
    SECTOR_SHIFT,
    blk_put_request,
    blk_rq_end,
    list_del,
    list_first,
    list_head,
    rq_mergeable,
)
from virtblk.block.rq_merge import (
    BACK_MERGE,
    FRONT_MERGE,
    NO_MERGE,
    attempt_merge,
    bio_attempt_merge,
    blk_try_merge,
)
from virtblk.jit.arith import mix64
from virtblk.jit.kernel import cold_kernel, kernel

#: hash_prev of the first request of bucket b is FIRST_OF - b.
FIRST_OF = -2


@kernel
def elv_rqhash_add(q, rq):
    """Make the request findable by the sector behind it."""
    bucket = mix64(blk_rq_end(q, rq)) & q.state[0]["hash_mask"]
    first = q.hash[bucket]
    q.rq[rq]["hash_next"] = first
    q.rq[rq]["hash_prev"] = FIRST_OF - bucket
    if first >= 0:
        q.rq[first]["hash_prev"] = rq
    q.hash[bucket] = rq


@kernel
def elv_rqhash_del(q, rq):
    """Take it out of the hash, if it is in."""
    before = q.rq[rq]["hash_prev"]
    if before == -1:
        return
    following = q.rq[rq]["hash_next"]
    if before <= FIRST_OF:
        q.hash[FIRST_OF - before] = following
    else:
        q.rq[before]["hash_next"] = following
    if following >= 0:
        q.rq[following]["hash_prev"] = before
    q.rq[rq]["hash_prev"] = -1


@kernel
def elv_rqhash_find(q, sector):
    """A request that ends where `sector` begins, or -1."""
    rq = q.hash[mix64(sector) & q.state[0]["hash_mask"]]
    while rq >= 0 and blk_rq_end(q, rq) != sector:
        rq = q.rq[rq]["hash_next"]
    return rq


@kernel
def elv_remove(q, rq):
    """The request leaves the elevator: neither merge nor sort will meet it again."""
    elv_rqhash_del(q, rq)
    if q.state[0]["last_merge"] == rq:
        q.state[0]["last_merge"] = -1
    q.state[0]["sorted"] -= 1


@cold_kernel
def elv_neighbour(q, rq, latter):
    """The request that the scheduler has behind (or before) `rq`, or -1 (elv_latter_request, elv_former_request)."""
    if q.state[0]["elevator"] == ELEVATOR_DEADLINE:
        return elv_rb_latter(q, rq) if latter else elv_rb_former(q, rq)
    return noop_neighbour(q, rq, latter)


@cold_kernel
def elv_merge_requests(q, rq, following):
    """`following`, whose bios `rq` just took over, leaves the elevator and goes back to the pool."""
    if q.state[0]["elevator"] == ELEVATOR_DEADLINE:
        deadline_merged_requests(q, rq, following)
    else:
        list_del(q, following)
    elv_remove(q, following)
    elv_rqhash_del(q, rq)
    elv_rqhash_add(q, rq)
    q.state[0]["last_merge"] = rq
    q.state[0]["rq_merges"] += 1
    blk_put_request(q, following)


@cold_kernel
def elv_bio_merged(q, rq, kind):
    """`rq` of the elevator took a bio: keep hash and sort right, and let it join the request that it met, if it did."""
    if kind == FRONT_MERGE:
        if q.state[0]["elevator"] == ELEVATOR_DEADLINE:
            deadline_front_merged(q, rq)
        former = elv_neighbour(q, rq, False)
        if former >= 0 and attempt_merge(q, former, rq):
            elv_merge_requests(q, former, rq)
            return
    else:
        elv_rqhash_del(q, rq)
        elv_rqhash_add(q, rq)
        following = elv_neighbour(q, rq, True)
        if following >= 0 and attempt_merge(q, rq, following):
            elv_merge_requests(q, rq, following)
            return
    q.state[0]["last_merge"] = rq


@cold_kernel
def elv_take_bio(q, rq, bio, segs, kind):
    """Merge the bio into `rq` of the elevator."""
    bio_attempt_merge(q, rq, bio, segs, kind)
    q.state[0]["merges"] += 1
    elv_bio_merged(q, rq, kind)


@kernel
def elv_merge(q, bio, segs):
    """Merge the plain bio into a request of the elevator where one fits: True when it did."""
    if q.state[0]["sorted"] == 0 or q.state[0]["nomerges"] > 1:
        return False
    rq = q.state[0]["last_merge"]
    if rq >= 0:
        kind = blk_try_merge(q, rq, bio, segs)
        if kind != NO_MERGE:
            elv_take_bio(q, rq, bio, segs, kind)
            return True
    if q.state[0]["nomerges"]:
        return False
    rq = elv_rqhash_find(q, q.bios[bio]["sector"])
    if rq >= 0 and blk_try_merge(q, rq, bio, segs) == BACK_MERGE:
        elv_take_bio(q, rq, bio, segs, BACK_MERGE)
        return True
    if q.state[0]["elevator"] == ELEVATOR_DEADLINE:
        direction = 0 if q.bios[bio]["op"] == REQ_OP_READ else 1
        rq = deadline_front_merge(q, direction, q.bios[bio]["sector"] + (q.bios[bio]["length"] >> SECTOR_SHIFT))
        if rq >= 0 and blk_try_merge(q, rq, bio, segs) == FRONT_MERGE:
            elv_take_bio(q, rq, bio, segs, FRONT_MERGE)
            return True
    return False


@kernel
def elv_attempt_insert_merge(q, rq):
    """Append a request that is about to be inserted to one of the elevator's: True when it did, and `rq` is gone."""
    if q.state[0]["sorted"] == 0 or q.state[0]["nomerges"] > 1 or not rq_mergeable(q, rq):
        return False
    into = q.state[0]["last_merge"]
    if into < 0 or not attempt_merge(q, into, rq):
        if q.state[0]["nomerges"]:
            return False
        into = elv_rqhash_find(q, q.rq[rq]["sector"])
        if into < 0 or not attempt_merge(q, into, rq):
            return False
    q.state[0]["rq_merges"] += 1
    blk_put_request(q, rq)
    elv_bio_merged(q, into, BACK_MERGE)
    return True


@kernel
def elv_add_request(q, rq):
    """Insert a request into the elevator, or merge it there (ELEVATOR_INSERT_SORT_MERGE)."""
    if elv_attempt_insert_merge(q, rq):
        return
    q.rq[rq]["where"] = RQ_ELEVATOR
    if rq_mergeable(q, rq):
        elv_rqhash_add(q, rq)
        if q.state[0]["last_merge"] < 0:
            q.state[0]["last_merge"] = rq
    q.state[0]["sorted"] += 1
    if q.state[0]["elevator"] == ELEVATOR_DEADLINE:
        deadline_add_request(q, rq)
    else:
        noop_add_request(q, rq)


@kernel
def elv_dispatch(q, now_ns):
    """Move the scheduler's choice to the dispatch list; False where it holds nothing: all that it holds is counted."""
    if q.state[0]["sorted"] == 0:
        return False
    if q.state[0]["elevator"] == ELEVATOR_DEADLINE:
        deadline_dispatch(q, now_ns)
    else:
        noop_dispatch(q)
    elv_remove(q, q.rq[list_head(q, LIST_DISPATCH)]["prev"])
    return True


@kernel
def blk_peek_request(q, now_ns):
    """The request that the driver is to start next, or -1. It stays on the dispatch list until blk_start_request."""
    rq = list_first(q, list_head(q, LIST_DISPATCH))
    if rq < 0 and elv_dispatch(q, now_ns):
        rq = list_first(q, list_head(q, LIST_DISPATCH))
    return rq


@kernel
def blk_start_request(q, rq):
    """The driver has it: off the dispatch list."""
    list_del(q, rq)
    q.rq[rq]["where"] = RQ_DRIVER
    q.state[0]["dispatched"] += 1


@kernel
def blk_queue_idle(q):
    """True where neither elevator nor dispatch list has anything for the driver."""
    return q.state[0]["sorted"] == 0 and list_first(q, list_head(q, LIST_DISPATCH)) < 0


@cold_kernel
def elevator_switch(q, elevator, now_ns):
    """Set another scheduler; what the old one holds goes to the dispatch list in its order (elv_drain_elevator)."""
    while elv_dispatch(q, now_ns):
        pass
    q.state[0]["elevator"] = elevator
    q.state[0]["last_merge"] = -1
    q.state[0]["batching"] = 0
    q.state[0]["starved"] = 0
