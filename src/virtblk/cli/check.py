"""`virtblk check vhost-user:SOCKET`, or `--exec "COMMAND {socket}"`: does a vhost-user-blk device keep the rules?

Exit status 0 where nothing failed that `--fail-on` asks for, 1 where something did, 2 for wrong usage or a device that
is not there, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Final

from virtblk.errors import UsageError
from virtblk.names import parse_name

FAIL_ON: Final = ("critical", "high", "low", "deviation", "never")

EPILOG: Final = """examples:
  virtblk check vhost-user:/run/disk.sock
  virtblk check --scratch --exec "qemu-storage-daemon --blockdev driver=null-co,size=1g,node-name=d \\
      --export type=vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={socket}"
  virtblk check --driver --timeout 9 --exec "virtblk bench vhost-user:{socket} --rw randread \\
      --size 1m --verify crc32c --runtime 0.3 --timeout 2"
  virtblk check --only split --skip 'split.size-*' vhost-user:/run/disk.sock

verdicts: PASS; FAIL; REJECT: refused cleanly, which is safe; WEDGED: dead, or serves nobody any more; SKIP: and why.
With --exec a device that is dead or hangs is started again for the next check.
With --driver the command is run once per check: exit status 0 says that all went well, any other
that something did not. Its own time-out has to be shorter than --timeout."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `virtblk check`."""
    parser.description = "Check a vhost-user-blk device against virtio and vhost-user. It must have no other client."
    parser.epilog = EPILOG
    add = parser.add_argument
    add("disk", nargs="?", metavar="DISK", help="vhost-user:SOCKET of a device that runs")
    add("--exec", metavar="COMMAND", help="start, restart and end the device: {socket} stands for its socket's path")
    add("--driver", action="store_true", help="check a driver: be the device, and misbehave (DISK: where to listen)")
    add("--count", type=int, metavar="N", help="with --driver: misbehave at random, N times")
    add("--seed", type=int, metavar="N", help="with --count: repeat what N began (default: another one each time)")
    add("--scratch", action="store_true", help="the disk may be written to: run the checks that do (first 1 MiB)")
    add("--list", action="store_true", help="print the requirements and exit")
    add("--only", action="append", default=[], metavar="ID", help="an id, a group or a pattern such as 'split.event-*'")
    add("--skip", action="append", default=[], metavar="ID", help="likewise, what not to run")
    add("--fail-on", choices=FAIL_ON, default="high", help="severity from which a failure counts (default high)")
    add("--timeout", type=float, default=5.0, metavar="S", help="seconds without an answer = hangs (default 5)")
    add("--json", metavar="PATH", help="write the results as JSON; - for standard output")
    add("--junit", metavar="PATH", help="write the results as JUnit XML")


def run(options: argparse.Namespace) -> int:
    """Check; returns the exit status."""
    from virtblk.check import report
    from virtblk.check.checks import DEVICE
    from virtblk.check.requirement import Result, Severity
    from virtblk.check.runner import run as run_checks
    from virtblk.check.target import Target

    if options.driver:
        from virtblk.check import driver_command

        _check_options(options)
        return driver_command.run(options)
    for name, value in (("--count", options.count), ("--seed", options.seed)):
        if value is not None:
            raise UsageError(f"{name} {value}: it is for --driver")
    chosen = DEVICE.select(options.only, options.skip)
    if options.list:
        print(report.list_text(chosen))
        return 0
    path = _socket(options)
    _check_options(options)
    out = sys.stderr if options.json == "-" else sys.stdout
    width = max((len(requirement.id) for requirement in chosen), default=0)

    def show(result: Result) -> None:
        print(report.line_text(result, width), file=out, flush=True)

    started = time.monotonic()
    device = Target(path, options.exec, options.timeout)
    try:
        device.start()
        results = run_checks(device, chosen, scratch=options.scratch, progress=show)
        facts = report.device_facts(device.facts, options.disk or options.exec)
    finally:
        device.close()
    seconds = time.monotonic() - started
    failing = [] if options.fail_on == "never" else [r for r in results if r.fails(Severity[options.fail_on.upper()])]
    print(report.summary_text(results, seconds), file=out)
    if options.json is not None:
        report.write_json(options.json, report.json_value(facts, results, seconds))
    if options.junit is not None:
        report.write_junit(options.junit, results, failing, seconds)
    return 1 if failing else 0


def _check_options(options: argparse.Namespace) -> None:
    """UsageError for what no run can do."""
    if not 0.1 <= options.timeout <= 600:
        raise UsageError(f"--timeout {options.timeout:g}: give 0.1 to 600 seconds")
    for name, target in (("--json", options.json), ("--junit", options.junit)):
        if target is not None:
            _check_writable(name, target)


def _socket(options: argparse.Namespace) -> str | None:
    """The socket's path, None where --exec makes it."""
    if options.disk is not None and options.exec is not None:
        raise UsageError(f"both a disk ({options.disk!r}) and --exec {options.exec!r}: give one of them")
    if options.exec is not None:
        return None
    if options.disk is None:
        raise UsageError("no device to check: give vhost-user:SOCKET or --exec 'COMMAND {socket}'")
    name = parse_name(options.disk)
    if name.scheme != "vhost-user":
        raise UsageError(
            f"disk {name.text!r}: give vhost-user:SOCKET, or"
            f" --exec 'virtblk serve {name.text} --socket-path {{socket}}'"
        )
    return name.rest


def _check_writable(option: str, target: str) -> None:
    """UsageError now where the results could not be written at the end; leaves no file behind."""
    if target == "-":
        if option == "--junit":
            raise UsageError("--junit -: give a path")
        return
    path = Path(target)
    existed = path.exists()
    try:
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise UsageError(f"{option} {target!r}: {error.strerror}") from error
