"""The pieces that requests of the lying guest are made of: random numbers, buffers, descriptors, what may be written.

Called by `generate`, `mutate` and `breaking`.
"""

from __future__ import annotations

from virtblk.fuzz.guest.state import RANGES, SLOT_BYTES, SLOT_DESCS, TABLE_AT
from virtblk.jit.arith import mix64
from virtblk.jit.atomics import store_i64, store_u16, store_u32
from virtblk.jit.kernel import kernel
from virtblk.uapi.virtio_blk import OUTHDR_IOPRIO, OUTHDR_SECTOR, OUTHDR_TYPE
from virtblk.uapi.virtio_ring import DESC_ADDR, DESC_FLAGS, DESC_LEN, DESC_NEXT, DESC_SIZE


@kernel
def draw(g):
    """The next number of the request that is being made, 0 to 2**63 - 1."""
    n = g.state[0]["draw"]
    g.state[0]["draw"] = n + 1
    return mix64(g.state[0]["request_seed"] + n)


@kernel
def below(g, limit):
    """A number from 0 to `limit` - 1; 0 where that is none."""
    value = draw(g)
    return value % limit if limit > 0 else 0


@kernel
def chance(g, one_in):
    """True once in `one_in` times."""
    return draw(g) % one_in == 0


@kernel
def slot_address(g, s):
    """Where the memory of slot `s` begins."""
    return g.state[0]["slot_at"] + s * SLOT_BYTES


@kernel
def add_piece(g, s, address, length, flags):
    """One more buffer at the end; one too many is left out."""
    k = g.slots[s]["pieces"]
    if k < SLOT_DESCS:
        g.pieces[s * SLOT_DESCS + k]["addr"] = address
        g.pieces[s * SLOT_DESCS + k]["len"] = length
        g.pieces[s * SLOT_DESCS + k]["flags"] = flags
        g.slots[s]["pieces"] = k + 1


@kernel
def insert_piece(g, s, at, address, length, flags):
    """One more buffer before buffer `at`; False where there is no room for it."""
    count = g.slots[s]["pieces"]
    if count >= SLOT_DESCS:
        return False
    first = s * SLOT_DESCS
    for back in range(count - at):
        k = first + count - back
        g.pieces[k]["addr"] = g.pieces[k - 1]["addr"]
        g.pieces[k]["len"] = g.pieces[k - 1]["len"]
        g.pieces[k]["flags"] = g.pieces[k - 1]["flags"]
    g.pieces[first + at]["addr"] = address
    g.pieces[first + at]["len"] = length
    g.pieces[first + at]["flags"] = flags
    g.slots[s]["pieces"] = count + 1
    return True


@kernel
def split_piece(g, s, at, length):
    """Make two buffers of buffer `at`, the first of `length` bytes."""
    k = s * SLOT_DESCS + at
    left = g.pieces[k]["len"] - length
    if left > 0 and insert_piece(g, s, at + 1, g.pieces[k]["addr"] + length, left, g.pieces[k]["flags"]):
        g.pieces[k]["len"] = length


@kernel
def add_range(g, s, address, length):
    """The device may write `length` bytes at `address`, on behalf of slot `s`."""
    n = g.slots[s]["ranges"]
    if n < RANGES:
        g.ranges[s * RANGES + n]["start"] = address
        g.ranges[s * RANGES + n]["end"] = address + length
        g.slots[s]["ranges"] = n + 1
    else:
        g.state[0]["wild"] = 1


@kernel
def piece_entry(g, s, k):
    """Address of the descriptor of buffer `k`."""
    if g.slots[s]["in_table"]:
        return slot_address(g, s) + TABLE_AT + k * DESC_SIZE
    return g.state[0]["desc"] + (s * SLOT_DESCS + k) * DESC_SIZE


@kernel
def put_desc(entry, address, length, flags, following):
    """Write one descriptor, each field modulo its width."""
    store_i64(entry + DESC_ADDR, address)
    store_u32(entry + DESC_LEN, length)
    store_u16(entry + DESC_FLAGS, flags)
    store_u16(entry + DESC_NEXT, following)


@kernel
def put_header(at, kind, sector):
    """Write struct virtio_blk_outhdr."""
    store_u32(at + OUTHDR_TYPE, kind)
    store_u32(at + OUTHDR_IOPRIO, 0)
    store_i64(at + OUTHDR_SECTOR, sector)
