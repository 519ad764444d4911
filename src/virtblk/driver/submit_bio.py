"""submit_bio: which path a bio takes (Linux: submit_bio, and the module parameter `use_bio`).

A submitter says that several bios will come (blk_start_plug), hands them over one by one, then says that it has no more
for now (blk_finish_plug): on the request and mq paths they wait in its plug until then. A single bio needs no plug: on
the mq path it then goes straight to the ring, as on the bio path. Completions come through virtblk_harvest on every
path. Called by submitters; a negative return means that the queue is over.
"""

from __future__ import annotations

from virtblk.block.bio import REQ_OP_WRITE, bio_init
from virtblk.block.request import ELEVATOR_NOOP
from virtblk.driver.bio_path import virtblk_harvest, virtblk_make_request
from virtblk.driver.completion import virtblk_wait
from virtblk.driver.handle import queue_of
from virtblk.driver.mq_path import blk_mq_flush_plug_list, blk_mq_submit_bio
from virtblk.driver.request_path import blk_flush_plug_list, blk_queue_bio
from virtblk.driver.virtblk_req import PATH_BIO, PATH_MQ, BothPaths, has_bio_path
from virtblk.jit.kernel import cold_kernel, inline_kernel, kernel
from virtblk.jit.libc import clock_ns


@kernel
def issue_directly(d, sub, bio):
    """Whether the bio goes straight to the ring: on the bio path all do, on the mq path what neither plug nor scheduler
    nor flush machinery has a part in (Linux: blk_mq_try_issue_directly)."""
    if d.queue[0]["path"] == PATH_BIO:
        return True
    if d.queue[0]["path"] != PATH_MQ or d.submitters[sub]["plugging"] or d.q.state[0]["elevator"] != ELEVATOR_NOOP:
        return False
    return d.bios[bio]["flags"] == 0 and d.bios[bio]["op"] <= REQ_OP_WRITE


@inline_kernel
def submit_bio(d, sub, bio, now_ns):
    """Submit a bio on the queue's path: 0, or -errno once the queue is over."""
    if has_bio_path(d.paths):
        if issue_directly(d, sub, bio):
            return virtblk_make_request(d, sub, bio, now_ns)
        if d.queue[0]["path"] == PATH_MQ:
            return blk_mq_submit_bio(d, sub, bio, now_ns)
    return blk_queue_bio(d, sub, bio, now_ns)


@kernel
def blk_start_plug(d, sub):
    """The submitter has several bios to submit, and will say when it has no more."""
    d.submitters[sub]["plugging"] = 1


@inline_kernel
def blk_finish_plug(d, sub):
    """The submitter has no more to say for now: 0, or -errno once the queue is over. Nothing to do on the bio path."""
    d.submitters[sub]["plugging"] = 0
    if d.q.plugged[sub] == 0:
        return 0
    if has_bio_path(d.paths) and d.queue[0]["path"] == PATH_MQ:
        return blk_mq_flush_plug_list(d.queue[0]["handle"], d.paths, sub)
    return blk_flush_plug_list(d.queue[0]["handle"], d.paths, sub)


@inline_kernel
def submit_bio_wait(d, sub, bio, now_ns):
    """Submit one bio and wait for it: 0, the bio's errno (positive), or -errno once the queue is over."""
    code = submit_bio(d, sub, bio, now_ns)
    if code == 0:
        code = blk_finish_plug(d, sub)
    if code < 0:
        return code
    while True:
        ended = virtblk_harvest(d, sub)
        if ended >= 0:
            return d.bios[ended]["error"]
        if ended < -1:
            return ended + 1
        code = virtblk_wait(d, sub, 0, True)
        if code < 0:
            return code


@cold_kernel
def do_bio(handle, caller, op, flags, sector, address, length):
    """Submit one bio of `length` bytes at `address` (in the arena) as submitter `caller`, and wait for its end.

    0, the bio's errno (positive), or -errno once the queue is over. The caller uses bio and segment number `caller`.
    """
    d = queue_of(handle, BothPaths(0))
    d.vec_addr[caller] = address
    d.vec_len[caller] = length
    bio_init(d.bios, caller, op, flags, sector, caller, 1 if length else 0, length, caller)
    return submit_bio_wait(d, caller, caller, clock_ns())
