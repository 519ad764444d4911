"""`virtblk bench [DISK]`: load a disk and measure it (fio's options under fio's names)."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from types import FrameType
from typing import Any

from virtblk.bench.job import (
    DEFAULT_PATHS,
    JobOptions,
    parse_cpus,
    parse_paths,
    parse_queue,
    parse_workloads,
)
from virtblk.bench.posting import DEFAULT_PRESET, PRESETS
from virtblk.cli import bench_matrix, bench_report
from virtblk.cli.bench_fio import add_job_arguments, check_job_options, check_no_job, run_job_file
from virtblk.cli.option_values import seconds, whole_number
from virtblk.errors import DeviceError, UsageError
from virtblk.names import format_size, parse_name, parse_size
from virtblk.result_file import check_json, write_json

DEFAULT_DISK = "ram:512m"
EXAMPLES = f"""examples:
  virtblk bench                                                   a disk of our own, in memory
  virtblk bench vhost-user:/run/disk.sock --rw randread           somebody's, only read
  virtblk bench vhost-user:/run/disk.sock --verify crc32c         and checked, which writes first
  virtblk bench null:1g --bs 512 --iodepth 1 --poll --json -      the cost of one I/O, for a program
  virtblk bench --queue scheduler=deadline                        the request path, set as in sysfs
  virtblk bench --preset posting-sata                             the load of 2012, with its figures
{bench_matrix.EXAMPLES}
{bench_report.EXAMPLES}
  virtblk bench ram:1g --job load.fio --output-format json        fio's job file, fio's JSON
  virtblk bench --compare before.json after.json                  what changed between two runs"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `virtblk bench`."""
    default = JobOptions()
    parser.description = (
        "Load a disk and measure it: IOPS, latency, CPU of both sides, and one path against the other.\n"
        "The paths take turns, slice by slice. Options are fio's.\n"
        "It writes to the disk, unless --rw names only read and randread."
    )
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add(
        "disk",
        nargs="?",
        default=None,
        metavar="DISK",
        help="vhost-user:SOCKET, or served by a child process: ram:SIZE, null:SIZE, file:PATH, sim:PROFILE, nbd:URI "
        f"(see virtblk --help; default {DEFAULT_DISK})",
    )
    add(
        "--rw",
        default=",".join(default.workloads),
        metavar="LIST",
        help="workloads: read, write, randread, randwrite, or seq-read and so on (default all four)",
    )
    add(
        "--path",
        default=None,
        metavar="LIST",
        help="I/O paths, compared slice by slice: request, bio, mq, auto; one twice for an A/A (default request,bio)",
    )
    add("--use-bio", choices=("0", "1"), default=None, help="the posting's use_bio: 0 is --path request, 1 --path bio")
    add("--bs", default=None, metavar="SIZE", help="bytes per I/O (default 4k)")
    add("--iodepth", type=whole_number, default=None, metavar="N", help="I/Os in flight per job (default 32)")
    add("--numjobs", type=whole_number, default=None, metavar="N", help="jobs, each a thread (default 1)")
    add("--size", default=None, metavar="SIZE", help="use the first SIZE of the disk (default all of it)")
    add(
        "--runtime",
        type=seconds,
        default=None,
        metavar="S",
        help="seconds per workload and path; 0: one pass over the range per job (default 5)",
    )
    add(
        "--ramp-time",
        type=seconds,
        default=0.0,
        metavar="S",
        help="seconds of load before each measurement (default 0)",
    )
    add("--slice", type=seconds, default=None, metavar="S", help="seconds per slice (default 0.25, or what fits)")
    add("--confidence", type=seconds, default=95.0, metavar="P", help="of the intervals, per cent (default 95)")
    add(
        "--rate-iops",
        type=_rate,
        default=0,
        metavar="N",
        help="I/Os per second of each job; latency counts from when each was due (default: as fast as it goes)",
    )
    add(
        "--iodepth-batch-submit",
        type=whole_number,
        default=None,
        metavar="N",
        help="I/Os submitted at a time (default 1)",
    )
    add(
        "--poll",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="poll for completions (default: interrupts)",
    )
    add("--verify", default="none", metavar="METHOD", help="crc32c: write the range first, then check every read")
    add("--randseed", type=whole_number, default=1, metavar="N", help="seed of random offsets and contents (default 1)")
    add(
        "--queues",
        type=whole_number,
        default=1,
        metavar="N",
        help="virtqueues, to which mq and auto map jobs in turn; request and bio use the first (default 1)",
    )
    add(
        "--poll-queues",
        type=whole_number,
        default=0,
        metavar="N",
        help="the last N of them have no interrupts, and their jobs poll (default 0; --poll: all)",
    )
    add("--queue-size", type=whole_number, default=None, metavar="N", help="ring entries, a power of two (default 128)")
    add(
        "--queue",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set the block layer's queue as in sysfs: scheduler=noop, nr_requests=256, nomerges=1, read_expire=250",
    )
    add(
        "--timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="give up on a device that is silent for this long (default 30)",
    )
    add("--cpus-allowed", metavar="LIST", help="CPUs for the driver (default: the first; not pinned on one CPU)")
    add("--device-cpus", metavar="LIST", help="CPUs for the device (default: another one, for disks of our own)")
    add(
        "--device-pid",
        type=whole_number,
        metavar="PID",
        help="process whose CPU is the device's (default: who listens on the socket)",
    )
    add("--share-core", action="store_true", help="driver and device on one CPU: an overcommitted host")
    add("--preset", choices=sorted(PRESETS), help="a load of 2012 on its disk; options given besides take precedence")
    bench_matrix.add_arguments(parser)
    add_job_arguments(parser)
    add("--compare", nargs=2, metavar=("A", "B"), help="compare two files of --json, and run nothing")
    add("--json", metavar="PATH", help="write all figures as JSON; - for standard output")
    bench_report.add_arguments(parser)


def _rate(text: str) -> int:
    rate = whole_number(text)
    if rate < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give 1 or more, or leave it out")
    return rate


def _size(text: str | None) -> int:
    """`--size` in bytes; 0, which no user gives, is the whole disk."""
    if text is None:
        return 0
    size = parse_size(text, "--size")
    if size == 0:
        raise UsageError(f"--size {text}: give a block or more, or leave it out for the whole disk")
    return size


def _job_options(options: argparse.Namespace) -> JobOptions:
    path = options.path
    if options.use_bio is not None:
        chosen = "bio" if options.use_bio == "1" else "request"
        if path is not None and path != chosen:
            raise UsageError(f"--use-bio {options.use_bio} is --path {chosen}, but --path {path} was given too")
        path = chosen
    preset = PRESETS[options.preset].options if options.preset else {}
    default = JobOptions()

    def given(name: str, otherwise: Any) -> Any:
        value = getattr(options, name)
        return preset.get(name, otherwise) if value is None else value

    return JobOptions(
        workloads=parse_workloads(options.rw),
        paths=parse_paths(path or preset.get("path") or ",".join(DEFAULT_PATHS)),
        bs=parse_size(given("bs", "4k"), "--bs"),
        iodepth=given("iodepth", default.iodepth),
        numjobs=given("numjobs", default.numjobs),
        slice_s=options.slice if options.runtime is not None else given("slice", None),
        confidence=options.confidence,
        rate_iops=options.rate_iops,
        queue=parse_queue(options.queue),
        share_core=options.share_core,
        size=_size(given("size", None)),
        runtime=given("runtime", default.runtime),
        ramp_time=options.ramp_time,
        batch_submit=given("iodepth_batch_submit", default.batch_submit),
        poll=options.poll,
        verify=options.verify,
        randseed=options.randseed,
        queues=options.queues,
        poll_queues=options.poll_queues,
        queue_size=given("queue_size", default.queue_size),
        timeout=options.timeout,
        driver_cpus=parse_cpus("--cpus-allowed", options.cpus_allowed) if options.cpus_allowed is not None else None,
        device_cpus=parse_cpus("--device-cpus", options.device_cpus) if options.device_cpus is not None else None,
        device_pid=options.device_pid,
    )


def run(options: argparse.Namespace) -> int:
    """Run the bench; returns the exit status."""
    if options.job is not None:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        check_job_options(options, vars(parser.parse_args([])))
        return run_job_file(options, _job_options(options), DEFAULT_DISK)
    check_no_job(options)
    if options.compare:
        return _compare(options)
    many = bench_matrix.is_asked(options)
    job = _job_options(options)
    preset = PRESETS[options.preset] if options.preset else None
    default_disk = preset.options["disk"] if preset else DEFAULT_DISK
    if many:
        return bench_matrix.run(options, job, default_disk)
    if options.disk is None:
        options.disk = default_disk
    parse_name(options.disk)

    # numba and all that, only once the options are known to be right
    from virtblk.bench.comparison import compare
    from virtblk.bench.matrix import Matrix
    from virtblk.bench.point import Measured, Point
    from virtblk.bench.prediction import preset_json, print_preset
    from virtblk.bench.recommend import compare_pairs
    from virtblk.bench.report import ProgressLine, as_json, print_report
    from virtblk.bench.runner import Runner
    from virtblk.bench.session import Session, check_options
    from virtblk.bench.stat import RunResult
    from virtblk.bench.summary import print_summary

    if options.json is not None:
        check_json(options.json)  # before the run, not after it
    bench_report.check_report(options)
    check_options(options.disk, job)
    out = sys.stderr if options.json == "-" else sys.stdout
    results: list[RunResult] = []
    failure: DeviceError | None = None
    interrupted = False
    queues: dict[str, dict[str, str]] = {}
    with Session(options.disk, job) as session:
        line = ProgressLine(sys.stderr)
        runner = Runner(session, job, line)

        def on_sigint(signo: int, frame: FrameType | None) -> None:
            runner.interrupt()

        previous = signal.signal(signal.SIGINT, on_sigint)
        try:
            print(_headline(options.disk, job, session.describe()["size"], session.placement), file=out)
            if job.writes:
                size = format_size(job.size or session.describe()["size"])
                way_out = "" if job.verify != "none" else "; --rw read,randread does not"
                print(f"this writes to the first {size} of the disk{way_out}", file=out)
            out.flush()
            for result in runner.run():
                results.append(result)
            if options.report is not None:
                queues = runner.queues()
        except DeviceError as error:
            failure = error
        finally:
            signal.signal(signal.SIGINT, previous)
            line.clear()
        interrupted = runner.interrupted
        device = session.describe()
    print(file=out)
    print_report(results, out)
    comparisons = compare(results, job.confidence, job.randseed)
    print_summary(comparisons, job.confidence, out, preset or DEFAULT_PRESET)
    if preset:
        print_preset(preset, results, comparisons, out)
    if options.json is not None:
        value = as_json(device, job, results, comparisons)
        if preset:
            value["posting"] = preset_json(options.preset, preset, results, comparisons)
        write_json(options.json, value)
    if interrupted and failure is not None and failure.errno == errno.ESHUTDOWN:
        failure = None
    if options.report is not None:
        point = Point(options.disk, options.disk, job)
        pairs = compare_pairs(results, job.confidence, job.randseed)
        lost = failure.strerror if failure else None
        one = Measured(point, device, session.placement, queues, results, comparisons, pairs, lost, interrupted)
        bench_report.write_report(options, Matrix(job.confidence, None, [one], [], interrupted))
    if failure is not None:
        raise failure
    if interrupted:
        print("virtblk: interrupted", file=sys.stderr)
        return 130
    return 1 if any(result.errors for result in results) else 0


def _compare(options: argparse.Namespace) -> int:
    """`--compare A B`; returns the exit status."""
    bench_matrix.refuse_with_compare(options)
    if options.disk is not None:
        raise UsageError(f"--compare runs nothing; leave out {options.disk}")
    from virtblk.bench.compare import compare_files, print_compared

    if options.json is not None:
        check_json(options.json)
    first, second = options.compare
    compared = compare_files(first, second, options.confidence)
    print_compared(compared, sys.stderr if options.json == "-" else sys.stdout)
    if options.json is not None:
        write_json(options.json, compared.as_json())
    return 0


def _headline(disk: str, job: JobOptions, size: int, placement: str) -> str:
    batch = f", batches of {job.batch_submit}" if job.batch_submit > 1 else ""
    verify = f", verify {job.verify}" if job.verify != "none" else ""
    rate = f" at {job.rate_iops} IOPS each" if job.rate_iops else ""
    load = f"blocks of {format_size(job.bs)}, {job.numjobs} x {job.iodepth} in flight{rate}{batch}"
    return f"{disk} ({format_size(size)}): {load}, {job.rings}, {job.completion}{verify}; {placement}"
