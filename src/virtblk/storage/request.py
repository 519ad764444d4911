"""The record that a storage executes: one request of a batch, already parsed and validated.

Block's and virtio's words stay outside: a storage sees operations on byte ranges, and pieces of memory to fill or to
read. Filled by `device.request`, executed by the storages, on the queue's worker.
"""

from __future__ import annotations

import numpy as np

from virtblk.jit.table import Table

OP_READ = 0
OP_WRITE = 1
OP_FLUSH = 2
OP_NONE = 3  # refused: nothing to execute
OP_IDENTIFY = 4  # the device answers this one itself
OP_DISCARD = 5
OP_WRITE_ZEROES = 6

FLAG_FUA = 1  # the write, or write zeroes, is durable when it ends
FLAG_UNMAP = 2  # write zeroes may deallocate

#: Which storage it is: `Storage.kind`.
KIND_MEMORY = 0
KIND_NULL = 1
KIND_FILE = 2  # compiled, through io_uring: file_state.py
KIND_REQUESTS = 3  # Python objects: io_request.py
KIND_SIM = 4  # memory that takes its time: storage.sim

#: Requests that a worker takes in one go, and answers in one go: a larger batch makes its first one wait for its last.
BATCH = 16

#: Ranges that one discard or write zeroes may name.
MAX_RANGES = 32
#: A range as it lies in a record's scratch: le64 first sector, le32 sectors, le32 flags. Sectors are of 512 bytes.
RANGE_BYTES = 16
RANGE_SECTOR = 0
RANGE_SECTORS = 8
RANGE_FLAGS = 12
#: A record's scratch: a header that came in pieces, then the ranges.
SCRATCH_RANGES = 16
SCRATCH_BYTES = SCRATCH_RANGES + MAX_RANGES * RANGE_BYTES

REQUEST_DTYPE = np.dtype(
    [
        ("op", "i8"),  # OP_*
        ("offset", "i8"),  # bytes
        ("length", "i8"),  # bytes of all pieces together; of a discard or write zeroes: of all ranges
        ("first", "i8"),  # pieces in the batch's lists
        ("count", "i8"),
        ("flags", "i8"),  # FLAG_*
        ("ranges", "i8"),  # checked ranges in the scratch, none of them empty
        ("scratch", "i8"),  # address of SCRATCH_BYTES, this record's for good: see give_scratch
        ("result", "i8"),  # 0, or a positive errno: how the execution went
        ("used_len", "i8"),  # bytes written to the pieces, from the first one on
        # what only the device half of the request needs:
        ("head", "i8"),
        ("status_at", "i8"),  # address of the status byte, 0 where the chain has none
        ("status", "i8"),  # the byte to put there
        ("writable", "i8"),  # bytes of data that the device may write
        ("taken_ns", "i8"),  # when an asynchronous worker took it, 0 while it is not in flight
    ]
)


def give_scratch(requests: Table) -> Table:
    """Give each record its scratch. Keep what is returned for as long as the records are used."""
    scratch = Table(len(requests) * SCRATCH_BYTES // 8)
    for index in range(len(requests)):
        requests[index]["scratch"] = scratch.address + index * SCRATCH_BYTES
    return scratch
