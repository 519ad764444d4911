"""Break a request in one place, in a way that its ring survives: header, lengths, segments, framing, double fetches.

A device answers such a request, with whatever status. The numbers counted are those of `fuzz.groups`. Nothing here may
name guarded sectors in a request that changes the disk and could succeed. Called by `generate`.
"""

from __future__ import annotations

from virtblk.fuzz.guest.request import (
    add_piece,
    below,
    chance,
    draw,
    insert_piece,
    slot_address,
    split_piece,
)
from virtblk.fuzz.guest.state import (
    DATA_AT,
    EXPECT_ANY,
    EXPECT_REFUSAL,
    FLIP_ADDR,
    FLIP_LEN,
    FLIP_SECTOR,
    FLIP_TYPE,
    HEADER_AT,
    SLOT_DESCS,
    SPARE_AT,
    SPARE_BYTES,
    STATUS_AT,
)
from virtblk.jit.atomics import load_i64, store_i64, store_u32
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.uapi.virtio_blk import (
    OUTHDR_SECTOR,
    OUTHDR_SIZE,
    OUTHDR_TYPE,
    SECTOR_SIZE,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from virtblk.uapi.virtio_ring import VRING_DESC_F_WRITE

#: Types from here on belong to nobody.
FIRST_UNKNOWN = 32
BARRIER = 1 << 31
MUTATIONS = 19


@kernel
def expect(g, s, what):
    """What is known of the answer after this mutation; after two, nothing is."""
    g.slots[s]["expect"] = what if g.slots[s]["mutations"] == 0 else EXPECT_ANY


@kernel
def changes_disk(g, s):
    """True for what could write where it should not."""
    kind = g.slots[s]["kind"]
    return kind == VIRTIO_BLK_T_OUT or kind == VIRTIO_BLK_T_DISCARD or kind == VIRTIO_BLK_T_WRITE_ZEROES


@kernel
def has_segments(g, s):
    kind = g.slots[s]["kind"]
    return kind == VIRTIO_BLK_T_DISCARD or kind == VIRTIO_BLK_T_WRITE_ZEROES


@cold_kernel
def any_type(g, s):
    """36: every type, with bits that mean nothing."""
    roll = below(g, 4)
    if roll == 0:
        kind = below(g, 64)
    elif roll == 1:
        kind = g.slots[s]["kind"] | BARRIER
    elif roll == 2:
        kind = 2 + below(g, 2)
    else:
        kind = draw(g) & 0xFFFFFFFF
    store_u32(slot_address(g, s) + HEADER_AT + OUTHDR_TYPE, kind)
    # Some devices take no notice of the barrier bit.
    expect(g, s, EXPECT_REFUSAL if FIRST_UNKNOWN <= kind < BARRIER else EXPECT_ANY)
    g.slots[s]["guard"] = 0
    g.hits[36] += 1


@kernel
def odd_sector(g):
    """A sector at or beyond the capacity."""
    capacity = g.state[0]["capacity"]
    roll = below(g, 8)
    if roll == 0:
        return capacity
    if roll == 1:
        return capacity + 1 + below(g, 64)
    if roll == 2:
        return 1 << 54
    if roll == 3:
        return 1 << 55
    if roll == 4:
        return -(1 << 62) - (1 << 62)
    if roll == 5:
        return -1 - below(g, 8)
    if roll == 6:
        return (1 << 55) - 1 - below(g, 4)
    return (1 << 62) + (draw(g) >> 1)


@cold_kernel
def any_sector(g, s):
    """29: sectors near and beyond the end; what would fit goes with reads only."""
    at = slot_address(g, s) + HEADER_AT + OUTHDR_SECTOR
    kind = g.slots[s]["kind"]
    if kind == VIRTIO_BLK_T_IN and chance(g, 4):
        store_i64(at, g.state[0]["capacity"] - 1)  # the first sector fits
        expect(g, s, EXPECT_REFUSAL if g.slots[s]["sectors"] > 1 else EXPECT_ANY)
    else:
        store_i64(at, odd_sector(g))
        expect(g, s, EXPECT_REFUSAL if kind == VIRTIO_BLK_T_IN or kind == VIRTIO_BLK_T_OUT else EXPECT_ANY)
    g.slots[s]["guard"] = 0
    g.hits[29] += 1


@cold_kernel
def any_segment(g, s):
    """30, 31, 33, 34: segments of discard and write zeroes."""
    base = slot_address(g, s) + DATA_AT
    capacity = g.state[0]["capacity"]
    roll = below(g, 5)
    if roll == 0:
        sectors = (1 << 23) if chance(g, 2) else 0xFFFFFFFF
        store_u32(base + 8, sectors)
        if load_i64(base) + sectors <= capacity:
            store_i64(base, capacity - 1)
        expect(g, s, EXPECT_REFUSAL)
        g.hits[30] += 1
    elif roll == 1:
        store_i64(base, odd_sector(g))
        store_u32(base + 8, 1 + below(g, 1 << 31))
        expect(g, s, EXPECT_REFUSAL)
        g.hits[31] += 1
    elif roll == 2:
        store_u32(base + 12, (1 << below(g, 32)) if chance(g, 2) else 0xFFFFFFFF)
        expect(g, s, EXPECT_ANY)
        g.hits[34] += 1
    elif roll == 3:
        g.pieces[s * SLOT_DESCS + 1]["len"] = 0
        expect(g, s, EXPECT_ANY)
        g.hits[33] += 1
    else:
        # More of them than anybody takes; each names nothing that exists.
        many = 2 + below(g, 126)
        for segment in range(many):
            store_i64(base + 16 * segment, capacity + segment)
            store_u32(base + 16 * segment + 8, 1)
            store_u32(base + 16 * segment + 12, 0)
        g.pieces[s * SLOT_DESCS + 1]["len"] = 16 * many
        expect(g, s, EXPECT_REFUSAL)
        g.hits[33] += 1


@cold_kernel
def data_length(g, s):
    """35: lengths that are no whole sectors."""
    k = s * SLOT_DESCS + 1
    if g.slots[s]["pieces"] < 3:
        return
    roll = below(g, 4)
    if roll == 0:
        g.pieces[k]["len"] = 0
    elif roll == 1:
        g.pieces[k]["len"] = 1
    else:
        g.pieces[k]["len"] = SECTOR_SIZE - 1 if roll == 2 else SECTOR_SIZE + 1
    kind = g.slots[s]["kind"]
    whole = roll == 0 or (kind != VIRTIO_BLK_T_IN and kind != VIRTIO_BLK_T_OUT)
    expect(g, s, EXPECT_ANY if whole else EXPECT_REFUSAL)
    g.slots[s]["guard"] = 0
    g.hits[35] += 1


@cold_kernel
def header_length(g, s):
    """12: a header in two pieces, too short, too long."""
    k = s * SLOT_DESCS
    roll = below(g, 4)
    if roll < 2:
        split_piece(g, s, 0, 1 + below(g, OUTHDR_SIZE - 1))
    else:
        g.pieces[k]["len"] = OUTHDR_SIZE - 1 if roll == 2 else OUTHDR_SIZE + 1
        g.slots[s]["guard"] = 0
    expect(g, s, EXPECT_ANY)
    g.hits[12] += 1


@cold_kernel
def status_length(g, s):
    """10, 11: a status of no or many bytes, or none at all."""
    last = s * SLOT_DESCS + g.slots[s]["pieces"] - 1
    roll = below(g, 4)
    if roll == 0:
        g.pieces[last]["len"] = 0
        g.hits[11] += 1
    elif roll == 1:
        g.pieces[last]["len"] = 2 + below(g, 62)
        g.hits[11] += 1
    elif roll == 2 and g.slots[s]["pieces"] > 1:
        g.slots[s]["pieces"] -= 1
        g.hits[10] += 1
    else:
        g.slots[s]["pieces"] = 1
        g.hits[9] += 1
    expect(g, s, EXPECT_ANY)
    g.slots[s]["guard"] = 0


@cold_kernel
def more_pieces(g, s):
    """8, 25, 32: empty pieces, pieces of one byte, as many as there is room for."""
    roll = below(g, 3)
    if roll == 0:
        at = below(g, g.slots[s]["pieces"])
        address = slot_address(g, s) + SPARE_AT
        insert_piece(g, s, at, address, 0, g.pieces[s * SLOT_DESCS + at]["flags"])
        g.hits[25] += 1
    elif roll == 1:
        while g.slots[s]["pieces"] < SLOT_DESCS:
            at = slot_address(g, s) + SPARE_AT + below(g, SPARE_BYTES)
            add_piece(g, s, at, 1, VRING_DESC_F_WRITE)
        g.slots[s]["guard"] = 0
        g.hits[8] += 1
    else:
        if g.slots[s]["pieces"] > 2:
            split_piece(g, s, 1, 1)
        g.hits[32] += 1
    expect(g, s, EXPECT_ANY)


@cold_kernel
def odd_address(g, s):
    """23, 24, 28: buffers at the end of memory, over the ring, over each other.

    Only data, and no segments: a header or segment that lies where anything may lie could name guarded sectors.
    """
    k = s * SLOT_DESCS + 1
    if g.slots[s]["pieces"] < 3 or has_segments(g, s) or g.pieces[k]["addr"] != slot_address(g, s) + DATA_AT:
        return
    roll = below(g, 3)
    if roll == 0:
        g.pieces[k]["addr"] = g.state[0]["end"] - g.pieces[k]["len"]
        g.hits[23] += 1
    elif roll == 1 and g.slots[s]["kind"] == VIRTIO_BLK_T_OUT:
        g.pieces[k]["addr"] = g.state[0]["desc"] if chance(g, 2) else g.state[0]["used"]
        g.hits[24] += 1
    elif g.slots[s]["kind"] == VIRTIO_BLK_T_IN:
        base = slot_address(g, s)
        if g.slots[s]["in_table"] or chance(g, 2):
            g.pieces[k]["addr"] = base + STATUS_AT + 1 + below(g, OUTHDR_SIZE) - g.pieces[k]["len"]
        else:
            g.pieces[k]["addr"] = base + HEADER_AT
        g.hits[28] += 1
    else:
        g.pieces[k]["addr"] = g.state[0]["scratch"]
        g.hits[28] += 1
    expect(g, s, EXPECT_ANY)
    g.slots[s]["guard"] = 0


@cold_kernel
def odd_request(g, s):
    """37: a flush that carries data, an identity of any length; otherwise a descriptor with bits that mean nothing."""
    kind = g.slots[s]["kind"]
    if kind == VIRTIO_BLK_T_FLUSH:
        base = slot_address(g, s)
        store_i64(base + HEADER_AT + OUTHDR_SECTOR, odd_sector(g))
        insert_piece(g, s, 1, base + SPARE_AT, below(g, SPARE_BYTES), 0)
        g.hits[37] += 1
    elif kind == VIRTIO_BLK_T_GET_ID:
        roll = below(g, 4)
        length = roll if roll < 2 else 21
        g.pieces[s * SLOT_DESCS + 1]["len"] = length
        if roll == 3:
            g.pieces[s * SLOT_DESCS + 1]["addr"] = g.state[0]["scratch"]
            g.pieces[s * SLOT_DESCS + 1]["len"] = 4096
        g.hits[37] += 1
    else:
        # What a packed ring calls AVAIL and USED, and all other bits.
        k = s * SLOT_DESCS + below(g, g.slots[s]["pieces"])
        g.pieces[k]["flags"] |= 0x8080 if chance(g, 2) else 0xFFF8
        g.hits[47] += 1
    expect(g, s, EXPECT_ANY)


@cold_kernel
def twice(g, s):
    """6: the head is offered two times."""
    g.slots[s]["pushes"] = 2
    g.slots[s]["guard"] = 0
    expect(g, s, EXPECT_ANY)
    g.hits[6] += 1


@cold_kernel
def choose_flip(g, s):
    """39, 40: a field changes while the device looks. A request that could change the disk keeps type and sector."""
    roll = below(g, 4)
    if roll == 0 and not changes_disk(g, s):
        flip = FLIP_TYPE
    elif roll == 1 and not has_segments(g, s):
        flip = FLIP_SECTOR
    elif roll == 2 and not changes_disk(g, s):
        flip = FLIP_ADDR
    else:
        flip = FLIP_LEN
    g.slots[s]["flip"] = flip


@cold_kernel
def mutate(g, s):
    """Break slot `s` in one way of its choice."""
    roll = below(g, MUTATIONS)
    if roll < 3:
        any_type(g, s)
    elif roll < 6:
        if has_segments(g, s):
            any_segment(g, s)
        else:
            any_sector(g, s)
    elif roll < 8:
        data_length(g, s)
    elif roll < 10:
        header_length(g, s)
    elif roll < 12:
        status_length(g, s)
    elif roll < 14:
        more_pieces(g, s)
    elif roll == 14:
        odd_address(g, s)
    elif roll < 17:
        odd_request(g, s)
    elif roll == 17:
        twice(g, s)
    elif chance(g, 4):
        choose_flip(g, s)
    else:
        any_type(g, s)
    g.slots[s]["mutations"] += 1
