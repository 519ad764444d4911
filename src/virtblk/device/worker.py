"""The loop of one queue: take a batch, parse, validate, execute, complete, sleep when idle (Linux: handle_vq_kick).

One thread per virtqueue runs `worker_loop` while its ring is started. It spins for `poll_ns` after the last request,
then enables notifications, looks once more, and blocks on the kick fd and on its stop fd together.
"""

from __future__ import annotations

import numpy as np

from virtblk.device.account import account
from virtblk.device.request import complete, identify, parse, validate
from virtblk.jit.atomics import cpu_pause, load_acquire_i64, store_i64, store_release_i64
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.libc import clock_ns, eventfd_drain, eventfd_signal, poll_in2, poll_out
from virtblk.jit.memory import prefetch_write
from virtblk.mem.regions import MAX_REGIONS, memory_truncated
from virtblk.storage.memory import memory_execute, memory_prefetch
from virtblk.storage.null import null_execute
from virtblk.storage.request import BATCH, KIND_MEMORY, OP_IDENTIFY
from virtblk.virtio.vringh_split import (
    BAD_MEMORY,
    MAX_PIECES,
    vringh_add_used,
    vringh_available,
    vringh_break,
    vringh_getdesc,
    vringh_need_notify,
    vringh_notify_disable,
    vringh_notify_enable,
    vringh_prefetch,
    vringh_publish_used,
)

EINTR = 4
EAGAIN = 11

#: Pieces of a whole batch; a batch ends early where one more chain might not fit.
PIECES = 4096
#: A batch is over once it has this much to copy: the stop word is looked at between batches.
BATCH_BYTES = 8 << 20
#: Blocking waits look at the stop word this often even if nobody signals.
WAIT_MS = 1000
SPINS_PER_CLOCK = 16

#: Words of a worker, by index in its `mem.shm.Words`.
WORD_STOP = 0
WORD_DONE = 1
WORDS = 2

WORKER_DTYPE = np.dtype(
    [
        ("stop", "i8"),  # addresses of the words above
        ("done", "i8"),
        ("call_fd", "i8"),
        ("kick_fd", "i8"),
        ("stop_fd", "i8"),
        ("poll_ns", "i8"),
        ("requests", "i8"),  # counters
        ("kicks", "i8"),
        ("calls", "i8"),
        ("timed", "i8"),  # 1: latencies are wanted, at the price of reading the clock
        ("delay_ns", "i8"),  # spin this long for each request: a slow device, for tests of what notices it
    ]
)


@cold_kernel
def take_time(requests, i, began):
    """Record `i` was taken when its batch began: the time of that, read if `began` is 0."""
    if began == 0:
        began = clock_ns()
    requests[i]["taken_ns"] = began
    return began


@cold_kernel
def forget_times(requests, count):
    """The batch is over: nothing is in flight."""
    for i in range(count):
        requests[i]["taken_ns"] = 0


@kernel
def answer_request(vr, mem, disk, requests, counters, i, now):
    """Record `i` has ended: write its status, count it (`now` as for `account`), and put it into the used ring."""
    if requests[i]["op"] == OP_IDENTIFY:
        identify(disk, mem, requests, i, vr.piece_addr, vr.piece_len)
    used = complete(mem, requests, i)
    account(counters, requests, i, now)
    vringh_add_used(vr, requests[i]["head"], used)


@kernel
def process_batch(vr, mem, disk, requests, worker, counters):
    """Take and finish what is available, BATCH chains at most: how many, 0, or RING_BROKEN (negative)."""
    count = 0
    first = 0
    failed = 0
    size = 0
    began = 0
    memory = disk.state[0]["kind"] == KIND_MEMORY
    if vringh_available(vr) > 1:
        vringh_prefetch(vr, mem, BATCH)
    while count < BATCH and size < BATCH_BYTES and first + MAX_PIECES + MAX_REGIONS <= PIECES:
        head = vringh_getdesc(vr, mem, first)
        if head < 0:
            failed = head
            break
        pieces = vr.state[0]["pieces"]
        readable = vr.state[0]["readable"]
        kind, sector = parse(requests, count, head, vr.piece_addr, vr.piece_len, first, pieces, readable)
        validate(disk, requests, count, kind, sector)
        if worker[0]["timed"]:
            began = take_time(requests, count, began)
        prefetch_write(requests[count]["status_at"])
        if memory:
            memory_prefetch(disk.state[0]["address"], requests, count)
        first += pieces
        size += requests[count]["length"]
        count += 1
    if count:
        if memory:
            memory_execute(disk.state[0]["address"], mem, requests, count, vr.piece_addr, vr.piece_len)
        else:
            null_execute(requests, count)
        if memory_truncated(mem):
            forget_times(requests, count)
            return vringh_break(vr, BAD_MEMORY, count)  # zeroes were copied in place of data: acknowledge nothing
        now = clock_ns() if began else 0
        for i in range(count):
            answer_request(vr, mem, disk, requests, counters, i, now)
        if began:
            forget_times(requests, count)
        worker[0]["requests"] += count
        vringh_publish_used(vr)  # last: who sees an answer finds it counted
    elif failed < -1:
        return failed
    return count


@kernel
def signal_driver(vr, worker):
    """Interrupt the driver if it asked for it.

    Its fd may be a pipe or an eventfd that blocks when full: ask first. Full means that a signal is pending.
    """
    if not vringh_need_notify(vr):
        return
    call_fd = worker[0]["call_fd"]
    if call_fd >= 0 and poll_out(call_fd) == 1:
        eventfd_signal(call_fd)
        worker[0]["calls"] += 1


@kernel
def take_kick(worker):
    """The kick fd is readable: empty it, and count the kick."""
    drained = eventfd_drain(worker[0]["kick_fd"])
    if drained <= 0 and drained != -EAGAIN and drained != -EINTR:
        # A pipe whose writer is gone stays readable for ever: wait for all else alone from now on.
        worker[0]["kick_fd"] = -1
    worker[0]["kicks"] += 1


@cold_kernel
def wait_for_kick(worker):
    """Block until the driver kicks, control stops us, or WAIT_MS pass."""
    fired = poll_in2(worker[0]["kick_fd"], worker[0]["stop_fd"], WAIT_MS)
    if fired > 0 and fired & 1:
        take_kick(worker)


@cold_kernel
def delay(worker, count):
    """Be as slow as a device that takes `delay_ns` longer for each of `count` requests."""
    until = clock_ns() + count * worker[0]["delay_ns"]
    while clock_ns() < until:
        cpu_pause()


@cold_kernel
def worker_loop(vr, mem, disk, requests, worker, counters):
    """Serve one ring until its stop word is set or the ring breaks. The last word written is `done`."""
    poll_ns = worker[0]["poll_ns"]
    vringh_notify_disable(vr)
    deadline = clock_ns() + poll_ns
    spins = 0
    while load_acquire_i64(worker[0]["stop"]) == 0:
        count = process_batch(vr, mem, disk, requests, worker, counters)
        if count < 0:
            break
        if count > 0:
            if worker[0]["delay_ns"]:
                delay(worker, count)
            signal_driver(vr, worker)
            spins = 0
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
        if vringh_notify_enable(vr):
            wait_for_kick(worker)
        vringh_notify_disable(vr)
        spins = 0
        if vringh_available(vr) < 0:
            break
    store_i64(worker[0]["stop"], 1)
    store_release_i64(worker[0]["done"], 1)
