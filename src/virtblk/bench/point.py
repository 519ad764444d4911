"""One point of a matrix or a sweep: one disk, one set of options, one interleaved run. Control context, main thread.

`measure` opens a session for it, runs it and closes the session, so that every point starts alike and a disk that
fails takes no other with it. Ctrl-C ends the run with what it did so far, as `virtblk bench` does.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from virtblk.bench.comparison import Comparison, compare
from virtblk.bench.crew_runner import Progress, no_progress
from virtblk.bench.job import JobOptions
from virtblk.bench.linux_settings import linux_settings
from virtblk.bench.recommend import Recommendation, compare_pairs, recommend
from virtblk.bench.report import as_json
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session
from virtblk.bench.stat import RunResult
from virtblk.driver.map_queues import MQ_PATHS
from virtblk.errors import DeviceError, OpenError, UsageError


@dataclass(frozen=True)
class Point:
    """What is to be measured. `title` names the disk for a reader, `label` is the sweep's value, if there is one."""

    disk: str
    title: str
    job: JobOptions
    option: str | None = None
    value: int | None = None
    label: str = ""


@dataclass
class Measured:
    """What came of a point. `failure` is set where the disk could not be opened or was lost."""

    point: Point
    device: dict[str, Any] = field(default_factory=dict)
    placement: str = ""
    queues: dict[str, dict[str, str]] = field(default_factory=dict)  # the queue's attributes, by path
    results: list[RunResult] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    pairs: list[Comparison] = field(default_factory=list)
    failure: str | None = None
    interrupted: bool = False

    @property
    def errors(self) -> int:
        """I/Os that failed or did not verify."""
        return sum(result.errors for result in self.results)

    def recommendation(self) -> Recommendation:
        """Of this point alone."""
        return of_points([self])

    def settings(self, path: str) -> list[str]:
        """`path` as Linux settings, with the values of this run."""
        job = self.point.job
        queues, polled = (job.queues, job.poll_queues) if path in MQ_PATHS else (1, 0)
        return linux_settings(path, self.queues.get(path, {}), job.queue_size, queues, polled)

    def as_json(self) -> dict[str, Any]:
        """What `bench --json` writes of such a run, and the keys of its own."""
        job = self.point.job
        value: dict[str, Any] = {"disk": self.point.title, "option": self.point.option, "value": self.point.value}
        value |= {"failure": self.failure, "interrupted": self.interrupted}
        value["pairs"] = [pair.as_json() for pair in self.pairs]
        return value | as_json(self.device, job, self.results, self.comparisons)


def of_points(points: list[Measured]) -> Recommendation:
    """The recommendation for one disk, over all points of it: a sweep's values are cells of their own."""
    failed = sum(point.errors for point in points)
    if failed:
        why = f"{failed} I/Os failed: no path is recommended before they work"
        return Recommendation("unknown", None, "", why)
    pairs = []
    for point in points:
        label = point.point.label
        pairs += [replace(one, workload=f"{one.workload} {label}") if label else one for one in point.pairs]
    return recommend(pairs)


def measure(
    point: Point,
    on_start: Callable[[Measured], None] = lambda measured: None,
    on_progress: Progress = no_progress,
) -> Measured:
    """Measure one point; `on_start` is called when its disk is open.

    Raises KeyboardInterrupt where Ctrl-C came before the run began; after that it ends the run, and
    `interrupted` says so. A disk that fails is no exception but a `failure`.
    """
    measured = Measured(point)
    try:
        with Session(point.disk, point.job) as session:
            _run(session, measured, on_start, on_progress)
    except (OpenError, DeviceError, UsageError) as error:
        measured.failure = getattr(error, "strerror", None) or str(error)
    job = point.job
    measured.comparisons = compare(measured.results, job.confidence, job.randseed)
    measured.pairs = compare_pairs(measured.results, job.confidence, job.randseed)
    return measured


def _run(session: Session, measured: Measured, on_start: Callable[[Measured], None], on_progress: Progress) -> None:
    runner = Runner(session, measured.point.job, on_progress)

    def on_sigint(signo: int, frame: FrameType | None) -> None:
        runner.interrupt()

    previous = signal.signal(signal.SIGINT, on_sigint)
    try:
        measured.device, measured.placement = session.describe(), session.placement
        on_start(measured)
        for result in runner.run():
            measured.results.append(result)
        measured.queues = runner.queues()
    except DeviceError as error:
        if not (runner.interrupted and error.errno == errno.ESHUTDOWN):
            raise
    finally:
        signal.signal(signal.SIGINT, previous)
        measured.interrupted = runner.interrupted
        measured.device = session.describe()
