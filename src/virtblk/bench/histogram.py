"""Latency histogram with fio's resolution: 64 buckets per power of two (fio stat.c: plat_val_to_idx).

Called from job threads with nanoseconds; the percentiles are computed by `bench.stat`.
"""

from __future__ import annotations

from virtblk.jit.arith import msb
from virtblk.jit.kernel import kernel

BUCKET_BITS = 6
#: Up to 2**40 ns, 18 minutes; what is longer counts in the last bucket.
GROUPS = 35
BUCKETS = GROUPS << BUCKET_BITS


@kernel
def bucket_of(value):
    """Index of the bucket for `value` >= 0."""
    if value < 1 << (BUCKET_BITS + 1):
        return value
    shift = msb(value) - BUCKET_BITS
    index = ((shift + 1) << BUCKET_BITS) + ((value >> shift) & ((1 << BUCKET_BITS) - 1))
    return min(index, BUCKETS - 1)


@kernel
def bucket_middle(index):
    """The value that stands for bucket `index`: its middle."""
    if index < 1 << (BUCKET_BITS + 1):
        return index
    shift = (index >> BUCKET_BITS) - 1
    base = (1 << (shift + BUCKET_BITS)) + ((index & ((1 << BUCKET_BITS) - 1)) << shift)
    return base + ((1 << shift) >> 1)
