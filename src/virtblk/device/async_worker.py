"""The loop of one queue whose storage takes its time: chains wait in slots, and come back in the order they end.

One thread per virtqueue runs `async_worker_loop` while its ring is started. What it takes off the ring it puts into
the mailbox for the queue's dispatcher (`device.dispatcher`), which hands it to the storage; whoever ends a request puts
its slot on the way back, and wakes the worker through the fd that also stops it. Only the worker touches ring and
status bytes.

It ends when it is told to stop, or when the ring breaks, but not before every slot has come back: the storage may be
reading or writing guest memory until then.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.device.slots import check_memory, free_slot, slots_out, take_chain, take_events
from virtblk.device.worker import SPINS_PER_CLOCK, WAIT_MS, answer_request, signal_driver
from virtblk.jit.atomics import cpu_pause, load_acquire_i64, store_i64, store_release_i64
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.libc import clock_ns, eventfd_signal, poll_in2
from virtblk.jit.table import Table
from virtblk.storage.request import BATCH, OP_IDENTIFY, OP_NONE, OP_READ
from virtblk.virtio.vringh_split import (
    vringh_available,
    vringh_notify_disable,
    vringh_notify_enable,
    vringh_publish_used,
)

MAILBOX_DTYPE = np.dtype(
    [
        ("slots", "i8"),  # a power of two
        ("free", "i8"),  # slots on the stack of free ones
        ("submit_fd", "i8"),  # wakes the dispatcher
        ("submitted", "i8"),  # address of the count of slots handed over; the worker writes it
        ("ended", "i8"),  # address of the count of slots that came back; who ends a request writes it
        ("taken_back", "i8"),  # how many of these the worker has seen
    ]
)


class Mailbox(NamedTuple):
    """Slots on their way: handed over in `todo`, back in `done`, both rings; `free` is a stack."""

    state: Table  # [1] MAILBOX_DTYPE
    free: Table  # [slots]
    todo: Table  # [slots]
    done: Table  # [slots]


@kernel
def take_chains(vr, mem, disk, requests, worker, counters, mail):
    """Take what is available, as far as slots and BATCH go: chains taken, and of these answered on the spot."""
    now = clock_ns()
    mask = mail.state[0]["slots"] - 1
    submitted = load_acquire_i64(mail.state[0]["submitted"])
    first = submitted
    taken = 0
    answered = 0
    while taken < BATCH and mail.state[0]["free"] > 0:
        slot = take_chain(vr, mem, disk, requests, mail)
        if slot < 0:
            break
        taken += 1
        requests[slot]["taken_ns"] = now
        op = requests[slot]["op"]
        if op == OP_NONE or op == OP_IDENTIFY:
            answer_request(vr, mem, disk, requests, counters, slot, now if worker[0]["timed"] else 0)
            free_slot(requests, mail, slot)
            answered += 1
        else:
            mail.todo[submitted & mask] = slot
            submitted += 1
    if submitted != first:
        store_release_i64(mail.state[0]["submitted"], submitted)  # partner: the dispatcher's acquire
        eventfd_signal(mail.state[0]["submit_fd"])
    worker[0]["requests"] += taken
    return taken, answered


@kernel
def finish_ended(vr, mem, disk, requests, worker, counters, mail):
    """Answer what came back: how many slots. On a broken ring they are only freed."""
    ended = load_acquire_i64(mail.state[0]["ended"])  # partner: the release of who ended the last of them
    seen = mail.state[0]["taken_back"]
    if ended == seen:
        return 0
    mask = mail.state[0]["slots"] - 1
    check_memory(vr, mem, ended - seen)
    now = clock_ns() if worker[0]["timed"] else 0
    while seen != ended:
        slot = mail.done[seen & mask]
        if vr.state[0]["bad"] == 0:
            if requests[slot]["op"] == OP_READ and requests[slot]["result"] == 0:
                requests[slot]["used_len"] = requests[slot]["length"]
            answer_request(vr, mem, disk, requests, counters, slot, now)
        free_slot(requests, mail, slot)
        seen += 1
    count = seen - mail.state[0]["taken_back"]
    mail.state[0]["taken_back"] = seen
    return count


@cold_kernel
def wait_for_work(worker, kick_fd):
    """Block until the driver kicks (with `kick_fd` -1: not for that), a request ends, control stops us, or WAIT_MS."""
    fired = poll_in2(kick_fd, worker[0]["stop_fd"], WAIT_MS)
    take_events(worker, fired)


@cold_kernel
def async_worker_loop(vr, mem, disk, requests, worker, counters, mail):
    """Serve one ring until told to stop or until it breaks, and until nothing is out. The word `done` comes last."""
    poll_ns = worker[0]["poll_ns"]
    vringh_notify_disable(vr)
    deadline = clock_ns() + poll_ns
    spins = 0
    while True:
        stopping = load_acquire_i64(worker[0]["stop"]) != 0 or vr.state[0]["bad"] != 0
        count = finish_ended(vr, mem, disk, requests, worker, counters, mail)
        answered = count
        if not stopping and vr.state[0]["bad"] == 0:
            taken, at_once = take_chains(vr, mem, disk, requests, worker, counters, mail)
            count += taken
            answered += at_once
        if answered and vr.state[0]["bad"] == 0:
            vringh_publish_used(vr)
            signal_driver(vr, worker)
        if stopping:
            if slots_out(mail) == 0:
                break
            if count == 0:
                wait_for_work(worker, -1)
            continue
        if count > 0:
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
        full = mail.state[0]["free"] == 0
        if full:  # chains that wait in the ring have to wait: only an end can help
            wait_for_work(worker, -1)
        elif vringh_notify_enable(vr):
            wait_for_work(worker, worker[0]["kick_fd"])
        vringh_notify_disable(vr)
        spins = 0
        vringh_available(vr)  # an index that cannot be breaks the ring
    store_i64(worker[0]["stop"], 1)
    store_release_i64(worker[0]["done"], 1)
