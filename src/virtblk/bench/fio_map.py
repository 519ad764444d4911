"""The random map: every block of a range exactly once per pass, in a seeded order (fio: without norandommap).

fio keeps a bitmap of what it has accessed, or an LFSR's state. Here block number `index` of a pass is a function of its
number: a Feistel network over the least power of two that holds the range, applied again while it leads out of the
range (cycle walking; at most every second number does). No memory, no search, and a pass can be told again, which is
how a job reads back what it wrote. Called by job threads.
"""

from __future__ import annotations

from virtblk.jit.arith import mix64
from virtblk.jit.kernel import kernel

#: Four rounds of a good function make a network that is not told from a random permutation (Luby and Rackoff).
ROUNDS = 4


@kernel
def feistel(value, low_bits, high_bits, seed):
    """A permutation of the numbers of `low_bits + high_bits` bits; the halves may differ in length."""
    low_mask = (1 << low_bits) - 1
    high_mask = (1 << high_bits) - 1
    low = value & low_mask
    high = value >> low_bits
    for number in range(0, ROUNDS, 2):
        low ^= mix64(seed ^ (high * ROUNDS + number)) & low_mask
        high ^= mix64(seed ^ (low * ROUNDS + number + 1)) & high_mask
    return high << low_bits | low


@kernel
def map_block(index, blocks, low_bits, high_bits, seed):
    """The block that comes `index`-th in the order of `seed`: a permutation of the `blocks` blocks.

    `low_bits + high_bits` are those of `blocks - 1`.
    """
    block = feistel(index, low_bits, high_bits, seed)
    while block >= blocks:
        block = feistel(block, low_bits, high_bits, seed)
    return block
