"""The driver's half of a split virtqueue (virtio 1.2, 2.7.13 and 2.7.14; Linux drivers/virtio/virtio_ring.c).

Everything that the driver relies on is in private arrays: free list, chain lengths, tokens, writable lengths. Shared
memory is written from them, and of shared memory only the used ring, the device's flags and avail_event are read, each
word once. A used ring that lies breaks the queue, for good; the caller reads why from `state`.

Called by submitters and reapers, who hold the queue's lock (no function here takes it).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.jit.arith import vring_need_event
from virtblk.jit.atomics import (
    fence_seq_cst,
    load_acquire_u16,
    load_u16,
    load_u32,
    store_i64,
    store_release_u16,
    store_u16,
    store_u32,
)
from virtblk.jit.kernel import kernel
from virtblk.jit.libc import eventfd_signal, poll_out
from virtblk.jit.table import Table
from virtblk.uapi.virtio_ring import (
    AVAIL_FLAGS,
    AVAIL_IDX,
    AVAIL_RING,
    DESC_ADDR,
    DESC_FLAGS,
    DESC_LEN,
    DESC_NEXT,
    DESC_SIZE,
    USED_ELEM_ID,
    USED_ELEM_LEN,
    USED_ELEM_SIZE,
    USED_FLAGS,
    USED_IDX,
    USED_RING,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
)

ENOSPC = 28

#: What virtqueue_get_buf returns besides a token.
NOTHING_USED = -1
RING_BROKEN = -2

BAD_USED_IDX = 1
BAD_USED_ID = 2
BAD_USED_NOT_IN_FLIGHT = 3
BAD_USED_LEN = 4
BAD_RING_TEXT = {
    BAD_USED_IDX: "used index moved by {value}, more than the requests in flight",
    BAD_USED_ID: "used id {value} is not below the queue size {num}",
    BAD_USED_NOT_IN_FLIGHT: "used id {value} is not in flight",
    BAD_USED_LEN: "used length {value} is more than the request's writable bytes",
}

VRING_DTYPE = np.dtype(
    [
        ("desc", "i8"),  # addresses of the three areas
        ("avail", "i8"),
        ("used", "i8"),
        ("num", "i8"),
        ("free_head", "i8"),
        ("num_free", "i8"),
        ("avail_idx", "i8"),  # next index to publish, modulo 2**16: the shadow of avail->idx
        ("kicked_idx", "i8"),  # avail_idx when a kick was last considered
        ("last_used", "i8"),  # next used index to look at, modulo 2**16
        ("used_seen", "i8"),  # used->idx as last read and checked
        ("event_idx", "i8"),
        ("indirect", "i8"),
        ("kick_fd", "i8"),
        ("bad", "i8"),  # sticky: one of BAD_*, or 0
        ("bad_value", "i8"),
    ]
)


class VringVirtqueue(NamedTuple):
    """Private state of the driver's half. Per head: the next free one, what was submitted, what may be written."""

    state: Table  # [1] VRING_DTYPE
    next: Table  # [num] successor in the free list, or in the chain that holds the descriptor
    token: Table  # [num] the caller's token, or -1 where the head is not in flight
    writable: Table  # [num] bytes that the device may write for the head


@kernel
def virtqueue_init(vq, base):
    """Empty ring at index `base` (of both rings), notifications wanted from us only when asked for."""
    num = vq.state[0]["num"]
    for i in range(num):
        vq.next[i] = i + 1
        vq.token[i] = -1
    vq.state[0]["free_head"] = 0
    vq.state[0]["num_free"] = num
    vq.state[0]["avail_idx"] = base
    vq.state[0]["kicked_idx"] = base
    vq.state[0]["last_used"] = base
    vq.state[0]["used_seen"] = base
    vq.state[0]["bad"] = 0
    store_u16(vq.state[0]["used"] + USED_IDX, base)  # the device takes over from here
    store_release_u16(vq.state[0]["avail"] + AVAIL_IDX, base)
    virtqueue_disable_cb(vq)


@kernel
def virtqueue_break(vq, reason, value):
    """Stop trusting the ring. Sticky: the first reason stays."""
    if vq.state[0]["bad"] == 0:
        vq.state[0]["bad_value"] = value
        vq.state[0]["bad"] = reason


@kernel
def write_desc(at, address, length, flags, next_index):
    """Fill the descriptor at memory address `at`."""
    store_i64(at + DESC_ADDR, address)
    store_u32(at + DESC_LEN, length)
    store_u16(at + DESC_FLAGS, flags)
    store_u16(at + DESC_NEXT, next_index)


@kernel
def write_indirect(table, sg_addr, sg_len, first, readable, writable):
    """Write the indirect table at address `table`: `readable` entries of the sg list from `first`, then `writable`.

    The table is the request's own, so no lock is held (2.7.5.3; driver-writable entries come last, 2.7.4.2).
    """
    total = readable + writable
    for i in range(total):
        flags = 0 if i < readable else VRING_DESC_F_WRITE
        if i + 1 < total:
            flags |= VRING_DESC_F_NEXT
        write_desc(table + i * DESC_SIZE, sg_addr[first + i], sg_len[first + i], flags, i + 1)


@kernel
def publish(vq, head, token, writable_bytes):
    """Make the chain at `head` available. Partner of the release: the device's acquire of avail->idx."""
    vq.token[head] = token
    vq.writable[head] = writable_bytes
    idx = vq.state[0]["avail_idx"]
    slot = idx & (vq.state[0]["num"] - 1)
    store_u16(vq.state[0]["avail"] + AVAIL_RING + 2 * slot, head)
    idx = (idx + 1) & 0xFFFF
    vq.state[0]["avail_idx"] = idx
    store_release_u16(vq.state[0]["avail"] + AVAIL_IDX, idx)


@kernel
def virtqueue_add_indirect(vq, table, entries, token, writable_bytes):
    """Add a request whose table of `entries` descriptors is written already: 0, or -ENOSPC where the ring is full."""
    if vq.state[0]["num_free"] < 1:
        return -ENOSPC
    head = vq.state[0]["free_head"]
    vq.state[0]["free_head"] = vq.next[head]
    vq.state[0]["num_free"] -= 1
    vq.next[head] = -1
    write_desc(vq.state[0]["desc"] + head * DESC_SIZE, table, entries * DESC_SIZE, VRING_DESC_F_INDIRECT, 0)
    publish(vq, head, token, writable_bytes)
    return 0


@kernel
def virtqueue_add_direct(vq, sg_addr, sg_len, first, readable, writable, token, writable_bytes):
    """Add a request as a chain of ring descriptors: 0, or -ENOSPC where fewer than readable + writable are free."""
    total = readable + writable
    if vq.state[0]["num_free"] < total:
        return -ENOSPC
    head = vq.state[0]["free_head"]
    index = head
    last = head
    for i in range(total):
        flags = 0 if i < readable else VRING_DESC_F_WRITE
        successor = vq.next[index]
        if i + 1 < total:
            flags |= VRING_DESC_F_NEXT
        at = vq.state[0]["desc"] + index * DESC_SIZE
        write_desc(at, sg_addr[first + i], sg_len[first + i], flags, successor if i + 1 < total else 0)
        last = index
        index = successor
    vq.state[0]["free_head"] = index
    vq.state[0]["num_free"] -= total
    vq.next[last] = -1
    publish(vq, head, token, writable_bytes)
    return 0


@kernel
def virtqueue_kick_prepare(vq):
    """True when the device wants to hear of what was published since the last call (2.7.10, 2.7.13.4.1).

    The fence stands between our store of avail->idx and our load of avail_event or used->flags; its partner is the
    device's fence between enabling notifications and looking at avail->idx once more.
    """
    fence_seq_cst()
    new = vq.state[0]["avail_idx"]
    old = vq.state[0]["kicked_idx"]
    vq.state[0]["kicked_idx"] = new
    used = vq.state[0]["used"]
    if vq.state[0]["event_idx"]:
        event = load_u16(used + USED_RING + USED_ELEM_SIZE * vq.state[0]["num"])
        return vring_need_event(event, new, old)
    return (load_u16(used + USED_FLAGS) & VRING_USED_F_NO_NOTIFY) == 0


@kernel
def virtqueue_notify(vq):
    """Signal the device. An eventfd that is full already says what we want to say.

    Asked first, since the device shares the file description and can make it block.
    """
    if poll_out(vq.state[0]["kick_fd"]) == 1:
        eventfd_signal(vq.state[0]["kick_fd"])


@kernel
def virtqueue_more_used(vq):
    """True when the used ring has something that was not reaped."""
    if vq.state[0]["last_used"] != vq.state[0]["used_seen"]:
        return True
    return load_u16(vq.state[0]["used"] + USED_IDX) != vq.state[0]["last_used"]


@kernel
def look_at_used_idx(vq):
    """Read used->idx once and check it: False where it is where we are, or moved by more than is in flight."""
    last = vq.state[0]["last_used"]
    seen = load_acquire_u16(vq.state[0]["used"] + USED_IDX)  # partner: the device's release of used->idx
    moved = (seen - last) & 0xFFFF
    # A chain holds at least one descriptor, so what is in flight is at most the descriptors that are not free.
    if moved > vq.state[0]["num"] - vq.state[0]["num_free"]:
        virtqueue_break(vq, BAD_USED_IDX, moved)
        return False
    vq.state[0]["used_seen"] = seen
    return moved != 0


@kernel
def virtqueue_get_buf(vq):
    """The next used request: (token, length), (NOTHING_USED, 0) or (RING_BROKEN, 0). Frees its descriptors."""
    if vq.state[0]["bad"]:
        return RING_BROKEN, 0
    last = vq.state[0]["last_used"]
    if last == vq.state[0]["used_seen"] and not look_at_used_idx(vq):
        return (RING_BROKEN if vq.state[0]["bad"] else NOTHING_USED), 0
    num = vq.state[0]["num"]
    elem = vq.state[0]["used"] + USED_RING + USED_ELEM_SIZE * (last & (num - 1))
    head = load_u32(elem + USED_ELEM_ID)
    length = load_u32(elem + USED_ELEM_LEN)
    if head >= num:
        virtqueue_break(vq, BAD_USED_ID, head)
        return RING_BROKEN, 0
    token = vq.token[head]
    if token < 0:
        virtqueue_break(vq, BAD_USED_NOT_IN_FLIGHT, head)
        return RING_BROKEN, 0
    if length > vq.writable[head]:
        virtqueue_break(vq, BAD_USED_LEN, length)
        return RING_BROKEN, 0
    vq.token[head] = -1
    vq.state[0]["last_used"] = (last + 1) & 0xFFFF
    freed = 1
    tail = head
    while vq.next[tail] >= 0:
        tail = vq.next[tail]
        freed += 1
    vq.next[tail] = vq.state[0]["free_head"]
    vq.state[0]["free_head"] = head
    vq.state[0]["num_free"] += freed
    return token, length


@kernel
def virtqueue_disable_cb(vq):
    """Ask for no interrupts. With EVENT_IDX flags stay 0 (2.7.7.1) and the event index goes where we have been."""
    avail = vq.state[0]["avail"]
    if vq.state[0]["event_idx"]:
        store_u16(avail + AVAIL_RING + 2 * vq.state[0]["num"], vq.state[0]["last_used"] - 1)
    else:
        store_u16(avail + AVAIL_FLAGS, VRING_AVAIL_F_NO_INTERRUPT)


@kernel
def virtqueue_enable_cb(vq):
    """Ask for an interrupt at the next used request. False when one came meanwhile: reap, then ask again.

    The fence's partner is the device's, between its store of used->idx and its load of used_event or avail->flags.
    """
    avail = vq.state[0]["avail"]
    if vq.state[0]["event_idx"]:
        store_u16(avail + AVAIL_RING + 2 * vq.state[0]["num"], vq.state[0]["last_used"])
    else:
        store_u16(avail + AVAIL_FLAGS, 0)
    fence_seq_cst()
    return not virtqueue_more_used(vq)
