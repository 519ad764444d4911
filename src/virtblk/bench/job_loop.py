"""One job: keep `iodepth` bios in flight, count what comes back (fio: do_io, one thread per job).

Each job is a submitter of a virtqueue and runs `job_loop` on a thread of its own, from one go to one stop. Two clock
reads per round: one when completions are found, one when the round's submissions are done; a round between the two is
busy time. A bio's latency runs from the first of these in the round that submits it to the first in the round that
harvests it, so it includes the wait for a request or for room in the ring.

With a rate (fio: rate_iops), I/O `n` of a job has an intended start, whatever came of those before it, and its latency
runs from there: an I/O that starts late because the device was slow counts its lateness. To leave that out would be
coordinated omission.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.bench.histogram import BUCKETS, bucket_of
from virtblk.bench.verify import BLOCK_GOOD, UNKNOWN, check_block, fill_block
from virtblk.block.bio import REQ_OP_READ, REQ_OP_WRITE, bio_init
from virtblk.driver.bio_path import virtblk_harvest
from virtblk.driver.completion import virtblk_done, virtblk_pending, virtblk_ready, virtblk_wait
from virtblk.driver.submit_bio import blk_finish_plug, blk_start_plug, submit_bio
from virtblk.driver.virtblk_req import LINE_WAIT
from virtblk.jit.arith import mix64
from virtblk.jit.atomics import cpu_pause, fetch_add_i64, load_acquire_i64, store_i64
from virtblk.jit.kernel import cold_kernel, inline_kernel, kernel
from virtblk.jit.libc import clock_ns
from virtblk.jit.lock import mutex_lock, mutex_unlock, wait_finish, wait_prepare, wait_sleep
from virtblk.jit.table import Table
from virtblk.uapi.virtio_blk import SECTOR_SHIFT
from virtblk.virtio.virtio_ring_split import virtqueue_enable_cb, virtqueue_more_used

SECOND = 1_000_000_000
#: With a rate: a start that is nearer than this is spun for, since a sleep may take as much longer.
SPIN_NS = 60_000
#: And no sleep is longer; what ends one early are completions and the end of the run.
RATE_SLEEP_NS = 50_000_000

JOB_DTYPE = np.dtype(
    [
        # what to do
        ("queue", "i8"),  # handle of its virtqueue (driver.handle); 0: that which its thread was started on
        ("submitter", "i8"),  # its number among the submitters of that virtqueue
        ("op", "i8"),  # REQ_OP_READ or REQ_OP_WRITE
        ("random", "i8"),
        ("bs", "i8"),  # bytes
        ("depth", "i8"),
        ("batch", "i8"),  # bios submitted between two looks at completions
        ("blocks", "i8"),  # the range is blocks [0, blocks) of `bs` bytes
        ("next", "i8"),  # next block of a sequential job
        ("step", "i8"),  # and how far it moves on
        ("limit", "i8"),  # I/Os to do; 0: until told to stop
        ("seed", "i8"),  # of its offsets
        ("contents", "i8"),  # seed of what it writes: the same for all jobs, so that writes to one block may overlap
        ("verify", "i8"),
        ("generation", "i8"),  # of what it writes
        ("buffers", "i8"),  # address of depth * bs bytes in the arena
        ("stop", "i8"),  # address of the word that ends it
        ("rate", "i8"),  # I/Os per second; 0: as fast as they go
        ("phase_ns", "i8"),  # with a rate: its first I/O is due so long after its start
        # what happened
        ("ios", "i8"),
        ("errors", "i8"),
        ("clat_min", "i8"),  # nanoseconds
        ("clat_max", "i8"),
        ("clat_sum", "i8"),
        ("clat_squares", "f8"),
        ("busy_ns", "i8"),
        ("ended_ns", "i8"),
        ("bad_errno", "i8"),  # of the first failed I/O
        ("bad_block", "i8"),  # BAD_* of the first block that did not verify
        ("bad_offset", "i8"),
        ("result", "i8"),  # 0, or -errno once the queue is over
    ]
)


class Jobs(NamedTuple):
    """All jobs of a run."""

    jobs: Table  # [numjobs] JOB_DTYPE
    histogram: Table  # [numjobs * BUCKETS] completion latencies
    free: Table  # [numjobs * iodepth] stack of bios that are not in flight
    generations: Table  # [blocks], or [1] without verify: what each block was last written in
    intended: Table  # [numjobs * iodepth] with a rate: the time that a bio should have started at


@kernel
def next_block(jobs, j, issued):
    """The block that job `j` accesses next."""
    blocks = jobs.jobs[j]["blocks"]
    if jobs.jobs[j]["random"]:
        return mix64(jobs.jobs[j]["seed"] + issued) % blocks
    block = jobs.jobs[j]["next"]
    following = block + jobs.jobs[j]["step"]
    jobs.jobs[j]["next"] = following if following < blocks else following - blocks
    return block


@inline_kernel
def submit_one(d, jobs, j, bio, issued, now):
    """Send one bio on its way: 0 or -errno."""
    sub = jobs.jobs[j]["submitter"]
    bs = jobs.jobs[j]["bs"]
    offset = next_block(jobs, j, issued) * bs
    op = jobs.jobs[j]["op"]
    if jobs.jobs[j]["verify"]:
        if op == REQ_OP_WRITE:
            fill_block(d.vec_addr[bio], bs, offset, jobs.jobs[j]["generation"], jobs.jobs[j]["contents"])
        else:
            store_i64(d.vec_addr[bio], 0)  # a device that reads nothing must not pass with what was there
    bio_init(d.bios, bio, op, 0, offset >> SECTOR_SHIFT, bio, 1, bs, sub)
    return submit_bio(d, sub, bio, now)


@kernel
def due_ns(jobs, j, start, issued):
    """When I/O number `issued` of a job with a rate is due."""
    rate = jobs.jobs[j]["rate"]
    return start + issued // rate * SECOND + issued % rate * SECOND // rate


@cold_kernel
def sleep_until(d, sub, now, due):
    """Ask for an interrupt and sleep until a completion or the time `due`, as virtblk_block sleeps for its bound."""
    queue = d.submitters[sub]["line"] + LINE_WAIT
    sequence = wait_prepare(queue)
    fetch_add_i64(d.queue[0]["sleepers"], 1)
    mutex_lock(d.queue[0]["lock"])
    quiet = virtqueue_enable_cb(d.vq)
    mutex_unlock(d.queue[0]["lock"])
    if quiet and not virtblk_ready(d, sub, 0):
        wait_sleep(queue, sequence, min(RATE_SLEEP_NS, due - now))
    fetch_add_i64(d.queue[0]["sleepers"], -1)
    wait_finish(queue)


@cold_kernel
def wait_until_due(d, jobs, j, due):
    """Wait for a completion, for the time `due` or for the stop word: 0, or -errno once the queue is over.

    An I/O that never ends is the control thread's to notice.
    """
    sub = jobs.jobs[j]["submitter"]
    polling = d.queue[0]["poll_ns"] < 0
    while not virtblk_ready(d, sub, 0) and not virtqueue_more_used(d.vq):
        now = clock_ns()
        if now >= due or load_acquire_i64(jobs.jobs[j]["stop"]) != 0:
            break
        if polling or due - now < SPIN_NS:
            cpu_pause()
        else:
            sleep_until(d, sub, now, due - SPIN_NS // 2)
    return -d.queue[0]["error"]


@cold_kernel
def note_error(jobs, j, errno, bad, offset):
    """Count an error; the first one is kept for the report."""
    if jobs.jobs[j]["errors"] == 0:
        jobs.jobs[j]["bad_errno"] = errno
        jobs.jobs[j]["bad_block"] = bad
        jobs.jobs[j]["bad_offset"] = offset
    jobs.jobs[j]["errors"] += 1


@kernel
def account(d, jobs, j, bio, now):
    """Count one completed bio, and check what it read."""
    submitted = d.bios[bio]["submitted_ns"]
    if jobs.jobs[j]["rate"]:
        submitted = jobs.intended[bio + (j - jobs.jobs[j]["submitter"]) * jobs.jobs[j]["depth"]]
    latency = now - submitted
    jobs.histogram[j * BUCKETS + bucket_of(latency)] += 1
    jobs.jobs[j]["clat_min"] = min(jobs.jobs[j]["clat_min"], latency)
    jobs.jobs[j]["clat_max"] = max(jobs.jobs[j]["clat_max"], latency)
    jobs.jobs[j]["clat_sum"] += latency
    jobs.jobs[j]["clat_squares"] += float(latency) * float(latency)
    jobs.jobs[j]["ios"] += 1
    error = d.bios[bio]["error"]
    if error == 0 and not jobs.jobs[j]["verify"]:
        return
    offset = d.bios[bio]["sector"] << SECTOR_SHIFT
    if error:
        note_error(jobs, j, error, 0, offset)
    if jobs.jobs[j]["verify"]:
        block = offset // jobs.jobs[j]["bs"]
        if d.bios[bio]["op"] == REQ_OP_WRITE:
            jobs.generations[block] = UNKNOWN if error else jobs.jobs[j]["generation"]
        elif d.bios[bio]["op"] == REQ_OP_READ and error == 0:
            bad = check_block(d.vec_addr[bio], jobs.jobs[j]["bs"], offset, jobs.generations[block])
            if bad != BLOCK_GOOD:
                note_error(jobs, j, 0, bad, offset)


@cold_kernel
def job_loop(d, jobs, j):
    """Run job `j` until its limit, or until its stop word is set, then wait for what is in flight.

    What is due at once is issued whatever the stop word says: a slice has I/Os, however late its threads come to run.
    """
    sub = jobs.jobs[j]["submitter"]
    depth = jobs.jobs[j]["depth"]
    batch = jobs.jobs[j]["batch"]
    limit = jobs.jobs[j]["limit"]
    bs = jobs.jobs[j]["bs"]
    rate = jobs.jobs[j]["rate"]
    polling = d.queue[0]["poll_ns"] < 0
    for k in range(depth):
        bio = sub * depth + k
        d.vec_addr[bio] = jobs.jobs[j]["buffers"] + k * bs
        d.vec_len[bio] = bs
        jobs.free[j * depth + k] = bio
    free = depth
    issued = 0
    waited = d.submitters[sub]["waited_ns"]
    found = clock_ns()
    start = found + jobs.jobs[j]["phase_ns"]
    due = start
    while True:
        stopping = load_acquire_i64(jobs.jobs[j]["stop"]) != 0 and (issued > 0 or due > found)
        stopping = stopping or (limit > 0 and issued >= limit)
        while free >= batch and not stopping and (rate == 0 or due <= found):
            if batch > 1:
                blk_start_plug(d, sub)
            for _ in range(batch):
                free -= 1
                if rate:
                    jobs.intended[jobs.free[j * depth + free] + (j - sub) * depth] = due
                    due = due_ns(jobs, j, start, issued + 1)
                code = submit_one(d, jobs, j, jobs.free[j * depth + free], issued, found)
                issued += 1
                if code < 0:
                    jobs.jobs[j]["result"] = code
                    return
                if issued == limit:
                    break
            code = blk_finish_plug(d, sub)
            if code < 0:
                jobs.jobs[j]["result"] = code
                return
            stopping = limit > 0 and issued >= limit
        if polling:
            now = clock_ns()
            jobs.jobs[j]["busy_ns"] += now - found - (d.submitters[sub]["waited_ns"] - waited)
            waited = d.submitters[sub]["waited_ns"]
        if free == depth and (rate == 0 or stopping):
            break
        if rate and free and not stopping:
            code = wait_until_due(d, jobs, j, due)
        else:
            code = virtblk_wait(d, sub, 0, False)
        if code < 0:
            jobs.jobs[j]["result"] = code
            return
        found = clock_ns()
        virtblk_done(d, sub, not polling)  # an interrupt-driven job sleeps on the lock, and does not spin on it
        bio = -1
        for _ in range(virtblk_pending(d, sub)):  # not those that end meanwhile: their time is not up yet
            bio = virtblk_harvest(d, sub)
            if bio < 0:
                break
            account(d, jobs, j, bio, found)
            jobs.free[j * depth + free] = bio
            free += 1
        if bio < -1:
            jobs.jobs[j]["result"] = bio + 1
            return
    jobs.jobs[j]["ended_ns"] = clock_ns()
