"""The elevator that sorts nothing: first in, first out (Linux: noop-iosched). Merging is the block layer's own.

Under the queue lock.
"""

from __future__ import annotations

from virtblk.block.request import LIST_FIFO, blk_dispatch_tail, list_add_tail, list_del, list_first, list_head
from virtblk.jit.kernel import kernel


@kernel
def noop_add_request(q, rq):
    """Queue it behind the others."""
    list_add_tail(q, list_head(q, LIST_FIFO), rq)


@kernel
def noop_dispatch(q):
    """Move the oldest request, which there is, to the dispatch list."""
    rq = list_first(q, list_head(q, LIST_FIFO))
    list_del(q, rq)
    blk_dispatch_tail(q, rq)


@kernel
def noop_neighbour(q, rq, latter):
    """The request queued after (or before) `rq`, or -1."""
    other = q.rq[rq]["next"] if latter else q.rq[rq]["prev"]
    return -1 if other == list_head(q, LIST_FIFO) else other
