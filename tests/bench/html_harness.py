"""Reports of runs that never were, and a reader of pages."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

from bench.harness import a_run, options
from virtblk.bench.comparison import compare
from virtblk.bench.html_report import report_html
from virtblk.bench.matrix import Matrix
from virtblk.bench.point import Measured, Point
from virtblk.bench.recommend import compare_pairs
from virtblk.bench.sweep import Sweep, parse_sweep

WHEN = datetime(2026, 11, 27, 8, 30, tzinfo=UTC)
ROUNDS = 10
#: Elements that have no end tag.
VOID = {"meta", "link", "br", "img", "hr", "input"}


def samples(iops: float) -> dict[str, list[Any]]:
    """Slices that hardly differ."""
    return {
        "round": list(range(ROUNDS)),
        "iops": [iops * (1 + number / 1000) for number in range(ROUNDS)],
        "clat_mean_ns": [1e9 / iops] * ROUNDS,
        "driver_ns_per_io": [1000.0] * ROUNDS,
        "device_ns_per_io": [1000.0] * ROUNDS,
        "busy_ns_per_io": [None] * ROUNDS,
    }


def measured(iops: dict[str, float], title: str = "null:1m", **given: Any) -> Measured:
    """One workload on these paths; a few latencies that lie far apart."""
    workloads = given.pop("workloads", ("randread",))
    job = options(workloads=workloads, paths=tuple(iops), runtime=1)
    results = [
        a_run(path=path, workload=workload, arm=arm, samples=samples(value), bins={1000: 90, 1010: 9, 5_000_000: 1})
        for workload in workloads
        for arm, (path, value) in enumerate(iops.items())
    ]
    queue = {"scheduler": "noop [deadline]", "nr_requests": "128", "nomerges": "0"}
    device = {"name": title, "size": 1 << 20, "features": ["VIRTIO_BLK_F_FLUSH"], "queue_size": 128, "queue": queue}
    return Measured(
        Point(title, title, job, **given),
        device,
        "driver on cpu 0, device on cpu 1",
        dict.fromkeys(iops, queue),
        results,
        compare(results, 95.0),
        compare_pairs(results, 95.0),
    )


def plain(title: str = "null:1m") -> Matrix:
    return Matrix(95.0, None, [measured({"request": 1e5, "bio": 1.25e5}, title)])


def matrix() -> Matrix:
    paths = {"request": 1e5, "bio": 1.2e5, "mq": 0.8e5, "auto": 1e5}
    return Matrix(95.0, None, [measured(paths, title) for title in ("ram:1m", "sim:sata?reorder=off")])


def sweep(text: str = "iodepth=1,16") -> Matrix:
    parsed: Sweep = parse_sweep(text)
    points = [
        measured(
            {"request": 1e4 * value, "bio": 1.2e4 * value},
            option=parsed.option,
            value=value,
            label=parsed.label(value),
        )
        for value in parsed.values
    ]
    return Matrix(95.0, parsed, points)


KINDS = {"plain": plain, "matrix": matrix, "sweep": sweep}


class Page(HTMLParser):
    """A page read: its elements, its text, and whether every element ends where it should."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"never ended: {self.open}"

    @classmethod
    def of(cls, matrix: Matrix) -> Page:
        return cls(report_html(matrix, WHEN))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop() == tag, tag
        if tag in ("td", "th"):
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if not {"style", "svg"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader sees outside of figures."""
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of each element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]
