"""The record that a storage executes: one request of a batch, already parsed and validated.

Block's and virtio's words stay outside: a storage sees operations on byte ranges, and pieces of memory to fill or to
read. Filled by `device.request`, executed by the storages, on the queue's worker.
"""

from __future__ import annotations

import numpy as np

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
KIND_REQUESTS = 3  # Python objects: io_request.py

#: Requests that a worker takes in one go.
BATCH = 32

REQUEST_DTYPE = np.dtype(
    [
        ("op", "i8"),  # OP_*
        ("offset", "i8"),  # bytes
        ("length", "i8"),  # bytes, the sum of the pieces
        ("first", "i8"),  # pieces in the batch's lists
        ("count", "i8"),
        ("result", "i8"),  # 0, or a positive errno: how the execution went
        ("used_len", "i8"),  # bytes written to the pieces, from the first one on
        # what only the device half of the request needs:
        ("head", "i8"),
        ("status_at", "i8"),  # address of the status byte, 0 where the chain has none
        ("status", "i8"),  # the byte to put there
        ("writable", "i8"),  # bytes of data that the device may write
    ]
)
