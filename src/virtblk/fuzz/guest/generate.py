"""Make one request of a seed: sound at first, then in half of all cases broken in one place or a few.

A request is a function of its seed, the slot and what the device negotiated, nothing else, so any part of a run can be
made again. Writes its slot, its descriptors, what may be written, and what is expected. Called by `batch`.
"""

from __future__ import annotations

from virtblk.fuzz.guest.breaking import break_chain
from virtblk.fuzz.guest.mutate import FIRST_UNKNOWN, mutate
from virtblk.fuzz.guest.request import (
    add_piece,
    add_range,
    below,
    chance,
    piece_entry,
    put_desc,
    put_header,
    slot_address,
)
from virtblk.fuzz.guest.state import (
    CANARY,
    DATA_AT,
    EXPECT_ANY,
    EXPECT_OK,
    EXPECT_REFUSAL,
    FLIP_ADDR,
    FLIP_FLAGS,
    FLIP_LEN,
    FLIP_SECTOR,
    FLIP_TABLE_LEN,
    FLIP_TYPE,
    FLIP_USED_IDX,
    FLIPS,
    HEADER_AT,
    SLOT_BYTES,
    SLOT_DESCS,
    STATUS_AT,
    TABLE_AT,
)
from virtblk.jit.atomics import load_i64, load_u16, load_u32, store_i64, store_u32
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.memory import copy, fill
from virtblk.uapi.virtio_blk import (
    OUTHDR_SECTOR,
    OUTHDR_SIZE,
    OUTHDR_TYPE,
    SECTOR_SIZE,
    VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from virtblk.uapi.virtio_ring import (
    DESC_ADDR,
    DESC_FLAGS,
    DESC_LEN,
    DESC_SIZE,
    USED_IDX,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
)

#: Sectors of a sound request, at most; a guard is not narrower.
MAX_SECTORS = 4
#: Bytes of a segment of discard or write zeroes: le64 sector, le32 sectors, le32 flags.
SEGMENT_BYTES = 16
#: Sectors of a sound segment, at most.
SEGMENT_SECTORS = 8
#: Of a number that no type, sector or length is taken for: payload bytes of a write have this bit.
HIGH_BIT = 0x80


@kernel
def choose_kind(g):
    """Mostly reads and writes."""
    roll = below(g, 16)
    if roll < 7:
        return VIRTIO_BLK_T_IN
    if roll < 12:
        return VIRTIO_BLK_T_OUT
    if roll == 12:
        return VIRTIO_BLK_T_FLUSH
    if roll == 13:
        return VIRTIO_BLK_T_GET_ID
    return VIRTIO_BLK_T_DISCARD if roll == 14 else VIRTIO_BLK_T_WRITE_ZEROES


@kernel
def add_data(g, s, length, flags):
    """`length` bytes of data in one to three pieces, each of whole sectors but the last."""
    at = slot_address(g, s) + DATA_AT
    while length > SECTOR_SIZE and chance(g, 3):
        add_piece(g, s, at, SECTOR_SIZE, flags)
        at += SECTOR_SIZE
        length -= SECTOR_SIZE
    add_piece(g, s, at, length, flags)


@cold_kernel
def make_sound(g, s):
    """A request as an honest driver sends it."""
    base = slot_address(g, s)
    kind = choose_kind(g)
    sectors = 1 + below(g, MAX_SECTORS)
    first = g.state[0]["guard_first"]
    sector = below(g, first - SEGMENT_SECTORS)
    expect = EXPECT_OK if g.state[0]["strict"] else EXPECT_ANY
    g.slots[s]["guard"] = 0
    if kind == VIRTIO_BLK_T_IN and g.state[0]["guard_count"] > 0 and chance(g, 4):
        sector = first + below(g, g.state[0]["guard_count"] - sectors + 1)
        g.slots[s]["guard"] = 1
    add_piece(g, s, base + HEADER_AT, OUTHDR_SIZE, 0)
    if kind == VIRTIO_BLK_T_IN:
        add_data(g, s, sectors * SECTOR_SIZE, VRING_DESC_F_WRITE)
    elif kind == VIRTIO_BLK_T_OUT:
        fill(base + DATA_AT, HIGH_BIT | below(g, HIGH_BIT), sectors * SECTOR_SIZE)
        add_data(g, s, sectors * SECTOR_SIZE, 0)
        if g.state[0]["read_only"]:
            expect = EXPECT_REFUSAL
            g.hits[38] += 1
    elif kind == VIRTIO_BLK_T_GET_ID:
        add_piece(g, s, base + DATA_AT, VIRTIO_BLK_ID_BYTES, VRING_DESC_F_WRITE)
        expect = EXPECT_OK
    elif kind == VIRTIO_BLK_T_FLUSH:
        sector = 0
        expect = EXPECT_OK if g.state[0]["flush"] else EXPECT_ANY
    else:
        offered = g.state[0]["discard"] if kind == VIRTIO_BLK_T_DISCARD else g.state[0]["write_zeroes"]
        if g.state[0]["read_only"]:
            expect = EXPECT_REFUSAL
            g.hits[38] += 1
        elif offered == 0:
            expect = EXPECT_ANY
        store_i64(base + DATA_AT, sector)
        store_u32(base + DATA_AT + 8, 1 + below(g, SEGMENT_SECTORS))
        store_u32(base + DATA_AT + 12, 0)
        add_piece(g, s, base + DATA_AT, SEGMENT_BYTES, 0)
        sector = 0
    put_header(base + HEADER_AT, kind, sector)
    add_piece(g, s, base + STATUS_AT, 1, VRING_DESC_F_WRITE)
    g.slots[s]["kind"] = kind
    g.slots[s]["sector"] = sector
    g.slots[s]["sectors"] = sectors
    g.slots[s]["expect"] = expect


@kernel
def write_descs(g, s):
    """Describe the pieces: in the slot's descriptors, or in its indirect table with one descriptor for that."""
    pieces = g.slots[s]["pieces"]
    in_table = g.slots[s]["in_table"]
    first = s * SLOT_DESCS
    fill(g.state[0]["desc"] + first * DESC_SIZE, 0, SLOT_DESCS * DESC_SIZE)
    start = 0 if in_table else first
    writable = 0
    for k in range(pieces):
        flags = g.pieces[first + k]["flags"]
        if k + 1 < pieces:
            flags |= VRING_DESC_F_NEXT
        if g.pieces[first + k]["addr"] >= g.state[0]["end"] - SLOT_BYTES:  # meant to end where memory does
            g.pieces[first + k]["addr"] = g.state[0]["end"] - g.pieces[first + k]["len"]
        put_desc(piece_entry(g, s, k), g.pieces[first + k]["addr"], g.pieces[first + k]["len"], flags, start + k + 1)
        if flags & VRING_DESC_F_WRITE:
            writable += g.pieces[first + k]["len"]
            add_range(g, s, g.pieces[first + k]["addr"], g.pieces[first + k]["len"])
    if in_table:
        entry = g.state[0]["desc"] + first * DESC_SIZE
        put_desc(entry, slot_address(g, s) + TABLE_AT, pieces * DESC_SIZE, VRING_DESC_F_INDIRECT, 0)
    g.slots[s]["writable"] = writable


@kernel
def add_flip(g, address, width, second):
    """Have the word change between what it holds and `second` while the device looks."""
    n = g.state[0]["flips"]
    if width == 8:
        first = load_i64(address)
    elif width == 4:
        first = load_u32(address)
    else:
        first = load_u16(address)
    g.flips[n]["addr"] = address
    g.flips[n]["width"] = width
    g.flips[n]["first"] = first
    g.flips[n]["second"] = second
    g.state[0]["flips"] = n + 1


@cold_kernel
def make_flip(g, s):
    """Arm the word that this request has chosen to change.

    A device that gathers a header in pieces may see some bytes of one value and some of the other. No such mixture may
    write to the guard: a sector that is written to differs in its highest byte only, types in bytes that no type has.
    """
    flip = g.slots[s]["flip"]
    base = slot_address(g, s)
    first = s * SLOT_DESCS
    k = below(g, g.slots[s]["pieces"])
    entry = piece_entry(g, s, k)
    if flip == FLIP_ADDR and g.pieces[first + k]["flags"] & VRING_DESC_F_WRITE == 0:
        flip = FLIP_LEN  # what is read must not come from where anything may lie
    if flip == FLIP_TYPE:
        unknown = below(g, 256) << 8 | (FIRST_UNKNOWN + below(g, 256 - FIRST_UNKNOWN))
        add_flip(g, base + HEADER_AT + OUTHDR_TYPE, 4, VIRTIO_BLK_T_IN if chance(g, 2) else unknown)
        g.hits[39] += 1
    elif flip == FLIP_SECTOR:
        if load_u32(base + HEADER_AT + OUTHDR_TYPE) == VIRTIO_BLK_T_IN and chance(g, 2):
            other = below(g, g.state[0]["capacity"] + MAX_SECTORS)
        else:
            other = load_i64(base + HEADER_AT + OUTHDR_SECTOR) ^ (-(1 << 62) - (1 << 62))
        add_flip(g, base + HEADER_AT + OUTHDR_SECTOR, 8, other)
        g.hits[39] += 1
    elif flip == FLIP_ADDR:
        add_flip(g, entry + DESC_ADDR, 8, g.state[0]["scratch"])
        g.hits[40] += 1
    elif flip == FLIP_LEN:
        add_flip(g, entry + DESC_LEN, 4, below(g, g.pieces[first + k]["len"] + 1))
        g.hits[40] += 1
    elif flip == FLIP_FLAGS:
        if g.pieces[first + k]["flags"] & VRING_DESC_F_WRITE == 0:
            add_range(g, s, g.pieces[first + k]["addr"], g.pieces[first + k]["len"])
        add_flip(g, entry + DESC_FLAGS, 2, load_u16(entry + DESC_FLAGS) ^ (1 << below(g, 3)))
        g.hits[40] += 1
    elif flip == FLIP_TABLE_LEN:
        entry = g.state[0]["desc"] + first * DESC_SIZE
        add_flip(g, entry + DESC_LEN, 4, DESC_SIZE * below(g, SLOT_DESCS + 1))
        g.hits[41] += 1
    elif flip == FLIP_USED_IDX:
        add_flip(g, g.state[0]["used"] + USED_IDX, 2, below(g, 1 << 16))
        g.hits[42] += 1


@cold_kernel
def protect_guard(g, s):
    """Mutations may meet, and make a sound write of a request that named guarded sectors: it names others then."""
    header = slot_address(g, s) + HEADER_AT
    kind = load_u32(header + OUTHDR_TYPE)
    sector = load_i64(header + OUTHDR_SECTOR)
    if kind & VIRTIO_BLK_T_OUT and g.state[0]["guard_first"] - SEGMENT_SECTORS <= sector < g.state[0]["capacity"]:
        store_i64(header + OUTHDR_SECTOR, g.state[0]["capacity"])
        g.slots[s]["expect"] = EXPECT_ANY


@cold_kernel
def make_request(g, s, seed):
    """Fill slot `s` with the request of `seed`."""
    g.state[0]["request_seed"] = seed
    g.state[0]["draw"] = 0
    base = slot_address(g, s)
    fill(base, CANARY, SLOT_BYTES)
    g.slots[s]["seed"] = seed
    g.slots[s]["pieces"] = 0
    g.slots[s]["ranges"] = 0
    g.slots[s]["flip"] = 0
    g.slots[s]["breaking"] = 0
    g.slots[s]["mutations"] = 0
    g.slots[s]["head"] = s * SLOT_DESCS
    g.slots[s]["pushes"] = 1
    g.slots[s]["in_table"] = 1 if g.state[0]["indirect"] and chance(g, 2) else 0
    make_sound(g, s)
    if g.state[0]["mutate"]:
        breaking = chance(g, g.state[0]["breaking_every"])
        if chance(g, 2):
            mutate(g, s)
            while chance(g, 4):
                mutate(g, s)
            protect_guard(g, s)
        write_descs(g, s)
        if breaking:
            break_chain(g, s)
            g.slots[s]["breaking"] = 1
            g.slots[s]["mutations"] += 1
            g.state[0]["breaking"] = 1
        if g.slots[s]["mutations"]:
            g.state[0]["mutated"] += 1
        if g.slots[s]["breaking"] or g.slots[s]["flip"]:
            g.slots[s]["expect"] = EXPECT_ANY
            g.slots[s]["writable"] = -1
            g.slots[s]["guard"] = 0
    else:
        write_descs(g, s)
    copy(g.state[0]["shadow_at"] + s * SLOT_BYTES, base, SLOT_BYTES)
    if g.slots[s]["flip"] and g.state[0]["flips"] + FLIPS <= g.state[0]["slots"] * FLIPS:
        make_flip(g, s)


@cold_kernel
def make_plain(g, s, kind, sector, sectors, flags):
    """Have slot `s` read or write `sectors`, in three buffers."""
    base = slot_address(g, s)
    g.slots[s]["pieces"] = 0
    g.slots[s]["ranges"] = 0
    g.slots[s]["kind"] = kind
    g.slots[s]["sector"] = sector
    g.slots[s]["sectors"] = sectors
    g.slots[s]["expect"] = EXPECT_OK
    put_header(base + HEADER_AT, kind, sector)
    add_piece(g, s, base + HEADER_AT, OUTHDR_SIZE, 0)
    add_piece(g, s, base + DATA_AT, sectors * SECTOR_SIZE, flags)
    add_piece(g, s, base + STATUS_AT, 1, VRING_DESC_F_WRITE)
    write_descs(g, s)
    copy(g.state[0]["shadow_at"] + s * SLOT_BYTES, base, SLOT_BYTES)


@cold_kernel
def make_write(g, s, sector):
    """Have slot `s` write one sector, whose contents lie in its data already."""
    make_plain(g, s, VIRTIO_BLK_T_OUT, sector, 1, 0)
    g.slots[s]["guard"] = 0


@cold_kernel
def make_read(g, s, sector):
    """Have slot `s` read guarded sectors."""
    make_plain(g, s, VIRTIO_BLK_T_IN, sector, MAX_SECTORS, VRING_DESC_F_WRITE)
    g.slots[s]["guard"] = 1
