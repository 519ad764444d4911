"""The random map once more, with Python's integers and lists: a Feistel network, and the order it gives a range."""

from __future__ import annotations

MASK = (1 << 64) - 1


def splitmix64(value: int) -> int:
    """Output number one for state `value`, without its lowest bit."""
    z = (value + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return (z ^ z >> 31) >> 1


def order(blocks: int, seed: int) -> list[int]:
    """All blocks of a range, in the order of `seed`."""
    bits = max(1, (blocks - 1).bit_length())
    low_bits = bits // 2
    found = []
    for index in range(blocks):
        value = index
        while True:
            high, low = divmod(value, 1 << low_bits)
            for number in range(4):
                if number % 2 == 0:
                    low = (low ^ splitmix64(seed ^ high * 4 + number)) % (1 << low_bits)
                else:
                    high = (high ^ splitmix64(seed ^ low * 4 + number)) % (1 << bits - low_bits)
            value = high << low_bits | low
            if value < blocks:
                break
        found.append(value)
    return found
