"""The loop of one queue on a file: chains wait in slots for io_uring, and come back in the order they end.

One thread per virtqueue runs `file_worker_loop` while its ring is started: it takes chains (`device.file_request` says
what becomes of each), enters the system once for all of them, answers what ended, and, when there is nothing to do for
`poll_ns`, waits for kick, completions and stop in one poll.

It ends when it is told to stop, or when the ring breaks, but not before nothing is in flight: the system may be reading
or writing guest memory until then.
"""

from __future__ import annotations

from virtblk.device.file_request import EAGAIN, EBUSY, EINTR, EIO, file_completed, file_start
from virtblk.device.slots import answer_ended, slots_out, take_chain, take_events
from virtblk.device.worker import SPINS_PER_CLOCK, WAIT_MS
from virtblk.jit.atomics import cpu_pause, load_acquire_i64, load_i64, store_i64, store_release_i64
from virtblk.jit.io_uring import (
    CQE_USER_DATA,
    cqe_result,
    uring_cqe_seen,
    uring_peek_cqe,
    uring_pending,
    uring_submit,
    uring_take_back,
)
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.libc import clock_ns, poll_in3, sched_yield
from virtblk.storage.request import BATCH
from virtblk.virtio.vringh_split import vringh_available, vringh_notify_disable, vringh_notify_enable

#: A system that takes no submissions is asked this often before they fail.
SUBMIT_TRIES = 10_000


@kernel
def take_chains(vr, mem, disk, requests, worker, q):
    """Take what is available, as far as slots and BATCH go, and begin it: how many."""
    if q.state[0]["free"] == 0:
        return 0
    now = 0
    taken = 0
    while taken < BATCH and q.state[0]["free"] > 0:
        slot = take_chain(vr, mem, disk, requests, q)
        if slot < 0:
            break
        if taken == 0:
            now = clock_ns()
        taken += 1
        requests[slot]["taken_ns"] = now
        file_start(vr, mem, requests, q, slot)
    worker[0]["requests"] += taken
    return taken


@cold_kernel
def fail_submissions(vr, mem, requests, q):
    """The system takes no submissions: end them with EIO. What follows from that is failed in the next turn."""
    for _ in range(uring_pending(q.ring)):
        user_data = uring_take_back(q.ring)
        if user_data < 0:
            return
        file_completed(vr, mem, requests, q, user_data, -EIO)


@kernel
def submit(vr, mem, requests, q):
    """Enter the system once for all that was prepared. A system that is short of something is asked again, for a
    while."""
    tries = 0
    while uring_pending(q.ring):
        result = uring_submit(q.ring)
        if result > 0:
            tries = 0
            continue
        tries += 1
        if tries > SUBMIT_TRIES or (result < 0 and result != -EAGAIN and result != -EINTR and result != -EBUSY):
            fail_submissions(vr, mem, requests, q)
            return
        if uring_peek_cqe(q.ring):
            return  # room may come from what completed
        sched_yield()


@kernel
def reap(vr, mem, requests, q):
    """Go on with all that completed: how many completions."""
    count = 0
    while True:
        cqe = uring_peek_cqe(q.ring)
        if cqe == 0:
            return count
        user_data = load_i64(cqe + CQE_USER_DATA)
        result = cqe_result(cqe)
        uring_cqe_seen(q.ring)
        file_completed(vr, mem, requests, q, user_data, result)
        count += 1


@cold_kernel
def wait_for_work(worker, q, kick_fd):
    """Block until the driver kicks (with `kick_fd` -1: not for that), something completes, control stops us, or
    WAIT_MS pass."""
    ring_fd = q.ring[0]["fd"] if slots_out(q) else -1
    fired = poll_in3(kick_fd, worker[0]["stop_fd"], ring_fd, WAIT_MS)
    take_events(worker, fired)


@cold_kernel
def file_worker_loop(vr, mem, disk, requests, worker, counters, q):
    """Serve one ring until told to stop or until it breaks, and until nothing is out. `done` is the last word."""
    poll_ns = worker[0]["poll_ns"]
    vringh_notify_disable(vr)
    deadline = clock_ns() + poll_ns
    spins = 0
    while True:
        stopping = load_acquire_i64(worker[0]["stop"]) != 0 or vr.state[0]["bad"] != 0
        count = reap(vr, mem, requests, q)
        if not stopping:
            count += take_chains(vr, mem, disk, requests, worker, q)
        if uring_pending(q.ring):
            submit(vr, mem, requests, q)
            count += 1 + reap(vr, mem, requests, q)
        answer_ended(vr, mem, disk, requests, worker, counters, q)
        if stopping and slots_out(q) == 0:
            break
        if count > 0:
            spins = 0
            continue
        if stopping:
            wait_for_work(worker, q, -1)
            continue
        spins += 1
        if spins == 1:
            deadline = clock_ns() + poll_ns
        elif spins % SPINS_PER_CLOCK:
            cpu_pause()
            continue
        if clock_ns() < deadline:
            cpu_pause()
            continue
        if q.state[0]["free"] == 0:  # chains that wait in the ring have to wait: only a completion can help
            wait_for_work(worker, q, -1)
        elif vringh_notify_enable(vr):
            wait_for_work(worker, q, worker[0]["kick_fd"])
        vringh_notify_disable(vr)
        spins = 0
        vringh_available(vr)  # an index that cannot be breaks the ring
    store_i64(worker[0]["stop"], 1)
    store_release_i64(worker[0]["done"], 1)
