"""The slow, obvious twin of `bench.crc32c`: RFC 3720's polynomial division, one bit at a time."""

from __future__ import annotations


def crc32c(data: bytes) -> int:
    """x^32 + x^28 + x^27 + ... + 1 in Castagnoli's form, lowest bit first, all ones before and inverted after."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
