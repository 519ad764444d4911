"""Intervals of medians: against a plain twin, and against what is known of samples from known distributions."""

from __future__ import annotations

import random
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.bench import bootstrap
from virtblk.bench.bootstrap import Estimate, enough, median_interval, paired_ratio, ratio_of_medians

POSITIVE = st.floats(0.01, 1e6)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=40)


def plain_interval(ratios: list[float], confidence: float) -> tuple[float, float]:
    """The percentile bootstrap, word by word."""
    chance = random.Random(7)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(4000))
    tail = (1 - confidence / 100) / 2
    return medians[int(4000 * tail)], medians[int(4000 * (1 - tail)) - 1]


def noisy(rng: Any, count: int, level: float = 100.0, spread: float = 0.05) -> list[float]:
    return (level * np.exp(rng.normal(0, spread, count))).tolist()


@given(PAIRS)
def test_the_estimate_is_the_median_of_the_ratios(pairs: list[tuple[float, float]]) -> None:
    base, other = [a for a, _ in pairs], [b for _, b in pairs]
    found = paired_ratio(base, other, 95.0)
    assert found is not None
    assert found.value == pytest.approx(statistics.median(b / a for a, b in pairs))
    if found.low is not None and found.high is not None:
        ratios = [b / a for a, b in pairs]
        assert min(ratios) * 0.999999 <= found.low <= found.high <= max(ratios) * 1.000001


@pytest.mark.parametrize("confidence", [90.0, 95.0, 99.0])
@pytest.mark.parametrize("count", [10, 25, 60])
def test_the_interval_is_that_of_a_plain_bootstrap(count: int, confidence: float) -> None:
    rng = np.random.default_rng(count)
    base, other = noisy(rng, count), noisy(rng, count)
    found = paired_ratio(base, other, confidence)
    low, high = plain_interval([b / a for a, b in zip(base, other, strict=True)], confidence)
    assert found is not None
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


@pytest.mark.parametrize(("confidence", "most"), [(95.0, 0.10), (99.0, 0.04)])
@pytest.mark.parametrize("count", [10, 20])
def test_equal_arms_seldom_differ(
    count: int, confidence: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 2000)
    rng = np.random.default_rng(1)
    differ = 0
    for seed in range(200):
        found = paired_ratio(noisy(rng, count), noisy(rng, count), confidence, seed)
        assert found is not None
        differ += not found.within_noise
    assert differ <= most * 200
    if confidence == 95.0:
        assert differ > 0, "intervals that never miss are too wide"


def test_a_tenth_is_found_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 2000)
    rng = np.random.default_rng(2)
    for seed in range(50):
        found = paired_ratio(noisy(rng, 20), noisy(rng, 20, 90.0), 99.0, seed)
        assert found is not None
        assert found.within_noise is False
        assert found.high is not None
        assert found.high < 1


def test_drift_that_is_common_to_a_pair_has_no_effect() -> None:
    rng = np.random.default_rng(3)
    base, other = noisy(rng, 20), noisy(rng, 20, 95.0)
    drift = [2.0 ** int(exponent) for exponent in rng.integers(-6, 6, 20)]
    moved = paired_ratio(
        [a * d for a, d in zip(base, drift, strict=True)], [b * d for b, d in zip(other, drift, strict=True)], 95.0
    )
    assert moved == paired_ratio(base, other, 95.0)
    apart = ratio_of_medians([a * d for a, d in zip(base, drift, strict=True)], other, 95.0)
    assert apart is not None
    assert apart.within_noise is not False or abs(apart.value - 0.95) > 0.5, "unpaired, it drowns the difference"


def test_a_single_outlier_moves_nothing() -> None:
    base = [100.0] * 19
    other = [90.0 + index * 0.01 for index in range(19)]
    wild = [*other[:-1], 100_000.0]
    calm, disturbed = paired_ratio(base, other, 95.0), paired_ratio(base, wild, 95.0)
    assert calm is not None
    assert disturbed is not None
    assert disturbed.value == calm.value
    assert disturbed.high is not None
    assert disturbed.high < 0.91


@pytest.mark.parametrize(
    ("count", "confidence", "wanted"),
    [(0, 95, False), (1, 50, False), (2, 50, True), (5, 95, False), (6, 95, True), (7, 99, False), (8, 99, True)],
)
def test_how_many_samples_an_interval_needs(count: int, confidence: float, wanted: bool) -> None:
    """All n samples lie on one side of the median with a probability of 2 * 2**-n."""
    assert enough(count, confidence) is wanted
    found = paired_ratio([1.0] * count, [2.0] * count, confidence)
    if count == 0:
        assert found is None
        return
    assert found is not None
    assert (found.low is not None) is wanted
    assert found.within_noise is (False if wanted else None)
    assert (median_interval([1.0] * count, confidence) is not None) is wanted


def test_the_same_samples_and_seed_give_the_same_interval() -> None:
    rng = np.random.default_rng(4)
    base, other = noisy(rng, 30), noisy(rng, 30)
    assert paired_ratio(base, other, 95.0, 5) == paired_ratio(base, other, 95.0, 5)


def test_many_samples_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    base, other = noisy(rng, 50), noisy(rng, 50)
    whole = paired_ratio(base, other, 95.0)
    monkeypatch.setattr(bootstrap, "_DRAWN", 64)
    parts = paired_ratio(base, other, 95.0)
    assert whole is not None
    assert parts is not None
    assert parts.low == pytest.approx(whole.low, abs=0.01)
    assert parts.high == pytest.approx(whole.high, abs=0.01)


def test_unpaired_samples_may_differ_in_number() -> None:
    rng = np.random.default_rng(6)
    found = ratio_of_medians(noisy(rng, 12, 100.0, 0.01), noisy(rng, 40, 80.0, 0.01), 95.0)
    assert found is not None
    assert found.value == pytest.approx(0.8, abs=0.02)
    assert found.within_noise is False
    assert ratio_of_medians([], [1.0], 95.0) is None
    few = ratio_of_medians([1.0] * 3, [2.0] * 40, 95.0)
    assert few == Estimate(2.0, None, None)


def test_the_interval_of_a_median_holds_the_true_one_mostly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 2000)
    rng = np.random.default_rng(8)
    held = 0
    for seed in range(200):
        interval = median_interval(noisy(rng, 20), 95.0, seed)
        assert interval is not None
        held += interval[0] <= 100 <= interval[1]
    assert 180 <= held < 200


def test_the_other_way_round() -> None:
    assert Estimate(0.8, 0.5, 2.0).inverse() == Estimate(1.25, 0.5, 2.0)
    assert Estimate(4.0, None, None).inverse() == Estimate(0.25, None, None)
    assert Estimate(0.5, 0.4, 0.625).change_pct == -50
    assert Estimate(1.5, 1.25, 2.0).interval_pct == (25, 100)
    assert Estimate(1.5, None, None).interval_pct is None
    assert Estimate(1.1, 0.9, 1.2).within_noise
    assert not Estimate(1.1, 1.05, 1.2).within_noise
