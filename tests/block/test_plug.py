"""The plug: sorted by sector and stable, the latest request is tried first, full at sixteen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from block.harness import Block, bios_of, fresh, listed, queue
from virtblk.block.plug import BLK_MAX_REQUEST_COUNT, blk_plug_add, blk_plug_sort
from virtblk.block.request import LIST_PLUG, RQ_PLUG


@given(st.lists(st.integers(0, 8), max_size=BLK_MAX_REQUEST_COUNT), st.integers(0, 1))
def test_sorting_is_stable(sectors: list[int], sub: int) -> None:
    q = queue()
    held = []
    for sector in sectors:
        held.append((sector, fresh(q, 0, sector, 512)))
        blk_plug_add(q, sub, held[-1][1])
        assert q.rq[held[-1][1]]["where"] == RQ_PLUG
    blk_plug_sort(q, sub)
    assert listed(q, LIST_PLUG + sub) == [rq for _, rq in sorted(held, key=lambda entry: entry[0])]
    assert listed(q, LIST_PLUG + 1 - sub) == []
    assert q.plugged[sub] == len(sectors)


def test_the_latest_request_is_tried_first() -> None:
    block = Block()
    assert [block.submit(0, bio, 0, sector, 2, 1, 0, True) for bio, sector in enumerate((8, 8, 10))] == [
        "new",
        "new",
        "plug",
    ]
    assert [bios_of(block.q, rq) for rq in listed(block.q, LIST_PLUG)] == [[0], [1, 2]]


def test_plugs_do_not_see_each_other() -> None:
    block = Block()
    assert [block.submit(sub, sub, 0, 8 + 2 * sub, 2, 1, 0, True) for sub in range(2)] == ["new", "new"]


def test_merges_in_the_plug_go_both_ways_and_stop_at_the_limits() -> None:
    block = Block(max_bytes=3 * 512)
    became = [block.submit(0, bio, 1, sector, 1, 1, 0, True) for bio, sector in enumerate((8, 9, 7, 10, 6))]
    assert became == ["new", "plug", "plug", "new", "new"]
    first = listed(block.q, LIST_PLUG)[0]
    assert bios_of(block.q, first) == [2, 0, 1]
    assert (block.q.rq[first]["sector"], block.q.rq[first]["bytes"]) == (7, 3 * 512)


def test_a_full_plug_is_emptied_before_the_next_request() -> None:
    block = Block()
    for bio in range(BLK_MAX_REQUEST_COUNT + 1):
        block.submit(0, bio, 0, 10 * bio, 1, 1, 0, True)
        assert block.q.state[0]["sorted"] == (BLK_MAX_REQUEST_COUNT if bio == BLK_MAX_REQUEST_COUNT else 0)
    assert block.q.plugged[0] == 1


def test_nomerges() -> None:
    for nomerges, expected in ((0, "plug"), (1, "plug"), (2, "new")):
        block = Block()
        block.q.state[0]["nomerges"] = nomerges
        block.submit(0, 0, 0, 8, 1, 1, 0, True)
        assert block.submit(0, 1, 0, 9, 1, 1, 0, True) == expected
