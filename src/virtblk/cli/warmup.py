"""`virtblk warmup`: compile everything that a bench or a Disk runs, by running each once on a small disk."""

from __future__ import annotations

import argparse
import sys
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `virtblk warmup`: none."""


def run(options: argparse.Namespace) -> int:
    """Compile; returns the exit status."""
    from virtblk.bench.fio_runner import compile_fio_jobs
    from virtblk.bench.job import JobOptions
    from virtblk.bench.runner import Runner
    from virtblk.bench.session import Session
    from virtblk.jit.kernel import cache_directory, registry

    began = time.monotonic()
    job = JobOptions(bs=512, iodepth=4, size=1 << 16, runtime=0, verify="crc32c")
    with Session("ram:1m", job) as session:
        compile_fio_jobs()
        errors = sum(result.errors for result in Runner(session, job).run())
    where = f"kept in {cache_directory}" if cache_directory else "not kept: no cache directory can be written"
    print(f"{len(registry)} kernels ready in {time.monotonic() - began:.1f} s, {where}")
    if errors:
        print(f"virtblk: {errors} errors while running them", file=sys.stderr)
    return 1 if errors else 0
