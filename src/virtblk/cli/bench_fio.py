"""`virtblk bench --job FILE.fio`: run a job file of fio's. `cli.bench` adds the options declared here to its own.

What the file says cannot be said on the command line too; the disk, the path, polling, the ring and who runs where can
only be said there.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from types import FrameType
from typing import Final

from virtblk.bench.fio_options import JobFile, parse_job_file
from virtblk.bench.job import JobOptions
from virtblk.errors import DeviceError, UsageError
from virtblk.names import format_size, parse_name
from virtblk.result_file import write_json

DEFAULT_PATH: Final = "bio"
FORMATS: Final = ("normal", "json", "json+")
#: Options of `virtblk bench` that a job file gives, or that compare what a job file does not.
NOT_WITH_JOB: Final = (
    "rw", "bs", "iodepth", "numjobs", "size", "runtime", "ramp_time", "slice", "confidence", "rate_iops",
    "iodepth_batch_submit", "verify", "randseed", "queues", "poll_queues", "preset", "compare", "json", "report",
    "matrix", "disks", "sweep",
)  # fmt: skip


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `virtblk bench` about job files."""
    parser.add_argument("--job", metavar="FILE", help="run fio's job file; DISK takes the place of its filename")
    parser.add_argument(
        "--output-format",
        choices=FORMATS,
        default=None,
        help="with --job: a table, or fio's JSON on standard output (default normal)",
    )


def check_no_job(options: argparse.Namespace) -> None:
    """Raise UsageError for what has a meaning only with --job."""
    if options.output_format is not None:
        raise UsageError(f"--output-format {options.output_format}: is for --job; --json writes a bench's own figures")


def check_job_options(options: argparse.Namespace, parser_defaults: dict[str, object]) -> None:
    """Raise UsageError for an option that the job file gives. `parser_defaults`: each option's value when not given."""
    for name in NOT_WITH_JOB:
        if getattr(options, name, None) != parser_defaults.get(name):
            raise UsageError(f"--{name.replace('_', '-')}: not with --job; the job file says what to do")


def disk_of(file: JobFile, given: str | None, default: str) -> str:
    """The one disk of a run: DISK, or the file's filename, a plain path being `file:`. Raises UsageError for two."""
    if given is not None:
        return given
    found = default
    first = None
    for job in file.jobs:
        if job.filename is None:
            continue
        if first is not None and job.filename != first.filename:
            raise job.refuse("filename", f"[{first.name}] has {first.filename}; all jobs of a file use one disk")
        first = job
        found = job.filename if ":" in job.filename.split("/", 1)[0] else f"file:{job.filename}"
    try:
        parse_name(found)
    except UsageError as error:
        raise first.refuse("filename", str(error)) if first else error from error
    if first and any(job.filename is None for job in file.jobs):
        other = next(job for job in file.jobs if job.filename is None)
        raise other.refuse("filename", f"[{first.name}] has {first.filename}; all jobs of a file use one disk")
    return found


def run_job_file(options: argparse.Namespace, base: JobOptions, default_disk: str) -> int:
    """Run `--job`; returns the exit status. `base` is what the command line says besides."""
    if not options.job:
        raise UsageError("--job '': give the path of a job file")
    file = parse_job_file(options.job)
    name = disk_of(file, options.disk, default_disk)
    parse_name(name)
    path = options.path or (None if options.use_bio is None else base.paths[0]) or DEFAULT_PATH
    if "," in path:
        raise UsageError(f"--path {path}: a job file runs on one path; give one of them")

    # numba and all that, only once the file is known to be right
    from virtblk.bench.fio_json import as_fio_json, reports_of
    from virtblk.bench.fio_plan import FileOptions, check_file
    from virtblk.bench.fio_report import cost_as_json, print_fio_report
    from virtblk.bench.fio_runner import FioRunner, WaveResult, compile_fio_jobs
    from virtblk.bench.report import ProgressLine
    from virtblk.bench.session import Session, check_terms, known_storage

    as_json = options.output_format in ("json", "json+")
    out = sys.stderr if as_json else sys.stdout
    for note in file.notes:
        print(note, file=sys.stderr)
    waves: list[WaveResult] = []
    failure: DeviceError | None = None
    session_options = FileOptions.of(file, base)
    check_terms(name, session_options)
    with known_storage(name) as storage:
        if storage is not None:
            check_file(file, name, storage)
    with Session(name, session_options, compile_fio_jobs) as session:
        line = ProgressLine(sys.stderr)
        runner = FioRunner(session, file, path, line)

        def on_sigint(signo: int, frame: FrameType | None) -> None:
            runner.interrupt()

        previous = signal.signal(signal.SIGINT, on_sigint)
        try:
            size = session.describe()["size"]
            print(_headline(name, size, file, path, base, session.placement), file=out)
            if runner.writes:
                print("this writes to the disk, as the job file says", file=out)
            out.flush()
            for wave in runner.run():
                waves.append(wave)
        except DeviceError as error:
            failure = error
        finally:
            signal.signal(signal.SIGINT, previous)
            line.clear()
            runner.close()
        device = session.describe()
    reports = reports_of(waves)
    if as_json:
        more = {"path": path, "device": device, "groups": cost_as_json(waves)}
        write_json("-", as_fio_json(file, reports, more, plus=options.output_format == "json+"))
        for report in reports:
            for note in report.notes:
                print(f"{report.job.where}: [{report.job.name}]: {note}", file=sys.stderr)
    else:
        print(file=out)
        print_fio_report(reports, waves, out)
    if failure is not None and not (runner.interrupted and failure.errno == errno.ESHUTDOWN):
        raise failure
    if runner.interrupted:
        print("virtblk: interrupted", file=sys.stderr)
        return 130
    return 1 if any(report.error for report in reports) else 0


def _headline(name: str, size: int, file: JobFile, path: str, base: JobOptions, placement: str) -> str:
    completion = "polling" if base.poll else "interrupts"
    jobs, groups = sum(job.numjobs for job in file.jobs), len(file.waves)
    load = f"{file.path}, {_count(jobs, 'job')} in {_count(groups, 'group')}, {path} path"
    return f"{name} ({format_size(size)}): {load}, ring of {base.queue_size}, {completion}; {placement}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
