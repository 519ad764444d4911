"""Delta debugging: what comes out still fails, and nothing of it can be left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from virtblk.fuzz.minimise import minimise


@given(st.integers(1, 60), st.data())
def test_what_is_needed_stays_and_nothing_else(count: int, data: st.DataObject) -> None:
    needed = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    runs: list[list[int]] = []

    def fails(steps: list[int]) -> bool:
        runs.append(steps)
        return needed <= set(steps)

    assert minimise(range(count), fails, attempts=10_000) == sorted(needed)
    assert all(run == sorted(set(run)) for run in runs)


@given(st.integers(2, 40), st.data())
def test_the_result_is_1_minimal_where_parts_stand_in_for_each_other(count: int, data: st.DataObject) -> None:
    """Any of several sets is enough."""
    choices = data.draw(st.lists(st.sets(st.integers(0, count - 1), min_size=1), min_size=1, max_size=3))
    left = minimise(range(count), lambda steps: any(one <= set(steps) for one in choices), attempts=10_000)
    assert any(one <= set(left) for one in choices)
    for step in left:
        without = set(left) - {step}
        assert not any(one <= without for one in choices)


def test_attempts_and_progress_are_counted() -> None:
    told: list[tuple[int, int]] = []
    left = minimise(range(64), lambda steps: 63 in steps, progress=lambda *now: told.append(now), attempts=3)
    assert 63 in left
    assert len(left) > 1
    assert [runs for runs, _ in told] == [1, 2, 3]
