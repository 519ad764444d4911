"""Build the block layer's side of a disk: requests, lists, hash, elevator (Linux: blk_init_queue, elevator_init).

Control context; `driver.queue` gives the limits and the bios, `driver.sysfs` shows and changes what may change.
"""

from __future__ import annotations

import numpy as np

from virtblk.block.bio import BIO_DTYPE
from virtblk.block.blk_auto import AUTO_DTYPE, FIRST_SORT, FIRST_SPLIT, PAUSE_LEAST
from virtblk.block.blk_mq import BLK_MQ_PLUG_MOST
from virtblk.block.deadline import FIFO_BATCH, READ_EXPIRE_NS, WRITE_EXPIRE_NS, WRITES_STARVED
from virtblk.block.request import (
    DEFAULT_NR_REQUESTS,
    ELEVATOR_NOOP,
    LIST_PLUG,
    MAX_NR_REQUESTS,
    REQUEST_QUEUE_DTYPE,
    RQ_DTYPE,
    SORT_NEXT,
    SORT_ROOT,
    RequestQueue,
)
from virtblk.jit.table import Table

_HASH_BUCKETS = 1024


def blk_init_queue(
    bios: Table,
    vec_addr: Table,
    vec_len: Table,
    *,
    submitters: int,
    max_segs: int,
    max_seg_len: int,
    max_bytes: int,
    can_flush: bool,
    plug_size: int = BLK_MQ_PLUG_MOST,
    capacity: int = MAX_NR_REQUESTS,
) -> RequestQueue:
    """An empty queue with Linux's defaults, `noop` scheduled. `capacity` bounds nr_requests."""
    lists = capacity + 1
    mq_plugs = lists + LIST_PLUG + submitters
    rq = Table(mq_plugs + submitters * plug_size, RQ_DTYPE)
    for link in ("next", "prev", "flush_next", "flush_prev"):
        rq[link][lists:mq_plugs] = np.arange(lists, mq_plugs)
    state = Table(1, REQUEST_QUEUE_DTYPE)
    for name, value in (
        ("capacity", capacity),
        ("lists", lists),
        ("flush_rq", capacity),
        ("mq_plugs", mq_plugs),
        ("plug_size", plug_size),
        ("hash_mask", _HASH_BUCKETS - 1),
        ("max_segs", max_segs),
        ("max_seg_len", max_seg_len),
        ("max_bytes", max_bytes),
        ("can_flush", can_flush),
        ("nr_requests", min(DEFAULT_NR_REQUESTS, capacity)),
        ("elevator", ELEVATOR_NOOP),
        ("read_expire", READ_EXPIRE_NS),
        ("write_expire", WRITE_EXPIRE_NS),
        ("writes_starved", WRITES_STARVED),
        ("fifo_batch", FIFO_BATCH),
        ("front_merges", 1),
        ("plug_merges", 1),
        ("last_merge", -1),
    ):
        state[0][name] = value
    sort = Table(SORT_NEXT + 2)
    sort[SORT_ROOT:] = -1
    buckets = Table(_HASH_BUCKETS)
    buckets[:] = -1
    return RequestQueue(
        state,
        rq,
        Table.of(np.arange(capacity, dtype=np.int64)[::-1].copy()),
        buckets,
        sort,
        Table(submitters),
        Table(submitters * max_segs),
        Table(submitters * max_segs),
        bios,
        vec_addr,
        vec_len,
    )


def blk_auto_record() -> Table:
    """What the path `auto` begins with: merging on, no elevator, nothing seen yet."""
    auto = Table(1, AUTO_DTYPE)
    auto[0]["merging"] = 1
    auto[0]["merging_in"], auto[0]["elevator_in"] = FIRST_SPLIT, FIRST_SORT
    auto[0]["merging_pause"] = auto[0]["elevator_pause"] = PAUSE_LEAST
    return auto


def example_request_queue() -> RequestQueue:
    """A queue of no use but for its types: what to compile kernels for before there is a disk."""
    return blk_init_queue(
        Table(1, BIO_DTYPE),
        Table(1),
        Table(1),
        submitters=1,
        max_segs=1,
        max_seg_len=512,
        max_bytes=512,
        can_flush=False,
        plug_size=1,
        capacity=1,
    )
