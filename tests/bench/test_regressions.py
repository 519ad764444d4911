"""Bugs found in the runner, each with the run that showed it."""

from __future__ import annotations

import errno
import threading

import pytest

from bench.harness import bench, disk, options
from fake_device import Request
from naive.virtio_blk import IN, IOERR
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session


@pytest.mark.once
def test_regression_a_read_that_moves_nothing_does_not_verify() -> None:
    """With as many blocks as buffers, each buffer still held the block that the fill had left there."""
    job = options(bs=4096, iodepth=16, verify="crc32c")
    with Session("null:64k", job) as session:
        (result,) = Runner(session, job).run()
    assert (result.ios, result.errors) == (16, 16)
    assert "no header" in result.notes[0]


def test_regression_errors_of_a_ramp_count() -> None:
    seen: list[Request] = []

    def fail_first(request: Request) -> object:
        if request.type != IN:
            return None
        seen.append(request)
        return IOERR if len(seen) == 1 else None

    with bench(disk(fail_first), ramp_time=0.2) as run:
        result = run.run_one()
    assert result.errors == 1
    assert result.notes[0].startswith("ramp: first error at offset 0")


def test_regression_jobs_are_joined_when_the_progress_line_cannot_be_written() -> None:
    def broken_pipe(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "gone")

    with bench(disk(), runtime=30.0, numjobs=2) as run:
        runner = Runner(run.session, run.job, broken_pipe)
        with pytest.raises(BrokenPipeError):
            list(runner.run())
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("job")]
