"""FLUSH and FUA on the request path: one FLUSH serves all that wait for it (Linux 3.6: blk-flush.c).

A request with flush semantics goes through up to three steps: PREFLUSH, DATA, POSTFLUSH. Those that need a FLUSH
collect on a pending list while another FLUSH is out, or while data of such a sequence is (for FLUSH_PENDING_TIMEOUT at
most); then one FLUSH request serves the list. An error ends the sequence: no step after it is sent, and the first error
stays. Requests whose sequence is over come out on LIST_DONE, with their errors. Under the queue lock.
"""

from __future__ import annotations

from virtblk.block.bio import REQ_FUA, REQ_OP_FLUSH, REQ_PREFLUSH
from virtblk.block.request import (
    LIST_DISPATCH,
    LIST_DONE,
    LIST_FLUSH,
    LIST_FLUSH_DATA,
    RQ_DISPATCH,
    RQ_FLUSH,
    RQ_FREE,
    blk_dispatch_tail,
    list_add,
    list_add_tail,
    list_head,
)
from virtblk.jit.kernel import cold_kernel, kernel

SEQ_PREFLUSH = 1
SEQ_DATA = 2
SEQ_POSTFLUSH = 4
SEQ_ACTIONS = 7
#: Set while a request is in the machinery, so that `seq` is not 0 before its first step.
SEQ_ACTIVE = 8

#: Linux's: 5 s.
FLUSH_PENDING_TIMEOUT_NS = 5_000_000_000


@kernel
def flush_list_add(q, head, rq):
    """Put `rq` last on a list of the machinery."""
    last = q.rq[head]["flush_prev"]
    q.rq[rq]["flush_next"] = head
    q.rq[rq]["flush_prev"] = last
    q.rq[last]["flush_next"] = rq
    q.rq[head]["flush_prev"] = rq


@kernel
def flush_list_del(q, rq):
    """Take `rq` off its list, if it is on one."""
    following = q.rq[rq]["flush_next"]
    before = q.rq[rq]["flush_prev"]
    q.rq[before]["flush_next"] = following
    q.rq[following]["flush_prev"] = before
    q.rq[rq]["flush_next"] = rq
    q.rq[rq]["flush_prev"] = rq


@kernel
def flush_list_empty(q, head):
    """True where the list with head `head` has nothing."""
    return q.rq[head]["flush_next"] == head


@kernel
def blk_flush_cur_seq(q, rq):
    """The step that is next: the lowest that is not done; 0 after the last."""
    left = SEQ_ACTIONS & ~q.rq[rq]["seq"]
    return left & -left


@cold_kernel
def blk_kick_flush(q, now_ns):
    """Send a FLUSH for the pending list, unless one is out, or data is that will need another soon."""
    pending = q.state[0]["pending"]
    if pending != q.state[0]["running"] or flush_list_empty(q, list_head(q, LIST_FLUSH + pending)):
        return
    waited = now_ns - q.state[0]["pending_since_ns"]
    if not flush_list_empty(q, list_head(q, LIST_FLUSH_DATA)) and waited < FLUSH_PENDING_TIMEOUT_NS:
        return
    rq = q.state[0]["flush_rq"]
    q.rq[rq]["op"] = REQ_OP_FLUSH
    q.rq[rq]["flags"] = 0
    q.rq[rq]["sector"] = 0
    q.rq[rq]["bytes"] = 0
    q.rq[rq]["seq"] = 0
    q.rq[rq]["error"] = 0
    q.rq[rq]["start_ns"] = now_ns
    q.state[0]["pending"] = 1 - pending
    q.state[0]["flushes"] += 1
    blk_dispatch_tail(q, rq)


@cold_kernel
def blk_flush_complete_seq(q, rq, steps, error, now_ns):
    """`steps` of the request are done: on to the next one."""
    q.rq[rq]["seq"] |= steps
    q.rq[rq]["where"] = RQ_FLUSH  # not with the driver any more: its time does not run
    if error and q.rq[rq]["error"] == 0:
        q.rq[rq]["error"] = error
    step = 0 if q.rq[rq]["error"] else blk_flush_cur_seq(q, rq)
    flush_list_del(q, rq)
    if step == SEQ_DATA:
        flush_list_add(q, list_head(q, LIST_FLUSH_DATA), rq)
        q.rq[rq]["where"] = RQ_DISPATCH
        list_add(q, list_head(q, LIST_DISPATCH), rq)
    elif step:
        pending = list_head(q, LIST_FLUSH + q.state[0]["pending"])
        if flush_list_empty(q, pending):
            q.state[0]["pending_since_ns"] = now_ns
        flush_list_add(q, pending, rq)
    else:
        list_add_tail(q, list_head(q, LIST_DONE), rq)
    blk_kick_flush(q, now_ns)


@cold_kernel
def blk_insert_flush(q, rq, now_ns):
    """Start the sequence of a request with flush semantics (ELEVATOR_INSERT_FLUSH); at least one step is due."""
    steps = 0
    if q.rq[rq]["op"] == REQ_OP_FLUSH or q.rq[rq]["flags"] & REQ_PREFLUSH:
        steps |= SEQ_PREFLUSH
    if q.rq[rq]["bytes"] > 0:
        steps |= SEQ_DATA
        if q.rq[rq]["flags"] & REQ_FUA:
            steps |= SEQ_POSTFLUSH
    q.rq[rq]["flush_next"] = rq
    q.rq[rq]["flush_prev"] = rq
    q.rq[rq]["seq"] = SEQ_ACTIVE
    blk_flush_complete_seq(q, rq, SEQ_ACTIONS & ~steps, 0, now_ns)


@cold_kernel
def blk_flush_end_io(q, rq, error, now_ns):
    """A request of the machinery came back from the driver: its own FLUSH, or the data of a sequence."""
    if rq != q.state[0]["flush_rq"]:
        blk_flush_complete_seq(q, rq, SEQ_DATA, error, now_ns)
        return
    q.rq[rq]["where"] = RQ_FREE
    running = list_head(q, LIST_FLUSH + q.state[0]["running"])
    q.state[0]["running"] = 1 - q.state[0]["running"]
    while not flush_list_empty(q, running):
        served = q.rq[running]["flush_next"]
        blk_flush_complete_seq(q, served, blk_flush_cur_seq(q, served), error, now_ns)
    blk_kick_flush(q, now_ns)
