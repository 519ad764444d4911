"""Blocks that prove themselves: what `--verify crc32c` writes and how it is checked (fio: verify=crc32c).

A block of 8-byte little-endian words: MAGIC, its offset on the disk, its generation, its checksum, then words made of
offset, generation and seed. The checksum is CRC-32C over the whole block with the checksum's own word as 0. The
generation goes up with every pass of writes, so that a write that was acknowledged and lost shows as an old one.
Called from job threads; `driver memory` here is the job's own buffer in the arena.
"""

from __future__ import annotations

from virtblk.bench.crc32c import crc32c_word
from virtblk.jit.arith import mix64
from virtblk.jit.atomics import load_i64, store_i64
from virtblk.jit.kernel import cold_kernel, kernel

MAGIC = 0x6B6C62747269762E  # ".virtblk" in memory
OFFSET_WORD, GENERATION_WORD, CRC_WORD, PAYLOAD_WORD = 8, 16, 24, 32

#: Generations of a block in the runner's table.
NEVER_WRITTEN = -1
UNKNOWN = -2  # a write of it failed: it may hold the old or the new

BLOCK_GOOD = 0
BAD_MAGIC = 1
BAD_OFFSET = 2
BAD_GENERATION = 3
BAD_CRC = 4
BAD_BLOCK_TEXT = {
    BAD_MAGIC: "no header",
    BAD_OFFSET: "a block of another offset",
    BAD_GENERATION: "an old generation: an acknowledged write is lost",
    BAD_CRC: "checksum mismatch",
}


@kernel
def block_crc(address, length):
    """Checksum of a block: CRC-32C with the checksum's own word read as 0."""
    crc = 0xFFFFFFFF
    for at in range(address, address + length, 8):
        word = load_i64(at)
        if at == address + CRC_WORD:
            word = 0
        crc = crc32c_word(crc, word)
    return crc ^ 0xFFFFFFFF


@cold_kernel
def fill_block(address, length, offset, generation, seed):
    """Make the block for `offset` (bytes) of `generation` in the `length` bytes at `address`."""
    store_i64(address, MAGIC)
    store_i64(address + OFFSET_WORD, offset)
    store_i64(address + GENERATION_WORD, generation)
    state = mix64(seed ^ mix64(offset) ^ generation)
    for at in range(address + PAYLOAD_WORD, address + length, 8):
        state = mix64(state)
        store_i64(at, state)
    store_i64(address + CRC_WORD, block_crc(address, length))


@cold_kernel
def check_block(address, length, offset, generation):
    """BLOCK_GOOD, or what is wrong with the block read from `offset`, last written in `generation`."""
    if load_i64(address) != MAGIC:
        return BAD_MAGIC
    if load_i64(address + OFFSET_WORD) != offset:
        return BAD_OFFSET
    if load_i64(address + CRC_WORD) != block_crc(address, length):
        return BAD_CRC
    if generation >= 0 and load_i64(address + GENERATION_WORD) != generation:
        return BAD_GENERATION
    return BLOCK_GOOD
