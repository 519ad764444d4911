"""The text that Prometheus reads."""

from __future__ import annotations

import pytest

from virtblk.errors import UsageError
from virtblk.metrics import Family, parse_address, render


def test_a_family_is_told_with_its_help_and_type() -> None:
    family = Family("virtblk_queue_kicks_total", "counter", "Kicks\nof a driver \\ guest.")
    family.add(3, queue=0)
    family.add(1 << 60, queue=1, disk='a"b\\c\nd')
    assert render([family]) == (
        "# HELP virtblk_queue_kicks_total Kicks\\nof a driver \\\\ guest.\n"
        "# TYPE virtblk_queue_kicks_total counter\n"
        'virtblk_queue_kicks_total{queue="0"} 3\n'
        'virtblk_queue_kicks_total{queue="1",disk="a\\"b\\\\c\\nd"} 1152921504606846976\n'
    )


def test_an_empty_family_is_not_mentioned() -> None:
    assert render([Family("x", "gauge", "Nothing.")]) == "\n"


def test_a_sample_without_labels_has_no_braces() -> None:
    family = Family("x", "gauge", "X.")
    family.add(0.25)
    assert render([family]).splitlines()[-1] == "x 0.25"


def test_a_histogram_is_cumulative_and_ends_with_all() -> None:
    family = Family("lat_seconds", "histogram", "Latency.")
    family.add_histogram([0.001, 0.5], [3, 0, 2], 7.5, queue=2)
    assert render([family]).splitlines()[2:] == [
        'lat_seconds_bucket{queue="2",le="0.001"} 3',
        'lat_seconds_bucket{queue="2",le="0.5"} 3',
        'lat_seconds_bucket{queue="2",le="+Inf"} 5',
        'lat_seconds_sum{queue="2"} 7.5',
        'lat_seconds_count{queue="2"} 5',
    ]


def test_a_histogram_needs_one_count_more_than_bounds() -> None:
    with pytest.raises(ValueError, match="zip"):
        Family("x", "histogram", "X.").add_histogram([1.0], [1], 1.0)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:9100", ("0.0.0.0", 9100)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":9100", "::1:9100", "65536", "host:99999", "http://host:1", "-1"]
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(UsageError, match=r"--metrics .*: give PORT or HOST:PORT"):
        parse_address(text)
