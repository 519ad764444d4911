"""`vring_need_event` for every triple of indices: a proof by counting (virtio 1.2, 2.7.7.2 and 2.7.10.1).

The text: notify if one of the entries that were added, from `old` up to, not including, `new`, is number `event`, all
modulo 65536. `marked` holds those entries, one mark each; the function has to say yes exactly there. Every distance
with every event is 2^32 pairs, for one `old`; that nothing hangs on `old` is counted near the ends of the range.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conftest import INTERPRETED
from virtblk.jit.arith import vring_need_event
from virtblk.jit.kernel import kernel
from virtblk.jit.table import Table
from virtio.interleavings import plain
from virtio.wrong import need_event_one_early, need_event_one_late, need_event_without_wrap

INDICES = 65536


@kernel
def wrong_answers(marked, old, first, last, begin, end):
    """How many answers are wrong for distances first..last-1 and the events begin..end-1 after `old`."""
    for distance in range(first):
        marked[(old + distance) & 0xFFFF] = 1
    wrong = 0
    for distance in range(first, last):
        new = (old + distance) & 0xFFFF
        for event in range(old + begin, old + end):
            wanted = marked[event & 0xFFFF] != 0
            if vring_need_event(event & 0xFFFF, new, old) != wanted:
                wrong += 1
        marked[new] = 1  # the entry that the next distance adds
    return wrong


@kernel
def wrong_for_every_old(marked, olds, reach):
    """The same for `olds` values of `old`: distances below `reach`, events within `reach` of `old` on both sides."""
    wrong = 0
    for old in range(olds):
        wrong += wrong_answers(marked, old, 0, reach, -reach, reach)
        for distance in range(-1, reach + 1):
            marked[(old + distance) & 0xFFFF] = 0
    return wrong


#: Distances: the shortest, those round half the range, and the longest that there is.
WINDOWS = [(0, 40), (32760, 32776), (65530, 65536)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("old", [0, 1, 32767, 65535])
def test_every_event_of_these_distances(window: tuple[int, int], old: int) -> None:
    end = 256 if INTERPRETED else INDICES
    assert wrong_answers(Table(INDICES), old, *window, 0, end) == 0
    assert wrong_answers(Table(INDICES), old, *window, -end, 0) == 0


def test_every_old_index() -> None:
    olds, reach = (300, 4) if INTERPRETED else (INDICES, 12)
    assert wrong_for_every_old(Table(INDICES), olds, reach) == 0


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("part", range(8))
def test_every_distance_with_every_event(part: int) -> None:
    """All 2^32 pairs for one `old`, in eight parts."""
    size = INDICES // 8
    assert wrong_answers(Table(INDICES), 65500, part * size, (part + 1) * size, 0, INDICES) == 0


@pytest.mark.parametrize("function", [need_event_without_wrap, need_event_one_late, need_event_one_early])
def test_the_count_finds_what_is_wrong(
    function: Callable[[int, int, int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three mistakes in the comparison; each is found, and the proof of the true one would have failed."""
    count = plain(wrong_answers)
    monkeypatch.setitem(count.__globals__, "vring_need_event", function)
    assert count(Table(INDICES), 65534, 0, 8, 0, 16) > 0
