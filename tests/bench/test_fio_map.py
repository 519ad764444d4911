"""The random map: a permutation of any range, the naive one's, another for each seed, and none that looks ordered."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naive.fio_map import order
from virtblk.bench.fio_map import map_block
from virtblk.jit.arith import mix64

SEEDS = st.integers(0, (1 << 62) - 1)


def blocks_of(blocks: int, seed: int) -> list[int]:
    bits = max(1, (blocks - 1).bit_length())
    return [map_block(index, blocks, bits // 2, bits - bits // 2, seed) for index in range(blocks)]


@given(st.integers(1, 300), SEEDS)
def test_each_block_comes_once_and_in_the_naive_order(blocks: int, seed: int) -> None:
    found = blocks_of(blocks, seed)
    assert sorted(found) == list(range(blocks))
    assert found == order(blocks, seed)


@given(st.integers(1, 1 << 50), SEEDS, st.data())
def test_a_large_range_is_not_left(blocks: int, seed: int, data: st.DataObject) -> None:
    bits = max(1, (blocks - 1).bit_length())
    one, other = (data.draw(st.integers(0, blocks - 1)) for _ in range(2))
    first, second = (map_block(index, blocks, bits // 2, bits - bits // 2, seed) for index in (one, other))
    assert 0 <= first < blocks
    assert (first == second) == (one == other)


@pytest.mark.parametrize("blocks", [256, 1000])
def test_it_looks_random(blocks: int) -> None:
    """Neighbours, fixed points and first blocks are as rare and as spread as chance has them."""
    orders = [blocks_of(blocks, mix64(seed)) for seed in range(20)]
    assert len({tuple(found) for found in orders}) == 20
    assert sum(b == a + 1 for found in orders for a, b in pairwise(found)) < 60  # 20 by chance
    assert sum(index == block for found in orders for index, block in enumerate(found)) < 60  # 20 by chance
    assert sum(found[0] < blocks // 2 for found in orders) in range(2, 19)
