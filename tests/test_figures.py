"""Three figures of counts and latencies: rounded, with the right unit, and enough to read the value back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.figures import duration, si


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (5, "5"),
        (999, "999"),
        (1000, "1.00k"),
        (12_345, "12.3k"),
        (999_600, "1.00M"),
        (1_234_567, "1.23M"),
        (21_800_000_000, "21.8G"),
        (0.0, "0.00"),
        (7.125, "7.12"),
        (45.67, "45.7"),
        (742.4, "742"),
        (999.4, "999"),
        (999.6, "1.00k"),
    ],
)
def test_counts(value: float | None, text: str) -> None:
    assert si(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0ns"),
        (812, "812ns"),
        (999.4, "999ns"),
        (999.6, "1.00us"),
        (12_345, "12.3us"),
        (4_560_000, "4.56ms"),
        (999_600_000, "1.00s"),
        (1_200_000_000, "1.20s"),
        (95e9, "95.0s"),
    ],
)
def test_durations(value: float | None, text: str) -> None:
    assert duration(value) == text


@pytest.mark.parametrize(("value", "text"), [(9.999, "10.0"), (99.96, "100"), (99_960, "100k")])
def test_regression_rounding_up_adds_no_fourth_figure(value: float, text: str) -> None:
    assert si(value) == text
    assert duration(99_960) == "100us"


@given(st.floats(0.01, 1e12))
def test_three_figures_are_enough_to_read_the_value_back(value: float) -> None:
    match = re.fullmatch(r"([0-9.]+)([kMG]?)", si(value))
    assert match
    assert len(match[1].replace(".", "")) == 3 or value >= 999.5e9
    factor = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]]
    assert float(match[1]) * factor == pytest.approx(value, rel=0.006, abs=0.0051)
