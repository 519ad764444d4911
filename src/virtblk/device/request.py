"""Parse and validate virtio-blk requests (virtio 1.2, 5.2.6); executing them is the storage's business.

Parse: pieces of a chain -> a request record. Header and segments may come in any framing (2.7.4.1); each of their bytes
is read once; what is looked at again is our copy. Validate: a record -> the same record with an operation to execute,
or with its refusal. Complete: the result -> status byte and used length. Called by the queue's worker.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.jit.atomics import load_i64, load_u32
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.memory import copy
from virtblk.jit.table import Table
from virtblk.mem.regions import guest_store_u8, guest_write
from virtblk.storage.request import (
    FLAG_FUA,
    FLAG_UNMAP,
    MAX_RANGES,
    OP_DISCARD,
    OP_FLUSH,
    OP_IDENTIFY,
    OP_NONE,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
    RANGE_BYTES,
    RANGE_FLAGS,
    RANGE_SECTOR,
    RANGE_SECTORS,
    SCRATCH_RANGES,
)
from virtblk.uapi.virtio_blk import (
    OUTHDR_SECTOR,
    OUTHDR_SIZE,
    OUTHDR_TYPE,
    SECTOR_SHIFT,
    SECTOR_SIZE,
    VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
)

ENOTSUP = 95

DISK_DTYPE = np.dtype(
    [
        ("capacity", "i8"),  # in 512-byte sectors
        ("read_only", "i8"),
        ("flush", "i8"),  # 1 when FLUSH was negotiated
        ("discard", "i8"),  # the same of DISCARD, WRITE_ZEROES
        ("write_zeroes", "i8"),
        ("max_discard_sectors", "i8"),  # of one segment
        ("max_write_zeroes_sectors", "i8"),
        ("write_through", "i8"),  # 1: a write is durable when it ends. Changes while workers run: read it per request
        ("kind", "i8"),
        ("address", "i8"),  # of a memory disk's first byte
        ("serial", "i8"),  # address of 20 bytes, NUL-padded ASCII
    ]
)


class DiskView(NamedTuple):
    """The disk as the workers see it; read-only for them. Control writes it between start and stop of the queues, but
    for `write_through`: one aligned word, which every worker has seen before it sees a request made after that."""

    state: Table  # [1] DISK_DTYPE


@cold_kernel
def gather_header(header, piece_addr, piece_len, first, readable):
    """Collect the header from pieces of any size into the 16 bytes at our address `header`; False where it is short.

    The pieces shrink by what was taken.
    """
    have = 0
    for p in range(first, first + readable):
        take = min(OUTHDR_SIZE - have, piece_len[p])
        copy(header + have, piece_addr[p], take)
        have += take
        piece_addr[p] += take
        piece_len[p] -= take
        if have == OUTHDR_SIZE:
            return True
    return False


@cold_kernel
def gather_ranges(requests, i, piece_addr, piece_len):
    """Collect the segments of record `i` from its pieces; `ranges` tells how many, 0 where that makes no sense."""
    length = requests[i]["length"]
    if length % RANGE_BYTES or length > MAX_RANGES * RANGE_BYTES:
        return
    at = requests[i]["scratch"] + SCRATCH_RANGES
    for p in range(requests[i]["first"], requests[i]["first"] + requests[i]["count"]):
        copy(at, piece_addr[p], piece_len[p])
        at += piece_len[p]
    requests[i]["ranges"] = length // RANGE_BYTES


@kernel
def parse(requests, i, head, piece_addr, piece_len, first, pieces, readable):
    """Make record `i` of a chain's pieces.

    Returns (type, sector). A chain without header or status byte gets OP_NONE: its head goes back with length 0.
    """
    requests[i]["head"] = head
    requests[i]["result"] = 0
    requests[i]["status"] = VIRTIO_BLK_S_OK
    requests[i]["used_len"] = 0
    requests[i]["op"] = OP_NONE
    requests[i]["status_at"] = 0
    requests[i]["length"] = 0
    requests[i]["writable"] = 0
    requests[i]["flags"] = 0
    requests[i]["ranges"] = 0
    end = first + pieces
    if pieces == readable:
        return -1, 0  # nothing writable: no room for a status
    last = end - 1
    piece_len[last] -= 1
    requests[i]["status_at"] = piece_addr[last] + piece_len[last]
    writable = 0
    for p in range(first + readable, end):
        writable += piece_len[p]
    requests[i]["writable"] = writable
    if readable == 1 and piece_len[first] == OUTHDR_SIZE:  # what every driver of today sends for a read
        header = piece_addr[first]
        piece_len[first] = 0
    elif readable > 0 and piece_len[first] >= OUTHDR_SIZE:
        header = piece_addr[first]
        piece_addr[first] += OUTHDR_SIZE
        piece_len[first] -= OUTHDR_SIZE
    elif gather_header(requests[i]["scratch"], piece_addr, piece_len, first, readable):
        header = requests[i]["scratch"]
    else:
        requests[i]["status"] = VIRTIO_BLK_S_IOERR
        return -1, 0
    kind = load_u32(header + OUTHDR_TYPE)
    sector = load_i64(header + OUTHDR_SECTOR)
    ranges = kind == VIRTIO_BLK_T_DISCARD or kind == VIRTIO_BLK_T_WRITE_ZEROES
    if kind == VIRTIO_BLK_T_OUT or ranges:
        requests[i]["first"] = first
        requests[i]["count"] = readable
        for p in range(first, first + readable):
            requests[i]["length"] += piece_len[p]
        if ranges:
            gather_ranges(requests, i, piece_addr, piece_len)
    else:
        requests[i]["first"] = first + readable
        requests[i]["count"] = pieces - readable
        requests[i]["length"] = writable
    return kind, sector


@cold_kernel
def validate_ranges(disk, requests, i, write_zeroes, max_sectors):
    """Check the gathered segments of record `i`; what stays of them are ranges to zero or discard, without empty ones.

    5.2.6.2: a flag that is unknown in any segment is UNSUPP, whatever else is wrong.
    """
    known = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP if write_zeroes else 0
    capacity = disk.state[0]["capacity"]
    segments = requests[i]["ranges"]
    status = VIRTIO_BLK_S_OK if segments > 0 else VIRTIO_BLK_S_IOERR
    base = requests[i]["scratch"] + SCRATCH_RANGES
    unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
    total = 0
    kept = 0
    requests[i]["count"] = 0
    requests[i]["length"] = 0
    for segment in range(segments):
        at = base + segment * RANGE_BYTES
        sector = load_i64(at + RANGE_SECTOR)
        sectors = load_u32(at + RANGE_SECTORS)
        flags = load_u32(at + RANGE_FLAGS)
        if flags & ~known:
            status = VIRTIO_BLK_S_UNSUPP
            break
        # As in `validate`: a sector of 2**63 and more is negative, and nothing wraps.
        if sector < 0 or sector > capacity or sectors > capacity - sector or sectors > max_sectors:
            status = VIRTIO_BLK_S_IOERR
        unmap &= flags
        if sectors:
            if kept < segment:
                copy(base + kept * RANGE_BYTES, at, RANGE_BYTES)
            kept += 1
            total += sectors
    requests[i]["status"] = status
    requests[i]["ranges"] = kept
    if status == VIRTIO_BLK_S_OK and kept > 0:
        requests[i]["offset"] = 0
        requests[i]["length"] = total << SECTOR_SHIFT
        requests[i]["op"] = OP_WRITE_ZEROES if write_zeroes else OP_DISCARD
        if unmap and write_zeroes:
            requests[i]["flags"] = FLAG_UNMAP
        if write_zeroes and disk.state[0]["write_through"]:
            requests[i]["flags"] |= FLAG_FUA


@kernel
def validate(disk, requests, i, kind, sector):
    """Decide what record `i` asks for: an operation for the storage, or OP_NONE with the status to give."""
    length = requests[i]["length"]
    if kind == VIRTIO_BLK_T_IN or kind == VIRTIO_BLK_T_OUT:
        capacity = disk.state[0]["capacity"]
        sectors = length >> SECTOR_SHIFT
        # A sector of 2**63 and more came in negative; capacity - sector cannot wrap once 0 <= sector <= capacity.
        if length & (SECTOR_SIZE - 1) or sector < 0 or sector > capacity or sectors > capacity - sector:
            requests[i]["status"] = VIRTIO_BLK_S_IOERR
        elif kind == VIRTIO_BLK_T_OUT and disk.state[0]["read_only"]:
            requests[i]["status"] = VIRTIO_BLK_S_IOERR  # 5.2.6.2: and the data MUST NOT change
        else:
            requests[i]["op"] = OP_READ if kind == VIRTIO_BLK_T_IN else OP_WRITE
            requests[i]["offset"] = sector << SECTOR_SHIFT
            if kind == VIRTIO_BLK_T_OUT and disk.state[0]["write_through"]:
                requests[i]["flags"] = FLAG_FUA
    elif kind == VIRTIO_BLK_T_FLUSH:
        if disk.state[0]["flush"]:
            requests[i]["op"] = OP_FLUSH
            requests[i]["length"] = 0
            requests[i]["count"] = 0
        else:
            requests[i]["status"] = VIRTIO_BLK_S_UNSUPP
    elif kind == VIRTIO_BLK_T_GET_ID:
        requests[i]["op"] = OP_IDENTIFY
    elif kind == VIRTIO_BLK_T_DISCARD or kind == VIRTIO_BLK_T_WRITE_ZEROES:
        write_zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES
        if disk.state[0]["read_only"]:
            requests[i]["status"] = VIRTIO_BLK_S_IOERR
        elif write_zeroes and disk.state[0]["write_zeroes"]:
            validate_ranges(disk, requests, i, True, disk.state[0]["max_write_zeroes_sectors"])
        elif not write_zeroes and disk.state[0]["discard"]:
            validate_ranges(disk, requests, i, False, disk.state[0]["max_discard_sectors"])
        else:
            requests[i]["status"] = VIRTIO_BLK_S_UNSUPP
    elif kind >= 0:
        requests[i]["status"] = VIRTIO_BLK_S_UNSUPP


@cold_kernel
def identify(disk, mem, requests, i, piece_addr, piece_len):
    """GET_ID: the serial, NUL-padded to 20 bytes, or as much of it as there is room for."""
    left = VIRTIO_BLK_ID_BYTES
    for p in range(requests[i]["first"], requests[i]["first"] + requests[i]["count"]):
        take = min(left, piece_len[p])
        guest_write(mem, piece_addr[p], disk.state[0]["serial"] + VIRTIO_BLK_ID_BYTES - left, take)
        left -= take
    requests[i]["used_len"] = VIRTIO_BLK_ID_BYTES - left


@kernel
def complete(mem, requests, i):
    """Write the status byte of record `i`, and only that byte; returns the used length.

    The length counts bytes written from the first writable one on (2.7.8.1), so a failed read that wrote nothing but
    the status at the end says 0 unless the status is the first writable byte.
    """
    op = requests[i]["op"]
    if op != OP_NONE and requests[i]["result"]:
        requests[i]["status"] = VIRTIO_BLK_S_UNSUPP if requests[i]["result"] == ENOTSUP else VIRTIO_BLK_S_IOERR
    at = requests[i]["status_at"]
    if at == 0:
        return 0
    guest_store_u8(mem, at, requests[i]["status"])
    written = requests[i]["used_len"]
    return written + 1 if written == requests[i]["writable"] else written
