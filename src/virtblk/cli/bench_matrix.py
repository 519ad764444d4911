"""`virtblk bench --matrix` and `--sweep`: their options, and the run of many points."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from virtblk.bench.job import PATHS, JobOptions
from virtblk.cli.bench_report import check_report, write_report
from virtblk.cli.option_values import Once
from virtblk.errors import UsageError
from virtblk.names import parse_name
from virtblk.result_file import check_json, write_json

EXAMPLES = """  virtblk bench --matrix                                          which path, on several disks
  virtblk bench null:1g --sweep iodepth=1,2,4,...,128             one run per value"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add(
        "--matrix",
        action="store_true",
        help="disks x workloads x paths, and a recommendation per disk (all paths, unless --path names some)",
    )
    add(
        "--disks",
        metavar="LIST",
        help="with --matrix: the disks (default ram:, null:, file: which is a temporary one, and those of sim:)",
    )
    add(
        "--sweep",
        action=Once,
        metavar="OPTION=LIST",
        help="one run per value of iodepth, bs, numjobs, iodepth_batch_submit, rate_iops or queue_size: "
        "iodepth=1,2,4,...,128",
    )


def is_asked(options: argparse.Namespace) -> bool:
    """Whether the run has many points. Raises UsageError for options that do not go together."""
    if options.disks is not None and not options.matrix:
        raise UsageError(f"--disks {options.disks!r} is for --matrix; otherwise give one disk as DISK")
    if options.matrix and options.disk is not None:
        raise UsageError(f"--matrix has disks of its own; give --disks {options.disk}")
    if options.matrix and options.preset:
        raise UsageError(f"--preset {options.preset} is one run beside posted figures; leave out --matrix")
    if options.matrix and options.device_pid is not None:
        raise UsageError(f"--device-pid {options.device_pid}: --matrix has a device per disk; leave one out")
    return bool(options.matrix) or options.sweep is not None


def refuse_with_compare(options: argparse.Namespace) -> None:
    """Raise UsageError for one of these options beside `--compare`."""
    for name in ("matrix", "disks", "sweep", "report"):
        if getattr(options, name) not in (None, False):
            raise UsageError(f"--compare runs nothing; leave out --{name}")


def run(options: argparse.Namespace, job: JobOptions, default_disk: str) -> int:
    """Measure all points; returns the exit status."""
    from virtblk.bench.matrix import (
        DISKS,
        MATRIX_PATHS,
        Matrix,
        check_points,
        disks_of,
        parse_disks,
        points_of,
        print_legend,
        print_recommendations,
        print_sweep,
        run_points,
    )
    from virtblk.bench.sweep import parse_sweep

    sweep = None if options.sweep is None else parse_sweep(options.sweep)
    if options.matrix:
        names = list(DISKS) if options.disks is None else parse_disks(options.disks)
        if options.path is None and options.use_bio is None:
            job = replace(job, paths=tuple(path for path in MATRIX_PATHS if path in PATHS))
    else:
        names = [options.disk or default_disk]
        parse_name(names[0])
    if options.json is not None:
        check_json(options.json)
    check_report(options)
    out = sys.stderr if options.json == "-" else sys.stdout
    matrix = Matrix(job.confidence, sweep)
    try:
        points_of([], job, sweep)  # a value that cannot be is refused before a file is written
    except UsageError as error:
        raise UsageError(f"--sweep {options.sweep!r}: {error}") from error
    check_points(names, job, sweep)
    with disks_of(names, matrix.skipped) as disks:
        points = points_of(disks, job, sweep)
        for title, why in matrix.skipped:
            print(f"{title}: left out: {why}", file=out)
        run_points(points, matrix, out, sys.stderr)
    print_legend(matrix, out)
    print_sweep(matrix, out)
    print_recommendations(matrix, out)
    if options.json is not None:
        write_json(options.json, matrix.as_json())
    write_report(options, matrix)
    if matrix.interrupted:
        print("virtblk: interrupted", file=sys.stderr)
    return matrix.status
