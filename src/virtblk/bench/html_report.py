"""`virtblk bench --report FILE`: what a run measured as one HTML page that needs nothing else. Control context.

A page is a function of a `Matrix`: a plain run is one of a single point, a sweep one of several of the same disk. Per
disk the recommendation comes first, then the figures (`bench.html_figures`), each with its numbers as a table, then
what was run, on what. Whatever a figure shows in colour it shows in words too.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from virtblk import __version__
from virtblk.bench import html_figures as figures
from virtblk.bench.bootstrap import Estimate
from virtblk.bench.comparison import POSTED, grouped
from virtblk.bench.html_figures import Figure, arm_name, iops_of, latency_of
from virtblk.bench.html_page import Cell, card, details, figure, page, pairs, table, text
from virtblk.bench.matrix import Matrix, headline, loses
from virtblk.bench.point import Measured
from virtblk.bench.report import Column, remarks_of, rows_of
from virtblk.bench.stat import RunResult
from virtblk.bench.summary import NOISE, change_text
from virtblk.bench.sweep import Sweep
from virtblk.figures import duration, si
from virtblk.names import format_size

#: The changes of a comparison that are shown, with their headings, and whether more is better.
CHANGES: Final = {
    "iops": ("IOPS", True),
    "latency": ("mean latency", False),
    "iops_per_driver_cpu": ("IOPS per driver CPU", True),
    "iops_per_total_cpu": ("IOPS per CPU of both", True),
    "driver_ns": ("driver CPU per I/O", False),
    "busy_ns": ("busy time per I/O", False),
}
assert POSTED not in CHANGES  # the same figure the other way round, which a page need not explain


def report_html(matrix: Matrix, when: datetime) -> str:
    """The page. `when` the run ended."""
    titles = list(dict.fromkeys(one.point.title for one in matrix.measured))
    parts = [_warnings(matrix)]
    if len(titles) > 1:
        parts.append(_overview(matrix, titles))
    parts += [_disk(matrix, title, number) for number, title in enumerate(titles, 1)]
    if not titles:
        parts.append(card("Nothing was measured."))
    name = _name(matrix, titles)
    head = f'<h1>{text(name)}</h1>\n<p class="muted">{text(_subtitle(when))}</p>'
    foot = f"<p>{text(_footnote(matrix))}</p>\n{details('the machine and the versions', pairs(environment(when)))}"
    return page(name, head, "\n".join(part for part in parts if part), foot)


def _name(matrix: Matrix, titles: Sequence[str]) -> str:
    what = titles[0] if len(titles) == 1 else f"{len(titles)} disks"
    over = f" over {matrix.sweep.option}" if matrix.sweep else ""
    return f"virtblk bench: {what}{over}"


def _subtitle(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M %Z} · virtblk {__version__} · Linux {platform.release()} · {cpu_model()}"


def _footnote(matrix: Matrix) -> str:
    return (
        "Bars and lines are medians over slices, in which the paths took turns; intervals are of the median, at "
        f"{matrix.confidence:g} %, by bootstrap. Changes are medians over pairs of slices; {NOISE} marks one whose "
        "interval holds zero: no difference was found. [?]: too few slices for an interval. Latency is completion "
        "latency."
    )


# What went wrong, and what is best.


def _warnings(matrix: Matrix) -> str:
    parts = []
    if matrix.interrupted:
        parts.append(card("The run was interrupted: this is what was measured until then.", kind="warn"))
    lines = [_failure(one) for one in matrix.measured if one.failure]
    if lines:
        parts.append(card("Not all could be measured.", lines, kind="warn"))
    if matrix.skipped:
        parts.append(card("Left out", [f"{title}: {why}" for title, why in matrix.skipped]))
    return "\n".join(parts)


def _failure(one: Measured) -> str:
    title, told = one.point.title, one.failure or ""
    label = f" {one.point.label}" if one.point.label else ""
    return f"{title}{label}: {told.removeprefix(f'{title}: ')}"


def _overview(matrix: Matrix, titles: Sequence[str]) -> str:
    """Of many disks: what to use on each, and every cell's change in IOPS."""
    advices = matrix.recommendations()
    lines = []
    for number, title in enumerate(titles, 1):
        told = advices[title].headline if title in advices else "not measured"
        lines.append(f'<li><a href="#disk-{number}">{text(title)}</a>: {text(told)}</li>')
    rows: list[list[str | Cell]] = []
    paths = list(dict.fromkeys(pair.path for one in matrix.measured for pair in one.comparisons))
    for one in matrix.measured:
        for workload in dict.fromkeys(pair.workload for pair in one.comparisons):
            mine = {pair.path: pair for pair in one.comparisons if pair.workload == workload}
            base = next(iter(mine.values())).base
            run = next(run for run in one.results if (run.workload, run.path) == (workload, base))
            row: list[str | Cell] = [
                one.point.title,
                f"{workload} {one.point.label}".strip(),
                f"{si(run.iops)} ({base})",
            ]
            row += [change_cell(mine[path].changes["iops"]) if path in mine else "" for path in paths]
            rows.append(row)
    parts = ["<h2>Which path to use</h2>", f'<div class="card"><ul>{"".join(lines)}</ul></div>']
    if rows:
        caption = "Change in IOPS against the base, with its interval. Disks are not compared with each other."
        parts.append(f'<div class="card">{table(["disk", "workload", "base", *paths], rows, caption, heads=2)}</div>')
    return "\n".join(parts)


def change_cell(change: Estimate | None, *, higher_is_better: bool = True) -> Cell:
    """A change with its interval; coloured, and said, where it is for better or worse without doubt."""
    told = change_text(change).rstrip()
    if change is None or change.within_noise is not False:
        return Cell(told)
    worse = loses(change, higher_is_better=higher_is_better)
    return Cell(f"{told} {'worse' if worse else 'better'}", "lose" if worse else "win")


# One disk.


def _disk(matrix: Matrix, title: str, number: int) -> str:
    points = [one for one in matrix.measured if one.point.title == title]
    known = [one for one in points if one.results]
    several = any(one.point.title != title for one in matrix.measured)
    parts = [f'<section id="disk-{number}">', f"<h2>{text(title)}</h2>" if several else ""]
    parts.append(f'<p class="muted">{text(_terms(matrix, (known or points)[0]))}</p>' if points[0].placement else "")
    if not known:
        parts.append(card(_failure(points[0]) if points[0].failure else "Nothing was measured."))
    else:
        parts.append(_advice(matrix, title))
        errors = _errors(known)
        if errors:
            parts.append(card("I/Os failed", errors, kind="warn"))
        if matrix.sweep is not None:
            parts.append(_over_values(matrix, known, f"d{number}"))
            inner = [
                details(f"at {one.point.label}", _point(one, f"d{number}-{index}"), "values")
                for index, one in enumerate(known)
            ]
            parts.append("<h3>Each value</h3>\n" + "\n".join(inner))
        else:
            parts.append(_point(known[0], f"d{number}"))
        remarks = _remarks(known)
        if remarks:
            parts.append(card("What else to know", remarks))
    parts += [_inputs(known[0] if known else points[0], matrix), "</section>"]
    return "\n".join(part for part in parts if part)


def _terms(matrix: Matrix, one: Measured) -> str:
    """What was measured, on what terms; over a sweep, no one value of what was swept."""
    if matrix.sweep is None:
        return headline(one)
    return f"{one.point.title}: {matrix.sweep.option} {_values(matrix.sweep)}; {one.placement}"


def _values(sweep: Sweep) -> str:
    return ", ".join(map(sweep.text, sweep.values))


def _advice(matrix: Matrix, title: str) -> str:
    advice = matrix.recommendations()[title]
    code = matrix.settings(title, advice.path) if advice.path else []
    told = advice.headline[:1].upper() + advice.headline[1:] + "."
    return card(told, advice.reasons, code, f"{advice.path}, as the nearest settings of a Linux guest:")


def _errors(known: Sequence[Measured]) -> list[str]:
    return [
        f"{_name_of(one, run)}: {run.errors} errors: {note}"
        for one in known
        for run in one.results
        for note in run.notes
    ]


def _remarks(known: Sequence[Measured]) -> list[str]:
    return [f"{_name_of(one, run)}: {remark}" for one in known for run in one.results for remark in remarks_of(run)]


def _name_of(one: Measured, run: RunResult) -> str:
    return " ".join(word for word in (run.path, run.workload, one.point.label) if word)


def _point(one: Measured, name: str) -> str:
    """Figures of one run."""
    job, results = one.point.job, one.results
    confidence, seed = job.confidence, job.randseed
    parts = [
        figure(
            "Speed",
            "IOPS and mean completion latency of each path, with intervals."
            + (" Right: a mark is filled where the interval leaves zero out." if one.comparisons else ""),
            figures.speed(results, one.comparisons, confidence, seed, f"{name}-speed"),
            _speed_numbers(results, confidence, seed) + _changes(one),
        )
    ]
    if any(run.bins for run in results):
        parts.append(
            figure(
                "Latency distribution",
                "All I/Os, on a logarithmic scale: how many took how long, and the percentiles up to the slowest.",
                figures.distribution(results, f"{name}-latency"),
                _latency_numbers(results),
            )
        )
    if any(run.ios for run in results):
        unknown = "" if all(run.device for run in results) else " The device's CPU could not be had."
        parts.append(
            figure(
                "CPU per I/O",
                f"Time of the driver's process and of the device's, in user mode and in the system.{unknown}",
                figures.cpu(results, f"{name}-cpu"),
                _of_columns([rows_of(run)[1] for run in results], results),
            )
        )
    return "\n".join(parts)


def _over_values(matrix: Matrix, known: Sequence[Measured], name: str) -> str:
    """The figure of a sweep, and its numbers."""
    sweep = matrix.sweep
    assert sweep is not None
    points = {one.point.value: one.results for one in known if one.point.value is not None}
    job = known[0].point.job
    rows = []
    for one in known:
        for group in grouped(one.results):
            for run in group:
                iops = iops_of(run, job.confidence, job.randseed)
                latency = latency_of(run, job.confidence, job.randseed)
                cells = [run.workload, arm_name(run, group), sweep.text(one.point.value or 0)]
                cells += [si(iops.value), _interval(iops, si), duration(latency.value), _interval(latency, duration)]
                cells += [duration(run.clat.percentile["99.000000"]), duration(run.driver_ns), duration(run.device_ns)]
                rows.append((job.workloads.index(run.workload), run.arm, cells))
    rows.sort(key=lambda row: row[:2])
    headings = ["workload", "path", sweep.option, "IOPS", "interval", "mean latency", "interval", "p99"]
    headings += ["driver CPU/IO", "device CPU/IO"]
    return figure(
        f"Over {sweep.option}",
        "IOPS, latency and CPU at each value; the bands are intervals. A row shares its scale.",
        figures.over_values(sweep, points, job.confidence, job.randseed, f"{name}-sweep"),
        table(headings, [cells for _, _, cells in rows], heads=3),
    )


# Numbers.


def _interval(one: Figure, told: Any) -> str:
    return f"{told(one.low)} to {told(one.high)}" if one.low is not None and one.high is not None else "-"


def _speed_numbers(results: Sequence[RunResult], confidence: float, seed: int) -> str:
    rows = []
    for run in results:
        iops, latency = iops_of(run, confidence, seed), latency_of(run, confidence, seed)
        speed = dict(rows_of(run)[0])
        medians: list[Column] = [("median IOPS", si(iops.value)), (f"at {confidence:g} %", _interval(iops, si))]
        medians += [
            ("median latency", duration(latency.value)),
            (f"at {confidence:g} % ", _interval(latency, duration)),
        ]
        rest: list[Column] = [(key, speed[key]) for key in ("IOPS", "MB/s", "I/Os", "runtime", "errors")]
        rows.append([("path", run.path), ("workload", run.workload), *medians, *rest])
    return _of_columns(rows, results)


def _changes(one: Measured) -> str:
    if not one.comparisons:
        return ""
    shown = [name for name in CHANGES if any(pair.changes[name] for pair in one.comparisons)]
    rows: list[list[str | Cell]] = []
    for pair in one.comparisons:
        arm = f"{pair.path} #{pair.arm}" if pair.path == pair.base else pair.path
        cells = [change_cell(pair.changes[name], higher_is_better=CHANGES[name][1]) for name in shown]
        rows.append([pair.workload, f"{pair.base} -> {arm}", *cells, str(pair.pairs)])
    headings = ["workload", "change", *(CHANGES[name][0] for name in shown), "pairs"]
    return table(headings, rows, "What changed", heads=2)


def _latency_numbers(results: Sequence[RunResult]) -> str:
    """Percentiles, and the histogram by powers of two."""
    rows = []
    for run in results:
        clat = run.clat
        row: list[Column] = [("path", run.path), ("workload", run.workload), ("min", duration(clat.min))]
        row += [(f"p{float(key):g}", duration(value)) for key, value in clat.percentile.items()]
        row += [("max", duration(clat.max)), ("mean", duration(clat.mean)), ("deviation", duration(clat.stddev))]
        rows.append(row)
    counts = [_powers_of_two(run) for run in results]
    first, last = min(min(one, default=0) for one in counts), max(max(one, default=0) for one in counts)
    lines = [
        [f"{duration(2**power)} to {duration(2 ** (power + 1))}", *(si(one.get(power, 0)) for one in counts)]
        for power in range(first, last + 1)
    ]
    names = [f"{run.workload} {arm_name(run, group)}" for group in grouped(results) for run in group]
    return _of_columns(rows, results) + table(["latency", *names], lines, "I/Os by latency")


def _powers_of_two(run: RunResult) -> dict[int, int]:
    counts: dict[int, int] = {}
    for latency, count in run.bins.items():
        power = max(0, latency.bit_length() - 1)
        counts[power] = counts.get(power, 0) + count
    return counts


def _of_columns(rows: Sequence[Sequence[Column]], results: Sequence[RunResult]) -> str:
    """A table of (heading, cell) rows, one per run: the workload first, then the path."""
    names = [arm_name(run, group) for group in grouped(results) for run in group]
    headings = list(dict.fromkeys(heading for row in rows for heading, _ in row if heading not in ("path", "workload")))
    cells = [
        [run.workload, name, *(dict(row).get(heading, "") for heading in headings)]
        for row, run, name in zip(rows, results, names, strict=True)
    ]
    return table(["workload", "path", *headings], cells, heads=2)


# What was run, on what.


def _inputs(one: Measured, matrix: Matrix) -> str:
    """The fixed inputs of a disk's runs."""
    device = _flat(one.device, {"size": format_size})
    options = _flat(one.point.job.as_json() | {"confidence": one.point.job.confidence}, {"bs": format_size})
    options["size"] = format_size(one.point.job.size) if one.point.job.size else "all of the disk"
    if matrix.sweep is not None:
        name = _words(matrix.sweep.option)
        (device if name in device else options)[name] = _values(matrix.sweep)
    queues = {path: ", ".join(f"{key}={value}" for key, value in queue.items()) for path, queue in one.queues.items()}
    parts = [f"<h4>Device</h4>{pairs(device)}" if device else "", f"<h4>Options</h4>{pairs(options)}"]
    parts += [f"<h4>Queue of each path</h4>{pairs(queues)}" if queues else ""]
    return details("what was run, on what", "\n".join(part for part in parts if part))


def _flat(values: Mapping[str, Any], formats: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in values.items():
        if key == "queue":  # each path's is told
            continue
        if key in formats and value is not None:
            told = formats[key](value)
        elif isinstance(value, list):
            told = ", ".join(map(str, value))
        elif isinstance(value, bool):
            told = "yes" if value else "no"
        else:
            told = "-" if value in (None, "") else str(value)
        found[_words(key)] = told
    return found


def _words(key: str) -> str:
    return key.replace("_", " ")


def cpu_model() -> str:
    """The machine's CPU by its own name, and how many of them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    count = os.cpu_count() or 1
    return f"{names[0] if names else platform.machine()}, {count} CPU{'s' if count > 1 else ''}"


def environment(when: datetime) -> dict[str, str]:
    """The machine and the versions of all that has a part in the figures."""
    from importlib.metadata import version

    return {
        "date": f"{when:%Y-%m-%d %H:%M:%S %z}",
        "virtblk": __version__,
        "CPU": cpu_model(),
        "usable CPUs": ", ".join(map(str, sorted(os.sched_getaffinity(0)))),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": platform.python_version(),
        "numba": version("numba"),
        "llvmlite": version("llvmlite"),
        "numpy": np.__version__,
        "drawn with": f"matplotlib {version('matplotlib')}",
    }
