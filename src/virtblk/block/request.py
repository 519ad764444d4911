"""The request and its queue: pool, lists, what a bio becomes (Linux 3.6: struct request, request_queue, blk-core).

A request carries one bio or several that merged, adjacent on the disk. It comes out of a pool of `nr_requests`, sits in
its submitter's plug, then in the elevator, then on the dispatch list, then with the driver, and goes back. Records are
private to the driver process. A plug and its requests are its submitter's alone; everything else changes under the
queue lock, which the caller holds. Called by submitters and by whoever runs the queue.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.block.bio import REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE
from virtblk.jit.kernel import kernel
from virtblk.jit.table import Table

SECTOR_SHIFT = 9

ELEVATOR_NOOP = 0
ELEVATOR_DEADLINE = 1

#: Linux's BLKDEV_MAX_RQ and BLKDEV_MIN_RQ; ours has a table, hence an upper end.
DEFAULT_NR_REQUESTS = 128
MIN_NR_REQUESTS = 4
MAX_NR_REQUESTS = 16384

#: Where a request is: who may touch it.
RQ_FREE = 0
RQ_PLUG = 1
RQ_ELEVATOR = 2
RQ_DISPATCH = 3
RQ_DRIVER = 4
RQ_FLUSH = 5  # between two steps of its flush sequence, or after the last

RQ_DTYPE = np.dtype(
    [
        ("op", "i8"),
        ("flags", "i8"),  # REQ_PREFLUSH, REQ_FUA
        ("sector", "i8"),
        ("bytes", "i8"),
        ("segs", "i8"),  # scatter list entries at most
        ("bio", "i8"),  # first and last of its bios, linked through bio.next
        ("bio_tail", "i8"),
        ("partial", "i8"),  # 1: a piece of one bio that is over the limits, from `vec`, `offset` on
        ("vec", "i8"),
        ("offset", "i8"),
        ("where", "i8"),  # RQ_*
        ("error", "i8"),  # positive errno
        ("start_ns", "i8"),  # when its first bio was submitted
        ("next", "i8"),  # on a list of the queue (queuelist)
        ("prev", "i8"),
        ("hash_next", "i8"),  # among the requests whose end has the same hash; hash_prev -1: not hashed
        ("hash_prev", "i8"),
        ("left", "i8"),  # in the sort tree (block.elv_rb)
        ("right", "i8"),
        ("parent", "i8"),
        ("weight", "i8"),
        ("deadline_ns", "i8"),  # when it has to be dispatched
        ("seq", "i8"),  # steps of a flush sequence that are done (block.blk_flush); 0: none
        ("flush_next", "i8"),  # on a list of the flush machinery
        ("flush_prev", "i8"),
    ]
)

REQUEST_QUEUE_DTYPE = np.dtype(
    [
        # fixed
        ("capacity", "i8"),  # requests in the table
        ("lists", "i8"),  # the record that is the first list's head
        ("flush_rq", "i8"),  # the record of the flush machinery's own request
        ("mq_plugs", "i8"),  # the first record of the first plug of the mq path (block.blk_mq)
        ("plug_size", "i8"),  # records in each of them
        ("hash_mask", "i8"),
        ("max_segs", "i8"),  # limits of one request
        ("max_seg_len", "i8"),
        ("max_bytes", "i8"),
        ("can_flush", "i8"),
        # the sysfs view
        ("nr_requests", "i8"),
        ("nomerges", "i8"),  # 0 all merges, 1 only with the plug and the last merged, 2 none
        ("plug_merges", "i8"),  # 0: plugs of the mq path do not merge (block.blk_auto)
        ("elevator", "i8"),
        ("read_expire", "i8"),  # nanoseconds
        ("write_expire", "i8"),
        ("writes_starved", "i8"),
        ("fifo_batch", "i8"),
        ("front_merges", "i8"),
        # under the queue lock
        ("in_use", "i8"),  # requests out of the pool
        ("most_used", "i8"),  # the most that ever were: requests from this number on were never touched
        ("sorted", "i8"),  # requests in the elevator
        ("stopped", "i8"),
        ("last_merge", "i8"),
        ("batching", "i8"),  # deadline: requests served in a row without a choice
        ("starved", "i8"),  # times that reads went before waiting writes
        ("pending", "i8"),  # flush machinery: which list collects, which one is being served
        ("running", "i8"),
        ("pending_since_ns", "i8"),
        # counters
        ("merges", "i8"),  # bios that joined a request of another bio
        ("rq_merges", "i8"),  # requests that joined another one
        ("dispatched", "i8"),
        ("flushes", "i8"),  # FLUSH requests sent
        ("stops", "i8"),  # times that a full ring stopped the queue
    ]
)

#: List heads, as offsets from state.lists: records of the request table that are no requests.
LIST_DISPATCH = 0
LIST_FIFO = 1  # two: reads, writes (noop uses the first for both)
LIST_FLUSH = 3  # two, linked by flush_next: which of them is pending alternates
LIST_FLUSH_DATA = 5  # linked by flush_next
LIST_DONE = 6
LIST_PLUG = 7  # one per submitter

#: Entries of `sort`: the roots of the two sort trees, and deadline's next request of each direction.
SORT_ROOT = 0
SORT_NEXT = 2


class RequestQueue(NamedTuple):
    """Everything that the block layer knows of one disk."""

    state: Table  # [1] REQUEST_QUEUE_DTYPE
    rq: Table  # [capacity + 1 + lists + submitters * plug_size] RQ_DTYPE
    free: Table  # [capacity] stack of free requests
    hash: Table  # [hash_mask + 1] first request of each bucket, or -1
    sort: Table  # [4]
    plugged: Table  # [submitters] requests in the plug, whichever path has one
    sg_addr: Table  # [submitters * max_segs] where a submitter counts the segments of a bio
    sg_len: Table
    bios: Table  # block.bio.BIO_DTYPE; shared with the driver
    vec_addr: Table
    vec_len: Table


@kernel
def list_head(q, which):
    """The record that is list `which`'s head."""
    return q.state[0]["lists"] + which


@kernel
def list_add_tail(q, head, rq):
    """Put `rq` last on the list with head `head` (or before the request `head`)."""
    last = q.rq[head]["prev"]
    q.rq[rq]["next"] = head
    q.rq[rq]["prev"] = last
    q.rq[last]["next"] = rq
    q.rq[head]["prev"] = rq


@kernel
def list_add(q, head, rq):
    """Put `rq` first."""
    list_add_tail(q, q.rq[head]["next"], rq)


@kernel
def list_del(q, rq):
    """Take `rq` off its list."""
    following = q.rq[rq]["next"]
    before = q.rq[rq]["prev"]
    q.rq[before]["next"] = following
    q.rq[following]["prev"] = before


@kernel
def list_first(q, head):
    """The first request of the list, or -1."""
    first = q.rq[head]["next"]
    return -1 if first == head else first


@kernel
def blk_rq_end(q, rq):
    """The sector behind the request's last."""
    return q.rq[rq]["sector"] + (q.rq[rq]["bytes"] >> SECTOR_SHIFT)


@kernel
def rq_data_dir(q, rq):
    """0 read, 1 write: whose FIFO and sort tree it belongs to."""
    return 0 if q.rq[rq]["op"] == REQ_OP_READ else 1


@kernel
def rq_mergeable(q, rq):
    """Only plain reads and writes merge: nothing with an order of its own, no piece of a split bio."""
    op = q.rq[rq]["op"]
    plain = op == REQ_OP_READ or op == REQ_OP_WRITE
    return plain and q.rq[rq]["flags"] == 0 and q.rq[rq]["partial"] == 0


@kernel
def get_request(q):
    """Take a request out of the pool, or -1 while nr_requests are in use. Under the queue lock."""
    used = q.state[0]["in_use"]
    if used >= q.state[0]["nr_requests"]:
        return -1
    q.state[0]["in_use"] = used + 1
    q.state[0]["most_used"] = max(q.state[0]["most_used"], used + 1)
    return q.free[q.state[0]["capacity"] - 1 - used]


@kernel
def blk_put_request(q, rq):
    """Put a request back. Last in, first out: its cache lines are warm. Under the queue lock."""
    used = q.state[0]["in_use"]
    q.free[q.state[0]["capacity"] - used] = rq
    q.state[0]["in_use"] = used - 1
    q.rq[rq]["where"] = RQ_FREE


@kernel
def init_request_from_bio(q, rq, bio, segs, now_ns):
    """Make `rq` the request of one whole bio."""
    q.rq[rq]["op"] = q.bios[bio]["op"]
    q.rq[rq]["flags"] = q.bios[bio]["flags"]
    q.rq[rq]["sector"] = q.bios[bio]["sector"]
    q.rq[rq]["bytes"] = q.bios[bio]["length"]
    q.rq[rq]["segs"] = segs
    q.rq[rq]["bio"] = bio
    q.rq[rq]["bio_tail"] = bio
    q.rq[rq]["partial"] = 0
    q.rq[rq]["error"] = 0
    q.rq[rq]["start_ns"] = now_ns
    q.rq[rq]["hash_prev"] = -1
    q.rq[rq]["seq"] = 0
    q.bios[bio]["next"] = -1


@kernel
def blk_dispatch_tail(q, rq):
    """Put `rq` last on the dispatch list, from where the driver takes it."""
    q.rq[rq]["where"] = RQ_DISPATCH
    list_add_tail(q, list_head(q, LIST_DISPATCH), rq)


@kernel
def rq_is_flush(q, rq):
    """True for what goes through the flush machinery rather than the elevator."""
    return q.rq[rq]["flags"] != 0 or q.rq[rq]["op"] == REQ_OP_FLUSH
