"""The loop of one queue on a simulated disk: chains wait in slots until the model says that they have ended.

One thread per virtqueue runs `sim_worker_loop` while its ring is started. It tells the model what comes and what time
it is (`storage.sim.queue`), moves the data of what has ended, as for `ram:`, and answers it in the model's order. In
between it sleeps; the last `SPIN_NS` before something ends it spins, since no sleep is as exact as that. The model's
time does not depend on it: what the worker notices late was over when the model says.

It ends when it is told to stop, or when the ring breaks, and all that was taken has ended.
"""

from __future__ import annotations

from virtblk.device.slots import answer_ended, take_chain, take_events
from virtblk.device.worker import SPINS_PER_CLOCK, WAIT_MS
from virtblk.jit.atomics import cpu_pause, load_acquire_i64, load_i64, store_i64, store_release_i64
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.libc import clock_ns, ppoll_in2
from virtblk.storage.memory import memory_request
from virtblk.storage.request import (
    BATCH,
    FLAG_FUA,
    OP_IDENTIFY,
    OP_NONE,
    OP_WRITE_ZEROES,
    RANGE_SECTOR,
    SCRATCH_RANGES,
)
from virtblk.storage.sim.queue import (
    NOTHING_DUE,
    SECTOR_SHIFT,
    model_time,
    real_ns,
    sim_queue_due,
    sim_queue_poll,
    sim_queue_submit,
)
from virtblk.virtio.vringh_split import vringh_available, vringh_notify_disable, vringh_notify_enable

#: No system sleeps as exactly as this: the last part of a wait is spun.
SPIN_NS = 50_000
WAIT_NS = WAIT_MS * 1_000_000


@cold_kernel
def zero_bytes(requests, i):
    """How many bytes a write zeroes covers, and where the first of them is: the model takes them for one range."""
    at = requests[i]["scratch"] + SCRATCH_RANGES
    if requests[i]["ranges"] == 0:
        return 0, 0
    return load_i64(at + RANGE_SECTOR) << SECTOR_SHIFT, requests[i]["length"]


@kernel
def take_chains(vr, mem, disk, requests, worker, m, q, now):
    """Take what is available, as far as slots and BATCH go, and tell the model: how many."""
    taken = 0
    began = clock_ns() if worker[0]["timed"] else 0
    while taken < BATCH and q.state[0]["free"]:
        slot = take_chain(vr, mem, disk, requests, q)
        if slot < 0:
            break
        taken += 1
        requests[slot]["taken_ns"] = began
        op = requests[slot]["op"]
        if op == OP_NONE or op == OP_IDENTIFY:  # nothing for a disk to do
            q.ended[q.state[0]["ended"]] = slot
            q.state[0]["ended"] += 1
            continue
        offset = requests[slot]["offset"]
        length = requests[slot]["length"]
        if op == OP_WRITE_ZEROES:
            offset, length = zero_bytes(requests, slot)
        sim_queue_submit(m, q, slot, op, offset, length, requests[slot]["flags"] & FLAG_FUA, now)
    worker[0]["requests"] += taken
    return taken


@kernel
def move_data(vr, mem, disk, requests, q):
    """Move the data of what has ended, in that order, before it is answered. Nothing moves on a broken ring."""
    for k in range(q.state[0]["ended"]):
        slot = q.ended[k]
        op = requests[slot]["op"]
        if vr.state[0]["bad"] == 0 and op != OP_NONE and op != OP_IDENTIFY:
            memory_request(disk.state[0]["address"], mem, requests, slot, vr.piece_addr, vr.piece_len)


@cold_kernel
def wait_for_work(worker, kick_fd, timeout_ns):
    """Block until the driver kicks (with `kick_fd` -1: not for that), control stops us, or the time is up."""
    fired = ppoll_in2(kick_fd, worker[0]["stop_fd"], timeout_ns)
    take_events(worker, fired)


@kernel
def time_to_sleep(m, q):
    """Nanoseconds until the next thing may end, less what is spun; 0 or less: spin. WAIT_NS at most."""
    due = sim_queue_due(m, q)
    if due == NOTHING_DUE:
        return WAIT_NS
    return min(real_ns(m, due, model_time(m, clock_ns())) - SPIN_NS, WAIT_NS)


@cold_kernel
def sim_worker_loop(vr, mem, disk, requests, worker, counters, m, q):
    """Serve one ring until told to stop or until it breaks, and until nothing is out. The word `done` comes last."""
    poll_ns = worker[0]["poll_ns"]
    vringh_notify_disable(vr)
    deadline = clock_ns() + poll_ns
    spins = 0
    while True:
        stopping = load_acquire_i64(worker[0]["stop"]) != 0 or vr.state[0]["bad"] != 0
        now = model_time(m, clock_ns())
        sim_queue_poll(m, q, now)
        count = 0
        if not stopping:
            count += take_chains(vr, mem, disk, requests, worker, m, q, now)
        move_data(vr, mem, disk, requests, q)
        count += answer_ended(vr, mem, disk, requests, worker, counters, q)
        if count > 0:
            spins = 0
            continue
        if stopping:
            if q.state[0]["out"] == 0:
                break
            pause = time_to_sleep(m, q)
            if pause > 0:
                wait_for_work(worker, -1, pause)
            continue
        spins += 1
        if spins == 1:
            deadline = clock_ns() + poll_ns
        elif spins % SPINS_PER_CLOCK:
            cpu_pause()
            continue
        if clock_ns() < deadline or time_to_sleep(m, q) <= 0:
            cpu_pause()
            continue
        kick_fd = worker[0]["kick_fd"]
        if q.state[0]["free"] == 0:  # chains that wait in the ring have to wait: only an end can help
            wait_for_work(worker, -1, max(0, time_to_sleep(m, q)))
        elif vringh_notify_enable(vr):
            wait_for_work(worker, kick_fd, max(0, time_to_sleep(m, q)))
        vringh_notify_disable(vr)
        spins = 0
        vringh_available(vr)  # an index that cannot be breaks the ring
    store_i64(worker[0]["stop"], 1)
    store_release_i64(worker[0]["done"], 1)
