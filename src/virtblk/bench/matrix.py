"""`virtblk bench --matrix`: disks x workloads x paths, and a recommendation per disk. Control context, main thread.

Per disk one interleaved run (`bench.point`): within it the paths take turns slice by slice, so that changes between
paths are paired; disks are compared with nothing. What the disks are to be called, which of them this build has, and
the file that `file:` alone stands for, are decided here; a sweep makes several points of each disk.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from virtblk import __version__
from virtblk.bench.bootstrap import Estimate
from virtblk.bench.comparison import Comparison
from virtblk.bench.crew_runner import Progress
from virtblk.bench.job import JobOptions
from virtblk.bench.point import Measured, Point, measure, of_points
from virtblk.bench.recommend import Recommendation
from virtblk.bench.report import Column, ProgressLine, format_table, remarks_of
from virtblk.bench.session import check_options
from virtblk.bench.stat import RunResult
from virtblk.bench.summary import NOISE, change_text
from virtblk.bench.sweep import Sweep
from virtblk.errors import OpenError, UsageError
from virtblk.figures import duration, si
from virtblk.names import KNOWN, SCHEMES, format_size, parse_name

#: What a disk of no size gets, and the size of the file.
SIZE: Final = "512m"
#: The disks of `--matrix` unless `--disks` names others: the reviewers' question needs one that neither seeks nor
#: costs anything, one in memory, a real file, and the two of the posting, with a host that sorts and one that does not.
DISKS: Final = ("ram:", "null:", "file:", "sim:fusion-io", "sim:sata?reorder=on", "sim:sata?reorder=off")
#: Schemes whose name may end at the colon here.
SIZED: Final = ("ram", "null")
#: In this order, as far as this build has them.
MATRIX_PATHS: Final = ("request", "bio", "mq", "auto")
LOSES: Final = "<"


@dataclass(frozen=True)
class Disk:
    """A disk of the matrix: the name to open, and what it is called."""

    name: str
    title: str


@dataclass
class Matrix:
    """All that was measured, in order, and what was left out with the reason."""

    confidence: float
    sweep: Sweep | None = None
    measured: list[Measured] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def titles(self) -> list[str]:
        """The disks of which something is known."""
        return list(dict.fromkeys(one.point.title for one in self.measured if one.results))

    def of(self, title: str) -> list[Measured]:
        """The points of one disk."""
        return [one for one in self.measured if one.point.title == title and one.results]

    def recommendations(self) -> dict[str, Recommendation]:
        """Per disk."""
        return {title: of_points(self.of(title)) for title in self.titles}

    def settings(self, title: str, path: str) -> list[str]:
        """Linux settings, those of the last point of the disk."""
        return self.of(title)[-1].settings(path)

    @property
    def status(self) -> int:
        """The exit status."""
        if self.interrupted:
            return 130
        return 1 if any(one.failure or one.errors for one in self.measured) else 0

    def as_json(self) -> dict[str, Any]:
        """What `--json` writes: each point is what one `bench --json` would have written, with keys added."""
        told = []
        for title, advice in self.recommendations().items():
            settings = self.settings(title, advice.path) if advice.path else []
            told.append({"disk": title} | advice.as_json() | {"linux": settings})
        return {
            "virtblk": __version__,
            "confidence": self.confidence,
            "sweep": self.sweep.as_json() if self.sweep else None,
            "points": [one.as_json() for one in self.measured],
            "recommendations": told,
            "skipped": [{"disk": title, "why": why} for title, why in self.skipped],
            "interrupted": self.interrupted,
        }


def parse_disks(text: str) -> list[str]:
    """`ram:,sim:sata?reorder=off,depth=1,null:1g` -> names: a comma begins a disk where a scheme follows it.

    Raises UsageError for a name that is none, or is there twice.
    """
    begins = "|".join(re.escape(scheme) for scheme in SCHEMES)
    names = re.split(rf",(?=(?:{begins}):)", text)
    for name in names:
        scheme, colon, _ = name.partition(":")
        if names.count(name) > 1:
            raise UsageError(f"--disks {text!r}: {name} is there twice")
        if not colon or scheme not in SCHEMES:
            raise UsageError(f"--disks: {name!r} is no disk; give names such as {','.join(DISKS)}")
        if scheme in KNOWN:  # another one is left out of the run, and that is said
            parsed = parse_name(f"{name}{_default_rest(name)}")
            if scheme in SIZED and parsed.size == 0:
                raise UsageError(f"--disks: {name}: give a size such as {SIZE}")
    return names


def _default_rest(name: str) -> str:
    """What stands for nothing after the colon: a size; of a file, a path that is no matter here."""
    scheme, _, rest = name.partition(":")
    if rest:
        return ""
    return SIZE if scheme in SIZED else "temporary" if scheme == "file" else ""


@contextmanager
def disks_of(names: Sequence[str], skipped: list[tuple[str, str]]) -> Iterator[list[Disk]]:
    """The disks to measure. `file:` is a file of random bytes while the context lasts, on TMPDIR's file system."""
    disks: list[Disk] = []
    with tempfile.TemporaryDirectory(prefix="virtblk-matrix-") as directory:
        for name in names:
            scheme, _, rest = name.partition(":")
            if scheme not in KNOWN:
                skipped.append((name, f"this version has no {scheme}: disks"))
            elif scheme == "file" and not rest:
                path = Path(directory) / "disk.img"
                _fill(path)
                disks.append(Disk(f"file:{path}", f"file:{SIZE}"))
            else:
                whole = f"{name}{_default_rest(name)}"
                disks.append(Disk(whole, whole))
        yield disks


def _fill(path: Path) -> None:
    """A file of random bytes: holes would be read from nowhere."""
    size = parse_name(f"ram:{SIZE}").size
    block = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8).tobytes()
    with path.open("wb") as file:
        for _ in range(0, size, len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())  # or the run pays for writing it back


def check_points(names: Sequence[str], job: JobOptions, sweep: Sweep | None) -> None:
    """Refuse what can be seen to fail without a device, of every point, before anything is made or compiled.

    Raises UsageError. A disk that is not there is left to its run, since the others can be measured.
    """
    for name in names:
        scheme, _, rest = name.partition(":")
        if scheme not in KNOWN:
            continue
        temporary = scheme == "file" and not rest
        disk = f"ram:{SIZE}" if temporary else f"{name}{_default_rest(name)}"  # the file's size, and any block
        for point in points_of([Disk(disk, f"file:{SIZE}" if temporary else disk)], job, sweep):
            with suppress(OpenError):
                check_options(point.disk, point.job, point.title)


def points_of(disks: Sequence[Disk], job: JobOptions, sweep: Sweep | None) -> list[Point]:
    """All points, disk by disk. Raises UsageError for a value that does not go with the other options."""
    if sweep is None:
        return [Point(disk.name, disk.title, job) for disk in disks]
    jobs = [(value, sweep.job(job, value)) for value in sweep.values]
    return [
        Point(disk.name, disk.title, changed, sweep.option, value, sweep.label(value))
        for disk in disks
        for value, changed in jobs
    ]


def run_points(points: Sequence[Point], matrix: Matrix, out: TextIO, err: TextIO) -> None:
    """Measure one after the other until Ctrl-C, each table printed when it is there, progress on `err`.

    What was measured is in `matrix` whatever happens.
    """
    print(plan_text(points), file=out, flush=True)
    for number, point in enumerate(points, 1):
        line = ProgressLine(err)
        place = " ".join(word for word in (f"{number}/{len(points)}", point.title, point.label) if word)

        def on_start(measured: Measured, number: int = number) -> None:
            print(f"\n{number} of {len(points)}: {headline(measured)}", file=out, flush=True)

        def on_progress(
            label: str, passed: float, planned: float, ios: int, limit: int, line: Progress = line, place: str = place
        ) -> None:
            line(f"{place} {label}", passed, planned, ios, limit)

        try:
            measured = measure(point, on_start, on_progress)
        except KeyboardInterrupt:
            matrix.interrupted = True
            return
        finally:
            line.clear()
        matrix.measured.append(measured)
        print_measured(measured, out)
        out.flush()
        if measured.interrupted:
            matrix.interrupted = True
            return


# What is printed.


def plan_text(points: Sequence[Point]) -> str:
    """How much there is to do, and how long it takes, starts not counted. Says what is written to."""
    if not points:
        return "there is no disk to measure"
    job = points[0].job
    titles = list(dict.fromkeys(point.title for point in points))
    values = len(points) // len(titles)
    counts = [(len(titles), "disk"), (values, "value"), (len(job.workloads), "workload"), (len(job.paths), "path")]
    text = " x ".join(
        f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts if values > 1 or name != "value"
    )
    times = [(one.runtime + one.ramp_time) * len(one.workloads) * len(one.paths) for one in (p.job for p in points)]
    if job.runtime:
        text += f", {job.runtime:g} s each: {clock(sum(times))} and the starts"
    if job.writes:
        text += f"\nthis writes to {', '.join(titles)}"
        text += "; --rw read,randread does not" if job.verify == "none" else ""
    return text


def clock(seconds: float) -> str:
    """`45 s`, `9 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def loses(change: Estimate | None, *, higher_is_better: bool) -> bool:
    """Whether a change is for the worse, without doubt."""
    if change is None or change.low is None or change.high is None:
        return False
    return change.high < 1 if higher_is_better else change.low > 1


def cell_text(change: Estimate | None, *, higher_is_better: bool = True) -> str:
    """A change with its interval, marked where it loses."""
    text = change_text(change).rstrip()
    if text.endswith(NOISE) or change is None:
        return text
    return f"{text} {LOSES if loses(change, higher_is_better=higher_is_better) else ' '}"


def rows_of(measured: Measured) -> list[list[Column]]:
    """One row per workload and path: figures, and for all but the base what they changed."""
    changes = {(one.workload, one.arm): one for one in measured.comparisons}
    return [
        [
            ("workload", run.workload),
            ("path", run.path),
            *_figures(run),
            *_changes(changes.get((run.workload, run.arm))),
        ]
        for run in measured.results
    ]


def _figures(run: RunResult) -> list[Column]:
    return [
        ("IOPS", si(run.iops)),
        ("clat mean", duration(run.clat.mean)),
        ("p99", duration(run.clat.percentile["99.000000"])),
    ]


def _changes(change: Comparison | None) -> list[Column]:
    if change is None:
        return []
    changes = change.changes
    return [
        ("IOPS change", cell_text(changes["iops"])),
        ("mean clat", cell_text(changes["latency"], higher_is_better=False)),
        ("IOPS/driver-CPU", cell_text(changes["iops_per_driver_cpu"])),
        ("IOPS/both-CPU", cell_text(changes["iops_per_total_cpu"])),
    ]


def print_measured(measured: Measured, stream: TextIO) -> None:
    """The table of one point, with what went wrong."""
    if measured.results:
        print(format_table(rows_of(measured)), file=stream)
        for run in measured.results:
            for note in run.notes:
                print(f"{run.path} {run.workload}: {run.errors} errors: {note}", file=stream)
            for remark in remarks_of(run) if run.remarks else []:
                print(f"{run.path} {run.workload}: {remark}", file=stream)
    if measured.failure:
        title = measured.point.title
        told = measured.failure if measured.failure.startswith(title) else f"{title}: {measured.failure}"
        print(told, file=stream)


def print_sweep(matrix: Matrix, stream: TextIO) -> None:
    """IOPS and mean latency over the values of a sweep, a table of each per disk."""
    if matrix.sweep is None:
        return
    for title in matrix.titles:
        points = matrix.of(title)
        for name, cell in (("IOPS", lambda run: si(run.iops)), ("clat mean", lambda run: duration(run.clat.mean))):
            rows: dict[tuple[str, int], list[Column]] = {}
            for point in points:
                for run in point.results:
                    row = rows.setdefault((run.workload, run.arm), [("workload", run.workload), ("path", run.path)])
                    row.append((point.point.label, cell(run)))
            order = sorted(rows, key=lambda key: (points[0].point.job.workloads.index(key[0]), key[1]))
            print(f"\n{title}: {name}\n{format_table([rows[key] for key in order])}", file=stream)


def print_legend(matrix: Matrix, stream: TextIO) -> None:
    """How to read the tables."""
    changes = [change for one in matrix.measured for pair in one.comparisons for change in pair.changes.values()]
    known = [change for change in changes if change]
    if not known:
        return
    bases = sorted({pair.base for one in matrix.measured for pair in one.comparisons})
    text = f"changes against {' or '.join(bases)}, medians over pairs of slices, [{matrix.confidence:g} % interval]"
    text += f"; {LOSES} loses: the interval is wholly for the worse"
    if any(change.within_noise for change in known):
        text += f"; {NOISE} within noise: no difference was found"
    if any(change.interval_pct is None for change in known):
        text += "; [?] too few slices for an interval"
    print(f"\n{text}", file=stream)


def print_recommendations(matrix: Matrix, stream: TextIO) -> None:
    """Per disk: what to use, why, and the same as Linux settings."""
    for title, advice in matrix.recommendations().items():
        print(f"\n{title}: {advice.headline}", file=stream)
        for reason in advice.reasons:
            print(f"    {reason}", file=stream)
        if advice.path:
            for line in matrix.settings(title, advice.path):
                print(f"    $ {line}" if line.startswith("echo") else f"    {line}", file=stream)


def headline(measured: Measured) -> str:
    """What is measured, on what terms."""
    point, job = measured.point, measured.point.job
    completion = "polling" if job.poll else "interrupts"
    batch = f", batches of {job.batch_submit}" if job.batch_submit > 1 else ""
    load = f"blocks of {format_size(job.bs)}, {job.numjobs} x {job.iodepth} in flight{batch}"
    name = f" ({point.disk})" if point.disk != point.title else ""
    return f"{point.title}{name}: {load}, ring of {job.queue_size}, {completion}; {measured.placement}"
