"""What a block of `--verify crc32c` says about itself, read from plain bytes: for image files of any device.

Written from the words of `bench.verify`'s docstring, with struct and the bitwise checksum, and nothing of its code.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from naive.crc32c import crc32c

#: What the bitwise checksum makes of one byte, for all of them: an image of some megabytes takes seconds, not minutes.
_TABLE = [crc32c(bytes([byte ^ 0xFF])) ^ 0xFF000000 for byte in range(256)]


class Block(NamedTuple):
    """`good`: the magic is there and the checksum fits."""

    offset: int
    generation: int
    good: bool


def checksum(data: bytes) -> int:
    """crc32c of `data`, a byte at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def decode(block: bytes) -> Block:
    """The words of one block: ".virtblk", offset, generation, checksum; then its payload."""
    magic, offset, generation, crc = struct.unpack_from("<8sqqQ", block)
    blank = block[:24] + bytes(8) + block[32:]
    return Block(offset, generation, magic == b".virtblk" and crc == checksum(blank))


def decode_image(path: Path, bs: int, size: int | None = None) -> Iterator[Block]:
    """All blocks of the first `size` bytes of a file, in order."""
    with path.open("rb") as image:
        for _ in range((path.stat().st_size if size is None else size) // bs):
            yield decode(image.read(bs))
