"""The mq path: plug with merging, tags, one lock and one kick per plug (Linux: blk_mq_submit_bio, virtio_queue_rqs).

Bios gather in their submitter's plug (block.blk_mq). When it is emptied, each request in it becomes a virtio request in
a tag, a slot of the queue's request pool: a submitter holds a plugful of tags ready, so it maps and writes headers
without any lock, then adds all of them, takes as many tags anew and offers one kick, under one lock. A full ring makes
it wait for room as on the bio path: tags suffice for the ring and all plugs, so the ring is what runs out. With a
scheduler (`mq-deadline`) the plug goes into the elevator instead, and requests take their tags as it dispatches them.

FLUSH, FUA and what has no sectors are the block layer's requests, as on the request path, and go out at once. Called by
submitters; a negative return means that the queue is over.
"""

from __future__ import annotations

from virtblk.block.bio import REQ_OP_READ, REQ_OP_WRITE, STEP_REQUEST, STEP_TAG
from virtblk.block.blk_mq import (
    PLUG_MERGEABLE,
    PLUG_MERGED,
    blk_mq_attempt_plug_merge,
    blk_mq_plug_bio,
    blk_mq_plug_rq,
    blk_mq_sched_insert,
)
from virtblk.block.request import ELEVATOR_NOOP
from virtblk.block.rq_merge import blk_rq_map_sg
from virtblk.driver.bio_path import virtblk_release_hold
from virtblk.driver.bio_split import bio_first_piece, bio_next_piece, blk_bio_segments, blk_rq_of_piece
from virtblk.driver.completion import WAIT_REQUEST, virtblk_wait
from virtblk.driver.handle import queue_of
from virtblk.driver.request_fn import virtblk_request
from virtblk.driver.request_path import blk_flush_plug_list, blk_queue_bio_at
from virtblk.driver.virtblk_req import virtblk_add_req, virtblk_alloc_req, virtblk_setup_req
from virtblk.jit.kernel import cold_kernel, inline_kernel, kernel
from virtblk.jit.libc import clock_ns
from virtblk.jit.lock import mutex_lock, mutex_unlock, wake_up
from virtblk.uapi.virtio_blk import VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from virtblk.virtio.virtio_ring_split import virtqueue_kick_prepare, virtqueue_notify


@cold_kernel
def blk_mq_get_tags(d, sub):
    """Take the tags that the submitter keeps from now on."""
    size = d.q.state[0]["plug_size"]
    mutex_lock(d.queue[0]["lock"])
    for i in range(sub * size, (sub + 1) * size):
        d.tags[i] = virtblk_alloc_req(d)
    mutex_unlock(d.queue[0]["lock"])
    d.submitters[sub]["tags"] = size


@kernel
def blk_mq_prepare(d, sub, rq, tag):
    """Map request `rq` of the plug into the tag and write its header: the part that needs no lock."""
    first = tag * d.queue[0]["sg_elems"] + 1
    bio = d.q.rq[rq]["bio"]
    last = d.q.rq[rq]["bio_tail"]
    size = d.q.rq[rq]["bytes"]
    entries = 1
    if bio == last and d.bios[bio]["vcnt"] == 1 and d.q.rq[rq]["segs"] == 1 and d.q.rq[rq]["partial"] == 0:
        d.sg_addr[first] = d.vec_addr[d.bios[bio]["vec"]]
        d.sg_len[first] = size
    else:
        entries = blk_rq_map_sg(d.q, rq, d.cursors, sub, d.sg_addr, d.sg_len, first)
    reads = d.q.rq[rq]["op"] == REQ_OP_READ
    kind = VIRTIO_BLK_T_IN if reads else VIRTIO_BLK_T_OUT
    virtblk_setup_req(d, tag, bio, -1, kind, d.q.rq[rq]["sector"], entries, reads, size)
    d.requests[tag]["bio_tail"] = last


@kernel
def blk_mq_queue_rqs(d, sub, done, count):
    """Add the prepared tags from number `done` on while the ring has room, and take others: how many are done then.

    Under the queue lock. Whoever finds room finds a tag, too: the pool is that large.
    """
    base = sub * d.q.state[0]["plug_size"]
    while done < count and virtblk_add_req(d, d.tags[base + done]) == 0:
        d.tags[base + done] = virtblk_alloc_req(d)
        done += 1
    return done


@cold_kernel
def blk_mq_wait_for_room(d, sub, done, count):
    """The ring was full: wait, exclusively, and add the rest as it has room: 0, or -errno once the queue is over.

    Reapers wake one waiter; it wakes the next if it leaves room.
    """
    d.submitters[sub]["ring_full_waits"] += 1
    began = clock_ns()
    code = 0
    while code == 0 and done < count:
        tag = d.tags[sub * d.q.state[0]["plug_size"] + done]
        room = 1 if d.vq.state[0]["indirect"] else d.requests[tag]["readable"] + d.requests[tag]["writable"]
        code = virtblk_wait(d, sub, room, True)
        kick = False
        if code == 0:
            mutex_lock(d.queue[0]["lock"])
            code = -d.queue[0]["error"]
            if code == 0:
                before = done
                done = blk_mq_queue_rqs(d, sub, done, count)
                kick = done > before and virtqueue_kick_prepare(d.vq)
            mutex_unlock(d.queue[0]["lock"])
        if kick:
            virtqueue_notify(d.vq)
            d.submitters[sub]["kicks"] += 1
    d.submitters[sub]["waited_ns"] += clock_ns() - began
    if d.vq.state[0]["num_free"] > 0:
        wake_up(d.queue[0]["queue_wait"], 1)
    return code


@cold_kernel
def blk_mq_sched_plug(d, sub):
    """Empty the plug into the scheduler and run the queue: 0, or -errno once the queue is over.

    Waits, exclusively, while all requests of the pool are in use.
    """
    count = d.q.plugged[sub]
    d.q.plugged[sub] = 0
    for k in range(count):
        rq = blk_mq_plug_rq(d.q, sub, k)
        bio = d.q.rq[rq]["bio"]
        while True:  # from now on a request keeps their time
            d.bios[bio]["step"] = STEP_REQUEST
            if bio == d.q.rq[rq]["bio_tail"]:
                break
            bio = d.bios[bio]["next"]
    done = 0
    while True:
        mutex_lock(d.queue[0]["lock"])
        error = d.queue[0]["error"]
        if error:
            mutex_unlock(d.queue[0]["lock"])
            return -error
        while done < count and blk_mq_sched_insert(d.q, blk_mq_plug_rq(d.q, sub, done)):
            done += 1
        kick = virtblk_request(d, sub, 0)
        more = d.q.state[0]["in_use"] < d.q.state[0]["nr_requests"]
        mutex_unlock(d.queue[0]["lock"])
        if kick:
            virtqueue_notify(d.vq)
            d.submitters[sub]["kicks"] += 1
        if done == count:
            if more:
                wake_up(d.queue[0]["request_wait"], 1)
            return 0
        d.submitters[sub]["request_waits"] += 1
        began = clock_ns()
        code = virtblk_wait(d, sub, WAIT_REQUEST, True)
        now = clock_ns()
        d.submitters[sub]["waited_ns"] += now - began
        if code < 0:
            return code
        for k in range(done, count):  # their time runs from here
            d.q.rq[blk_mq_plug_rq(d.q, sub, k)]["start_ns"] = now


@cold_kernel
def blk_mq_flush_plug_list(handle, paths, sub):
    """Send the requests of the submitter's plug on their way: 0, or -errno once the queue is over."""
    d = queue_of(handle, paths)
    if d.q.state[0]["elevator"] != ELEVATOR_NOOP:
        return blk_mq_sched_plug(d, sub)
    if d.submitters[sub]["tags"] == 0:
        blk_mq_get_tags(d, sub)
    count = d.q.plugged[sub]
    base = sub * d.q.state[0]["plug_size"]
    for k in range(count):
        blk_mq_prepare(d, sub, blk_mq_plug_rq(d.q, sub, k), d.tags[base + k])
    d.q.plugged[sub] = 0
    mutex_lock(d.queue[0]["lock"])
    error = d.queue[0]["error"]
    if error:
        mutex_unlock(d.queue[0]["lock"])
        return -error
    done = blk_mq_queue_rqs(d, sub, 0, count)
    kick = done > 0 and virtqueue_kick_prepare(d.vq)
    mutex_unlock(d.queue[0]["lock"])
    if kick:
        virtqueue_notify(d.vq)
        d.submitters[sub]["kicks"] += 1
    return 0 if done == count else blk_mq_wait_for_room(d, sub, done, count)


@cold_kernel
def blk_mq_submit_special(handle, paths, sub, bio, now_ns):
    """A bio that is the block layer's to order: after what the plug holds, as the request path sends it, at once."""
    d = queue_of(handle, paths)
    code = 0
    if d.q.plugged[sub]:
        code = blk_mq_flush_plug_list(handle, paths, sub)
    if code == 0:
        code = blk_queue_bio_at(handle, paths, sub, bio, now_ns)
    if code == 0 and d.q.plugged[sub]:
        code = blk_flush_plug_list(handle, paths, sub)
    return code


@cold_kernel
def blk_mq_split(d, sub, bio, now_ns):
    """A bio over the limits: as many requests as it takes, which merge with nothing: 0 or -errno (blk_queue_split)."""
    piece = bio_first_piece(d, sub, bio)
    while piece.size > 0:
        if d.q.plugged[sub] == d.q.state[0]["plug_size"]:
            code = blk_mq_flush_plug_list(d.queue[0]["handle"], d.paths, sub)
            if code < 0:
                return code
        mutex_lock(d.queue[0]["lock"])
        d.bios[bio]["remaining"] += 1
        mutex_unlock(d.queue[0]["lock"])
        rq = blk_mq_plug_bio(d.q, sub, bio, piece.segs, now_ns)
        blk_rq_of_piece(d.q, rq, piece)
        piece = bio_next_piece(d, sub, bio, piece)
    virtblk_release_hold(d, sub, bio)
    return 0


@cold_kernel
def blk_mq_submit_bio_at(handle, paths, sub, bio, now_ns):
    """blk_mq_submit_bio, by handle."""
    d = queue_of(handle, paths)
    op = d.bios[bio]["op"]
    length = d.bios[bio]["length"]
    if d.bios[bio]["flags"] or op > REQ_OP_WRITE or length == 0:
        return blk_mq_submit_special(handle, paths, sub, bio, now_ns)
    d.bios[bio]["submitted_ns"] = now_ns
    d.bios[bio]["step"] = STEP_TAG
    d.bios[bio]["remaining"] = 1
    segs = 1
    whole = d.bios[bio]["vcnt"] == 1 and d.vec_len[d.bios[bio]["vec"]] == length
    if not whole or length > d.q.state[0]["max_seg_len"]:
        segs = blk_bio_segments(d, sub, bio)
        if segs < 0:
            return blk_mq_split(d, sub, bio, now_ns)
    met = blk_mq_attempt_plug_merge(d.q, sub, bio, segs)
    if met == PLUG_MERGED:
        d.submitters[sub]["merges"] += 1
        return 0
    if met == PLUG_MERGEABLE:
        d.submitters[sub]["mergeable"] += 1
    if d.q.plugged[sub] == d.q.state[0]["plug_size"]:
        code = blk_mq_flush_plug_list(handle, paths, sub)
        if code < 0:
            return code
    blk_mq_plug_bio(d.q, sub, bio, segs, now_ns)
    return 0


@inline_kernel
def blk_mq_submit_bio(d, sub, bio, now_ns):
    """Submit a bio on the mq path: 0, or -errno once the queue is over. blk_mq_flush_plug_list sends it on its way."""
    return blk_mq_submit_bio_at(d.queue[0]["handle"], d.paths, sub, bio, now_ns)
