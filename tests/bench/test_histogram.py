"""The latency histogram against fio's description of it."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.bench.histogram import BUCKET_BITS, BUCKETS, GROUPS, bucket_middle, bucket_of

#: fio (stat.h): values below 128 ns have a bucket each; above, every power of two is cut into 64 equal buckets.
LOWEST = list(range(128))
for power in range(7, 40):
    LOWEST += [(1 << power) + part * (1 << power) // 64 for part in range(64)]
TOP = 1 << 40
LATENCIES = st.one_of(st.integers(0, TOP - 1), st.integers(0, 39).flatmap(lambda k: st.integers(0, 1 << k)))


def naive_bucket(value: int) -> int:
    """The last bucket that does not begin above `value`."""
    return bisect_right(LOWEST, value) - 1


def test_fios_numbers() -> None:
    assert 1 << BUCKET_BITS == 64
    assert len(LOWEST) == BUCKETS == GROUPS * 64


@given(LATENCIES)
def test_as_described(value: int) -> None:
    assert bucket_of(value) == naive_bucket(value)


@pytest.mark.parametrize("power", range(40))
def test_at_every_power_of_two(power: int) -> None:
    for value in (2**power - 1, 2**power, 2**power + 1):
        assert bucket_of(value) == naive_bucket(value), value


@given(LATENCIES, LATENCIES)
def test_monotone(first: int, second: int) -> None:
    low, high = sorted((first, second))
    assert bucket_of(low) <= bucket_of(high)


@given(LATENCIES)
def test_the_middle_is_off_by_less_than_one_part_in_64(value: int) -> None:
    assert abs(int(bucket_middle(bucket_of(value))) - value) * 64 <= value


def test_the_middle_of_every_bucket_lies_in_it() -> None:
    assert [int(bucket_of(int(bucket_middle(i)))) for i in range(BUCKETS)] == list(range(BUCKETS))


def test_the_middle_is_the_middle() -> None:
    for i, low in enumerate(LOWEST[:-1]):
        width = LOWEST[i + 1] - low
        assert bucket_middle(i) == low + width // 2


@pytest.mark.parametrize("value", [TOP - 1, TOP, TOP + 1, 1 << 50, (1 << 63) - 1])
def test_what_is_too_long_counts_in_the_last_bucket(value: int) -> None:
    assert bucket_of(value) == BUCKETS - 1
