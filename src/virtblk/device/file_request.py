"""One request on a file, from its record to its end: which calls it takes, and what their answers mean.

A slot holds a request until it ends; it has one submission in flight at most (`jit.io_uring`). `file_start` begins,
`file_completed` goes on with what a completion says; both put a slot that ended on the list of ended ones. Called by
`device.file_worker`, which answers them.

====================  ================================================================================================
READ, WRITE           over the guest's own memory, again for what a short transfer left over. FUA: RWF_DSYNC
  to the page cache   whole pages are written at once, by pwritev: file systems without NOWAIT for buffered writes
                      (ext4) leave each to a kernel thread. After one that blocked
                      (the kernel throttles who dirties too much) the following go through io_uring for a while
  direct, unaligned   pieces that direct I/O cannot use are copied through aligned memory, at once
FLUSH                 one fdatasync at a time; flushes that come meanwhile share the next
WRITE_ZEROES          by range: a hole (may unmap), FALLOC_FL_ZERO_RANGE, or zeroes written. FUA: then a flush
DISCARD               by range: a hole, or nothing
====================  ================================================================================================
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.jit.atomics import load_acquire_i64, load_i64, load_u32, store_i64, store_release_i64
from virtblk.jit.io_uring import (
    IORING_FSYNC_DATASYNC,
    IORING_OP_FALLOCATE,
    IORING_OP_FSYNC,
    IORING_OP_READ,
    IORING_OP_READV,
    IORING_OP_WRITE,
    IORING_OP_WRITEV,
    RWF_DSYNC,
    prepare,
    uring_get_sqe,
)
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.libc import clock_ns, preadv, pwritev
from virtblk.jit.table import Table
from virtblk.mem.regions import guest_read, guest_write
from virtblk.storage.file_calls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from virtblk.storage.request import (
    FLAG_FUA,
    FLAG_UNMAP,
    OP_DISCARD,
    OP_FLUSH,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
    RANGE_BYTES,
    RANGE_SECTOR,
    RANGE_SECTORS,
    SCRATCH_RANGES,
)
from virtblk.virtio.vringh_split import BAD_MEMORY, vringh_break

EINTR = 4
EIO = 5
EAGAIN = 11
EFAULT = 14
EBUSY = 16
EINVAL = 22
ENOSYS = 38
EOPNOTSUPP = 95

SECTOR_SHIFT = 9
SECTOR_MASK = 511
PAGE_MASK = 4095

#: Pieces of one submission; the rest of a longer chain follows in the next.
SLOT_IOVECS = 128
IOVEC_BYTES = 16
#: One submission moves this much at most.
MAX_TRANSFER = 1 << 30
#: What takes this long blocked, and for so long no other write is tried in place.
INLINE_BYTES = 256 << 10
INLINE_BLOCKED_NS = 2_000_000
INLINE_PAUSE_NS = 100_000_000
#: Bounce memory, and the zeroes that are written.
CHUNK = 256 << 10
#: A call that did nothing (EINTR, EAGAIN, nothing but part of a sector) is made this often.
RETRIES = 100

# What a slot has in flight.
DOING_TRANSFER = 0
DOING_PUNCH = 1
DOING_ZERO = 2
DOING_WRITE_ZEROES = 3
WAITS_FOR_FLUSH = 4  # of those to come
IN_FLUSH = 5

FILE_SLOT_DTYPE = np.dtype(
    [
        ("doing", "i8"),
        ("moved", "i8"),  # bytes of the request, or of the range at hand
        ("range", "i8"),  # index of the range at hand
        ("tries", "i8"),  # in a row, for nothing
        ("cannot", "i8"),  # bits 1 << DOING_*: ways that do not work for this request
        ("dsync", "i8"),  # 1: writes by themselves are durable; 0: a FUA request needs a flush at its end
    ]
)

FILE_QUEUE_DTYPE = np.dtype(
    [
        ("slots", "i8"),
        ("free", "i8"),  # slots on the stack of free ones
        ("ended", "i8"),  # slots on the list of ended ones
        ("flushing", "i8"),  # 1: an fdatasync is in flight
        ("fd", "i8"),
        ("flush_fd", "i8"),  # a description of this queue's own: see storage.file
        ("memory_align", "i8"),  # as in storage.file_state
        ("unsafe", "i8"),
        ("punch", "i8"),
        ("zero", "i8"),
        ("failed", "i8"),  # address of the word that all queues share
        ("iovecs", "i8"),  # address of SLOT_IOVECS struct iovec for each slot
        ("bounce", "i8"),  # address of CHUNK bytes, aligned to a page
        ("zeroes", "i8"),  # the same, and they stay zero
        ("inline_after", "i8"),  # no write in place before this time
        ("inlined", "i8"),  # counters
        ("bounced", "i8"),
    ]
)


class FileQueue(NamedTuple):
    state: Table  # [1] FILE_QUEUE_DTYPE
    ring: Table  # [1] URING_DTYPE
    slot: Table  # [slots] FILE_SLOT_DTYPE
    free: Table  # [slots]
    ended: Table  # [slots]


@kernel
def end(requests, q, slot, error):
    """The request is over: 0, or a positive errno."""
    requests[slot]["result"] = error
    if error == 0 and requests[slot]["op"] == OP_READ:
        requests[slot]["used_len"] = requests[slot]["length"]
    q.ended[q.state[0]["ended"]] = slot
    q.state[0]["ended"] += 1


@kernel
def submission(q, slot, opcode, fd, address, length, offset, flags):
    """Put one submission for the slot into the ring, which has room for one of each slot."""
    sqe = uring_get_sqe(q.ring)
    if sqe != 0:
        prepare(sqe, opcode, fd, address, length, offset, flags, slot)


@kernel
def again(q, slot, result):
    """Whether `result` is one to try once more after, and not too often."""
    if result != -EINTR and result != -EAGAIN:
        return False
    q.slot[slot]["tries"] += 1
    return q.slot[slot]["tries"] <= RETRIES


# Reads and writes.


@kernel
def gather(vr, requests, q, slot):
    """Make iovecs of the pieces from `moved` on: (how many, their bytes). Direct I/O: (0, 0) where one is unaligned."""
    mask = q.state[0]["memory_align"] - 1
    skip = q.slot[slot]["moved"]
    at = q.state[0]["iovecs"] + slot * SLOT_IOVECS * IOVEC_BYTES
    count = 0
    total = 0
    for p in range(requests[slot]["first"], requests[slot]["first"] + requests[slot]["count"]):
        length = vr.piece_len[p]
        if skip >= length:
            skip -= length
            continue
        address = vr.piece_addr[p] + skip
        length -= skip
        skip = 0
        if mask >= 0 and (address & mask or length & (mask | SECTOR_MASK)):
            return 0, 0
        length = min(length, MAX_TRANSFER - total)
        if count == SLOT_IOVECS or length == 0:
            break
        store_i64(at + count * IOVEC_BYTES, address)
        store_i64(at + count * IOVEC_BYTES + 8, length)
        count += 1
        total += length
    return count, total


@cold_kernel
def copy_pieces(vr, mem, requests, slot, start, length, buffer, to_guest):
    """Copy bytes `start` to `start + length` of the request's data between its pieces and our `buffer`."""
    for p in range(requests[slot]["first"], requests[slot]["first"] + requests[slot]["count"]):
        here = vr.piece_len[p]
        if start >= here:
            start -= here
            continue
        take = min(here - start, length)
        if to_guest:
            guest_write(mem, vr.piece_addr[p] + start, buffer, take)
        else:
            guest_read(mem, buffer, vr.piece_addr[p] + start, take)
        start = 0
        buffer += take
        length -= take
        if length == 0:
            return


@cold_kernel
def bounce(vr, mem, requests, q, slot):
    """Do the rest of a read or write at once, through aligned memory. 0, or a positive errno."""
    is_read = requests[slot]["op"] == OP_READ
    buffer = q.state[0]["bounce"]
    iovec = q.state[0]["iovecs"] + slot * SLOT_IOVECS * IOVEC_BYTES
    q.slot[slot]["dsync"] = 0
    q.state[0]["bounced"] += 1
    tries = 0
    while q.slot[slot]["moved"] < requests[slot]["length"]:
        moved = q.slot[slot]["moved"]
        length = min(requests[slot]["length"] - moved, CHUNK)
        store_i64(iovec, buffer)
        store_i64(iovec + 8, length)
        if is_read:
            result = preadv(q.state[0]["fd"], iovec, 1, requests[slot]["offset"] + moved)
        else:
            copy_pieces(vr, mem, requests, slot, moved, length, buffer, False)
            result = pwritev(q.state[0]["fd"], iovec, 1, requests[slot]["offset"] + moved)
        if result == 0:
            return EIO
        if result < 0 and result != -EINTR and result != -EAGAIN:
            return -result
        result = max(result, 0) & ~SECTOR_MASK
        tries = tries + 1 if result == 0 else 0
        if tries > RETRIES:
            return EIO
        if is_read:
            copy_pieces(vr, mem, requests, slot, moved, result, buffer, True)
        q.slot[slot]["moved"] += result
    return 0


@kernel
def write_in_place(requests, q, slot, count, total):
    """Whether a write that goes to the page cache was tried at once: (tried, result)."""
    now = clock_ns()
    if now < q.state[0]["inline_after"]:
        return False, 0
    iovecs = q.state[0]["iovecs"] + slot * SLOT_IOVECS * IOVEC_BYTES
    result = pwritev(q.state[0]["fd"], iovecs, count, requests[slot]["offset"] + q.slot[slot]["moved"])
    after = clock_ns()
    if after - now > INLINE_BLOCKED_NS:
        q.state[0]["inline_after"] = after + INLINE_PAUSE_NS
    q.state[0]["inlined"] += 1
    return True, result


@cold_kernel
def transfer(vr, mem, requests, q, slot):
    """Go on with a read or write from `moved` on."""
    if q.slot[slot]["moved"] == requests[slot]["length"]:
        finish_write(requests, q, slot)
        return
    q.slot[slot]["doing"] = DOING_TRANSFER
    count, total = gather(vr, requests, q, slot)
    offset = requests[slot]["offset"] + q.slot[slot]["moved"]
    direct = q.state[0]["memory_align"] > 0
    if count == 0 or (direct and offset & SECTOR_MASK):
        error = bounce(vr, mem, requests, q, slot)
        if error:
            end(requests, q, slot, error)
        else:
            finish_write(requests, q, slot)
        return
    is_read = requests[slot]["op"] == OP_READ
    fua = requests[slot]["flags"] & FLAG_FUA and q.state[0]["unsafe"] == 0
    if not is_read and not direct and not fua and (offset | total) & PAGE_MASK == 0 and total <= INLINE_BYTES:
        tried, result = write_in_place(requests, q, slot, count, total)
        if tried and result == total == requests[slot]["length"]:
            end(requests, q, slot, 0)
            return
        if tried and result > 0:
            q.slot[slot]["moved"] += result
            count, total = gather(vr, requests, q, slot)
            offset += result
            if total == 0:
                end(requests, q, slot, 0)
                return
        # An error shows again below.
    flags = RWF_DSYNC if fua and q.slot[slot]["dsync"] and not is_read else 0
    iovecs = q.state[0]["iovecs"] + slot * SLOT_IOVECS * IOVEC_BYTES
    fd = q.state[0]["fd"]
    if count == 1:
        opcode = IORING_OP_READ if is_read else IORING_OP_WRITE
        submission(q, slot, opcode, fd, load_i64(iovecs), load_i64(iovecs + 8), offset, flags)
    else:
        submission(q, slot, IORING_OP_READV if is_read else IORING_OP_WRITEV, fd, iovecs, count, offset, flags)


@kernel
def finish_write(requests, q, slot):
    """All data is through: a FUA write that was not durable by itself needs a flush yet."""
    fua = requests[slot]["flags"] & FLAG_FUA and requests[slot]["op"] == OP_WRITE
    if fua and q.slot[slot]["dsync"] == 0:
        flush(requests, q, slot)
    else:
        end(requests, q, slot, 0)


@kernel
def transferred(vr, mem, requests, q, slot, result):
    """A read or write answered: bytes, or -errno."""
    if result > 0:
        direct = q.state[0]["memory_align"] > 0
        if direct and q.slot[slot]["moved"] + result < requests[slot]["length"]:
            result &= ~SECTOR_MASK  # it goes on with a whole sector, which a file that ends inside one does not have
        if result == 0:
            q.slot[slot]["tries"] = RETRIES
            result = -EAGAIN
    if result > 0:
        q.slot[slot]["moved"] += result
        q.slot[slot]["tries"] = 0
        transfer(vr, mem, requests, q, slot)
    elif result == 0:
        end(requests, q, slot, EIO)  # the file ends before the disk does
    elif again(q, slot, result):
        transfer(vr, mem, requests, q, slot)
    elif result == -EINVAL and q.state[0]["memory_align"] > 0:
        error = bounce(vr, mem, requests, q, slot)  # direct I/O asks for more than it told
        if error:
            end(requests, q, slot, error)
        else:
            finish_write(requests, q, slot)
    elif result == -EOPNOTSUPP and requests[slot]["flags"] & FLAG_FUA and q.slot[slot]["dsync"]:
        q.slot[slot]["dsync"] = 0  # no RWF_DSYNC on this file system
        transfer(vr, mem, requests, q, slot)
    else:
        if result == -EFAULT:
            vringh_break(vr, BAD_MEMORY, slot)  # nothing but guest memory was given to the system
        end(requests, q, slot, EIO if result == -EAGAIN or result == -EOPNOTSUPP else -result)


# Flushes.


@kernel
def flush(requests, q, slot):
    """Have the slot end with the next fdatasync that begins from now on."""
    if q.state[0]["unsafe"]:
        end(requests, q, slot, 0)
        return
    q.slot[slot]["doing"] = WAITS_FOR_FLUSH
    if q.state[0]["flushing"] == 0:
        begin_flush(requests, q)


@cold_kernel
def begin_flush(requests, q):
    """One fdatasync for all slots that wait for one; where an earlier one failed, they fail."""
    failed = load_acquire_i64(q.state[0]["failed"])  # partner: the release in `flushed`, of any queue
    found = False
    for slot in range(q.state[0]["slots"]):
        if q.slot[slot]["doing"] == WAITS_FOR_FLUSH:
            if failed:
                q.slot[slot]["doing"] = DOING_TRANSFER
                end(requests, q, slot, EIO)
            else:
                q.slot[slot]["doing"] = IN_FLUSH
                found = True
    q.state[0]["flushing"] = 1 if found else 0
    if found:
        user_data = q.state[0]["slots"]  # no slot's: it is for several
        submission(q, user_data, IORING_OP_FSYNC, q.state[0]["flush_fd"], 0, 0, 0, IORING_FSYNC_DATASYNC)


@cold_kernel
def flushed(requests, q, result):
    """The fdatasync answered. One that failed may have lost data for good, and the next would succeed: see
    storage.file."""
    if result < 0:
        store_release_i64(q.state[0]["failed"], 1)
    for slot in range(q.state[0]["slots"]):
        if q.slot[slot]["doing"] == IN_FLUSH:
            q.slot[slot]["doing"] = DOING_TRANSFER
            end(requests, q, slot, EIO if result < 0 else 0)
    begin_flush(requests, q)


# Discard and write zeroes.


@kernel
def way_of(requests, q, slot):
    """How to do the range at hand; -1: not at all."""
    cannot = q.slot[slot]["cannot"]
    hole = q.state[0]["punch"] and not cannot & 1 << DOING_PUNCH
    if requests[slot]["op"] == OP_DISCARD:
        return DOING_PUNCH if hole else -1
    if hole and requests[slot]["flags"] & FLAG_UNMAP:
        return DOING_PUNCH
    if q.state[0]["zero"] and not cannot & 1 << DOING_ZERO:
        return DOING_ZERO
    return DOING_WRITE_ZEROES


@cold_kernel
def ranges(requests, q, slot):
    """Go on with a discard or write zeroes, from `moved` of range `range` on."""
    fd = q.state[0]["fd"]
    while q.slot[slot]["range"] < requests[slot]["ranges"]:
        at = requests[slot]["scratch"] + SCRATCH_RANGES + q.slot[slot]["range"] * RANGE_BYTES
        offset = load_i64(at + RANGE_SECTOR) << SECTOR_SHIFT
        length = load_u32(at + RANGE_SECTORS) << SECTOR_SHIFT
        way = way_of(requests, q, slot)
        if way >= 0:
            q.slot[slot]["doing"] = way
            offset += q.slot[slot]["moved"]
            length -= q.slot[slot]["moved"]
            if way == DOING_WRITE_ZEROES:
                submission(q, slot, IORING_OP_WRITE, fd, q.state[0]["zeroes"], min(length, CHUNK), offset, 0)
            else:
                mode = FALLOC_FL_KEEP_SIZE | (FALLOC_FL_PUNCH_HOLE if way == DOING_PUNCH else FALLOC_FL_ZERO_RANGE)
                submission(q, slot, IORING_OP_FALLOCATE, fd, length, mode, offset, 0)
            return
        q.slot[slot]["range"] += 1
    if requests[slot]["flags"] & FLAG_FUA:
        flush(requests, q, slot)
    else:
        end(requests, q, slot, 0)


@cold_kernel
def range_done(requests, q, slot, result):
    """A call for the range at hand answered."""
    doing = q.slot[slot]["doing"]
    at = requests[slot]["scratch"] + SCRATCH_RANGES + q.slot[slot]["range"] * RANGE_BYTES
    length = load_u32(at + RANGE_SECTORS) << SECTOR_SHIFT
    if doing == DOING_WRITE_ZEROES:
        if result >= 0 and result & ~SECTOR_MASK == 0:
            result = -EIO
        elif result > 0:
            q.slot[slot]["moved"] += result & ~SECTOR_MASK
    elif result == 0:
        q.slot[slot]["moved"] = length
    elif result == -EOPNOTSUPP or result == -ENOSYS or result == -EINVAL:
        q.slot[slot]["cannot"] |= 1 << doing  # EINVAL: a block device, and a range smaller than its blocks
        result = 0
    if result >= 0:
        q.slot[slot]["tries"] = 0
        if q.slot[slot]["moved"] == length:
            q.slot[slot]["moved"] = 0
            q.slot[slot]["range"] += 1
        ranges(requests, q, slot)
    elif again(q, slot, result):
        ranges(requests, q, slot)
    else:
        end(requests, q, slot, EIO if result == -EAGAIN else -result)


# What the loop calls.


@kernel
def file_start(vr, mem, requests, q, slot):
    """Begin the slot's request."""
    q.slot[slot]["doing"] = DOING_TRANSFER
    q.slot[slot]["moved"] = 0
    q.slot[slot]["range"] = 0
    q.slot[slot]["tries"] = 0
    q.slot[slot]["cannot"] = 0
    q.slot[slot]["dsync"] = 1
    op = requests[slot]["op"]
    if op == OP_READ or op == OP_WRITE:
        transfer(vr, mem, requests, q, slot)
    elif op == OP_FLUSH:
        flush(requests, q, slot)
    elif op == OP_DISCARD or op == OP_WRITE_ZEROES:
        ranges(requests, q, slot)
    else:
        end(requests, q, slot, 0)


@cold_kernel
def file_completed(vr, mem, requests, q, user_data, result):
    """Go on with what a completion says."""
    if user_data == q.state[0]["slots"]:
        flushed(requests, q, result)
    elif q.slot[user_data]["doing"] == DOING_TRANSFER:
        transferred(vr, mem, requests, q, user_data, result)
    else:
        range_done(requests, q, user_data, result)
