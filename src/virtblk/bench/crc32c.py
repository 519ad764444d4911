"""CRC-32C (Castagnoli; iSCSI, RFC 3720), eight bytes a step: the checksum of fio's `verify=crc32c`.

Called from job threads.
"""

from __future__ import annotations

from virtblk.bench.crc32c_tables import TABLES
from virtblk.jit.atomics import load_i64
from virtblk.jit.kernel import kernel


@kernel
def crc32c_word(crc, word):
    """Continue `crc` (inverted, as between steps) with the eight bytes of a little-endian word."""
    low = (word & 0xFFFFFFFF) ^ crc
    high = (word >> 32) & 0xFFFFFFFF
    return (
        TABLES[7, low & 0xFF]
        ^ TABLES[6, (low >> 8) & 0xFF]
        ^ TABLES[5, (low >> 16) & 0xFF]
        ^ TABLES[4, low >> 24]
        ^ TABLES[3, high & 0xFF]
        ^ TABLES[2, (high >> 8) & 0xFF]
        ^ TABLES[1, (high >> 16) & 0xFF]
        ^ TABLES[0, high >> 24]
    )


@kernel
def crc32c(address, length):
    """CRC-32C of `length` bytes, a multiple of 8, at `address`."""
    crc = 0xFFFFFFFF
    for at in range(address, address + length, 8):
        crc = crc32c_word(crc, load_i64(at))
    return crc ^ 0xFFFFFFFF
