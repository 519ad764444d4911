"""The sort tree against a sorted list: order, neighbours, finds, and that it stays a heap and shallow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from block.harness import fresh, queue
from virtblk.block.elv_rb import NONE, elv_rb_add, elv_rb_del, elv_rb_find, elv_rb_former, elv_rb_latter
from virtblk.block.request import SORT_ROOT, RequestQueue

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 1), st.integers(0, 12), st.integers(0, 63)), max_size=60)


def walk(q: RequestQueue, node: int, parent: int = NONE) -> tuple[list[int], int]:
    """Requests from left to right, and the depth; parents and weights are right everywhere."""
    if node == NONE:
        return [], 0
    assert q.rq[node]["parent"] == parent
    assert parent == NONE or q.rq[parent]["weight"] >= q.rq[node]["weight"]
    left, deep = walk(q, int(q.rq[node]["left"]), node)
    right, deeper = walk(q, int(q.rq[node]["right"]), node)
    return [*left, node, *right], 1 + max(deep, deeper)


@given(STEPS)
def test_the_trees_agree_with_sorted_lists(steps: list[tuple[bool, int, int, int]]) -> None:
    q = queue()
    lines: list[list[tuple[int, int]]] = [[], []]  # (sector, request): equal sectors in order of arrival
    for number, (add, tree, sector, which) in enumerate(steps):
        line = lines[tree]
        if add:
            rq = fresh(q, tree, sector, 512, bio=number)
            elv_rb_add(q, tree, rq)
            line.append((sector, rq))
            line.sort(key=lambda entry: entry[0])
        elif line:
            _, rq = line.pop(which % len(line))
            elv_rb_del(q, tree, rq)
        for each, sorted_line in enumerate(lines):
            order = [rq for _, rq in sorted_line]
            assert walk(q, int(q.sort[SORT_ROOT + each]))[0] == order
            for before, after in zip([NONE, *order], [*order, NONE], strict=True):
                assert before == NONE or elv_rb_latter(q, before) == after
                assert after == NONE or elv_rb_former(q, after) == before
        for wanted in range(13):
            found = int(elv_rb_find(q, tree, wanted))
            there = [rq for at, rq in lines[tree] if at == wanted]
            assert found in there if there else found == NONE


def test_rising_sectors_make_no_deep_tree() -> None:
    """What a plain search tree would turn into a list."""
    q = queue(capacity=512)
    for sector in range(512):
        elv_rb_add(q, 0, fresh(q, 0, sector << 40, 512))
    order, depth = walk(q, int(q.sort[SORT_ROOT]))
    assert [int(q.rq[rq]["sector"]) for rq in order] == [sector << 40 for sector in range(512)]
    assert depth < 40
