"""The request path: plug, merge, elevator, request (the 2012 default, `use_bio=0`; Linux 3.6: blk_queue_bio).

A bio joins a request of its submitter's plug or of the elevator, or becomes a request, for which it waits while
`nr_requests` are in use. The plug goes into the elevator when the submitter has no more to say, and the queue is run.
Bios over the limits become several requests. FLUSH and FUA are block.blk_flush's. Called by submitters.
"""

from __future__ import annotations

from virtblk.block.bio import (
    REQ_FUA,
    REQ_OP_FLUSH,
    REQ_OP_GET_ID,
    REQ_OP_READ,
    REQ_OP_WRITE,
    REQ_PREFLUSH,
    STEP_DONE,
    STEP_REQUEST,
)
from virtblk.block.blk_flush import blk_insert_flush
from virtblk.block.elevator import elv_add_request, elv_merge
from virtblk.block.plug import BLK_MAX_REQUEST_COUNT, attempt_plug_merge, blk_plug_add, blk_plug_sort
from virtblk.block.request import (
    LIST_PLUG,
    blk_dispatch_tail,
    get_request,
    init_request_from_bio,
    list_del,
    list_first,
    list_head,
    rq_is_flush,
)
from virtblk.driver.bio_path import virtblk_end_now, virtblk_release_hold
from virtblk.driver.bio_split import bio_first_piece, bio_next_piece, blk_bio_segments, blk_rq_of_piece
from virtblk.driver.completion import WAIT_REQUEST, virtblk_wait
from virtblk.driver.handle import queue_of
from virtblk.driver.request_fn import virtblk_request
from virtblk.jit.kernel import cold_kernel, inline_kernel
from virtblk.jit.libc import clock_ns
from virtblk.jit.lock import mutex_lock, mutex_unlock, wake_up
from virtblk.virtio.virtio_ring_split import virtqueue_notify


@cold_kernel
def blk_insert_special(d, rq):
    """Insert what the elevator has no business with: flushes, and requests without sectors."""
    if rq_is_flush(d.q, rq):
        blk_insert_flush(d.q, rq, clock_ns())
    else:
        blk_dispatch_tail(d.q, rq)


@cold_kernel
def blk_flush_plug_list(handle, paths, sub):
    """Empty the submitter's plug into the elevator and run the queue: 0 or -errno."""
    d = queue_of(handle, paths)
    if d.q.plugged[sub] > 1:
        blk_plug_sort(d.q, sub)
    head = list_head(d.q, LIST_PLUG + sub)
    mutex_lock(d.queue[0]["lock"])
    error = d.queue[0]["error"]
    if error:
        mutex_unlock(d.queue[0]["lock"])
        return -error
    merged = d.q.state[0]["rq_merges"]
    while True:
        rq = list_first(d.q, head)
        if rq < 0:
            break
        list_del(d.q, rq)
        if rq_is_flush(d.q, rq) or d.q.rq[rq]["op"] >= REQ_OP_GET_ID:
            blk_insert_special(d, rq)
        else:
            elv_add_request(d.q, rq)
    d.q.plugged[sub] = 0
    kick = virtblk_request(d, sub, 0)
    freed = d.q.state[0]["rq_merges"] != merged
    mutex_unlock(d.queue[0]["lock"])
    if kick:
        virtqueue_notify(d.vq)
        d.submitters[sub]["kicks"] += 1
    if freed:
        wake_up(d.queue[0]["request_wait"], 1)
    return 0


@inline_kernel
def blk_unplug(d, sub):
    """Empty the plug, if anything is in it: 0, or -errno once the queue is over."""
    return blk_flush_plug_list(d.queue[0]["handle"], d.paths, sub) if d.q.plugged[sub] else 0


@cold_kernel
def get_request_wait(d, sub):
    """The pool was empty: wait, exclusively, until a request comes back: it, or -errno once the queue is over.

    The submitter's own plug is emptied first: all requests may sit in there. A reaper wakes one waiter, which wakes the
    next if it leaves requests.
    """
    d.submitters[sub]["request_waits"] += 1
    code = blk_unplug(d, sub)
    began = clock_ns()
    while code == 0:
        mutex_lock(d.queue[0]["lock"])
        rq = get_request(d.q)
        more = d.q.state[0]["in_use"] < d.q.state[0]["nr_requests"]
        mutex_unlock(d.queue[0]["lock"])
        if rq >= 0:
            d.submitters[sub]["waited_ns"] += clock_ns() - began
            if more:
                wake_up(d.queue[0]["request_wait"], 1)
            return rq
        code = virtblk_wait(d, sub, WAIT_REQUEST, True)
    return code


@inline_kernel
def blk_plug_request(d, sub, rq):
    """Put a request into the submitter's plug, which is emptied first when it is full: 0 or -errno."""
    if d.q.plugged[sub] >= BLK_MAX_REQUEST_COUNT:
        code = blk_unplug(d, sub)
        if code < 0:
            return code
    blk_plug_add(d.q, sub, rq)
    return 0


@inline_kernel
def blk_queue_split(d, sub, bio):
    """A bio over the limits: as many requests as it takes, which merge with nothing: 0 or -errno."""
    piece = bio_first_piece(d, sub, bio)
    while piece.size > 0:
        mutex_lock(d.queue[0]["lock"])
        d.bios[bio]["remaining"] += 1
        rq = get_request(d.q)
        mutex_unlock(d.queue[0]["lock"])
        if rq < 0:
            rq = get_request_wait(d, sub)
        if rq < 0:
            return rq
        init_request_from_bio(d.q, rq, bio, piece.segs, clock_ns())
        blk_rq_of_piece(d.q, rq, piece)
        code = blk_plug_request(d, sub, rq)
        if code < 0:
            return code
        piece = bio_next_piece(d, sub, bio, piece)
    virtblk_release_hold(d, sub, bio)
    return 0


@cold_kernel
def blk_strip_flush(d, bio):
    """Take off the flags that ask for nothing; True where nothing at all is left to do.

    Without FLUSH the device's writes are stable when they end, a read cannot be forced to the medium, nor can nothing.
    """
    if not d.queue[0]["can_flush"]:
        d.bios[bio]["flags"] = 0
    if d.bios[bio]["op"] != REQ_OP_WRITE or d.bios[bio]["length"] == 0:
        d.bios[bio]["flags"] &= ~REQ_FUA
    if d.bios[bio]["op"] == REQ_OP_FLUSH:
        return not d.queue[0]["can_flush"]
    return d.bios[bio]["length"] == 0 and d.bios[bio]["flags"] & REQ_PREFLUSH == 0


@cold_kernel
def blk_queue_bio_at(handle, paths, sub, bio, now_ns):
    """blk_queue_bio, by handle."""
    d = queue_of(handle, paths)
    d.bios[bio]["submitted_ns"] = now_ns
    d.bios[bio]["step"] = STEP_REQUEST
    d.bios[bio]["remaining"] = 1
    op = d.bios[bio]["op"]
    length = d.bios[bio]["length"]
    if d.bios[bio]["flags"] or op == REQ_OP_FLUSH or length == 0:
        if blk_strip_flush(d, bio):
            d.bios[bio]["step"] = STEP_DONE
            d.bios[bio]["remaining"] = 0
            return virtblk_end_now(d, sub, bio, 0)
    plain = (op == REQ_OP_READ or op == REQ_OP_WRITE) and d.bios[bio]["flags"] == 0
    segs = 1
    whole = d.bios[bio]["vcnt"] == 1 and d.vec_len[d.bios[bio]["vec"]] == length
    if op < REQ_OP_GET_ID and (not whole or length > d.q.state[0]["max_seg_len"]):
        segs = blk_bio_segments(d, sub, bio) if length else 0
        if segs < 0:
            return blk_queue_split(d, sub, bio)
    if plain and attempt_plug_merge(d.q, sub, bio, segs):
        d.submitters[sub]["merges"] += 1
        return 0
    mutex_lock(d.queue[0]["lock"])
    error = d.queue[0]["error"]
    if error or (plain and elv_merge(d.q, bio, segs)):
        mutex_unlock(d.queue[0]["lock"])
        return -error
    rq = get_request(d.q)
    mutex_unlock(d.queue[0]["lock"])
    if rq < 0:
        rq = get_request_wait(d, sub)
        if rq < 0:
            return rq
        now_ns = clock_ns()  # its time runs from here
    init_request_from_bio(d.q, rq, bio, segs, now_ns)
    return blk_plug_request(d, sub, rq)


@inline_kernel
def blk_queue_bio(d, sub, bio, now_ns):
    """Submit a bio on the request path: 0, or -errno once the queue is over. blk_unplug sends it on its way."""
    return blk_queue_bio_at(d.queue[0]["handle"], d.paths, sub, bio, now_ns)
