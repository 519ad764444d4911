"""What figures are drawn from: histograms as columns and tails, medians, and the texts of axes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness import a_run
from bench.html_harness import samples
from virtblk.bench.html_figures import Figure, columns_of, iops_of, latency_of, tail_of
from virtblk.bench.html_svg import Drawing, styled, tick_count, tick_duration, tick_percent

pytestmark = [pytest.mark.once, pytest.mark.covers, pytest.mark.usefixtures("fonts")]

BINS = st.dictionaries(st.integers(0, 1 << 40), st.integers(1, 1 << 30), min_size=1, max_size=40)


@given(BINS)
def test_each_io_is_in_one_column(bins: dict[int, int]) -> None:
    edges, shares = columns_of(bins)
    assert len(edges) == len(shares) + 1
    assert sum(shares) == pytest.approx(1)
    total = sum(bins.values())
    for index, share in enumerate(shares):
        inside = sum(
            count for ns, count in bins.items() if edges[index] * 1.000001 < max(ns, 1) < edges[index + 1] * 0.999999
        )
        around = sum(
            count for ns, count in bins.items() if edges[index] * 0.999999 <= max(ns, 1) <= edges[index + 1] * 1.000001
        )
        assert inside / total - 1e-9 <= share <= around / total + 1e-9


@given(BINS)
def test_the_tail_goes_from_all_to_the_slowest(bins: dict[int, int]) -> None:
    latencies, shares = tail_of(bins)
    assert list(latencies) == sorted(bins)
    total = sum(bins.values())
    for latency, share in zip(latencies, shares, strict=True):
        assert share == pytest.approx(sum(count for ns, count in bins.items() if ns >= latency) / total)


def test_medians_with_intervals_where_there_are_slices() -> None:
    run = a_run(samples=samples(1e5))
    figure = iops_of(run, 95.0, 1)
    assert figure.value == pytest.approx(1e5 * 1.0045)
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low <= figure.value <= figure.high
    assert latency_of(run, 95.0, 1).value == pytest.approx(1e4)
    assert iops_of(a_run(), 95.0, 1) == Figure(a_run().iops)
    assert latency_of(a_run(ios=0), 95.0, 1) == Figure(None)
    few = a_run(samples={"iops": [1.0, 2.0]})
    assert iops_of(few, 95.0, 1) == Figure(1.5)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (tick_duration, 0, "0"),
        (tick_duration, 250, "250 ns"),
        (tick_duration, 1000, "1 us"),
        (tick_duration, 2.5e6, "2.5 ms"),
        (tick_duration, 999_999, "1 ms"),
        (tick_duration, 3e9, "3 s"),
        (tick_count, 0, "0"),
        (tick_count, 250, "250"),
        (tick_count, 999_999, "1M"),
        (tick_count, 1.5e9, "1.5G"),
        (tick_percent, 0, "0"),
        (tick_percent, -2.5, "-2.5 %"),
    ],
)
def test_texts_of_axes(function: object, value: float, text: str) -> None:
    assert callable(function)
    assert function(value) == text


def test_a_drawing_becomes_part_of_a_page() -> None:
    @styled
    def draw(name: str) -> str:
        drawing = Drawing(2.0)
        ((axes,),) = drawing.grid(1, 1)
        (line,) = axes.plot([1, 2.123456789], [3, 4.3], "o-")
        axes.set_title("$x$ <&")
        drawing.tell(line, "a <line>")
        return drawing.svg(name, 'of "two" points')

    first, second = draw("a"), draw("b")
    assert first.replace('"a-', '"b-').replace("#a-", "#b-") == second
    assert first.startswith("<svg ")
    assert 'aria-label="of &quot;two&quot; points"' in first
    assert "$x$ &lt;&amp;</text>" in first, "a dollar is a dollar"
    assert "<title>a &lt;line&gt;</title>" in first
    assert "xlink" not in first
    assert "<style" not in first
    assert "<metadata" not in first
    assert not re.search(r' d="[^"]*\d\.\d{3}', first)
