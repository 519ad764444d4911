"""The last step of `make test`, and an hour of `make soak`: both ends of virtblk under attack, for a bounded time.

    python tests/attack.py [--seconds S] [--seed N] [--save-in DIR] [--connection N]

`virtblk check` on our device with either kind of worker, then three parts that share the time that is left: a device
that misbehaves at random against our driver, and `virtblk fuzz` with both attackers on a file and on memory. All of it
runs to its end, whatever is found; then a finding is exit status 1, and DIR has what runs it again: the cases that
`virtblk fuzz --replay` takes, the seeds that --connection takes, and the JSON of the checks. Run it in a checking
build, where a device that reaches outside of guest memory ends.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import virtblk
from check.our_driver import Hammer
from virtblk.check.driver_random import Summary, run_random
from virtblk.check.driver_trial import Function
from virtblk.cli import main as command_line

#: Of the time that the checks leave, what goes to our driver and to a device on a file; one on memory has the rest.
DRIVER_SHARE: Final = 0.2
FILE_SHARE: Final = 0.3
#: What the checks leave at least, of all the time: a busy machine takes long for them.
LEAST_SHARE: Final = 0.5
#: Seconds without an answer that are a hang, on a machine that has much else to do.
PATIENCE: Final = 60
DISK_BYTES: Final = 16 << 20
#: Checks that go round a ring's indices, one request at a time: the rings of a file are those of memory, and slower.
LONG: Final = {"file": ("split.call-event-wrap", "split.kick-event-wrap", "split.wrap-65536")}
INTERRUPTED: Final = 130


def serve(disk: str) -> str:
    """The command for --exec."""
    return f"{sys.executable} -m virtblk serve {disk} --queues 2 --log-level error --socket-path {{socket}}"


def check(disks: Mapping[str, str], save_in: Path, *words: str) -> dict[str, int]:
    """Every requirement on each of these devices of ours, all at once. The exit statuses of `virtblk check`."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    told = {name: save_in / f"check-{name}.txt" for name in disks}
    try:
        for name, disk in disks.items():
            command = [sys.executable, "-m", "virtblk", "check", "--scratch", "--exec", serve(disk)]
            command += ["--timeout", str(PATIENCE), "--fail-on", "deviation"]
            command += [word for long in LONG.get(name, ()) for word in ("--skip", long)]
            command += ["--json", str(told[name].with_suffix(".json")), *words]
            with told[name].open("wb") as out:
                processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        statuses = {name: process.wait() for name, process in processes.items()}
    except BaseException:
        for process in processes.values():
            process.send_signal(signal.SIGINT)
        for process in processes.values():
            process.wait(PATIENCE)
        raise
    for name, path in told.items():
        lines = path.read_text().splitlines()
        for line in lines:
            if line.startswith(("FAIL", "WEDGED")):
                print(line)
        print(f"check of {disks[name]}: status {statuses[name]}, {lines[-1] if lines else 'no word'}", flush=True)
    return statuses


def fuzz(disk: str, seconds: float, seed: int, save_in: Path) -> int:
    """Both attackers on a device of ours. Exit status of `virtblk fuzz`."""
    bounds = ["--runtime", f"{seconds:.1f}", "--timeout", str(PATIENCE)]
    return command_line(["fuzz", "--exec", serve(disk), *bounds, "--seed", str(seed), "--save-in", str(save_in)])


def drive(seconds: float, seed: int, save_in: Path) -> int:
    """A device that misbehaves on connection after connection, beginning with `seed`, and our driver. 0 or 1."""
    with virtblk.open("ram:1m") as disk:  # compiles, before anything is timed out
        disk.pread(512, 0)
    total = Summary()
    until = time.monotonic() + seconds
    while not total.connections or time.monotonic() < until:
        one = connection(seed + total.connections)
        total.connections += one.connections
        total.lies += one.lies
        total.told += one.told
        total.problems += one.problems
    print(f"driver: {total.lies} misbehaviours on {total.connections} connections in {seconds:.0f} s, seed {seed}")
    for each, problem in total.problems:
        path = save_in / f"driver-{each}.txt"
        path.write_text(f"{problem}\n\npython tests/attack.py --connection {each}\n")
        print(f"FAIL    connection {each}: {problem}\n    --connection {each}; saved as {path}")
    return 1 if total.problems else 0


def connection(seed: int) -> Summary:
    """One connection of a seed, and those after it for as long as they have no chance to misbehave."""
    with tempfile.TemporaryDirectory(prefix="virtblk-attack-") as directory:
        path = str(Path(directory) / "device.sock")
        return run_random(lambda chaos: Function(Hammer(chaos)), path, seed=seed, count=1, timeout=PATIENCE)


def attack(seconds: float, seed: int, save_in: Path) -> int:
    """All of it, in about so many seconds. Exit status."""
    began = time.monotonic()
    statuses: dict[str, int] = {}

    def part(**results: int) -> None:
        statuses.update(results)
        if INTERRUPTED in results.values():
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory(prefix="virtblk-attack-") as directory:
        file = Path(directory) / "disk"
        with file.open("wb") as sparse:
            sparse.truncate(DISK_BYTES)
        disks = {"memory": f"ram:{DISK_BYTES}", "file": f"file:{file}"}
        part(**{f"check of {name}": status for name, status in check(disks, save_in).items()})
        left = max(seconds * LEAST_SHARE, seconds - (time.monotonic() - began))
        part(driver=drive(left * DRIVER_SHARE, seed, save_in))
        part(fuzz_file=fuzz(disks["file"], left * FILE_SHARE, seed, save_in))
        left *= 1 - DRIVER_SHARE - FILE_SHARE
        part(fuzz_memory=fuzz(disks["memory"], left, seed + 1, save_in))
    failed = [name for name, status in statuses.items() if status]
    told = f"failed: {', '.join(failed)}; see {save_in}" if failed else "nothing found"
    print(f"attack: seed {seed}, {time.monotonic() - began:.0f} s, {told}")
    return 1 if failed else 0


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0 nothing found, 1 a finding, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="tests/attack.py", description="Attack our device and our driver.")
    parser.add_argument("--seconds", type=float, default=120.0, help="about how long, besides compiling (default 120)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is sent (default 1)")
    parser.add_argument("--save-in", type=Path, default="build/attack", help="for findings (default build/attack)")
    parser.add_argument("--connection", type=int, metavar="N", help="only play this connection to our driver again")
    options = parser.parse_args(words)
    options.save_in.mkdir(parents=True, exist_ok=True)
    try:
        if options.connection is not None:
            return drive(0.0, options.connection, options.save_in)
        print(f"attack: seed {options.seed}, {options.seconds:g} s", flush=True)
        return attack(options.seconds, options.seed, options.save_in)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends the devices too
    sys.exit(main())
