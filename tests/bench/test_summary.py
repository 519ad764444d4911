"""The summary as it is printed: changes with intervals, noise marked, the posting's figures beside ours."""

from __future__ import annotations

import io

import pytest

from bench.test_comparison import arm
from virtblk.bench.bootstrap import Estimate
from virtblk.bench.comparison import Comparison, compare
from virtblk.bench.posting import PRESETS
from virtblk.bench.summary import change_text, percent, print_summary


def printed(comparisons: list[Comparison], confidence: float = 95.0) -> str:
    out = io.StringIO()
    print_summary(comparisons, confidence, out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.34, "+12.3%"), (-0.04, "-0.0%"), (0, "+0.0%"), (99.94, "+99.9%"), (99.96, "+100%"), (-150.4, "-150%")],
)
def test_per_cent(value: float, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (None, "-"),
        (Estimate(1.25, 1.125, 1.5), "+25.0% [+12.5, +50.0]  "),
        (Estimate(1.25, 0.875, 3.5), "+25.0% [-12.5, +250] ~"),
        (Estimate(0.5, None, None), "-50.0% [?]"),
    ],
)
def test_a_change(change: Estimate | None, text: str) -> None:
    assert change_text(change) == text


def test_the_postings_summary() -> None:
    text = printed(compare([arm(0, "request"), arm(1, "bio", iops=125.0)], 95.0))
    speed, cost, legend = text.strip("\n").split("\n\n")
    heading, row = speed.splitlines()
    assert heading.split("  ")[0] == "change"
    for word in ("IOPS", "mean clat, bio/request - 1", "as posted, request/bio - 1"):
        assert word in heading
    assert row.split()[:4] == ["request", "->", "bio", "read"]
    assert row.split()[4::3] == ["+25.0%", "-20.0%", "+25.0%"]
    heading, row = cost.splitlines()
    for word in ("IOPS/driver-CPU", "posted, ramdisk", "IOPS/both-CPU", "driver ns/IO", "busy ns/IO"):
        assert word in heading
    assert "+28.4%" in row.split()
    assert row.endswith("-")
    assert legend.splitlines() == [
        "medians over 10 pairs of slices, [95 % interval]; ~ within noise: no difference was found",
        "posted: change in IOPS per guest CPU on the ramdisk, 2012",
    ]


def test_several_paths_share_their_columns() -> None:
    text = printed(compare([arm(0, "request"), arm(1, "bio", iops=125.0), arm(2, "mq", iops=150.0)], 95.0))
    heading, *rows = text.strip("\n").split("\n\n")[0].splitlines()
    for word in ("mean clat, path/base - 1", "as posted, base/path - 1"):
        assert heading.count(word) == 1
    assert [row.split()[2] for row in rows] == ["bio", "mq"]
    assert [row.split()[4::3] for row in rows] == [["+25.0%", "-20.0%", "+25.0%"], ["+50.0%", "-33.3%", "+50.0%"]]


def test_arms_on_one_path_have_numbers_and_the_posting_no_word() -> None:
    text = printed(compare([arm(0, "bio"), arm(1, "bio")], 99.0), 99.0)
    assert "bio#0 -> bio#1" in text
    assert "99 % interval" in text
    assert "posted, ramdisk" not in text
    assert "2012" not in text


def test_few_slices_are_said_to_be_few() -> None:
    text = printed(compare([arm(0, "request", rounds=2), arm(1, "bio", rounds=2)], 95.0))
    assert "[?] too few slices for an interval" in text
    assert "~" not in text


def test_nothing_compared_is_nothing_printed() -> None:
    assert printed([]) == ""


def test_a_preset_says_which_disk_was_posted() -> None:
    out = io.StringIO()
    found = compare([arm(0, "request"), arm(1, "bio", iops=125.0)], 95.0)
    print_summary(found, 95.0, out, PRESETS["posting-fusion-io"])
    text = out.getvalue()
    assert "posted, fusion-io" in text
    assert "+47.8%" in text.split()
    assert text.endswith("posted: change in IOPS per guest CPU on the Fusion-io card, 2012\n")
