"""CPU, faults and context switches of a process, ours or the device's (getrusage(2), proc(5)). Control context."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Counters of a process at one moment, or what they grew by. Seconds and counts."""

    usr_s: float
    sys_s: float
    cpu_s: float  # to the nanosecond, where usr and sys may count in ticks
    ctx: int = 0
    majf: int = 0
    minf: int = 0

    def since(self, before: Usage) -> Usage:
        """Growth from `before` to this. usr and sys are scaled to the exact total where they count in ticks.

        Where neither grew by a tick, they share the growth as they share the whole life.
        """
        cpu = self.cpu_s - before.cpu_s
        usr, sys = self.usr_s - before.usr_s, self.sys_s - before.sys_s
        if usr + sys <= 0:
            usr, sys = self.usr_s, self.sys_s
        share = usr / (usr + sys) if usr + sys > 0 else 1.0
        return Usage(
            cpu * share,
            cpu * (1 - share),
            cpu,
            self.ctx - before.ctx,
            self.majf - before.majf,
            self.minf - before.minf,
        )


def own_usage() -> Usage:
    """This process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(
        usage.ru_utime,
        usage.ru_stime,
        usage.ru_utime + usage.ru_stime,
        usage.ru_nvcsw + usage.ru_nivcsw,
        usage.ru_majflt,
        usage.ru_minflt,
    )


def usage_of(pid: int) -> Usage | None:
    """Process `pid`, all threads; None when it is gone or not ours to look at."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        # The process CPU clock of another process (clock_getcpuclockid): all its threads, in nanoseconds.
        total = time.clock_gettime_ns((~pid << 3) | 2) / 1e9
    except (OSError, IndexError):
        return None
    return Usage(int(fields[11]) / _TICK, int(fields[12]) / _TICK, total)


def usage_of_thread(tid: int) -> Usage | None:
    """Thread `tid` of this process; None when it is gone."""
    try:
        fields = Path(f"/proc/self/task/{tid}/stat").read_text().rsplit(")", 1)[1].split()
        status = Path(f"/proc/self/task/{tid}/status").read_text()
        total = time.clock_gettime_ns((~tid << 3) | 6) / 1e9  # the thread's CPU clock (pthread_getcpuclockid)
    except (OSError, IndexError):
        return None
    ctx = sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)
    return Usage(int(fields[11]) / _TICK, int(fields[12]) / _TICK, total, ctx, int(fields[9]), int(fields[7]))


def process_name(pid: int) -> str:
    """The command of process `pid`, or its number."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return f"pid {pid}"


def steal_seconds() -> float:
    """CPU time that the hypervisor gave to others while something here wanted to run, all CPUs together."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return int(first[8]) / _TICK
    except (OSError, IndexError):
        return 0.0
