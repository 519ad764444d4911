"""Between one queue and a disk's model: operations go in at a time, and come out, in the model's order, at theirs.

The time is the model's and comes from the caller (`model_time` makes it of a clock's), so a test says what time it is.
All of it takes the disk's lock, for queues share the disk. Called by `device.sim_worker` on the queue's worker, and by
`storage.sim.disk` under filters.
"""

from __future__ import annotations

from virtblk.jit.kernel import kernel
from virtblk.jit.lock import mutex_lock, mutex_unlock
from virtblk.storage.sim.fusion_io import fusion_io_ends
from virtblk.storage.sim.sata import sata_advance, sata_submit
from virtblk.storage.sim.state import IDLE, PROFILE_SATA, QUEUE_OPS

SECTOR_SHIFT = 9

#: No operation of this queue is out.
NOTHING_DUE = -1


@kernel
def model_time(m, clock):
    """The model's time when CLOCK_MONOTONIC shows `clock`."""
    return (clock - m.state[0]["base_ns"]) * m.state[0]["speed"]


@kernel
def heap_push(q, n, due, slot):
    """Add an entry to the heap of `n`."""
    while n:
        parent = (n - 1) >> 1
        if q.due[parent] <= due:
            break
        q.due[n] = q.due[parent]
        q.slot[n] = q.slot[parent]
        n = parent
    q.due[n] = due
    q.slot[n] = slot


@kernel
def heap_pop(q, n):
    """Take the first entry out of the heap of `n`: its slot."""
    first = q.slot[0]
    n -= 1
    due = q.due[n]
    slot = q.slot[n]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and q.due[child + 1] < q.due[child]:
            child += 1
        if due <= q.due[child]:
            break
        q.due[at] = q.due[child]
        q.slot[at] = q.slot[child]
        at = child
    q.due[at] = due
    q.slot[at] = slot
    return first


@kernel
def sim_queue_submit(m, q, slot, op, offset, length, fua, now):
    """An operation on a range of bytes comes to the disk at `now`; it will come out as `slot`."""
    mutex_lock(m.state[0]["lock"])
    now = max(now, m.state[0]["time"])  # another queue may have told a later one
    m.state[0]["time"] = now
    if m.state[0]["profile"] == PROFILE_SATA:
        i = q.state[0]["number"] * QUEUE_OPS + slot
        m.ops[i]["op"] = op
        m.ops[i]["sector"] = offset >> SECTOR_SHIFT
        m.ops[i]["sectors"] = length >> SECTOR_SHIFT
        m.ops[i]["fua"] = fua
        sata_advance(m, now)
        sata_submit(m, i, now)
    else:
        heap_push(q, q.state[0]["out"], fusion_io_ends(m, op, offset, length, fua, now), slot)
    mutex_unlock(m.state[0]["lock"])
    q.state[0]["out"] += 1


@kernel
def take_done(m, q):
    """Move this queue's operations from the disk's list of ended ones to its own."""
    kept = 0
    for k in range(m.state[0]["done"]):
        i = m.done[k]
        if i // QUEUE_OPS == q.state[0]["number"]:
            q.ended[q.state[0]["ended"]] = i % QUEUE_OPS
            q.state[0]["ended"] += 1
            q.state[0]["out"] -= 1
        else:
            m.done[kept] = i
            kept += 1
    m.state[0]["done"] = kept


@kernel
def sim_queue_poll(m, q, now):
    """Put all slots whose operations have ended by `now` on the list of ended ones."""
    if q.state[0]["out"] == 0:
        return
    if m.state[0]["profile"] == PROFILE_SATA:
        mutex_lock(m.state[0]["lock"])
        m.state[0]["time"] = max(now, m.state[0]["time"])
        sata_advance(m, m.state[0]["time"])
        take_done(m, q)
        mutex_unlock(m.state[0]["lock"])
    else:
        while q.state[0]["out"] and q.due[0] <= now:
            q.ended[q.state[0]["ended"]] = heap_pop(q, q.state[0]["out"])
            q.state[0]["ended"] += 1
            q.state[0]["out"] -= 1


@kernel
def sim_queue_due(m, q):
    """When to look again: something of this queue may have ended then. NOTHING_DUE where nothing of it is out."""
    if q.state[0]["out"] == 0:
        return NOTHING_DUE
    if m.state[0]["profile"] != PROFILE_SATA:
        return q.due[0]
    mutex_lock(m.state[0]["lock"])
    due = m.sata[0]["due"] if m.sata[0]["current"] != IDLE else 0
    for k in range(m.state[0]["done"]):
        if m.done[k] // QUEUE_OPS == q.state[0]["number"]:
            due = 0  # another worker was faster to notice
    mutex_unlock(m.state[0]["lock"])
    return due


@kernel
def real_ns(m, due, now):
    """How long it is from `now` to `due` for a clock, rounded up."""
    speed = m.state[0]["speed"]
    return (due - now + speed - 1) // speed
