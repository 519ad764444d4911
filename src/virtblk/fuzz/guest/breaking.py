"""Break a request in a way that may cost its ring: what a device must refuse to walk, and may not survive walking.

Works on the descriptors as they lie in guest memory, after `generate.write_descs`. A ring is made anew after it, so
these are rare. The numbers counted are those of `fuzz.groups`.
"""

from __future__ import annotations

from virtblk.fuzz.guest.request import add_range, below, chance, piece_entry, put_desc, slot_address
from virtblk.fuzz.guest.state import (
    FLIP_FLAGS,
    FLIP_TABLE_LEN,
    FLIP_USED_IDX,
    SLOT_DESCS,
    TABLE_AT,
)
from virtblk.jit.atomics import load_u16, store_i64, store_u16, store_u32
from virtblk.jit.kernel import cold_kernel
from virtblk.uapi.virtio_blk import SECTOR_SIZE
from virtblk.uapi.virtio_ring import (
    DESC_ADDR,
    DESC_FLAGS,
    DESC_LEN,
    DESC_NEXT,
    DESC_SIZE,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
)

WAYS = 20
_U32 = 0xFFFFFFFF


@cold_kernel
def break_links(g, s, roll):
    """1 to 4: where a chain goes on."""
    pieces = g.slots[s]["pieces"]
    in_table = g.slots[s]["in_table"]
    k = below(g, pieces)
    entry = piece_entry(g, s, k)
    start = 0 if in_table else s * SLOT_DESCS
    if roll == 0:
        following = start + k
        g.hits[3 if in_table else 1] += 1
    elif roll == 1:
        following = start
        g.hits[3 if in_table else 2] += 1
    else:
        following = (g.state[0]["num"] + below(g, 4)) if chance(g, 2) else 65535 - below(g, 4)
        g.hits[4] += 1
    store_u16(entry + DESC_FLAGS, load_u16(entry + DESC_FLAGS) | VRING_DESC_F_NEXT)
    store_u16(entry + DESC_NEXT, following)


@cold_kernel
def break_order(g, s):
    """11, 13: readable after writable."""
    pieces = g.slots[s]["pieces"]
    first = s * SLOT_DESCS
    if chance(g, 2) and pieces > 1:
        entry = piece_entry(g, s, pieces - 1)
        store_u16(entry + DESC_FLAGS, 0)
        g.hits[11] += 1
    else:
        entry = piece_entry(g, s, 0)
        store_u16(entry + DESC_FLAGS, load_u16(entry + DESC_FLAGS) | VRING_DESC_F_WRITE)
        add_range(g, s, g.pieces[first]["addr"], g.pieces[first]["len"])
        g.hits[12 if pieces == 1 else 13] += 1


@cold_kernel
def break_table(g, s, roll):
    """14 to 19: indirect tables."""
    entry = g.state[0]["desc"] + s * SLOT_DESCS * DESC_SIZE
    if g.slots[s]["in_table"] == 0:
        # As good as any: the request itself is described by the slot's descriptors, which nobody names any more.
        put_desc(entry, slot_address(g, s) + TABLE_AT, 2 * DESC_SIZE, VRING_DESC_F_INDIRECT, 0)
        if g.state[0]["indirect"] == 0:
            g.hits[19] += 1
        else:
            g.hits[16] += 1
    elif roll == 0:
        store_u16(entry + DESC_FLAGS, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT)
        store_u16(entry + DESC_NEXT, s * SLOT_DESCS + 1)
        g.hits[14] += 1
    elif roll == 1:
        inner = piece_entry(g, s, below(g, g.slots[s]["pieces"]))
        store_u16(inner + DESC_FLAGS, load_u16(inner + DESC_FLAGS) | VRING_DESC_F_INDIRECT)
        g.hits[15] += 1
    elif roll == 2:
        which = below(g, 4)
        if which == 0:
            length = 0
        elif which == 1:
            length = 8
        else:
            length = 17 if which == 2 else _U32 - 15
        store_u32(entry + DESC_LEN, length)
        g.hits[16] += 1
    elif roll == 3:
        store_i64(entry + DESC_ADDR, g.state[0]["end"] - DESC_SIZE)
        g.hits[17] += 1
    else:
        store_u32(entry + DESC_LEN, DESC_SIZE * (g.state[0]["num"] + 1 + below(g, g.state[0]["num"])))
        g.hits[18] += 1


@cold_kernel
def break_address(g, s, roll):
    """20 to 24: addresses and lengths that are nowhere, or where the ring is."""
    k = below(g, g.slots[s]["pieces"])
    entry = piece_entry(g, s, k)
    end = g.state[0]["end"]
    if roll == 0:
        for each in range(g.slots[s]["pieces"]):
            store_i64(piece_entry(g, s, each) + DESC_ADDR, g.state[0]["start"])
            store_u32(piece_entry(g, s, each) + DESC_LEN, _U32)
        g.state[0]["wild"] = 1
        g.hits[20] += 1
    elif roll == 1:
        which = below(g, 3)
        store_i64(entry + DESC_ADDR, 0 if which == 0 else -which)
        if which == 2:
            store_i64(entry + DESC_ADDR, -8)
            store_u32(entry + DESC_LEN, SECTOR_SIZE)
        g.hits[21] += 1
    elif roll == 2:
        store_i64(entry + DESC_ADDR, g.state[0]["start"] - SECTOR_SIZE if chance(g, 2) else end - SECTOR_SIZE // 2)
        store_u32(entry + DESC_LEN, SECTOR_SIZE)
        g.hits[22] += 1
    elif roll == 3:
        store_i64(entry + DESC_ADDR, end - SECTOR_SIZE + 1)
        store_u32(entry + DESC_LEN, SECTOR_SIZE)
        g.hits[23] += 1
    else:
        which = below(g, 4)
        if which == 0:
            store_i64(entry + DESC_ADDR, g.state[0]["desc"])
        elif which == 1:
            store_i64(entry + DESC_ADDR, g.state[0]["avail"])
        elif which == 2:
            store_i64(entry + DESC_ADDR, g.state[0]["used"])
        else:
            store_i64(entry + DESC_ADDR, slot_address(g, s) + TABLE_AT)
        g.state[0]["wild"] = 1
        g.hits[24] += 1


@cold_kernel
def break_indices(g, s):
    """5, 7: heads and the available index."""
    num = g.state[0]["num"]
    if chance(g, 2):
        which = below(g, 3)
        if which == 0:
            g.slots[s]["head"] = num
        else:
            g.slots[s]["head"] = 65535 if which == 1 else num + below(g, 1000)
        g.hits[5] += 1
    else:
        which = below(g, 4)
        if which == 0:
            g.state[0]["jump"] = 1 + below(g, num)
        elif which == 1:
            g.state[0]["jump"] = num + 1
        else:
            g.state[0]["jump"] = 32768 if which == 2 else 65535 - below(g, num)
        g.state[0]["wild"] = 1  # what the ring held before is offered again
        g.hits[7] += 1


@cold_kernel
def break_chain(g, s):
    """Break slot `s` in one way."""
    roll = below(g, WAYS)
    if roll < 3:
        break_links(g, s, roll)
    elif roll < 5:
        break_order(g, s)
    elif roll < 10:
        break_table(g, s, roll - 5)
    elif roll < 15:
        break_address(g, s, roll - 10)
    elif roll < 17:
        break_indices(g, s)
    elif roll == 17:
        g.slots[s]["flip"] = FLIP_FLAGS
    elif roll == 18 and g.slots[s]["in_table"]:
        g.slots[s]["flip"] = FLIP_TABLE_LEN
    elif roll == 18:
        break_links(g, s, below(g, 3))
    else:
        g.slots[s]["flip"] = FLIP_USED_IDX
        g.state[0]["wild"] = 1
