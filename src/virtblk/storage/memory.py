"""`ram:SIZE`: a disk in anonymous memory (Linux: brd). Data is copied between guest pieces and the disk; flush is free.

Discard and write zeroes fill with zeroes; the memory stays. The device bounds what one of them may name, so that a
worker looks at its stop word in time.

Called by the device's workers with a batch of validated requests, or (`sim:`) with each when its time has come.
"""

from __future__ import annotations

from virtblk.jit.atomics import load_i64, load_u32
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.memory import fill, prefetch_read
from virtblk.mem.regions import guest_read, guest_write
from virtblk.storage.request import (
    OP_DISCARD,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
    RANGE_BYTES,
    RANGE_SECTOR,
    RANGE_SECTORS,
    SCRATCH_RANGES,
)

SECTOR_SHIFT = 9
CACHE_LINE = 64
#: Bytes of a request that are fetched ahead; behind these the processor's own prefetcher has seen the direction.
PREFETCH_BYTES = 512


@cold_kernel
def memory_zero(disk, requests, i):
    """Zero the ranges of record `i` on the disk at address `disk`."""
    for r in range(requests[i]["ranges"]):
        at = requests[i]["scratch"] + SCRATCH_RANGES + r * RANGE_BYTES
        start = load_i64(at + RANGE_SECTOR) << SECTOR_SHIFT
        fill(disk + start, 0, load_u32(at + RANGE_SECTORS) << SECTOR_SHIFT)


@kernel
def memory_prefetch(disk, requests, i):
    """Fetch the first disk bytes that record `i` reads or writes, while the batch's other chains are parsed."""
    op = requests[i]["op"]
    if op == OP_READ or op == OP_WRITE:
        at = disk + requests[i]["offset"]
        for line in range(0, min(requests[i]["length"], PREFETCH_BYTES), CACHE_LINE):
            prefetch_read(at + line)


@kernel
def memory_request(disk, mem, requests, i, piece_addr, piece_len):
    """Execute request `i` on the disk whose bytes start at address `disk`."""
    op = requests[i]["op"]
    at = disk + requests[i]["offset"]
    first = requests[i]["first"]
    if op == OP_READ:
        for p in range(first, first + requests[i]["count"]):
            guest_write(mem, piece_addr[p], at, piece_len[p])
            at += piece_len[p]
        requests[i]["used_len"] = requests[i]["length"]
    elif op == OP_WRITE:
        for p in range(first, first + requests[i]["count"]):
            guest_read(mem, at, piece_addr[p], piece_len[p])
            at += piece_len[p]
    elif op == OP_DISCARD or op == OP_WRITE_ZEROES:
        memory_zero(disk, requests, i)
    requests[i]["result"] = 0


@kernel
def memory_execute(disk, mem, requests, count, piece_addr, piece_len):
    """Execute `count` requests on the disk whose bytes start at address `disk`."""
    for i in range(count):
        memory_request(disk, mem, requests, i, piece_addr, piece_len)
