"""The device's half of a split virtqueue (virtio 1.2, 2.7; Linux drivers/vhost/vringh.c).

The ring belongs to a guest who may be hostile and who may write while we read: each descriptor field is loaded once
into a scalar, checked, then used. Whatever breaks a rule breaks the ring (sticky, with a reason and a value) and
nothing else. Chains come out as lists of pieces in our address space: readable ones first, then writable ones.

Called by the queue's worker; started and stopped by the session's control thread while no worker runs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.jit.arith import vring_need_event
from virtblk.jit.atomics import (
    fence_seq_cst,
    load_acquire_u16,
    load_i64,
    load_u16,
    load_u32,
    store_release_u16,
    store_u16,
    store_u32,
)
from virtblk.jit.kernel import kernel
from virtblk.jit.memory import prefetch_read
from virtblk.jit.table import Table
from virtblk.mem.regions import translate
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

#: Entries of an indirect table that we walk. The specification allows the queue size; Windows guests send more
#: (spdk#2330), and QEMU takes 1024.
MAX_INDIRECT = 1024
#: Pieces that one chain may come out as; a piece more than descriptors for each time a buffer crosses regions.
MAX_PIECES = 1280

NOTHING_AVAILABLE = -1
RING_BROKEN = -2

BAD_AVAIL_IDX = 1
BAD_HEAD = 2
BAD_NEXT = 3
BAD_LOOP = 4
BAD_INDIRECT_LEN = 5
BAD_INDIRECT_NESTED = 6
BAD_INDIRECT_NEXT = 7
BAD_INDIRECT_OFF = 8
BAD_ADDRESS = 9
BAD_ORDER = 10
BAD_LENGTH = 11
BAD_MEMORY = 12
BAD_PIECES = 13
BAD_VRING_TEXT = {
    BAD_AVAIL_IDX: "available index moved by {value}, more than the queue size",
    BAD_HEAD: "available head {value} is not below the queue size",
    BAD_NEXT: "descriptor's next {value} is outside its table",
    BAD_LOOP: "chain of more than {value} descriptors: a loop",
    BAD_INDIRECT_LEN: "indirect table of {value} bytes",
    BAD_INDIRECT_NESTED: "indirect descriptor inside an indirect table (entry {value})",
    BAD_INDIRECT_NEXT: "descriptor {value} has both INDIRECT and NEXT",
    BAD_INDIRECT_OFF: "indirect descriptor {value}, but INDIRECT_DESC was not negotiated",
    BAD_ADDRESS: "address {value:#x} is in no memory region",
    BAD_ORDER: "device-readable descriptor {value} after a device-writable one",
    BAD_LENGTH: "chain of {value} bytes or more: over 2**32",
    BAD_MEMORY: "a memory region's file was truncated ({value})",
    BAD_PIECES: "chain of {value} pieces or more, which is more than this device takes",
}

VRINGH_DTYPE = np.dtype(
    [
        ("desc", "i8"),  # addresses of the three areas, in our address space
        ("avail", "i8"),
        ("used", "i8"),
        ("num", "i8"),
        ("event_idx", "i8"),
        ("indirect", "i8"),
        ("last_avail", "i8"),  # next index to take, modulo 2**16
        ("avail_seen", "i8"),  # avail->idx as last read and checked
        ("used_idx", "i8"),  # next used index to fill; used->idx lags until vringh_publish_used
        ("signalled", "i8"),  # used_idx when an interrupt was last considered
        ("pieces", "i8"),  # of the chain taken last: pieces in all, and how many of them are readable
        ("readable", "i8"),
        ("bad", "i8"),
        ("bad_value", "i8"),
    ]
)


class Vringh(NamedTuple):
    state: Table  # [1] VRINGH_DTYPE
    piece_addr: Table  # addresses of pieces, of the whole batch that is being parsed
    piece_len: Table


@kernel
def vringh_break(vr, reason, value):
    """Stop trusting the ring; the first reason stays."""
    if vr.state[0]["bad"] == 0:
        vr.state[0]["bad_value"] = value
        vr.state[0]["bad"] = reason
    return RING_BROKEN


@kernel
def vringh_init(vr, base):
    """Start at index `base` of the available ring; the used ring goes on from where used->idx stands."""
    vr.state[0]["last_avail"] = base
    vr.state[0]["avail_seen"] = base
    used_idx = load_u16(vr.state[0]["used"] + USED_IDX)
    vr.state[0]["used_idx"] = used_idx
    vr.state[0]["signalled"] = used_idx
    vr.state[0]["bad"] = 0


@kernel
def vringh_available(vr):
    """How many chains wait; RING_BROKEN where avail->idx moved by more than the ring holds."""
    waiting = (vr.state[0]["avail_seen"] - vr.state[0]["last_avail"]) & 0xFFFF
    if waiting == 0:
        seen = load_acquire_u16(vr.state[0]["avail"] + AVAIL_IDX)  # partner: the driver's release of avail->idx
        waiting = (seen - vr.state[0]["last_avail"]) & 0xFFFF
        if waiting > vr.state[0]["num"]:
            return vringh_break(vr, BAD_AVAIL_IDX, waiting)
        vr.state[0]["avail_seen"] = seen
    return waiting


@kernel
def add_pieces(vr, mem, at, address, length):
    """Translate one buffer into pieces from index `at` on; returns the next index, or RING_BROKEN."""
    while length > 0:
        host, here = translate(mem, address, length)
        if here == 0:
            return vringh_break(vr, BAD_ADDRESS, address)
        vr.piece_addr[at] = host
        vr.piece_len[at] = here
        at += 1
        address += here
        length -= here
    return at


@kernel
def walk(vr, mem, table, contiguous, entries, index, limit, is_indirect, first, at, readable, total):
    """Follow one table from `index`. Returns (state, next piece, readable pieces, bytes); state 1 = went INDIRECT.

    `table` is an address of ours where `contiguous`, else a guest address whose entries are translated one by one.
    A readable count of -1 - n means: n readable pieces, and writable ones have begun.
    """
    for _ in range(limit):
        if contiguous:
            entry = table + index * DESC_SIZE
        else:
            entry, here = translate(mem, table + index * DESC_SIZE, DESC_SIZE)
            if here != DESC_SIZE:
                return vringh_break(vr, BAD_ADDRESS, table + index * DESC_SIZE), at, readable, total
        address = load_i64(entry + DESC_ADDR)
        length = load_u32(entry + DESC_LEN)
        flags = load_u16(entry + DESC_FLAGS)
        following = load_u16(entry + DESC_NEXT)
        if flags & VRING_DESC_F_INDIRECT:
            if is_indirect:
                return vringh_break(vr, BAD_INDIRECT_NESTED, index), at, readable, total
            if vr.state[0]["indirect"] == 0:
                return vringh_break(vr, BAD_INDIRECT_OFF, index), at, readable, total
            if flags & VRING_DESC_F_NEXT:
                return vringh_break(vr, BAD_INDIRECT_NEXT, index), at, readable, total
            if length == 0 or length % DESC_SIZE or length // DESC_SIZE > MAX_INDIRECT:
                return vringh_break(vr, BAD_INDIRECT_LEN, length), at, readable, total
            # Not returned through memory: the pieces from `at` on are not in use yet.
            vr.piece_addr[at] = address
            vr.piece_len[at] = length
            return 1, at, readable, total
        if flags & VRING_DESC_F_WRITE:
            if readable >= 0:
                readable = -1 - readable
        elif readable < 0:
            return vringh_break(vr, BAD_ORDER, index), at, readable, total
        total += length
        if total >= 1 << 32:
            return vringh_break(vr, BAD_LENGTH, total), at, readable, total
        begin = at
        at = add_pieces(vr, mem, at, address, length)
        if at < 0:
            return RING_BROKEN, begin, readable, total
        if readable >= 0:
            readable += at - begin
        if at - first >= MAX_PIECES:
            return vringh_break(vr, BAD_PIECES, at - first), at, readable, total
        if not flags & VRING_DESC_F_NEXT:
            return 0, at, readable, total
        if following >= entries:
            return vringh_break(vr, BAD_NEXT, following), at, readable, total
        index = following
    return vringh_break(vr, BAD_LOOP, limit), at, readable, total


@kernel
def vringh_getdesc(vr, mem, first):
    """Take the next chain: its head, NOTHING_AVAILABLE or RING_BROKEN. Its pieces lie from index `first` on.

    `state.pieces` and `state.readable` tell how many there are. The caller leaves room for MAX_PIECES + MAX_REGIONS.
    """
    if vr.state[0]["bad"]:
        return RING_BROKEN
    waiting = vringh_available(vr)
    if waiting <= 0:
        return waiting if waiting < 0 else NOTHING_AVAILABLE
    num = vr.state[0]["num"]
    last = vr.state[0]["last_avail"]
    head = load_u16(vr.state[0]["avail"] + AVAIL_RING + 2 * (last & (num - 1)))
    if head >= num:
        return vringh_break(vr, BAD_HEAD, head)
    done, at, readable, total = walk(vr, mem, vr.state[0]["desc"], True, num, head, num, False, first, first, 0, 0)
    if done == 1:
        address = vr.piece_addr[at]
        length = vr.piece_len[at]
        entries = length // DESC_SIZE
        host, here = translate(mem, address, length)
        whole = here == length
        table = host if whole else address
        done, at, readable, total = walk(vr, mem, table, whole, entries, 0, entries, True, first, at, readable, total)
    if done < 0:
        return RING_BROKEN
    vr.state[0]["last_avail"] = (last + 1) & 0xFFFF
    vr.state[0]["pieces"] = at - first
    vr.state[0]["readable"] = readable if readable >= 0 else -1 - readable
    return head


@kernel
def vringh_prefetch(vr, mem, count):
    """Fetch the descriptors of the next `count` chains at most, and their indirect tables, into the cache at once.

    Each lies in the driver's cache, and taken one by one each chain waits for two of them. What is read here decides
    nothing but what is fetched: the descriptors are read anew, and checked, when the chain is taken.
    """
    last = vr.state[0]["last_avail"]
    count = min(count, (vr.state[0]["avail_seen"] - last) & 0xFFFF)
    num = vr.state[0]["num"]
    ring = vr.state[0]["avail"] + AVAIL_RING
    desc = vr.state[0]["desc"]
    for i in range(count):
        prefetch_read(desc + DESC_SIZE * (load_u16(ring + 2 * ((last + i) & (num - 1))) & (num - 1)))
    for i in range(count):
        entry = desc + DESC_SIZE * (load_u16(ring + 2 * ((last + i) & (num - 1))) & (num - 1))
        host, _ = translate(mem, load_i64(entry + DESC_ADDR), DESC_SIZE)
        prefetch_read(host)


@kernel
def vringh_add_used(vr, head, length):
    """Fill the next used element. The driver sees it after vringh_publish_used."""
    idx = vr.state[0]["used_idx"]
    elem = vr.state[0]["used"] + USED_RING + USED_ELEM_SIZE * (idx & (vr.state[0]["num"] - 1))
    store_u32(elem + USED_ELEM_ID, head)
    store_u32(elem + USED_ELEM_LEN, length)
    vr.state[0]["used_idx"] = (idx + 1) & 0xFFFF


@kernel
def vringh_publish_used(vr):
    """Show the driver what was added. Partner of the release: the driver's acquire of used->idx."""
    store_release_u16(vr.state[0]["used"] + USED_IDX, vr.state[0]["used_idx"])


@kernel
def vringh_need_notify(vr):
    """True when the driver wants an interrupt for what was published since the last call (2.7.7.2).

    The fence stands between our store of used->idx and our load of used_event or avail->flags; its partner is the
    driver's in virtqueue_enable_cb.
    """
    fence_seq_cst()
    new = vr.state[0]["used_idx"]
    old = vr.state[0]["signalled"]
    vr.state[0]["signalled"] = new
    avail = vr.state[0]["avail"]
    if vr.state[0]["event_idx"]:
        return vring_need_event(load_u16(avail + AVAIL_RING + 2 * vr.state[0]["num"]), new, old)
    return new != old and (load_u16(avail + AVAIL_FLAGS) & VRING_AVAIL_F_NO_INTERRUPT) == 0


@kernel
def vringh_notify_disable(vr):
    """Tell the driver that no kick is needed while we look anyway."""
    used = vr.state[0]["used"]
    if vr.state[0]["event_idx"] == 0:
        store_u16(used + USED_FLAGS, VRING_USED_F_NO_NOTIFY)


@kernel
def vringh_notify_enable(vr):
    """Ask for a kick at the next chain. False when one came meanwhile: take it, then ask again.

    The fence's partner is the driver's in virtqueue_kick_prepare.
    """
    used = vr.state[0]["used"]
    if vr.state[0]["event_idx"]:
        avail_event = used + USED_RING + USED_ELEM_SIZE * vr.state[0]["num"]
        store_u16(avail_event, vr.state[0]["last_avail"])
    else:
        store_u16(used + USED_FLAGS, 0)
    fence_seq_cst()
    return vringh_available(vr) == 0
