"""Slots: where a queue keeps the chains that are in flight, in the loops of the disks that take their time.

A slot is a record of the queue's requests, with a part of the lists of pieces of its own. Of the queue's state (a
`FileQueue`, a `SimQueue` or a `Mailbox`) this knows the stack of free slots, `free`, and, but for the mailbox, the list
of those that ended, `ended`, in their order. Called by `device.file_worker`, `device.sim_worker` and
`device.async_worker`, on the queue's worker.
"""

from __future__ import annotations

from virtblk.device.request import parse, validate
from virtblk.device.worker import answer_request, signal_driver, take_kick
from virtblk.jit.kernel import kernel
from virtblk.jit.libc import clock_ns, eventfd_drain
from virtblk.mem.regions import MAX_REGIONS, memory_truncated
from virtblk.virtio.vringh_split import (
    BAD_MEMORY,
    MAX_PIECES,
    vringh_break,
    vringh_getdesc,
    vringh_publish_used,
)

#: Chains of one queue that are in flight at once; a power of two. The others wait in the ring.
MAX_SLOTS = 256
#: A slot's own part of the lists of pieces.
SLOT_PIECES = MAX_PIECES + MAX_REGIONS


@kernel
def slots_out(q):
    """Slots in use."""
    return q.state[0]["slots"] - q.state[0]["free"]


@kernel
def take_chain(vr, mem, disk, requests, q):
    """Take the next chain into a free slot, which there is, and decide what it asks for: the slot.

    Negative where no chain is available, or the ring broke (vringh_getdesc).
    """
    slot = q.free[q.state[0]["free"] - 1]
    first = slot * SLOT_PIECES
    head = vringh_getdesc(vr, mem, first)
    if head < 0:
        return head
    q.state[0]["free"] -= 1
    pieces = vr.state[0]["pieces"]
    readable = vr.state[0]["readable"]
    kind, sector = parse(requests, slot, head, vr.piece_addr, vr.piece_len, first, pieces, readable)
    validate(disk, requests, slot, kind, sector)
    return slot


@kernel
def free_slot(requests, q, slot):
    """The slot's chain is finished."""
    requests[slot]["taken_ns"] = 0
    q.free[q.state[0]["free"]] = slot
    q.state[0]["free"] += 1


@kernel
def check_memory(vr, mem, count):
    """Before `count` chains are answered: if zeroes were used in place of data, break the ring, acknowledge nothing."""
    if vr.state[0]["bad"] == 0 and memory_truncated(mem):
        vringh_break(vr, BAD_MEMORY, count)


@kernel
def answer_ended(vr, mem, disk, requests, worker, counters, q):
    """Answer the slots that ended, in that order, and free them: how many. On a broken ring they are only freed."""
    ended = q.state[0]["ended"]
    if ended == 0:
        return 0
    check_memory(vr, mem, ended)
    now = clock_ns() if worker[0]["timed"] else 0
    for i in range(ended):
        slot = q.ended[i]
        if vr.state[0]["bad"] == 0:
            answer_request(vr, mem, disk, requests, counters, slot, now)
        free_slot(requests, q, slot)
    q.state[0]["ended"] = 0
    if vr.state[0]["bad"] == 0:
        vringh_publish_used(vr)
        signal_driver(vr, worker)
    return ended


@kernel
def take_events(worker, fired):
    """Empty what a poll of the kick fd, the stop fd and perhaps others says is readable."""
    if fired > 0 and fired & 2:
        eventfd_drain(worker[0]["stop_fd"])  # the stop word tells from now on
    if fired > 0 and fired & 1:
        take_kick(worker)
