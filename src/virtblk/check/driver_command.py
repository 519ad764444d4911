"""`virtblk check --driver`: options in, verdicts out. Called by `virtblk.cli.check`.

With --count the device misbehaves at random, that many times; --seed repeats a run, or the connection that a problem
names.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from virtblk.errors import UsageError
from virtblk.names import parse_name

if TYPE_CHECKING:
    from virtblk.check.driver_trial import FrontEnd

#: Problems of a random run that are printed.
MOST_PROBLEMS: Final = 10


def run(options: argparse.Namespace) -> int:
    """Check a driver; returns the exit status."""
    from virtblk.check import report
    from virtblk.check.driver_runner import DRIVER
    from virtblk.check.driver_runner import run as run_checks
    from virtblk.check.driver_trial import Anybody, Command
    from virtblk.check.requirement import Result, Severity

    chosen = DRIVER.select(options.only, options.skip)
    if options.list:
        print(report.list_text(chosen))
        return 0
    front_end = Anybody() if options.exec is None else Command(options.exec)
    name = options.disk or options.exec
    with _socket(options) as path:
        if options.count is not None:
            return _random(options, front_end, path)
        out = sys.stderr if options.json == "-" else sys.stdout
        width = max((len(requirement.id) for requirement in chosen), default=0)

        def show(result: Result) -> None:
            print(report.line_text(result, width), file=out, flush=True)

        started = time.monotonic()
        results = run_checks(front_end, path, chosen, timeout=options.timeout, progress=show)
        seconds = time.monotonic() - started
    failing = [] if options.fail_on == "never" else [r for r in results if r.fails(Severity[options.fail_on.upper()])]
    print(report.summary_text(results, seconds), file=out)
    if options.json is not None:
        report.write_json(options.json, report.json_value({"driver": name}, results, seconds))
    if options.junit is not None:
        report.write_junit(options.junit, results, failing, seconds)
    return 1 if failing else 0


@contextmanager
def _socket(options: argparse.Namespace) -> Iterator[str]:
    """The path to listen on."""
    if options.disk is not None and options.exec is not None:
        raise UsageError(f"both a socket ({options.disk!r}) and --exec {options.exec!r}: give one of them")
    if options.disk is not None:
        name = parse_name(options.disk)
        if name.scheme != "vhost-user":
            raise UsageError(f"disk {name.text!r}: give vhost-user:SOCKET, on which drivers are waited for")
        if Path(name.rest).exists():
            raise UsageError(f"{name.rest} exists: --driver makes the socket itself, and drivers connect to it")
        yield name.rest
        return
    if options.exec is None:
        raise UsageError("no driver to check: give --exec 'COMMAND {socket}', or vhost-user:SOCKET to wait for one")
    with tempfile.TemporaryDirectory(prefix="virtblk-check-") as directory:
        yield str(Path(directory) / "device.sock")


def _random(options: argparse.Namespace, front_end: FrontEnd, path: str) -> int:
    from virtblk.check.driver_random import Summary, run_random

    if options.count < 1:
        raise UsageError(f"--count {options.count}: give the number of misbehaviours, at least 1")
    seed = options.seed if options.seed is not None else time.time_ns() % 10**9
    shown = time.monotonic()

    def show(summary: Summary) -> None:
        nonlocal shown
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            text = f"{summary.lies} misbehaviours, {summary.connections} connections, {len(summary.problems)} problems"
            print(text, file=sys.stderr, flush=True)

    print(f"seed {seed}", flush=True)
    started = time.monotonic()
    summary = run_random(
        lambda chaos: front_end, path, seed=seed, count=options.count, timeout=options.timeout, progress=show
    )
    seconds = time.monotonic() - started
    for name, count in sorted(summary.told.items()):
        print(f"{count:>10}  {name}")
    for connection, text in summary.problems[:MOST_PROBLEMS]:
        print(f"FAIL    seed {connection}: {text}")
    print(
        f"{summary.lies} misbehaviours on {summary.connections} connections in {seconds:.1f} s:"
        f" {len(summary.problems)} problems"
    )
    return 1 if summary.problems else 0
