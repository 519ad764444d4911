"""A job file's run as a table: a line per job and direction. Control context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from virtblk.bench.fio_job import DIRECTIONS
from virtblk.bench.fio_json import Report
from virtblk.bench.fio_runner import WaveResult
from virtblk.bench.fio_tables import SYNC
from virtblk.bench.report import Column, format_table
from virtblk.figures import duration, si


def print_fio_report(reports: Sequence[Report], waves: Sequence[WaveResult], stream: TextIO) -> None:
    """The figures of each job, what the waves cost both sides, and what went wrong."""
    rows = [row for report in reports for row in _rows(report)]
    if not rows:
        print("no job was completed", file=stream)
        return
    print(format_table(rows), file=stream)
    print(file=stream)
    print(format_table([_cost(number, wave) for number, wave in enumerate(waves)]), file=stream)
    for report in reports:
        for note in report.notes:
            print(f"{report.job.where}: [{report.job.name}]: {note}", file=stream)


def _rows(report: Report) -> list[list[Column]]:
    kinds = [kind for kind in range(SYNC + 1) if report.ios(kind)]
    return [_row(report, kind) for kind in kinds or [report.job.directions[0]]]


def _row(report: Report, kind: int) -> list[Column]:
    flush = kind == SYNC
    prefix = "lat" if flush else "clat"
    runtime = report.runtimes_ns[kind]
    ios = report.ios(kind)
    percentiles = [("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9)]
    stat = report.stats[kind]
    return [
        ("job", report.job.name),
        ("direction", "flush" if flush else DIRECTIONS[kind]),
        ("IOPS", si(ios * 1e9 / runtime if runtime else 0.0)),
        ("MB/s", "" if flush else f"{report.bytes_per_second(kind) / 1e6:.0f}"),
        ("I/Os", si(ios)),
        ("runtime", f"{runtime / 1e9:.2f}s"),
        ("slat mean", "" if flush else duration(report.mean_ns(kind, "slat"))),
        ("clat mean", duration(report.mean_ns(kind, prefix))),
        *((name, duration(report.percentile_ns(kind, percent))) for name, percent in percentiles),
        ("max", duration(int(stat[f"{prefix}_max"]))),
    ]


def _cost(number: int, wave: WaveResult) -> list[Column]:
    ios = sum(int(outcome.stats["ios"].sum()) for outcome in wave.outcomes)
    driver = wave.driver.cpu_s * 1e9 / ios if ios else None
    device = wave.device.cpu_s * 1e9 / ios if wave.device and ios else None
    return [
        ("group", str(number)),
        ("jobs", str(len(wave.outcomes))),
        ("I/Os", si(ios)),
        ("driver ns/IO", si(driver)),
        ("device ns/IO", si(device)),
        ("ctx", si(wave.driver.ctx)),
    ]


def cost_as_json(waves: Sequence[WaveResult]) -> list[dict[str, Any]]:
    """CPU of both sides by group, which fio has no keys for: seconds, None where it could not be had."""
    return [
        {
            "groupid": number,
            "driver_cpu": {"usr_s": wave.driver.usr_s, "sys_s": wave.driver.sys_s},
            "device_cpu": {"usr_s": wave.device.usr_s, "sys_s": wave.device.sys_s} if wave.device else None,
        }
        for number, wave in enumerate(waves)
    ]
