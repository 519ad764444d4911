"""Running the queue: requests of the block layer become virtio requests (the posting's virtblk_request and do_req).

Called under the queue lock, by the submitter who emptied its plug or by whoever reaped. The driver's request is
allocated without sleeping; where the ring is full the queue stops, and the next completion starts it again. One kick
is due for all that one run added.
"""

from __future__ import annotations

from virtblk.block.bio import REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_GET_ID, REQ_OP_READ, REQ_OP_WRITE_ZEROES
from virtblk.block.elevator import blk_peek_request, blk_start_request
from virtblk.block.request import ELEVATOR_DEADLINE
from virtblk.block.rq_merge import blk_rq_map_sg
from virtblk.driver.virtblk_req import virtblk_add_req, virtblk_alloc_req, virtblk_free_req, virtblk_setup_req
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.libc import clock_ns
from virtblk.uapi.virtio_blk import (
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from virtblk.virtio.virtio_ring_split import virtqueue_kick_prepare


@kernel
def do_req(d, who, rq):
    """Build the virtio request of `rq` and add it to the ring: False where there is no room. `who` lends its cursor."""
    if d.vq.state[0]["num_free"] == 0:
        return False
    req = virtblk_alloc_req(d)
    if req < 0:
        return False
    op = d.q.rq[rq]["op"]
    size = d.q.rq[rq]["bytes"]
    first = req * d.queue[0]["sg_elems"] + 1
    entries = 1
    kind = VIRTIO_BLK_T_IN if op == REQ_OP_READ else VIRTIO_BLK_T_OUT
    if op == REQ_OP_FLUSH:
        kind = VIRTIO_BLK_T_FLUSH
        entries = 0
    elif op >= REQ_OP_GET_ID:  # one segment, and no sectors
        kind = VIRTIO_BLK_T_GET_ID
        if op == REQ_OP_DISCARD:
            kind = VIRTIO_BLK_T_DISCARD
        elif op == REQ_OP_WRITE_ZEROES:
            kind = VIRTIO_BLK_T_WRITE_ZEROES
        d.sg_addr[first] = d.vec_addr[d.bios[d.q.rq[rq]["bio"]]["vec"]]
        d.sg_len[first] = size
    else:
        entries = blk_rq_map_sg(d.q, rq, d.cursors, who, d.sg_addr, d.sg_len, first)
    writable = kind == VIRTIO_BLK_T_IN or kind == VIRTIO_BLK_T_GET_ID
    virtblk_setup_req(d, req, -1, rq, kind, d.q.rq[rq]["sector"], entries, writable, size)
    if virtblk_add_req(d, req) < 0:
        virtblk_free_req(d, req)
        return False
    return True


@kernel
def virtblk_request(d, who, now):
    """Run the queue until it is empty or the ring is full; True when the device wants a kick.

    With `now` (else 0) what is started counts from then: it waited until this run.
    """
    late = now != 0
    if not late and d.q.state[0]["elevator"] == ELEVATOR_DEADLINE:
        now = clock_ns()
    issued = 0
    while d.q.state[0]["stopped"] == 0:
        rq = blk_peek_request(d.q, now)
        if rq < 0:
            break
        if not do_req(d, who, rq):
            d.q.state[0]["stopped"] = 1
            d.q.state[0]["stops"] += 1
            d.submitters[who]["ring_full_waits"] += 1
            break
        if late:  # before it counts as started: blk_timeout_base looks without the lock
            d.q.rq[rq]["start_ns"] = now
        blk_start_request(d.q, rq)
        issued += 1
    return issued > 0 and virtqueue_kick_prepare(d.vq)


@cold_kernel
def blk_start_queue(d, who):
    """Something ended: a stopped queue goes on; True when the device wants a kick."""
    d.q.state[0]["stopped"] = 0
    return virtblk_request(d, who, clock_ns())
