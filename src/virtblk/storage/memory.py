"""`ram:SIZE`: a disk in anonymous memory (Linux: brd). Data is copied between guest pieces and the disk; flush is free.

Called by the device's workers with a batch of validated requests.
"""

from __future__ import annotations

from virtblk.jit.kernel import kernel
from virtblk.mem.regions import guest_read, guest_write
from virtblk.storage.request import OP_READ, OP_WRITE


@kernel
def memory_execute(disk, mem, requests, count, piece_addr, piece_len):
    """Execute `count` requests on the disk whose bytes start at address `disk`."""
    for i in range(count):
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
        requests[i]["result"] = 0
