"""The recommendation as a function of what was measured: a table of comparisons, and what each comes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness import a_run
from virtblk.bench.bootstrap import Estimate
from virtblk.bench.comparison import METRICS, Comparison, with_posted
from virtblk.bench.recommend import TOLERANCE, Recommendation, compare_pairs, differs, recommend

LEVEL = (0.99, 1.01)
Changes = dict[str, tuple[float, float] | None]


def pair(workload: str, base: str, path: str, **changes: tuple[float, float] | None) -> Comparison:
    """One comparison; a change is its interval, with the value in the middle. What is not given is level."""
    found: dict[str, Estimate | None] = {}
    for metric in METRICS:
        interval = changes.get(metric, LEVEL)
        found[metric] = None if interval is None else Estimate((interval[0] + interval[1]) / 2, *interval)
    return Comparison(workload, base, path, 0, 1, 10, with_posted(found))


def two(**per_workload: Changes) -> list[Comparison]:
    """request against bio on each workload."""
    return [pair(workload, "request", "bio", **changes) for workload, changes in per_workload.items()]


UP, DOWN = (1.05, 1.15), (0.85, 0.95)
SLIGHTLY = (1.001, 1.019)


@pytest.mark.parametrize(
    ("comparisons", "verdict", "path"),
    [
        # Nothing differs.
        (two(read={}, write={}), "keep", "request"),
        # Sure, but too small to choose by.
        (two(read={"iops": SLIGHTLY, "iops_per_total_cpu": SLIGHTLY}), "keep", "request"),
        # Large, but not sure.
        (two(read={"iops": (0.98, 1.4)}), "keep", "request"),
        # Faster in one, level elsewhere.
        (two(read={"iops": UP}, write={}), "use", "bio"),
        (two(read={"iops": DOWN}, write={}), "keep", "request"),
        # As fast, and cheaper.
        (two(read={"iops_per_total_cpu": UP}, write={}), "use", "bio"),
        (two(read={"iops_per_total_cpu": DOWN}, write={}), "keep", "request"),
        # Faster, though dearer: IOPS come first.
        (two(read={"iops": UP, "iops_per_total_cpu": DOWN}), "use", "bio"),
        # The device's CPU is unknown: the driver's decides.
        (two(read={"iops_per_total_cpu": None, "iops_per_driver_cpu": UP}), "use", "bio"),
        # Where it is known, the driver's alone does not.
        (two(read={"iops_per_driver_cpu": UP}), "keep", "request"),
        # Each wins one: the smaller worst loss.
        (two(read={"iops": (1.05, 1.15)}, write={"iops": (0.94, 0.96)}), "mixed", "bio"),
        (two(read={"iops": (1.04, 1.06)}, write={"iops": (0.85, 0.95)}), "mixed", "request"),
        # No intervals, no figures, no paths.
        (two(read={"iops": None}), "unknown", None),
        ([], "unknown", None),
    ],
)
def test_the_table(comparisons: list[Comparison], verdict: str, path: str | None) -> None:
    found = recommend(comparisons)
    assert (found.verdict, found.path) == (verdict, path), found


def test_no_difference_is_said_in_so_many_words() -> None:
    found = recommend(two(read={}, write={"iops": (0.97, 1.02)}))
    assert found.headline == "no difference was found: keep what you have"
    assert found.reasons == (
        "against bio: IOPS level in 2 of 2, within [-2.0%, +3.1%]; "
        "IOPS per CPU of both level in 2 of 2, within [-1.0%, +1.0%]",
    )


def test_a_use_names_its_largest_gain_and_the_rest_in_numbers() -> None:
    found = recommend(two(read={"iops": UP, "iops_per_total_cpu": DOWN}, write={}))
    assert (
        found.headline
        == "use bio: no other path was found to have more IOPS, and it has up to +10.0% IOPS (read, over request)"
    )
    assert found.reasons == (
        "against request: IOPS +10.0% [+5.0, +15.0] (read), level in 1 of 2, within [-1.0%, +1.0%]; "
        "IOPS per CPU of both -10.0% [-15.0, -5.0] (read), level in 1 of 2, within [-1.0%, +1.0%]",
    )
    assert found.losses["read"]["request"] == pytest.approx(1 - 1 / 1.1)
    assert found.losses["write"] == {}


def test_a_mixed_result_says_who_is_best_where() -> None:
    found = recommend(two(read={"iops": (1.05, 1.15)}, write={"iops": (0.94, 0.96)}, randread={}))
    assert found.headline == "no path is best everywhere; if one must do for all, bio: it loses 5.0% at most (write)"
    assert found.reasons == (
        "read: bio; IOPS against bio: request -9.1% [-13.0, -4.8]",
        "write: request; IOPS against request: bio -5.0% [-6.0, -4.0]",
        "randread: no path is clearly the best",
    )


def three(workload: str, bio: Changes, mq: Changes, mq_over_bio: Changes) -> list[Comparison]:
    return [
        pair(workload, "request", "bio", **bio),
        pair(workload, "request", "mq", **mq),
        pair(workload, "bio", "mq", **mq_over_bio),
    ]


def test_paths_other_than_the_base_are_compared_with_each_other() -> None:
    """Both beat the base; what tells them apart is only seen between the two."""
    found = recommend(three("read", {"iops": UP}, {"iops": UP}, {"iops_per_total_cpu": UP}))
    assert (found.verdict, found.path) == ("use", "mq")
    found = recommend(three("read", {"iops": UP}, {"iops": UP}, {"iops_per_total_cpu": DOWN}))
    assert (found.verdict, found.path) == ("use", "bio")


def test_a_path_that_loses_anywhere_is_no_candidate_however_cheap() -> None:
    cheap_but_slow: Changes = {"iops": DOWN, "iops_per_total_cpu": (1.4, 1.6)}
    found = recommend(three("read", cheap_but_slow, {}, {"iops": UP, "iops_per_total_cpu": DOWN}))
    assert (found.verdict, found.path) == ("keep", "request")


def test_the_losses_in_json_are_changes_in_per_cent() -> None:
    told = recommend(two(read={"iops": DOWN})).as_json()
    assert (told["verdict"], told["path"], told["base"]) == ("keep", "request", "request")
    assert told["losses_pct"] == {"read": {"bio": pytest.approx(-10)}}
    assert all(isinstance(reason, str) for reason in told["reasons"])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["iops", "iops_per_total_cpu"]),
            st.floats(0.5, 2),
            st.floats(0.001, 0.2),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_path_in_use_loses_nowhere_and_wins_from_both_sides(cells: list[tuple[str, float, float]]) -> None:
    def swapped(one: Comparison) -> Comparison:
        changes = {name: change.inverse() if change else None for name, change in one.changes.items()}
        return Comparison(one.workload, one.path, one.base, 1, 0, 10, changes)

    comparisons = [
        pair(f"w{number}", "request", "bio", **{metric: (value - width, value + width)})
        for number, (metric, value, width) in enumerate(cells)
    ]
    found = recommend(comparisons)
    losers = {path for lost in found.losses.values() for path in lost}
    assert (found.verdict == "mixed") == (losers == {"request", "bio"})
    assert found.verdict == "mixed" or found.path not in losers
    if found.verdict == "use":
        other = recommend([swapped(one) for one in comparisons])
        assert (other.verdict, other.path) == ("keep", found.path)


def test_what_differs() -> None:
    assert differs(Estimate(1.1, 1.05, 1.2))
    assert differs(Estimate(0.9, 0.85, 0.95))
    assert not differs(Estimate(1.1, 0.99, 1.2))
    for value, told in ((1 - TOLERANCE * 1.01, True), (1 - TOLERANCE * 0.99, False)):
        assert differs(Estimate(value, 0.9, 0.99)) is told
        assert differs(Estimate(1 / value, 1.01, 1.1)) is told, "the same seen from the other side"
    assert not differs(Estimate(1.5, None, None))


def test_every_path_is_compared_with_every_other_once() -> None:
    results = [
        a_run(arm=n, path=p, workload=w) for w in ("read", "write") for n, p in enumerate(("bio", "request", "mq"))
    ]
    found = [(one.workload, one.base, one.path) for one in compare_pairs(results, 95.0)]
    each = [("request", "bio"), ("request", "mq"), ("bio", "mq")]
    assert found == [(workload, *one) for workload in ("read", "write") for one in each]


def test_of_an_aa_one_arm_stands_for_its_path() -> None:
    results = [a_run(arm=number, path=path) for number, path in enumerate(("bio", "bio", "request"))]
    assert [(one.base, one.path, one.arm) for one in compare_pairs(results, 95.0)] == [("request", "bio", 0)]
    alike = [a_run(arm=number, path="bio") for number in range(2)]
    assert compare_pairs(alike, 95.0) == []
    assert isinstance(recommend(compare_pairs(alike, 95.0)), Recommendation)
