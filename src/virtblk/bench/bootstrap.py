"""Ratios of medians and medians of ratios, with a bootstrap interval (Efron: the percentile method). Control context.

Slices of one run are few, skewed and full of outliers, so the median stands for them, and its interval is what the
medians of resamples spread over. The percentile method and not BCa: the correction's acceleration comes from leaving
one sample out at a time, which says nothing of a median. Seeded: the same samples give the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

RESAMPLES: Final = 10_000
#: Samples that are drawn at a time: bounds the memory, whatever the number of slices.
_DRAWN: Final = 1 << 21

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A ratio. `low` and `high` are None where there are too few samples for the confidence asked for."""

    value: float
    low: float | None
    high: float | None

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval holds 1; None where there is no interval."""
        return None if self.low is None or self.high is None else self.low <= 1 <= self.high

    def inverse(self) -> Estimate:
        """The same seen from the other side."""
        if self.low is None or self.high is None or self.low <= 0:
            return Estimate(1 / self.value, None, None)
        return Estimate(1 / self.value, 1 / self.high, 1 / self.low)

    @property
    def change_pct(self) -> float:
        """The ratio as a change in per cent."""
        return (self.value - 1) * 100

    @property
    def interval_pct(self) -> tuple[float, float] | None:
        """Its interval, likewise."""
        if self.low is None or self.high is None:
            return None
        return (self.low - 1) * 100, (self.high - 1) * 100


def enough(count: int, confidence: float) -> bool:
    """Whether `count` samples can have an interval at all: all of them lie on one side of the median with a
    probability of 2 ** (1 - count), which no interval between them can go below."""
    return count > 0 and 2.0 ** (1 - count) <= 1 - confidence / 100


def _interval(statistic: Callable[[int], Floats], count: int, confidence: float) -> tuple[float, float]:
    """Quantiles of RESAMPLES values of `statistic`, which makes as many as it is asked for of `count` samples each."""
    step = max(1, _DRAWN // count)
    values = [statistic(min(step, RESAMPLES - done)) for done in range(0, RESAMPLES, step)]
    tail = (1 - confidence / 100) / 2
    low, high = np.quantile(np.concatenate(values), [tail, 1 - tail])
    return float(low), float(high)


def paired_ratio(base: Sequence[float], other: Sequence[float], confidence: float, seed: int = 0) -> Estimate | None:
    """Median of other / base, pair by pair, with its interval at `confidence` per cent; None without a sample.

    All samples are positive. What changes from pair to pair, but is the same within one, has no effect.
    """
    ratios = np.asarray(other, float) / np.asarray(base, float)
    count = len(ratios)
    if count == 0:
        return None
    value = float(np.median(ratios))
    if not enough(count, confidence):
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)

    def medians(size: int) -> Floats:
        return np.asarray(np.median(ratios[rng.integers(0, count, (size, count))], axis=1))

    return Estimate(value, *_interval(medians, count, confidence))


def ratio_of_medians(
    base: Sequence[float], other: Sequence[float], confidence: float, seed: int = 0
) -> Estimate | None:
    """Median of other / median of base, for samples that have nothing to do with each other; None without samples.

    What drifted between the two is in the ratio, and not in the interval.
    """
    first, second = np.asarray(base, float), np.asarray(other, float)
    if not len(first) or not len(second):
        return None
    value = float(np.median(second) / np.median(first))
    if not enough(min(len(first), len(second)), confidence):
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)

    def ratios(size: int) -> Floats:
        medians = [np.median(x[rng.integers(0, len(x), (size, len(x)))], axis=1) for x in (first, second)]
        return np.asarray(medians[1] / medians[0])

    return Estimate(value, *_interval(ratios, max(len(first), len(second)), confidence))


def median_interval(values: Sequence[float], confidence: float, seed: int = 0) -> tuple[float, float] | None:
    """Interval of the median of `values`; None where there are too few."""
    if not enough(len(values), confidence):
        return None
    samples = np.asarray(values, float)
    rng = np.random.default_rng(seed)

    def medians(size: int) -> Floats:
        return np.asarray(np.median(samples[rng.integers(0, len(samples), (size, len(samples)))], axis=1))

    return _interval(medians, len(samples), confidence)
