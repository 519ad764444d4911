"""The bio path: straight from the bio to the ring (the posting's virtblk_make_request, `use_bio=1`).

No request of the block layer, no elevator: the bio is mapped into a virtblk_req of its own without any lock, added
under the queue lock, and one kick is offered per bio. A full ring makes the submitter wait, exclusively, on
`queue_wait` (virtblk_add_buf_wait). FLUSH and FUA are a small state machine (`block.bio`), whose next step is taken by
the submitter when it harvests the step before: the merged kernel needed a work item there, since its completion may not
sleep; ours is back in the context that may.

Called by submitters, through `driver.submit_bio`. A negative return means that the queue is over, and that no bio of it
will end any more.
"""

from __future__ import annotations

from virtblk.block.bio import (
    REQ_OP_DISCARD,
    REQ_OP_GET_ID,
    REQ_OP_READ,
    REQ_OP_WRITE_ZEROES,
    STEP_DATA,
    STEP_DONE,
    bio_first_step,
    bio_next_step,
)
from virtblk.block.blk_merge import blk_map_sg
from virtblk.driver.completion import virtblk_bio_done, virtblk_pending, virtblk_wait, virtblk_wake
from virtblk.driver.handle import queue_of
from virtblk.driver.virtblk_req import virtblk_add_req, virtblk_alloc_req, virtblk_setup_req
from virtblk.jit.kernel import cold_kernel, inline_kernel, kernel
from virtblk.jit.libc import clock_ns
from virtblk.jit.lock import mutex_lock, mutex_unlock, wake_up
from virtblk.uapi.virtio_blk import (
    SECTOR_SHIFT,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from virtblk.virtio.virtio_ring_split import virtqueue_kick_prepare, virtqueue_notify

EINVAL = 22


@kernel
def virtblk_get_spare(d, sub):
    """The request that the submitter maps its next bio into."""
    spare = d.submitters[sub]["spare"]
    if spare < 0:
        mutex_lock(d.queue[0]["lock"])
        spare = virtblk_alloc_req(d)
        mutex_unlock(d.queue[0]["lock"])
    d.submitters[sub]["spare"] = -1
    return spare


@kernel
def virtblk_add_buf(d, sub, req, bio, hold):
    """Add, publish and offer a kick, once: 0, -ENOSPC, or -errno of a queue that is over.

    The submitter's next request comes out of the pool under the same lock.
    """
    mutex_lock(d.queue[0]["lock"])
    error = d.queue[0]["error"]
    if error:
        mutex_unlock(d.queue[0]["lock"])
        return -error
    code = virtblk_add_req(d, req)
    kick = False
    if code == 0:
        if hold:
            d.bios[bio]["remaining"] += 1
        kick = virtqueue_kick_prepare(d.vq)
        d.submitters[sub]["spare"] = virtblk_alloc_req(d)
    mutex_unlock(d.queue[0]["lock"])
    if kick:
        virtqueue_notify(d.vq)
        d.submitters[sub]["kicks"] += 1
    return code


@cold_kernel
def virtblk_wait_for_room(d, sub, req, bio, hold):
    """The ring was full: wait, exclusively, and try again until it has room: 0, or -errno once the queue is over.

    Reapers wake one waiter; it wakes the next if it leaves room.
    """
    if d.bios[bio]["waited"] == 0:
        d.bios[bio]["waited"] = 1
        d.submitters[sub]["ring_full_waits"] += 1
    began = clock_ns()
    vec = d.cursors[sub]["vec"]  # whoever reaps may start the queue of the request path, and maps with this cursor
    offset = d.cursors[sub]["offset"]
    room = 1 if d.vq.state[0]["indirect"] else d.requests[req]["readable"] + d.requests[req]["writable"]
    while True:
        code = virtblk_wait(d, sub, room, True)
        if code == 0:
            code = virtblk_add_buf(d, sub, req, bio, hold)
        if code == 0 or d.queue[0]["error"]:
            d.submitters[sub]["waited_ns"] += clock_ns() - began
            d.cursors[sub]["vec"] = vec
            d.cursors[sub]["offset"] = offset
            if d.vq.state[0]["num_free"] > 0:
                wake_up(d.queue[0]["queue_wait"], 1)
            return code


@inline_kernel
def virtblk_add_buf_wait(d, sub, req, bio, hold):
    """Add the request, waiting for room as long as it takes: 0, or -errno once the queue is over."""
    code = virtblk_add_buf(d, sub, req, bio, hold)
    if code == 0 or d.queue[0]["error"]:
        return code
    return virtblk_wait_for_room(d, sub, req, bio, hold)


@cold_kernel
def virtblk_end_now(d, sub, bio, error):
    """End a bio without the device: its own completion list, as if it had been reaped."""
    mutex_lock(d.queue[0]["lock"])
    if error and d.bios[bio]["error"] == 0:
        d.bios[bio]["error"] = error
    d.queue[0]["reaps"] += 1
    noted = virtblk_bio_done(d, bio, sub, 0)
    mutex_unlock(d.queue[0]["lock"])
    virtblk_wake(d, sub, noted, False)
    return 0


@inline_kernel
def virtblk_issue_flush(d, sub, bio):
    """One FLUSH request: sector 0, no data (5.2.6.1)."""
    req = virtblk_get_spare(d, sub)
    virtblk_setup_req(d, req, bio, -1, VIRTIO_BLK_T_FLUSH, 0, 0, False, 0)
    d.bios[bio]["remaining"] = 1
    return virtblk_add_buf_wait(d, sub, req, bio, False)


@cold_kernel
def virtblk_release_hold(d, sub, bio):
    """The submitter of a split bio has added its last request: end the bio if all of them ended meanwhile."""
    mutex_lock(d.queue[0]["lock"])
    d.bios[bio]["remaining"] -= 1
    noted = 0
    if d.bios[bio]["remaining"] == 0:
        d.queue[0]["reaps"] += 1
        noted = virtblk_bio_done(d, bio, sub, 0)
    mutex_unlock(d.queue[0]["lock"])
    virtblk_wake(d, sub, noted, False)


@inline_kernel
def virtblk_issue_data(d, sub, bio):
    """The bio's data, in one request, or in as many as the limits ask for."""
    op = d.bios[bio]["op"]
    sector = d.bios[bio]["sector"]
    left = d.bios[bio]["length"]
    kind = VIRTIO_BLK_T_OUT
    if op == REQ_OP_READ:
        kind = VIRTIO_BLK_T_IN
    elif op == REQ_OP_GET_ID:
        kind = VIRTIO_BLK_T_GET_ID
    elif op == REQ_OP_DISCARD:
        kind = VIRTIO_BLK_T_DISCARD
    elif op == REQ_OP_WRITE_ZEROES:
        kind = VIRTIO_BLK_T_WRITE_ZEROES
    writable = kind == VIRTIO_BLK_T_IN or kind == VIRTIO_BLK_T_GET_ID
    end = d.bios[bio]["vec"] + d.bios[bio]["vcnt"]
    d.cursors[sub]["vec"] = d.bios[bio]["vec"]
    d.cursors[sub]["offset"] = 0
    d.bios[bio]["remaining"] = 1
    split = False
    while left > 0:
        req = virtblk_get_spare(d, sub)
        first = req * d.queue[0]["sg_elems"] + 1
        if op >= REQ_OP_GET_ID:  # no sectors, one segment, never split
            d.sg_addr[first] = d.vec_addr[end - 1]
            d.sg_len[first] = left
            entries, size = 1, left
        else:
            entries, size = blk_map_sg(
                d.vec_addr,
                d.vec_len,
                end,
                d.cursors,
                sub,
                d.sg_addr,
                d.sg_len,
                first,
                d.queue[0]["max_segs"],
                d.queue[0]["max_seg_len"],
                min(d.queue[0]["max_bytes"], left),
            )
        if size == 0:  # segments that hold fewer bytes than the bio says
            d.submitters[sub]["spare"] = req
            d.bios[bio]["error"] = EINVAL
            break
        split = split or size < left
        virtblk_setup_req(d, req, bio, -1, kind, sector, entries, writable, size)
        code = virtblk_add_buf_wait(d, sub, req, bio, split)
        if code < 0:
            return code
        left -= size
        sector += size >> SECTOR_SHIFT
    if split or left > 0:
        virtblk_release_hold(d, sub, bio)
    return 0


@cold_kernel
def virtblk_issue(handle, paths, sub, bio, step):
    """Send what `step` of the bio asks for: 0 or -errno."""
    d = queue_of(handle, paths)
    d.bios[bio]["step"] = step
    if step == STEP_DONE:
        return virtblk_end_now(d, sub, bio, 0)
    if step == STEP_DATA:
        if d.bios[bio]["length"] == 0:
            return virtblk_end_now(d, sub, bio, 0)
        return virtblk_issue_data(d, sub, bio)
    return virtblk_issue_flush(d, sub, bio)


@inline_kernel
def virtblk_make_request(d, sub, bio, now_ns):
    """Submit a bio: 0, or -errno once the queue is over. Its completion comes through virtblk_harvest."""
    d.bios[bio]["submitted_ns"] = now_ns
    step = bio_first_step(d.bios, bio, d.queue[0]["can_flush"])
    return virtblk_issue(d.queue[0]["handle"], d.paths, sub, bio, step)


@inline_kernel
def virtblk_harvest(d, sub):
    """Take a bio that ended off the submitter's list; -1 where there is none, -errno - 1 once the queue is over.

    A bio whose next step is due is sent on its way again, and the next one is looked at.
    """
    while virtblk_pending(d, sub) > 0:
        tail = d.submitters[sub]["tail"]
        size = d.queue[0]["done_size"]
        bio = d.done_list[sub * size + (tail & (size - 1))]
        d.submitters[sub]["tail"] = tail + 1
        step = bio_next_step(d.bios, bio, d.queue[0]["can_flush"])
        if step == STEP_DONE:
            return bio
        code = virtblk_issue(d.queue[0]["handle"], d.paths, sub, bio, step)
        if code < 0:
            return code - 1
    return -1
