"""`virtblk fuzz vhost-user:SOCKET`: attack a vhost-user-blk device with sound and broken input, and watch it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from virtblk.errors import UsageError
from virtblk.names import parse_name, parse_size
from virtblk.result_file import check_json, write_json

_ATTACKERS = ("both", "front-end", "guest")
EXAMPLES = """examples:
  virtblk fuzz vhost-user:/run/disk.sock                      a minute of it, on what runs there
  virtblk fuzz --exec "mydevice --socket {socket} disk.img"   restarted, watched for leaks
  virtblk fuzz --exec "..." --count 10m --runtime 0 --seed 7  as many inputs, whatever it takes
  virtblk fuzz --exec "..." --replay fuzz-crash-guest-7.json  one saved case again

It writes to the disk: give it one that holds nothing. exit status: 0 nothing found; 1 a finding;
2 wrong usage; 130 interrupted"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `virtblk fuzz`."""
    parser.description = (
        "Attack a vhost-user-blk device as its front end and as its guest, mostly with sound input that is\n"
        "broken in one place. A crash, a hang, a leak or wrong data ends the run; what caused it is\n"
        "minimised and saved."
    )
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("disk", nargs="?", metavar="DISK", help="vhost-user:SOCKET of a device that runs")
    add("--exec", dest="exec_command", metavar="COMMAND", help="start the device; {socket} is where it is to listen")
    add("--seed", default="1", metavar="N", help="of all that is sent (default 1)")
    add("--runtime", type=float, default=None, metavar="S", help="seconds; 0: no limit (default 60, or 0 with --count)")
    add("--count", default="0", metavar="N", help="messages and requests; 0: no limit (default 0)")
    add("--attacker", choices=_ATTACKERS, default="both", help="who attacks (default both)")
    add("--timeout", type=float, default=10.0, metavar="S", help="an answer later than this is a hang (default 10)")
    add("--save-in", default=".", metavar="DIR", help="where failing cases go (default: here)")
    add("--replay", metavar="FILE", help="run one saved case, once")
    add("--json", metavar="PATH", help="write the totals as JSON; - for standard output")


def run(options: argparse.Namespace) -> int:
    """Fuzz; returns the exit status."""
    path = _path(options)
    seed, count = _whole("--seed", options.seed), _whole("--count", options.count)
    runtime = (0.0 if count else 60.0) if options.runtime is None else options.runtime
    if not 0 <= runtime < float("inf"):
        raise UsageError(f"--runtime {runtime:g}: give seconds, 0 or more")
    if not 0 < options.timeout < 86400:
        raise UsageError(f"--timeout {options.timeout:g}: give seconds, more than 0")
    if not Path(options.save_in).is_dir():
        raise UsageError(f"--save-in {options.save_in!r}: this is no directory")

    # numba and all that, only once the options are known to be right
    from virtblk.fuzz import case
    from virtblk.fuzz.campaign import Campaign, FuzzOptions
    from virtblk.fuzz.groups import FRONT_END, GUEST
    from virtblk.fuzz.report import Progress, print_report
    from virtblk.fuzz.target import Target
    from virtblk.jit.warmup import progress

    if options.json is not None:
        check_json(options.json)  # before the run, not after it
    replayed = case.load(options.replay) if options.replay else None
    attackers = (FRONT_END, GUEST) if options.attacker == "both" else (options.attacker,)
    wanted = FuzzOptions(seed, runtime, count, () if replayed else attackers, options.save_in)
    out = sys.stderr if options.json == "-" else sys.stdout
    with Target(path, options.exec_command, options.timeout) as target:
        target.start()
        bar = Progress(sys.stderr, wanted)
        with progress():
            campaign = Campaign(target, wanted, bar.campaign, bar.minimising)
        try:
            report = campaign.replay(*replayed) if replayed else campaign.run()
        finally:
            bar.clear()
            campaign.close()
    print_report(report, wanted, out)
    if options.json is not None:
        write_json(options.json, report.as_dict())
    if report.interrupted:
        return 130
    return 1 if report.findings else 0


def _whole(option: str, text: str) -> int:
    try:
        return parse_size(text, option)
    except UsageError:
        raise UsageError(f"{option} {text!r}: give a whole number such as 1000000 or 10m") from None


def _path(options: argparse.Namespace) -> str | None:
    """The socket of the device, None for one that is to be started."""
    if options.disk is not None and options.exec_command is not None:
        raise UsageError(f"both a disk ({options.disk!r}) and --exec {options.exec_command!r}: give one of them")
    if options.exec_command is not None:
        return None
    if options.disk is None:
        raise UsageError("nothing to attack: give vhost-user:SOCKET, or --exec with a command that has {socket} in it")
    name = parse_name(options.disk)
    if name.scheme != "vhost-user":
        raise UsageError(f"disk {options.disk!r}: give vhost-user:SOCKET, or --exec with a command that serves it")
    return name.rest
