"""The extent map against a list with one state per block, across the border of its shards."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from virtblk.storage.extent_map import SHARD, ExtentMap, Run

BLOCKS = 24
#: The blocks lie round the borders of two shards.
BLOCK = SHARD // 8
RANGE = st.tuples(st.integers(0, BLOCKS), st.integers(0, BLOCKS)).map(sorted)


def runs_of(states: list[int], first: int, last: int) -> list[Run]:
    found: list[Run] = []
    for block in range(first, last):
        start, state = block * BLOCK, states[block]
        if found and found[-1][2] == state:
            found[-1] = (found[-1][0], start + BLOCK, state)
        else:
            found.append((start, start + BLOCK, state))
    return found


@given(st.lists(st.tuples(RANGE, st.integers(0, 2), st.booleans()), max_size=20), RANGE)
def test_against_a_list_of_blocks(changes: list[tuple[list[int], int, bool]], looked_at: list[int]) -> None:
    extents, model = ExtentMap(), [0] * BLOCKS
    for (first, last), state, is_update in changes:
        if is_update:
            extents.update(first * BLOCK, last * BLOCK, lambda old, by=state: (old + by) % 3)
            model[first:last] = [(old + state) % 3 for old in model[first:last]]
        else:
            extents.assign(first * BLOCK, last * BLOCK, state)
            model[first:last] = [state] * (last - first)
        assert extents.runs(0, BLOCKS * BLOCK) == runs_of(model, 0, BLOCKS)
    first, last = looked_at
    assert extents.runs(first * BLOCK, last * BLOCK) == runs_of(model, first, last)
    assert extents.occupied() == [run for run in runs_of(model, 0, BLOCKS) if run[2]]


def test_a_map_that_is_all_zero_again_holds_nothing() -> None:
    extents = ExtentMap()
    extents.assign(SHARD - 512, SHARD + 512, 1)
    assert extents.occupied() == [(SHARD - 512, SHARD + 512, 1)]
    extents.assign(0, 4 * SHARD, 0)
    assert (extents.occupied(), extents._shards) == ([], {})


def test_equal_neighbours_are_one_extent_inside() -> None:
    extents = ExtentMap()
    for start in (0, 1024, 512):
        extents.assign(start, start + 512, 7)
    assert extents._shards[0] == ([0, 1536], [7, 0])
