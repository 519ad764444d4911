"""The figures of a report: speed, CPU, distribution of latency, and all of them over the values of a sweep.

Control context. Each function returns the SVG of one figure; what it says in words and numbers is beside it in
`bench.html_report`. Text in figures is of a fixed vocabulary, workloads, paths and the options that can be swept: names
that a user gave stand in the page's text alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from virtblk.bench.bootstrap import Floats, median_interval
from virtblk.bench.comparison import Comparison, grouped
from virtblk.bench.html_svg import (
    DASHES,
    DEVICE,
    DRIVER,
    INK,
    MARKERS,
    MUTED,
    SURFACE,
    Drawing,
    linear,
    logarithmic,
    path_colour,
    styled,
    tick_count,
    tick_duration,
    tick_percent,
)
from virtblk.bench.stat import RunResult
from virtblk.bench.summary import percent
from virtblk.bench.sweep import Sweep
from virtblk.figures import duration, si

#: Inches of a row of a bar, and of the line above it that names the workload.
ROW: Final = 0.235
HEAD: Final = 0.27
#: Where the distribution's columns begin and end: so many to a power of two.
PER_OCTAVE: Final = 8
#: From how far apart on a sweep's values are on a logarithmic scale.
LOGARITHMIC: Final = 8
LIGHT: Final = 0.5


@dataclass(frozen=True)
class Figure:
    """A median over slices, with its interval where there are slices enough. None: it could not be had."""

    value: float | None
    low: float | None = None
    high: float | None = None


def median_of(run: RunResult, column: str, whole: float | None, confidence: float, seed: int) -> Figure:
    """The median of a column of the slices; the figure of the whole run where it has no slices."""
    values = tuple(value for value in run.samples.get(column, []) if value is not None)
    return _median(values, confidence, seed) if values else Figure(whole)


@lru_cache(1024)  # a figure and the table below it have the same
def _median(values: tuple[float, ...], confidence: float, seed: int) -> Figure:
    return Figure(float(np.median(values)), *(median_interval(values, confidence, seed) or (None, None)))


def iops_of(run: RunResult, confidence: float, seed: int) -> Figure:
    """IOPS of a run."""
    return median_of(run, "iops", run.iops, confidence, seed)


def latency_of(run: RunResult, confidence: float, seed: int) -> Figure:
    """Mean completion latency of a run."""
    return median_of(run, "clat_mean_ns", run.clat.mean if run.ios else None, confidence, seed)


def arm_name(run: RunResult, group: Sequence[RunResult]) -> str:
    """The path; with its number where the path has several arms."""
    return f"{run.path} #{run.arm}" if sum(one.path == run.path for one in group) > 1 else run.path


@dataclass(frozen=True)
class _Rows:
    """Bars below one another, those of a workload under its name: inches from the top."""

    heads: list[tuple[float, str]]
    bars: list[tuple[float, str, RunResult]]
    height: float

    @classmethod
    def of(cls, results: Sequence[RunResult]) -> _Rows:
        heads, bars, y = [], [], 0.0
        for group in grouped(results):
            heads.append((y + HEAD / 2, group[0].workload))
            y += HEAD
            for run in group:
                bars.append((y + ROW / 2, arm_name(run, group), run))
                y += ROW
        return cls(heads, bars, y + 0.05)

    def prepare(self, axes: Sequence[Axes]) -> None:
        """The left column of words, and no more than that on the axis that all share."""
        for each in axes:
            each.set_ylim(self.height, 0)
            each.yaxis.grid(False)
            each.tick_params(axis="y", length=0)
            each.spines["left"].set_visible(True)
        first = axes[0]
        first.set_yticks([y for y, _, _ in self.bars], [name for _, name, _ in self.bars])
        for y, name in self.heads:
            first.annotate(
                name,
                (0, y),
                (-62, 0),
                ("axes fraction", "data"),
                "offset points",
                weight="bold",
                va="center",
                color=INK,
            )


@styled
def speed(
    results: Sequence[RunResult], comparisons: Sequence[Comparison], confidence: float, seed: int, name: str
) -> str:
    """IOPS, mean latency and, with a path to compare with, the change in IOPS; a bar or mark per workload and path."""
    rows = _Rows.of(results)
    columns = 3 if comparisons else 2
    drawing = Drawing(rows.height + 0.85)
    (axes,) = drawing.grid(1, columns, sharey=True, margins={"left": 0.95, "right": 0.25}, spaces={"wspace": 0.12})
    rows.prepare(axes)
    _bars(drawing, axes[0], rows, lambda run: iops_of(run, confidence, seed), si)
    axes[0].set_title("IOPS (more is better)")
    linear(axes[0].xaxis, tick_count, 4)
    _bars(drawing, axes[1], rows, lambda run: latency_of(run, confidence, seed), duration)
    axes[1].set_title("mean latency (less is better)")
    linear(axes[1].xaxis, tick_duration, 4)
    if comparisons:
        _changes(drawing, axes[2], rows, comparisons)
    label = f"Bars: IOPS and mean latency, {_spoken(results)}, with intervals; the numbers are below."
    return drawing.svg(name, label)


def _bars(
    drawing: Drawing, axes: Axes, rows: _Rows, figure_of: Callable[[RunResult], Figure], told: Callable[[float], str]
) -> None:
    figures = [(y, arm, run, figure_of(run)) for y, arm, run in rows.bars]
    most = max([max(one.value or 0, one.high or 0) for _, _, _, one in figures], default=0) or 1
    axes.set_xlim(0, most * 1.22)
    for y, arm, run, one in figures:
        if one.value is None:
            axes.text(most * 0.01, y, "-", va="center", color=MUTED)
            continue
        words = f"{run.workload}, {arm}: {told(one.value)}"
        (bar,) = axes.barh(y, one.value, ROW * 0.72, color=path_colour(run.path))
        end = one.value
        if one.low is not None and one.high is not None:
            words += f", interval {told(one.low)} to {told(one.high)}"
            axes.plot([one.low, one.high], [y, y], color=SURFACE, linewidth=3.2, solid_capstyle="butt")
            axes.plot([one.low, one.high], [y, y], color=INK, linewidth=1.2, marker="|", markersize=5)
            end = max(end, one.high)
        drawing.tell(bar, words)
        axes.text(end + most * 0.015, y, told(one.value), va="center", fontsize=8)


def _changes(drawing: Drawing, axes: Axes, rows: _Rows, comparisons: Sequence[Comparison]) -> None:
    """The change in IOPS with its interval; filled where the interval leaves zero out."""
    found = {(one.workload, one.arm): one for one in comparisons}
    bases = sorted({one.base for one in comparisons})
    axes.set_title(f"change in IOPS against {' or '.join(bases)}")
    axes.axvline(0, color=INK, linewidth=0.8)
    ends = [-1.0, 1.0]
    for y, arm, run in rows.bars:
        one = found.get((run.workload, run.arm))
        change = one.changes["iops"] if one else None
        if change is None:
            continue
        words = f"{run.workload}, {arm}: {percent(change.change_pct)}"
        colour = path_colour(run.path)
        ends.append(change.change_pct)
        if change.interval_pct is not None:
            low, high = change.interval_pct
            axes.plot([low, high], [y, y], color=colour, linewidth=1.6)
            words += f", interval {percent(low)} to {percent(high)}"
            ends += [low, high]
        filled = change.within_noise is False
        (mark,) = axes.plot(
            [change.change_pct], [y], MARKERS.get(run.path, "o"), color=colour,
            markerfacecolor=colour if filled else SURFACE, markersize=5.5, markeredgewidth=1.2, zorder=3,
        )  # fmt: skip
        drawing.tell(mark, words)
    room = (max(ends) - min(ends)) * 0.08
    axes.set_xlim(min(ends) - room, max(ends) + room)
    linear(axes.xaxis, tick_percent, 5)


@styled
def cpu(results: Sequence[RunResult], name: str) -> str:
    """CPU per I/O: driver and device, each in user and in system."""
    rows = _Rows.of(results)
    drawing = Drawing(rows.height + 0.95)
    ((axes,),) = drawing.grid(1, 1, margins={"left": 0.95, "right": 0.25, "top": 0.45})
    rows.prepare([axes])
    ends = []
    for y, arm, run in rows.bars:
        left = 0.0
        for side, colour, usage in (("driver", DRIVER, run.driver), ("device", DEVICE, run.device)):
            if usage is None or not run.ios:
                continue
            for kind, seconds, alpha in (("user", usage.usr_s, 1.0), ("system", usage.sys_s, LIGHT)):
                value = seconds * 1e9 / run.ios
                (bar,) = axes.barh(y, value, ROW * 0.72, left=left, color=colour, alpha=alpha)
                drawing.tell(bar, f"{run.workload}, {arm}: {side}, {kind}: {duration(value)} per I/O")
                left += value
        ends.append((y, left, f"{duration(run.driver_ns)} + {duration(run.device_ns)}"))
    most = max([left for _, left, _ in ends], default=0) or 1
    for y, left, told in ends:
        axes.text(left + most * 0.008, y, told, va="center", fontsize=8)
    axes.set_xlim(0, most * 1.15)
    linear(axes.xaxis, tick_duration, 8)
    patches = [
        Patch(color=colour, alpha=alpha, label=f"{side}, {kind}")
        for side, colour in (("driver", DRIVER), ("device", DEVICE))
        for kind, alpha in (("user", 1.0), ("system", LIGHT))
    ]
    _legend(drawing, patches)
    return drawing.svg(name, f"Bars: CPU time per I/O of driver and device, {_spoken(results)}; the numbers are below.")


@styled
def distribution(results: Sequence[RunResult], name: str) -> str:
    """All of each histogram: its shape, and how long the slowest share took, down to the last I/O."""
    groups = [[run for run in group if run.bins] for group in grouped(results)]
    groups = [group for group in groups if group]
    drawing = Drawing(2.05 * len(groups) + 0.75)
    margins = {"left": 0.75, "right": 0.2, "top": 0.62, "bottom": 0.4}
    axes = drawing.grid(len(groups), 2, margins=margins, spaces={"hspace": 0.48, "wspace": 0.17})
    for (shape, tail), group in zip(axes, groups, strict=True):
        low = max(1, min(min(run.bins) for run in group)) / 1.1
        high = max(1, *(max(run.bins) for run in group)) * 1.1
        for each in (shape, tail):
            each.set_xscale("log")
            each.set_xlim(low, high)
            logarithmic(each.xaxis, low, high)
        for run in group:
            _shape(drawing, shape, run, arm_name(run, group))
            _tail(drawing, tail, run, arm_name(run, group))
        _percentiles(tail, group)
        shape.set_ylim(bottom=0)
        shape.set_title(f"{group[0].workload}: share of the I/Os at each latency")
        linear(shape.yaxis, lambda value, position=None: f"{value * 100:.3g} %", 4)
        tail.set_title(f"{group[0].workload}: percentiles, to the slowest I/O")
    _legend(drawing, _path_handles([run for group in groups for run in group]))
    return drawing.svg(
        name, f"Latency on a logarithmic scale, {_spoken(results)}: histograms and percentiles; the numbers are below."
    )


def columns_of(bins: Mapping[int, int]) -> tuple[Floats, Floats]:
    """The edges of a histogram's columns, PER_OCTAVE to a power of two, and the share of the I/Os in each."""
    columns = np.floor(np.log2(np.maximum(np.array(list(bins), float), 1)) * PER_OCTAVE).astype(int)
    first = int(columns.min())
    shares = np.bincount(columns - first, list(bins.values())) / sum(bins.values())
    return 2.0 ** ((first + np.arange(len(shares) + 1)) / PER_OCTAVE), shares


def tail_of(bins: Mapping[int, int]) -> tuple[Floats, Floats]:
    """Each latency that occurs, and the share of the I/Os that take as long or longer."""
    counts = np.array([bins[latency] for latency in sorted(bins)], float)
    return np.array(sorted(bins), float), np.cumsum(counts[::-1])[::-1] / counts.sum()


def _shape(drawing: Drawing, axes: Axes, run: RunResult, arm: str) -> None:
    edges, shares = columns_of(run.bins)
    colour = path_colour(run.path)
    outline = axes.stairs(shares, edges, color=colour, linewidth=1.4, linestyle=DASHES.get(run.path, "-"))
    drawing.tell(outline, f"{run.workload}, {arm}: most often {duration(float(edges[shares.argmax()]))}")


def _tail(drawing: Drawing, axes: Axes, run: RunResult, arm: str) -> None:
    """The share that takes a latency or longer, so that percentiles go up; the last is one I/O."""
    latencies, shares = tail_of(run.bins)
    (line,) = axes.plot(latencies, shares, color=path_colour(run.path), linestyle=DASHES.get(run.path, "-"))
    told = run.clat.percentile
    words = f"p50 {duration(told['50.000000'])}, p99 {duration(told['99.000000'])}, p99.9 {duration(told['99.900000'])}"
    drawing.tell(line, f"{run.workload}, {arm}: {words}, longest {duration(run.clat.max)}")


def _percentiles(axes: Axes, runs: Sequence[RunResult]) -> None:
    """The axis of percentiles: each nine takes as much room as the one before, to the share that one I/O is."""
    least = min(1 / sum(run.bins.values()) for run in runs)
    axes.set_yscale("log")
    ticks = [share for share in (0.5, *(10.0**-n for n in range(1, 12))) if share >= least]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, position=None: f"p{100 - share * 100:.10g}"))
    axes.set_ylim(1.15, least / 1.5)


@dataclass(frozen=True)
class _Series:
    """A row of the figure over a sweep."""

    title: str
    tick: Callable[[float, object], str]
    told: Callable[[float | None], str]
    figure_of: Callable[[RunResult], Figure]


@styled
def over_values(
    sweep: Sweep, points: Mapping[int, Sequence[RunResult]], confidence: float, seed: int, name: str
) -> str:
    """IOPS, latency and CPU over the values of a sweep: a column per workload, a line per path, intervals as bands."""
    series = [
        _Series("IOPS", tick_count, si, lambda run: iops_of(run, confidence, seed)),
        _Series("mean latency", tick_duration, duration, lambda run: latency_of(run, confidence, seed)),
        _Series("p99 latency", tick_duration, duration, lambda run: _known(run, run.clat.percentile["99.000000"])),
        _Series("driver CPU per I/O", tick_duration, duration, lambda run: Figure(run.driver_ns)),
        _Series("device CPU per I/O", tick_duration, duration, lambda run: Figure(run.device_ns)),
    ]
    groups = {value: grouped(results) for value, results in points.items()}
    columns = max(groups.values(), key=len)
    values = list(points)
    spread = min(values) > 0 and max(values) >= LOGARITHMIC * min(values)
    places = {value: math.log2(value) if spread else float(value) for value in values}
    drawing = Drawing(len(series) * 1.75 + 1.0)
    margins = {"left": 0.75, "right": 0.15, "top": 0.65, "bottom": 0.5}
    spaces = {"hspace": 0.3, "wspace": 0.08}
    axes = drawing.grid(len(series), len(columns), sharex=True, sharey="row", margins=margins, spaces=spaces)
    for row, one in zip(axes, series, strict=True):
        for column, each in enumerate(row):
            workload = columns[column][0].workload
            lines: dict[str, list[tuple[int, RunResult]]] = {}
            for value, found in groups.items():
                for run in found[column] if column < len(found) else []:
                    lines.setdefault(arm_name(run, found[column]), []).append((value, run))
            for arm, marks in lines.items():
                _line(drawing, each, one, [(places[value], sweep.label(value), run) for value, run in marks], arm)
            each.set_title(f"{workload}: {one.title}", fontsize=8.5)
        _fit(row, one)
    for each in axes[-1]:
        _value_axis(each, sweep, places)
    runs = [run for results in points.values() for run in results]
    _legend(drawing, _path_handles(runs))
    label = f"Lines: IOPS, latency and CPU over {sweep.option}, {_spoken(runs)}; the numbers are below."
    return drawing.svg(name, label)


def _known(run: RunResult, value: float) -> Figure:
    return Figure(value if run.ios else None)


def _line(
    drawing: Drawing, axes: Axes, series: _Series, runs: Sequence[tuple[float, str, RunResult]], arm: str
) -> None:
    """One path: its figures joined, a mark on each, and a band of their intervals."""
    found = [(x, label, run, series.figure_of(run)) for x, label, run in runs]
    known = [(x, label, run, one.value, one.low, one.high) for x, label, run, one in found if one.value is not None]
    if not known:
        return
    path = known[0][2].path
    colour = path_colour(path)
    axes.plot([one[0] for one in known], [one[3] for one in known], linestyle=DASHES.get(path, "-"), color=colour)
    band = [(x, low, high) for x, _, _, _, low, high in known if low is not None and high is not None]
    if band:
        axes.fill_between(
            [x for x, _, _ in band],
            [y for _, y, _ in band],
            [y for _, _, y in band],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
    for x, label, run, value, low, high in known:
        (mark,) = axes.plot([x], [value], MARKERS.get(path, "o"), color=colour)
        interval = f", interval {series.told(low)} to {series.told(high)}" if low is not None else ""
        drawing.tell(mark, f"{run.workload}, {arm}, {label}: {series.told(value)}{interval}")


def _fit(row: Sequence[Axes], series: _Series) -> None:
    """The axis that a row shares: latencies far apart are on a logarithmic one, all else begins at zero."""
    ends = [float(y) for axes in row for line in axes.get_lines() for y in np.asarray(line.get_ydata(), float)]
    low, high = min([y for y in ends if y > 0], default=1.0), max(ends, default=1.0)
    if "latency" in series.title and high > 20 * low:
        for axes in row:
            axes.set_yscale("log")
            axes.set_ylim(low / 1.6, high * 1.6)
            logarithmic(axes.yaxis, low, high)
    else:
        row[0].set_ylim(0, (high or 1.0) * 1.1)
        linear(row[0].yaxis, series.tick, 4)


def _value_axis(axes: Axes, sweep: Sweep, places: Mapping[int, float]) -> None:
    """The sweep's values where they are, no more of them than there is room for."""
    step = math.ceil(len(places) / 9)
    shown = list(places.items())[::step]
    axes.xaxis.set_major_locator(FixedLocator([x for _, x in shown]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, position=None: _text_at(sweep, places, x)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(sweep.option)


def _text_at(sweep: Sweep, places: Mapping[int, float], x: float) -> str:
    return next((sweep.text(value) for value, place in places.items() if math.isclose(place, x)), "")


def _path_handles(runs: Sequence[RunResult]) -> list[Line2D]:
    return [
        Line2D(
            [], [], color=path_colour(path), linestyle=DASHES.get(path, "-"), marker=MARKERS.get(path, "o"), label=path
        )
        for path in dict.fromkeys(run.path for run in runs)
    ]


def _legend(drawing: Drawing, handles: Sequence[Any]) -> None:
    drawing.figure.legend(
        handles=list(handles), loc="upper left", ncols=len(handles), bbox_to_anchor=(0.005, 0.999), handlelength=2.6
    )


def _spoken(runs: Sequence[RunResult]) -> str:
    """What a figure is of, for its label."""
    workloads = ", ".join(dict.fromkeys(run.workload for run in runs))
    return f"{workloads} on the paths {', '.join(dict.fromkeys(run.path for run in runs))}"
