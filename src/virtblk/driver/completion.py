"""Completion and the one waiting rule (Linux: virtblk_done, bio_endio, blk_poll).

Whoever finds used requests reaps all of them under the queue lock, bios' and requests' alike, ends their bios and puts
these on their owners' completion lists, and starts the queue again if requests wait in it; after the lock is dropped it
wakes the owners that sleep, and one each of those that wait for room and for a request of the pool.

Waiting, for completions or for room, is one rule: reap what is there; spin for `poll_ns`, reaping; then ask for an
interrupt and block for a bounded time. Interrupts are asked for while somebody blocks, and only then. Where `poll_ns`
is 0 a submitter still glances at the ring before it blocks, as long as that has helped (`virtblk_glance`). In interrupt
mode one completion thread per queue (`completion_loop`) waits on the call fd; with polling alone there is none.

A disk of several virtqueues has as many of these queues. They share nothing but their end: see virtblk_break.
"""

from __future__ import annotations

from virtblk.block.bio import REQ_OP_GET_ID, STEP_REQUEST, bio_endio
from virtblk.block.blk_flush import blk_flush_end_io
from virtblk.block.elevator import blk_queue_idle
from virtblk.block.request import LIST_DONE, RQ_DRIVER, blk_put_request, list_del, list_first, list_head
from virtblk.driver.auto import blk_auto_look
from virtblk.driver.handle import queue_of
from virtblk.driver.request_fn import blk_start_queue
from virtblk.driver.virtblk_req import LINE_HEAD, LINE_WAIT, PATH_BIO, PATH_MQ, has_bio_path, virtblk_free_req
from virtblk.jit.atomics import (
    cmpxchg_u32,
    cpu_pause,
    exchange_u32,
    fetch_add_i64,
    load_acquire_i64,
    load_acquire_u32,
    load_i64,
    load_u8,
    store_release_i64,
)
from virtblk.jit.kernel import cold_kernel, inline_kernel, kernel
from virtblk.jit.libc import clock_ns, eventfd_drain, poll_in2, sched_yield
from virtblk.jit.lock import (
    mutex_lock,
    mutex_trylock,
    mutex_unlock,
    wait_finish,
    wait_prepare,
    wait_sleep,
    waiters,
    wake_up,
)
from virtblk.uapi.virtio_blk import VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP
from virtblk.virtio.virtio_ring_split import (
    NOTHING_USED,
    RING_BROKEN,
    virtqueue_disable_cb,
    virtqueue_enable_cb,
    virtqueue_get_buf,
    virtqueue_more_used,
    virtqueue_notify,
)

EIO = 5
ENOTTY = 25
EPROTO = 71
ETIMEDOUT = 110

#: Bound of every sleep: what is lost meanwhile (nothing, if the barriers hold) is found after this.
SLEEP_NS = 50_000_000
WAKE_ALL = 1 << 30
COMPLETION_WAIT_MS = 1000
#: How often a submitter of many gives way before it blocks: who runs next may find what we wait for. Where nobody
#: else runs, a turn of that takes less than a microsecond, and all of them less than falling asleep and waking up.
COURTESY = 8
#: How long one that has its core to itself looks before it blocks: what falling asleep and being woken cost it.
GLANCE_NS = 10_000
#: How many waits in a row go without a glance, at most: a disk that is never so quick pays 1/64 of one per wait.
BLIND = 63
#: Rounds without a find after which the one who polls looks at the clock, and lets another poll.
TURN_ROUNDS = 4096
#: And where others poll other virtqueues on the same core: more is their time.
TURN_ROUNDS_SHARED = 64
#: What a submitter waits for besides free descriptors (their number) and completions (0): a request of the pool.
WAIT_REQUEST = -1


@kernel
def virtblk_result(status):
    """Status byte -> errno of the bio (status.STATUS_TABLE); anything unknown, the sentinel included, is EIO."""
    if status == VIRTIO_BLK_S_OK:
        return 0
    if status == VIRTIO_BLK_S_UNSUPP:
        return ENOTTY
    return EIO


@cold_kernel
def virtblk_break(d, error):
    """End the queue for good with a positive errno and wake everybody, then the disk's other queues likewise.

    The first reason of each stays. One lock at a time, so whoever breaks another queue meanwhile is not waited for.
    """
    handle = d.queue[0]["handle"]
    while True:
        b = queue_of(handle, d.paths)
        mutex_lock(b.queue[0]["lock"])
        if b.queue[0]["error"] == 0:
            b.queue[0]["error"] = error
        mutex_unlock(b.queue[0]["lock"])
        for s in range(b.queue[0]["submitters"]):
            wake_up(b.submitters[s]["line"] + LINE_WAIT, WAKE_ALL)
        wake_up(b.queue[0]["queue_wait"], WAKE_ALL)
        wake_up(b.queue[0]["request_wait"], WAKE_ALL)
        handle = b.queue[0]["next_queue"]
        if handle == d.queue[0]["handle"]:
            return


@kernel
def virtblk_bio_done(d, bio, reaper, noted):
    """Put a bio that ended on its owner's list; returns how many owners `reaper` has to wake. Under the queue lock."""
    owner = d.bios[bio]["owner"]
    line = d.submitters[owner]["line"]
    head = load_i64(line + LINE_HEAD)
    size = d.queue[0]["done_size"]
    d.done_list[owner * size + (head & (size - 1))] = bio
    store_release_i64(line + LINE_HEAD, head + 1)  # partner: the owner's acquire in virtblk_pending
    if d.submitters[owner]["mark"] != d.queue[0]["reaps"]:
        d.submitters[owner]["mark"] = d.queue[0]["reaps"]
        d.noted[reaper * d.queue[0]["submitters"] + noted] = owner
        noted += 1
    return noted


@kernel
def virtblk_end_bios(d, bio, last, error, reaper, noted):
    """The request of the bios from `bio` to `last` ended: owners noted so far. Under the queue lock."""
    while True:
        following = d.bios[bio]["next"]  # before its owner has it back
        if bio_endio(d.bios, bio, error):
            noted = virtblk_bio_done(d, bio, reaper, noted)
        if bio == last:
            return noted
        bio = following


@kernel
def virtblk_end_request(d, rq, error, reaper, noted):
    """End all bios of a request and put it back (blk_end_request_all): owners noted so far. Under the queue lock."""
    if error and d.q.rq[rq]["op"] == REQ_OP_GET_ID:
        error = EIO  # as the posting ends its SPECIAL requests: an error is an error
    noted = virtblk_end_bios(d, d.q.rq[rq]["bio"], d.q.rq[rq]["bio_tail"], error, reaper, noted)
    blk_put_request(d.q, rq)
    return noted


@cold_kernel
def virtblk_end_flush(d, rq, error, reaper, noted):
    """A request of the flush machinery ended: end those whose sequences are over now. Under the queue lock."""
    blk_flush_end_io(d.q, rq, error, clock_ns())
    done = list_head(d.q, LIST_DONE)
    while True:
        ended = list_first(d.q, done)
        if ended < 0:
            return noted
        list_del(d.q, ended)
        noted = virtblk_end_request(d, ended, d.q.rq[ended]["error"], reaper, noted)


@kernel
def virtblk_reap_locked(d, reaper, noted):
    """Take every used request off the ring: (how many, owners noted so far). Under the queue lock."""
    count = 0
    while True:
        req, _ = virtqueue_get_buf(d.vq)
        if req == NOTHING_USED:
            break
        if req == RING_BROKEN:
            if d.queue[0]["error"] == 0:
                d.queue[0]["error"] = EPROTO
            break
        error = virtblk_result(load_u8(d.requests[req]["status"]))
        bio = d.requests[req]["bio"]
        last = d.requests[req]["bio_tail"]
        rq = d.requests[req]["rq"]
        virtblk_free_req(d, req)
        if has_bio_path(d.paths) and rq < 0:
            noted = virtblk_end_bios(d, bio, last, error, reaper, noted)
        elif d.q.rq[rq]["seq"] or rq == d.q.state[0]["flush_rq"]:
            noted = virtblk_end_flush(d, rq, error, reaper, noted)
        else:
            noted = virtblk_end_request(d, rq, error, reaper, noted)
        count += 1
    return count, noted


@kernel
def virtblk_wake(d, reaper, noted, room):
    """Wake the noted owners, and one submitter that waits for room if there is any. After the lock was dropped."""
    first = reaper * d.queue[0]["submitters"]
    for i in range(first, first + noted):
        wake_up(d.submitters[d.noted[i]]["line"] + LINE_WAIT, 1)
    if room:
        wake_up(d.queue[0]["queue_wait"], 1)
        wake_up(d.queue[0]["request_wait"], 1)


@kernel
def virtblk_end_reap(d, reaper, noted, count):
    """Start the queue after a reap of `count`, drop the lock, kick, wake whom it concerns: 0, or -errno where the ring
    turned out broken."""
    error = d.queue[0]["error"]
    ended = d.queue[0]["ended"] + count
    d.queue[0]["ended"] = ended
    if ended >= d.queue[0]["look_at"] and error == 0:
        blk_auto_look(d.queue[0]["handle"], d.paths)
    kick = count > 0 and error == 0 and not blk_queue_idle(d.q) and blk_start_queue(d, reaper)
    mutex_unlock(d.queue[0]["lock"])
    if kick:
        virtqueue_notify(d.vq)
        d.submitters[reaper]["kicks"] += 1
    virtblk_wake(d, reaper, noted, count > 0)
    if error:
        virtblk_break(d, error)
    return -error


@cold_kernel
def virtblk_done_at(handle, paths, reaper, patient):
    """virtblk_done, where there is something to reap."""
    d = queue_of(handle, paths)
    if patient:
        mutex_lock(d.queue[0]["lock"])
    elif not mutex_trylock(d.queue[0]["lock"]):
        return 0
    if d.queue[0]["error"]:
        mutex_unlock(d.queue[0]["lock"])
        return -d.queue[0]["error"]
    d.queue[0]["reaps"] += 1
    count, noted = virtblk_reap_locked(d, reaper, 0)
    error = virtblk_end_reap(d, reaper, noted, count)
    return error if error < 0 else count


@inline_kernel
def virtblk_done(d, reaper, patient):
    """Reap: how many requests ended, or -errno once the queue is over. Not `patient`: 0 where the lock is taken."""
    if d.queue[0]["error"]:
        return -d.queue[0]["error"]
    if not virtqueue_more_used(d.vq):
        return 0
    return virtblk_done_at(d.queue[0]["handle"], d.paths, reaper, patient)


@cold_kernel
def virtblk_interrupt(d, reaper):
    """The call fd fired: reap, and ask for the next interrupt if somebody blocks. 0 or -errno."""
    mutex_lock(d.queue[0]["lock"])
    if d.queue[0]["error"]:
        mutex_unlock(d.queue[0]["lock"])
        return -d.queue[0]["error"]
    virtqueue_disable_cb(d.vq)
    d.queue[0]["reaps"] += 1
    d.queue[0]["interrupts"] += 1
    count, noted = virtblk_reap_locked(d, reaper, 0)
    while d.queue[0]["error"] == 0 and load_acquire_i64(d.queue[0]["sleepers"]) > 0 and not virtqueue_enable_cb(d.vq):
        more, noted = virtblk_reap_locked(d, reaper, noted)
        count += more
    return virtblk_end_reap(d, reaper, noted, count)


@kernel
def virtblk_pending(d, sub):
    """Completions on the submitter's list that it has not taken."""
    return load_acquire_i64(d.submitters[sub]["line"] + LINE_HEAD) - d.submitters[sub]["tail"]


@kernel
def virtblk_ready(d, sub, room):
    """What the submitter waits for is there: `room` free descriptors, or (room 0) a completion of its own, or a request
    of the pool (WAIT_REQUEST)."""
    if d.queue[0]["error"]:
        return True
    if room == WAIT_REQUEST:
        return d.q.state[0]["in_use"] < d.q.state[0]["nr_requests"]
    if room:
        return d.vq.state[0]["num_free"] >= room
    return virtblk_pending(d, sub) > 0


@kernel
def virtblk_wait_queue(d, sub, room):
    """The wait queue for what the submitter waits for."""
    if room == 0:
        return d.submitters[sub]["line"] + LINE_WAIT
    return d.queue[0]["request_wait"] if room == WAIT_REQUEST else d.queue[0]["queue_wait"]


@inline_kernel
def virtblk_block(d, sub, room):
    """Ask for an interrupt and sleep until woken, SLEEP_NS at most.

    The count of sleepers goes up before the ring is looked at once more (virtqueue_enable_cb, which has the fence), so
    a completion thread that reaps meanwhile either sees the count or leaves something that we see.
    """
    queue = virtblk_wait_queue(d, sub, room)
    sequence = wait_prepare(queue)
    fetch_add_i64(d.queue[0]["sleepers"], 1)
    mutex_lock(d.queue[0]["lock"])
    quiet = virtqueue_enable_cb(d.vq)
    mutex_unlock(d.queue[0]["lock"])
    if quiet and not virtblk_ready(d, sub, room):
        wait_sleep(queue, sequence, SLEEP_NS)
    fetch_add_i64(d.queue[0]["sleepers"], -1)
    wait_finish(queue)


@kernel
def virtblk_glance(d, sub):
    """How long the submitter looks before it blocks in interrupt mode: `glance_ns`, or 0 in as many waits as
    virtblk_glanced has told it to go without."""
    blind = d.submitters[sub]["blind"]
    if blind:
        d.submitters[sub]["blind"] = blind - 1
        return 0
    return d.queue[0]["glance_ns"]


@kernel
def virtblk_glanced(d, sub, helped):
    """Learn from a glance: after one that helped, the next wait has one, too; after each in vain, twice as many waits
    and one more go without, BLIND at most."""
    vain = 0 if helped else min(2 * d.submitters[sub]["vain"] + 1, BLIND)
    d.submitters[sub]["vain"] = vain
    d.submitters[sub]["blind"] = vain


@cold_kernel
def virtblk_pass_turn(d, sub):
    """Stop being the one who polls, and wake somebody who waits to take over.

    The exchange is the fence between giving up the turn and looking for sleepers; its partner is wait_prepare's,
    between announcing a sleeper and looking at the turn.
    """
    exchange_u32(d.queue[0]["turn"], 0)
    for room in range(WAIT_REQUEST, 2, 2):  # a request of the pool, a free descriptor
        queue = virtblk_wait_queue(d, sub, room)
        if waiters(queue) > 0:
            wake_up(queue, 1)
            return
    count = d.queue[0]["submitters"]
    for i in range(1, count):
        queue = d.submitters[(sub + i) % count]["line"] + LINE_WAIT
        if waiters(queue) > 0:
            wake_up(queue, 1)
            return


@cold_kernel
def blk_timeout_base(d, now):
    """What a wait for a completion counts from on the request path: when the oldest request that the device has was
    started, or now. A request's time runs from its start, not while it waits in the queue (blk_rq_timed_out_timer)."""
    oldest = now
    count = d.q.state[0]["most_used"]
    for i in range(count + 1):
        rq = i if i < count else d.q.state[0]["flush_rq"]
        if d.q.rq[rq]["where"] == RQ_DRIVER:
            oldest = min(oldest, d.q.rq[rq]["start_ns"])
    return oldest


@cold_kernel
def virtblk_timeout_base(d, sub, since, now):
    """What a wait for a completion counts from where requests of the block layer may be out.

    On the mq path that is when the wait began, `since`, if the device has a bio of the submitter's without such a
    request: it had it before.
    """
    if d.queue[0]["path"] == PATH_MQ:
        for head in range(d.vq.state[0]["num"]):
            req = d.vq.token[head]
            if req >= 0 and d.requests[req]["rq"] < 0:
                bio = d.requests[req]["bio"]
                if d.bios[bio]["owner"] == sub and d.bios[bio]["step"] != STEP_REQUEST:
                    return since
    return blk_timeout_base(d, now)


@cold_kernel
def virtblk_late(d, sub, room, reap, since, used, now):
    """A wait that counts from `since` seems to have lasted `timeout_ns`: end the queue if it has, or say what it counts
    from instead.

    What ended in time counts, even if nobody has looked yet, or whoever did is not through with it: hence the lock.
    """
    if reap:
        virtblk_done_at(d.queue[0]["handle"], d.paths, sub, True)
    else:
        mutex_lock(d.queue[0]["lock"])
        mutex_unlock(d.queue[0]["lock"])
    if virtblk_ready(d, sub, room) or (not reap and virtqueue_more_used(d.vq)):
        return since
    if room:
        if used != d.vq.state[0]["last_used"]:
            return now
    elif d.queue[0]["path"] != PATH_BIO:
        since = virtblk_timeout_base(d, sub, since, now)
    if now - since > d.queue[0]["timeout_ns"]:
        virtblk_break(d, ETIMEDOUT)
    return since


@inline_kernel
def virtblk_wait_in_turn(d, sub, room):
    """virtblk_wait for more pollers than cores: one polls for all, the others sleep until their turn or their wake-up.

    256 threads that all spin, or yield to each other, reach a hundredth of what one poller and 255 sleepers do.
    """
    since = 0
    used = -1
    shared = d.queue[0]["crowded"] > 1
    most = TURN_ROUNDS_SHARED if shared else TURN_ROUNDS
    while not virtblk_ready(d, sub, room):
        if cmpxchg_u32(d.queue[0]["turn"], 0, 1) == 0:
            rounds = 0
            while not virtblk_ready(d, sub, room) and rounds < most:
                if virtblk_done(d, sub, False) == 0:
                    rounds += 1
                    cpu_pause()
            virtblk_pass_turn(d, sub)
            if shared and rounds == most:
                sched_yield()
        else:
            queue = virtblk_wait_queue(d, sub, room)
            sequence = wait_prepare(queue)
            if not virtblk_ready(d, sub, room) and load_acquire_u32(d.queue[0]["turn"]) != 0:
                wait_sleep(queue, sequence, SLEEP_NS)
            wait_finish(queue)
        now = clock_ns()
        if since == 0 or (room and used != d.vq.state[0]["last_used"]):
            since = now
            used = d.vq.state[0]["last_used"]
        if now - since > d.queue[0]["timeout_ns"]:
            since = virtblk_late(d, sub, room, True, since, used, now)
    return -d.queue[0]["error"]


@cold_kernel
def virtblk_wait_at(handle, paths, sub, room, reap):
    """virtblk_wait, where there is something to wait for."""
    d = queue_of(handle, paths)
    poll_ns = d.queue[0]["poll_ns"]
    if d.queue[0]["crowded"]:
        if poll_ns < 0:
            return virtblk_wait_in_turn(d, sub, room)
        poll_ns = 0
    glance = 0
    if poll_ns == 0 and not d.queue[0]["crowded"]:
        poll_ns = glance = virtblk_glance(d, sub)
    began = 0  # when nothing was found, for `poll_ns`
    since = 0  # what the time-out counts from
    used = -1  # where the used ring stood then
    rounds = 0
    courtesy = COURTESY if d.queue[0]["crowded"] else 0  # times to give way before blocking
    while not virtblk_ready(d, sub, room):
        if virtqueue_more_used(d.vq):
            if not reap:
                break
            if virtblk_done(d, sub, False) > 0:
                began = 0
                continue
        if poll_ns != 0:
            rounds += 1
            cpu_pause()
            if rounds & 15:
                continue  # a clock read is worth some rounds
        now = clock_ns()
        if began == 0:
            began = now
        if since == 0 or (room and used != d.vq.state[0]["last_used"]):
            since = now
            used = d.vq.state[0]["last_used"]
        if now - since > d.queue[0]["timeout_ns"]:
            since = virtblk_late(d, sub, room, reap, since, used, now)
            continue
        if poll_ns >= 0 and now - began >= poll_ns:
            if courtesy:
                courtesy -= 1
                sched_yield()
                continue
            if glance:
                virtblk_glanced(d, sub, False)
                poll_ns = glance = 0
            virtblk_block(d, sub, room)
    if glance and rounds:
        virtblk_glanced(d, sub, True)
    return -d.queue[0]["error"]


@inline_kernel
def virtblk_wait(d, sub, room, reap):
    """Wait until `virtblk_ready`: 0, or -errno once the queue is over.

    Ends the queue with ETIMEDOUT when a completion stays away for `timeout_ns`, whatever ends for others meanwhile, or
    when no room is there and nothing at all ends for that long. Reaps what it finds; without `reap` it returns as soon
    as there is something to reap (a load generator that wants to know how long the reaping takes).
    """
    if virtblk_ready(d, sub, room):
        return -d.queue[0]["error"]
    return virtblk_wait_at(d.queue[0]["handle"], d.paths, sub, room, reap)


@cold_kernel
def completion_loop(d, reaper):
    """Interrupt mode's thread: wait on the call fd, reap, until the stop word is set. Sets its done word last."""
    while load_acquire_i64(d.queue[0]["stop"]) == 0:
        fired = poll_in2(d.queue[0]["call_fd"], d.queue[0]["stop_fd"], COMPLETION_WAIT_MS)
        if fired > 0 and fired & 1:
            eventfd_drain(d.queue[0]["call_fd"])
            if virtblk_interrupt(d, reaper) < 0:
                break
    store_release_i64(d.queue[0]["done"], 1)
