"""One job of a job file: its I/Os in fio's order and at its pace, counted as fio counts (fio: do_io, do_verify).

The plain bench's loop is `bench.job_loop`, which knows nothing of all this and pays nothing for it: mixed directions,
the random map, flushes and trims, pauses, a ramp, per-kind latencies, reading back. Each job is a submitter of the
queue and runs `fio_loop` on a thread of its own, from one go until its own end.

A job's I/O number n is a function of n and the job's seed, except for sequential positions, which a pass begins anew.
A job that verifies its writes goes in passes: it writes its range once, waits for what is in flight, and reads the
same sequence back. An error ends the job, as it does in fio.
"""

from __future__ import annotations

from virtblk.bench.fio_map import map_block
from virtblk.bench.fio_tables import (
    DEPTH_CLASSES,
    KINDS,
    LEVEL_COMPLETE,
    LEVEL_DEPTH,
    LEVEL_SUBMIT,
    LEVELS,
    NEVER,
    NOT_CHECKED,
    RANGE_FLAGS,
    RANGE_SECTORS,
    RANGE_SIZE,
    READ,
    SYNC,
    TRIM,
    WRITE,
)
from virtblk.bench.histogram import BUCKETS, bucket_of
from virtblk.bench.job_loop import due_ns, wait_until_due
from virtblk.bench.verify import BLOCK_GOOD, UNKNOWN, check_block, fill_block
from virtblk.block.bio import REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, bio_init
from virtblk.driver.bio_path import virtblk_harvest
from virtblk.driver.completion import virtblk_done, virtblk_pending, virtblk_wait
from virtblk.driver.submit_bio import blk_finish_plug, blk_start_plug, submit_bio
from virtblk.jit.arith import mix64, msb
from virtblk.jit.atomics import load_acquire_i64, store_i64, store_u32
from virtblk.jit.kernel import cold_kernel, inline_kernel, kernel
from virtblk.jit.libc import clock_ns
from virtblk.uapi.virtio_blk import SECTOR_SHIFT

EIO = 5
#: The seed of directions is not that of offsets, or reads would take other blocks than writes.
_DIRECTIONS = 0x5DEECE66D


@kernel
def kind_of(jobs, j, n):
    """What I/O number `n` of a job is: READ, WRITE or TRIM."""
    share = jobs.jobs[j]["read_share"]
    if share < 0:
        return jobs.jobs[j]["kind"]
    return READ if mix64(jobs.jobs[j]["seed"] ^ _DIRECTIONS ^ mix64(n)) % 100 < share else WRITE


@cold_kernel
def block_of(jobs, j, n, kind):
    """The block that I/O number `n` accesses. Called in the order of n: a sequential job's positions move on."""
    blocks = jobs.jobs[j]["blocks"]
    if jobs.jobs[j]["random"]:
        seed = jobs.jobs[j]["seed"]
        if jobs.jobs[j]["once"]:
            low, high = jobs.jobs[j]["low_bits"], jobs.jobs[j]["high_bits"]
            return map_block(n % blocks, blocks, low, high, mix64(seed ^ n // blocks))
        return mix64(seed ^ mix64(n)) % blocks
    if jobs.jobs[j]["rewinds"] and n % blocks == 0:
        rewind(jobs, j)
    if kind == WRITE:
        block = jobs.jobs[j]["write_position"]
        jobs.jobs[j]["write_position"] = block + 1 if block + 1 < blocks else 0
    else:
        block = jobs.jobs[j]["position"]
        jobs.jobs[j]["position"] = block + 1 if block + 1 < blocks else 0
    return block


@kernel
def rewind(jobs, j):
    """A sequential job starts again at the beginning of its range."""
    jobs.jobs[j]["position"] = 0
    jobs.jobs[j]["write_position"] = 0


@cold_kernel
def set_buffers(vec_addr, vec_len, jobs, j):
    """Give each of a job's bios its part of the job's memory. A trim's segment is its range (5.2.6)."""
    first = jobs.jobs[j]["first_bio"]
    bs = jobs.jobs[j]["bs"]
    length = RANGE_SIZE if jobs.jobs[j]["kind"] == TRIM else bs
    for k in range(jobs.jobs[j]["depth"]):
        vec_addr[first + k] = jobs.jobs[j]["buffers"] + k * bs
        vec_len[first + k] = length
        jobs.free[first + k] = first + k


@inline_kernel
def submit_io(d, jobs, j, bio, kind, block, generation, began):
    """Send one I/O of `kind` on its way: 0 or -errno. `generation` says what a block that is checked holds, or will."""
    sub = jobs.jobs[j]["submitter"]
    bs = jobs.jobs[j]["bs"]
    offset = jobs.jobs[j]["start"] + block * bs
    jobs.bios[bio]["kind"] = kind
    jobs.bios[bio]["offset"] = offset
    jobs.bios[bio]["generation"] = generation
    jobs.bios[bio]["began_ns"] = began
    address = d.vec_addr[bio]
    if kind == SYNC:
        bio_init(d.bios, bio, REQ_OP_FLUSH, 0, 0, bio, 0, 0, sub)
    elif kind == TRIM:
        store_i64(address, offset >> SECTOR_SHIFT)
        store_u32(address + RANGE_SECTORS, bs >> SECTOR_SHIFT)
        store_u32(address + RANGE_FLAGS, 0)
        bio_init(d.bios, bio, REQ_OP_DISCARD, 0, 0, bio, 1, RANGE_SIZE, sub)
    elif kind == WRITE:
        if jobs.jobs[j]["verify"]:
            fill_block(address, bs, offset, generation, jobs.jobs[j]["contents"])
        bio_init(d.bios, bio, REQ_OP_WRITE, 0, offset >> SECTOR_SHIFT, bio, 1, bs, sub)
    else:
        if generation != NOT_CHECKED:
            store_i64(address, 0)  # a device that reads nothing must not pass with what was there
        bio_init(d.bios, bio, REQ_OP_READ, 0, offset >> SECTOR_SHIFT, bio, 1, bs, sub)
    return submit_bio(d, sub, bio, began)


@kernel
def depth_class(depth):
    """fio's class of a depth: 1, 2, 4, 8, 16, 32, >=64."""
    return min(msb(depth), DEPTH_CLASSES - 1) if depth > 0 else 0


@kernel
def count_class(count):
    """fio's class of I/Os submitted or reaped at a time: 0, up to 4, 8, 16, 32, 64, more."""
    if count == 0:
        return 0
    return min(max(msb(count - 1) if count > 1 else 0, 1), DEPTH_CLASSES - 1)


@kernel
def count_level(jobs, j, level, index, count):
    """Add to one class of one of the job's distributions."""
    jobs.levels[(j * LEVELS + level) * DEPTH_CLASSES + index] += count


@cold_kernel
def count_batch(jobs, j, free, count, now):
    """A batch is out: what fio notes then. Its bios are those above `free` in the stack."""
    first = jobs.jobs[j]["first_bio"]
    for k in range(count):
        jobs.bios[jobs.free[first + free + k]]["issued_ns"] = now
    if not jobs.jobs[j]["ramping"]:
        count_level(jobs, j, LEVEL_DEPTH, depth_class(jobs.jobs[j]["depth"] - free), count)
        count_level(jobs, j, LEVEL_SUBMIT, count_class(count), 1)


@kernel
def count_latencies(jobs, s, slat, clat, lat):
    """Add one I/O's latencies to the counts of its kind."""
    jobs.stats[s]["ios"] += 1
    jobs.stats[s]["slat_min"] = min(jobs.stats[s]["slat_min"], slat)
    jobs.stats[s]["slat_max"] = max(jobs.stats[s]["slat_max"], slat)
    jobs.stats[s]["slat_sum"] += slat
    jobs.stats[s]["slat_squares"] += float(slat) * float(slat)
    jobs.stats[s]["clat_min"] = min(jobs.stats[s]["clat_min"], clat)
    jobs.stats[s]["clat_max"] = max(jobs.stats[s]["clat_max"], clat)
    jobs.stats[s]["clat_sum"] += clat
    jobs.stats[s]["clat_squares"] += float(clat) * float(clat)
    jobs.stats[s]["lat_min"] = min(jobs.stats[s]["lat_min"], lat)
    jobs.stats[s]["lat_max"] = max(jobs.stats[s]["lat_max"], lat)
    jobs.stats[s]["lat_sum"] += lat
    jobs.stats[s]["lat_squares"] += float(lat) * float(lat)


@cold_kernel
def note_failure(jobs, j, errno, bad, offset):
    """Keep the first error of a job, which ends it."""
    if jobs.jobs[j]["errno"] == 0:
        jobs.jobs[j]["errno"] = errno
        jobs.jobs[j]["bad_block"] = bad
        jobs.jobs[j]["bad_offset"] = offset


@cold_kernel
def count_io(jobs, j, bio, error, address, now):
    """Count one completed I/O, and check what it read to `address`. One that failed is no I/O."""
    kind = jobs.bios[bio]["kind"]
    if error:
        note_failure(jobs, j, error, 0, jobs.bios[bio]["offset"])
        return
    if kind == READ and jobs.bios[bio]["generation"] != NOT_CHECKED:
        offset = jobs.bios[bio]["offset"]
        bad = check_block(address, jobs.jobs[j]["bs"], offset, jobs.bios[bio]["generation"])
        if bad != BLOCK_GOOD:
            note_failure(jobs, j, EIO, bad, offset)
            return
    if jobs.jobs[j]["ramping"]:
        return
    began = jobs.bios[bio]["began_ns"]
    issued = jobs.bios[bio]["issued_ns"]
    s = j * KINDS + kind
    clat = now - issued
    count_latencies(jobs, s, issued - began, clat, now - began)
    jobs.histogram[s * BUCKETS + bucket_of(now - began if kind == SYNC else clat)] += 1


@kernel
def end_ramp(jobs, j, now, n):
    """From now on it counts: the I/O number at which the job ends."""
    jobs.jobs[j]["ramping"] = 0
    jobs.jobs[j]["counted_ns"] = now
    limit = jobs.jobs[j]["limit"]
    return n + limit if limit < NEVER else NEVER


@cold_kernel
def fio_loop(d, jobs, j):
    """Run job `j` to its limit, its time, its first error or its stop word, then wait for what is in flight."""
    sub = jobs.jobs[j]["submitter"]
    first = jobs.jobs[j]["first_bio"]
    depth = jobs.jobs[j]["depth"]
    batch = jobs.jobs[j]["batch"]
    rate = jobs.jobs[j]["rate"]
    think = jobs.jobs[j]["think_ns"]
    fsync = jobs.jobs[j]["fsync"]
    blocks = jobs.jobs[j]["blocks"]
    polling = d.queue[0]["poll_ns"] < 0
    writing = jobs.jobs[j]["kind"] == WRITE or jobs.jobs[j]["read_share"] >= 0
    goes_back = jobs.jobs[j]["verify"] != 0 and writing
    checked = UNKNOWN if jobs.jobs[j]["verify"] and not writing else NOT_CHECKED
    set_buffers(d.vec_addr, d.vec_len, jobs, j)
    rewind(jobs, j)
    found = clock_ns()
    jobs.jobs[j]["started_ns"] = found
    jobs.jobs[j]["counted_ns"] = found
    counted = found + jobs.jobs[j]["ramp_ns"]
    ends = counted + jobs.jobs[j]["runtime_ns"] if jobs.jobs[j]["runtime_ns"] else NEVER
    jobs.jobs[j]["ramping"] = 1
    limit = NEVER
    start = found + jobs.jobs[j]["phase_ns"]
    due = start if rate else found
    paced = 0
    free = depth
    short = 0  # I/Os that must come back before the next is submitted
    n = 0  # the next I/O's number; flushes have none
    pass_start = 0
    back = -1  # the number up to which a pass is being read back, -1 while it is being written
    back_began = found
    writes = 0
    flush_next = False
    while True:
        if jobs.jobs[j]["ramping"] and found >= counted:
            limit = end_ramp(jobs, j, found, n)
        broken = load_acquire_i64(jobs.jobs[j]["stop"]) != 0 or jobs.jobs[j]["errno"] != 0
        if broken:
            until = n
        elif back >= 0:
            until = back
        else:
            until = n if found >= ends else limit
            if goes_back:
                until = min(until, pass_start + blocks)
        while n < until and free >= batch and short <= 0 and (due <= found or back >= 0):
            began = due if rate and back < 0 else clock_ns()
            count = 0
            if batch > 1:
                blk_start_plug(d, sub)
            while count < batch and n < until:
                bio = jobs.free[first + free - 1]
                block = 0
                generation = NOT_CHECKED
                if flush_next and back < 0:
                    kind = SYNC
                    flush_next = False
                else:
                    kind = kind_of(jobs, j, n)
                    block = block_of(jobs, j, n, kind)
                    n += 1
                    if goes_back and kind == WRITE:
                        generation = jobs.jobs[j]["generation"] + pass_start // blocks
                    elif kind == READ:
                        generation = checked
                    if back >= 0:
                        if kind == READ:
                            continue  # what was only read is not read back
                        kind = READ
                    elif kind == WRITE and fsync:
                        writes += 1
                        flush_next = writes % fsync == 0
                free -= 1
                count += 1
                code = submit_io(d, jobs, j, bio, kind, block, generation, began)
                if code < 0:
                    jobs.jobs[j]["result"] = code
                    return
            code = blk_finish_plug(d, sub)
            if code < 0:
                jobs.jobs[j]["result"] = code
                return
            if count:
                count_batch(jobs, j, free, count, clock_ns())
            if rate and back < 0:
                paced += 1
                due = due_ns(jobs, j, start, paced)
            elif think:
                due = NEVER
        if free == depth and n >= until:
            if broken or (back < 0 and (not goes_back or n == pass_start)):
                break
            if back < 0:  # the pass is written
                back = n
                n = pass_start
                back_began = found
                rewind(jobs, j)
            else:  # and has been read back
                back = -1
                pass_start = n
                start += found - back_began
            continue
        wake = NEVER
        if n < until and short <= 0 and free >= batch:
            wake = min(due, ends)
        elif short <= 0:
            short = min(jobs.jobs[j]["complete_min"], depth - free)
        code = wait_until_due(d, jobs, j, wake) if wake < NEVER else virtblk_wait(d, sub, 0, False)
        if code < 0:
            jobs.jobs[j]["result"] = code
            return
        found = clock_ns()
        virtblk_done(d, sub, not polling)
        bio = -1
        last = -1
        count = 0
        for _ in range(virtblk_pending(d, sub)):
            bio = virtblk_harvest(d, sub)
            if bio < 0:
                break
            count_io(jobs, j, bio, d.bios[bio]["error"], d.vec_addr[bio], found)
            jobs.free[first + free] = bio
            last = bio
            free += 1
            count += 1
        if bio < -1:
            jobs.jobs[j]["result"] = bio + 1
            return
        if count:
            short -= count
            if think:
                due = found if jobs.bios[last]["kind"] == SYNC else found + think
            if not jobs.jobs[j]["ramping"]:
                count_level(jobs, j, LEVEL_COMPLETE, count_class(count), 1)
    jobs.jobs[j]["ended_ns"] = clock_ns()
    if jobs.jobs[j]["ramping"]:
        jobs.jobs[j]["counted_ns"] = jobs.jobs[j]["ended_ns"]
