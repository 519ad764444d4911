"""What a queue's worker counts of each request that it answers: operation, bytes, status, and how long it took.

The counters of a ring are one table of numbers. Its worker alone writes them, before the answer is published, so who
has seen an answer finds it counted; `server_metrics` reads them whenever somebody asks. Called for every loop by
`device.worker.answer_request`, after `device.request.complete`.
"""

from __future__ import annotations

from virtblk.jit.arith import msb
from virtblk.jit.kernel import kernel
from virtblk.storage.request import OP_READ, OP_WRITE, OP_WRITE_ZEROES
from virtblk.uapi.virtio_blk import VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP

# Indices of the table. Its first entries count the requests of each OP_*.
READ_BYTES = OP_WRITE_ZEROES + 1  # of reads and writes that went well
WRITTEN_BYTES = READ_BYTES + 1
IOERR = WRITTEN_BYTES + 1  # answers with this status
UNSUPP = IOERR + 1
LATENCY_NS = UNSUPP + 1  # the sum
FIRST_BUCKET = LATENCY_NS + 1  # the histogram

#: Bucket i of the latencies holds those up to 2**(i + FIRST_SHIFT) ns (1 us) that no earlier one does; the last but one
#: ends at 17 s, and the last has no end.
FIRST_SHIFT = 10
BUCKETS = 26
COUNTERS = FIRST_BUCKET + BUCKETS


@kernel
def latency_bucket(nanoseconds):
    """Index of the bucket of a latency; bounds belong to the bucket below them, as Prometheus has it."""
    if nanoseconds <= 1 << FIRST_SHIFT:
        return 0
    return min(msb(nanoseconds - 1) - FIRST_SHIFT + 1, BUCKETS - 1)


@kernel
def account(counters, requests, i, now_ns):
    """Count record `i`, whose status is known. `now_ns` is the time if latencies are wanted, else 0."""
    op = requests[i]["op"]
    status = requests[i]["status"]
    counters[op] += 1
    if status != VIRTIO_BLK_S_OK:
        counters[UNSUPP if status == VIRTIO_BLK_S_UNSUPP else IOERR] += 1
    elif op == OP_READ or op == OP_WRITE:
        counters[READ_BYTES + op - OP_READ] += requests[i]["length"]
    if now_ns:
        took = now_ns - requests[i]["taken_ns"]
        counters[LATENCY_NS] += took
        counters[FIRST_BUCKET + latency_bucket(took)] += 1
