"""The deadline elevator (Linux 3.6: deadline-iosched): by sector, in batches, but nobody waits past his deadline.

Per direction a sort tree and a FIFO. A batch goes up through the sectors for `fifo_batch` requests; a new batch serves
reads, unless writes were passed over `writes_starved` times, and begins at the oldest request if its deadline has
passed, else where the batch before it ended. Times are nanoseconds here, milliseconds in the sysfs view. Under the
queue lock.
"""

from __future__ import annotations

from virtblk.block.elv_rb import NONE, elv_rb_add, elv_rb_del, elv_rb_find, elv_rb_latter
from virtblk.block.request import (
    LIST_FIFO,
    SORT_NEXT,
    blk_dispatch_tail,
    list_add_tail,
    list_del,
    list_first,
    list_head,
    rq_data_dir,
)
from virtblk.jit.kernel import cold_kernel

READ = 0
WRITE = 1

#: Linux's defaults.
READ_EXPIRE_NS = 500_000_000
WRITE_EXPIRE_NS = 5_000_000_000
WRITES_STARVED = 2
FIFO_BATCH = 16


@cold_kernel
def deadline_add_request(q, rq):
    """Into the sort tree and the FIFO of its direction, with a deadline from when its bio was submitted."""
    direction = rq_data_dir(q, rq)
    elv_rb_add(q, direction, rq)
    expire = q.state[0]["read_expire"] if direction == READ else q.state[0]["write_expire"]
    q.rq[rq]["deadline_ns"] = q.rq[rq]["start_ns"] + expire
    list_add_tail(q, list_head(q, LIST_FIFO + direction), rq)


@cold_kernel
def deadline_remove_request(q, rq):
    """Out of both; a batch that would have gone on with it goes on behind it."""
    direction = rq_data_dir(q, rq)
    if q.sort[SORT_NEXT + direction] == rq:
        q.sort[SORT_NEXT + direction] = elv_rb_latter(q, rq)
    list_del(q, rq)
    elv_rb_del(q, direction, rq)


@cold_kernel
def deadline_front_merge(q, direction, sector):
    """The request that begins at `sector`, where front merges are wanted (deadline_merge); NONE otherwise."""
    return elv_rb_find(q, direction, sector) if q.state[0]["front_merges"] else NONE


@cold_kernel
def deadline_front_merged(q, rq):
    """`rq` begins earlier now: put it where it belongs (deadline_merged_request)."""
    direction = rq_data_dir(q, rq)
    elv_rb_del(q, direction, rq)
    elv_rb_add(q, direction, rq)


@cold_kernel
def deadline_merged_requests(q, rq, following):
    """`following` becomes part of `rq`, which inherits the earlier deadline with its place in the FIFO."""
    if q.rq[following]["deadline_ns"] < q.rq[rq]["deadline_ns"]:
        list_del(q, rq)
        list_add_tail(q, following, rq)
        q.rq[rq]["deadline_ns"] = q.rq[following]["deadline_ns"]
    deadline_remove_request(q, following)


@cold_kernel
def deadline_dispatch(q, now_ns):
    """Move one request, which there is, to the dispatch list (deadline_dispatch_requests)."""
    reads = list_first(q, list_head(q, LIST_FIFO + READ)) >= 0
    writes = list_first(q, list_head(q, LIST_FIFO + WRITE)) >= 0
    direction = WRITE if q.sort[SORT_NEXT + WRITE] != NONE else READ
    rq = q.sort[SORT_NEXT + direction]
    if rq == NONE or q.state[0]["batching"] >= q.state[0]["fifo_batch"]:
        direction = READ
        if reads and writes:
            starved = q.state[0]["starved"]
            q.state[0]["starved"] = starved + 1
            if starved >= q.state[0]["writes_starved"]:
                direction = WRITE
        elif writes:
            direction = WRITE
        if direction == WRITE:
            q.state[0]["starved"] = 0
        oldest = list_first(q, list_head(q, LIST_FIFO + direction))
        rq = q.sort[SORT_NEXT + direction]
        if rq == NONE or q.rq[oldest]["deadline_ns"] <= now_ns:
            rq = oldest
        q.state[0]["batching"] = 0
    q.state[0]["batching"] += 1
    following = elv_rb_latter(q, rq)
    list_del(q, rq)
    elv_rb_del(q, direction, rq)
    q.sort[SORT_NEXT + READ] = NONE
    q.sort[SORT_NEXT + WRITE] = NONE
    q.sort[SORT_NEXT + direction] = following
    blk_dispatch_tail(q, rq)
