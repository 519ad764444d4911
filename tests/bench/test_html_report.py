"""--report: what is on the page of a plain run, a matrix and a sweep, and that nothing on it can be anything else."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

from bench.harness import a_run
from bench.html_harness import KINDS, WHEN, Page, measured, plain, sweep
from virtblk.bench import html_report
from virtblk.bench.comparison import compare
from virtblk.bench.html_page import POLICY
from virtblk.bench.html_report import change_cell, report_html
from virtblk.bench.html_svg import VARIABLES
from virtblk.bench.matrix import Matrix
from virtblk.bench.point import Measured, Point
from virtblk.bench.recommend import compare_pairs

pytestmark = [pytest.mark.once, pytest.mark.covers, pytest.mark.usefixtures("fonts")]


@cache
def page_of(kind: str) -> Page:
    """One of the pages that many tests look at."""
    return Page.of(KINDS[kind]())


@pytest.fixture(params=KINDS)
def page(request: pytest.FixtureRequest) -> Page:
    return page_of(request.param)


def test_the_page_needs_nothing_else(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "image", "foreignobject", "base", "form"}
    for _, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "srcset", "xlink:href")]
        assert attributes.get("href", "#").startswith("#")
        assert "url(" not in attributes.get("style", "").replace("url(#", "")
    assert "@import" not in page.source
    assert "url(http" not in page.source
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy == POLICY
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_ids_are_there_once_and_all_that_is_referred_to_is_there(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r"url\(#([^)]+)\)", page.source)) | {
        attributes["href"].removeprefix("#") for _, attributes in page.elements if "href" in attributes
    }
    assert referred
    assert referred <= set(ids)


def test_every_figure_is_told_in_words_and_numbers(page: Page) -> None:
    drawings = page.all("svg")
    assert drawings
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(drawings)
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert drawing["aria-label"].endswith("the numbers are below.")
    for one in re.findall(r"<figure>.*?</figure>", page.source, re.DOTALL):
        assert "<table" in one.split("</svg>")[1]


def test_colours_are_the_pages(page: Page) -> None:
    for stand_in, variable in VARIABLES.items():
        assert stand_in not in page.source
        assert f"{variable}:" in page.source
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))
    assert "var(--request)" in drawn
    assert not re.search(r"#[0-9a-f]{6}", drawn), "no colour of matplotlib's own"


def test_a_plain_run() -> None:
    page = page_of("plain")
    text = page.text
    assert [one for one in page.all("svg") if "IOPS" in one["aria-label"]]
    assert len(page.all("svg")) == 3
    assert "virtblk bench: null:1m" in text
    assert "2026-11-27 08:30 UTC" in text
    assert "Use bio: no other path was found to have more IOPS, and it has up to +25.0% IOPS" in text
    assert "echo none > /sys/block/vdX/queue/scheduler" in text
    assert "blocks of 512, 1 x 4 in flight, ring of 128, interrupts; driver on cpu 0, device on cpu 1" in text
    for told in ("125k to 126k", "+25.0% [+25.0, +25.0] better", "4.19ms to 8.39ms", "p99.99"):
        assert told in text, told
    for told in ("VIRTIO_BLK_F_FLUSH", "scheduler=noop [deadline], nr_requests=128", "iodepth batch submit", "numpy"):
        assert told in text, told
    assert "interrupted" not in text


def test_marks_say_what_they_are() -> None:
    source = page_of("plain").source
    titles = re.findall(r"<title>([^<]*)</title>", source)
    assert "randread, bio: 126k, interval 125k to 126k" in titles
    assert "randread, bio: +25.0%, interval +25.0% to +25.0%" in titles
    assert any(one.startswith("randread, request: driver, user: ") for one in titles)
    assert any(one.startswith("randread, bio: p50 ") for one in titles)


def test_a_matrix() -> None:
    page = page_of("matrix")
    assert "virtblk bench: 2 disks" in page.text
    assert [one["href"] for one in page.all("a")] == ["#disk-1", "#disk-2"]
    assert len(page.all("svg")) == 6
    assert [one.get("class") for one in page.all("td")].count("lose") >= 2
    assert "-20.0% [-20.0, -20.0] worse" in page.text
    assert "sim:sata?reorder=off: use bio" in page.text


def test_a_sweep() -> None:
    page = page_of("sweep")
    assert "virtblk bench: null:1m over iodepth" in page.text
    assert "null:1m: iodepth 1, 16; driver on cpu 0" in page.text
    assert len(page.all("svg")) == 1 + 2 * 3
    titles = re.findall(r"<title>([^<]*)</title>", page.source)
    assert "randread, bio, iodepth=16: 193k, interval 192k to 193k" in titles
    summaries = re.findall(r"<summary>(at [^<]*)</summary>", page.source)
    assert summaries == [f"at iodepth={value}" for value in (1, 16)]


@pytest.mark.parametrize("text", ["bs=512,1m", "queue_size=128", "iodepth_batch_submit=2"])
def test_sweeps_of_all_kinds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_report, "_point", lambda one, name: "")  # the figures of each value, which take long
    result = sweep(text)
    page = Page.of(result)
    assert result.sweep is not None
    option, values = result.sweep.option, ", ".join(map(result.sweep.text, result.sweep.values))
    assert f"null:1m: {option} {values}; driver" in page.text
    assert f"{option.replace('_', ' ')} {values}" in page.text[page.text.index("what was run") :]


HOSTILE = "ram:1m?</title></style><script>alert('1')</script>\"&amp;$x^{2}$\\frac\x1b\x00\udcff\n-->"


def test_names_are_text_and_nothing_else() -> None:
    one = measured({"request": 1e5, "bio": 1.25e5}, HOSTILE)
    one.results[0].notes, one.results[0].errors = [f"first error at {HOSTILE}"], 1
    one.results[0].remarks = [HOSTILE]
    one.failure = HOSTILE
    one.device |= {"serial": HOSTILE, HOSTILE: HOSTILE}
    result = Matrix(95.0, None, [one, measured({"bio": 1.0}, "null:1m")], [(HOSTILE, HOSTILE)])
    page = Page.of(result)
    assert not page.all("script")
    assert len(page.all("style")) == 1
    told = HOSTILE.translate({0x1B: "\ufffd", 0: "\ufffd", 0xDCFF: "\ufffd", 0x0A: " "})
    assert page.text.count(told) >= 8
    page.source.encode()


# What is there when little was measured.


def bare(**given: Any) -> Measured:
    """A run that was cut short: no slices, no histogram."""
    results = [a_run(path=path, arm=arm, **given) for arm, path in enumerate(("request", "bio"))]
    point = Point("null:1m", "null:1m", measured({"bio": 1.0}).point.job)
    return Measured(point, {}, "", {}, results, compare(results, 95.0), compare_pairs(results, 95.0))


def test_an_interrupted_run_shows_what_there_is() -> None:
    page = Page.of(Matrix(95.0, None, [bare()], [], True))
    assert "The run was interrupted: this is what was measured until then." in page.text
    assert "Too few slices for an interval" in page.text or "Nothing was compared" in page.text
    assert "250k" in page.text, "IOPS of the whole run"


def test_no_io_at_all() -> None:
    page = Page.of(Matrix(95.0, None, [bare(ios=0, runtime_s=0.0)], [], True))
    assert len(page.all("svg")) == 1


def test_a_device_whose_cpu_is_unknown() -> None:
    page = Page.of(Matrix(95.0, None, [bare(device=None)]))
    assert "The device's CPU could not be had." in page.text


def test_nothing() -> None:
    assert "Nothing was measured." in Page.of(Matrix(95.0, None, [], [], True)).text


def test_a_disk_that_failed_and_one_that_was_left_out() -> None:
    failed = Measured(Point("nbd:x", "nbd:x", plain().measured[0].point.job), failure="nbd:x: connection refused")
    page = Page.of(Matrix(95.0, None, [failed, *plain().measured], [("sim:x", "this version has no sim: disks")]))
    assert "nbd:x: nbd:x: connection refused" not in page.text
    assert page.text.count("nbd:x: connection refused") == 2
    assert "nbd:x: not measured" in page.text
    assert "sim:x: this version has no sim: disks" in page.text


def test_a_sweep_of_which_one_value_failed() -> None:
    result = sweep()
    result.measured[1].results, result.measured[1].failure = [], "the device closed the connection"
    result.measured[1].comparisons, result.measured[1].pairs = [], []
    page = Page.of(result)
    assert "null:1m iodepth=16: the device closed the connection" in page.text
    assert len(page.all("svg")) == 1 + 3


def test_the_same_path_twice() -> None:
    results = [a_run(path="bio", arm=arm) for arm in range(2)]
    point = Point("null:1m", "null:1m", plain().measured[0].point.job)
    one = Measured(point, {}, "", {}, results, compare(results, 95.0), compare_pairs(results, 95.0))
    page = Page.of(Matrix(95.0, None, [one]))
    for name in ("bio #0", "bio #1"):
        assert name in page.text
        assert f">{name}</text>" in page.source


def test_errors_and_remarks_are_told() -> None:
    result = plain()
    run = result.measured[0].results[1]
    run.errors, run.notes, run.dropped = 3, ["first error at offset 0: EIO"], 2
    text = Page.of(result).text
    figures = text.index("Latency distribution")  # below which stands what is of less weight
    assert text.index("bio randread: 3 errors") < figures < text.index("What else to know")
    assert "bio randread: 3 errors: first error at offset 0: EIO" in text
    assert "bio randread: 2 of its first slices left out as warm-up" in text
    assert "3 I/Os failed: no path is recommended before they work" in text


def test_a_page_is_a_function_of_its_matrix() -> None:
    assert report_html(plain(), WHEN) == page_of("plain").source


def test_a_change_that_is_none_is_not_coloured() -> None:
    assert change_cell(None).kind == ""
