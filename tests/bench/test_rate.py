"""A fixed rate: when each I/O is due, and that lateness counts. No time is asserted but for what must have passed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness import BLOCKS, Bench, bench, blocks_of, disk
from fake_device import HOLD, Request
from naive.virtio_blk import IN, blk_config
from virtblk.bench.histogram import BUCKETS
from virtblk.bench.job_loop import JOB_DTYPE, Jobs, account, due_ns
from virtblk.driver.queue import example_queue
from virtblk.errors import DeviceError, UsageError
from virtblk.jit.table import Table

MS = 1_000_000


@given(st.integers(1, 10_000_000), st.integers(0, 1 << 40), st.integers(0, 1 << 60))
def test_when_an_io_is_due(rate: int, issued: int, start: int) -> None:
    if issued // rate > 1 << 30:
        issued %= rate
    jobs = Jobs(Table(1, JOB_DTYPE), Table(1), Table(1), Table(1), Table(1))
    jobs.jobs[0]["rate"] = rate
    assert due_ns(jobs, 0, start, issued) == start + issued * 1_000_000_000 // rate


def test_a_job_has_intended_times_of_its_own_whatever_its_number_on_its_virtqueue() -> None:
    """The second job is the first submitter of another virtqueue: both have a bio 0."""
    jobs = Jobs(Table(2, JOB_DTYPE), Table(2 * BUCKETS), Table(4), Table(1), Table(4))
    jobs.jobs["rate"], jobs.jobs["depth"], jobs.jobs["submitter"] = 5, 2, 0
    jobs.intended[:] = 1000, 2000, 3000, 4000
    for j in range(2):
        account(example_queue(), jobs, j, 0, 5000)
    assert jobs.jobs["clat_sum"].tolist() == [4000, 2000]


@pytest.mark.parametrize("poll_queues", [0, 1])
def test_a_rate_on_two_virtqueues(poll_queues: int) -> None:
    device = disk(config=blk_config(capacity=BLOCKS, num_queues=2), queue_num=2)
    asked = {"numjobs": 2, "queues": 2, "poll_queues": poll_queues, "driver_cpus": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("virtblk.bench.session.choose_cpus", lambda options, foreign: ((), None, ""))
        patch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
        with bench(device, rate_iops=2000, paths=("mq",), **asked) as run:
            result = run.run_one()
            assert {request.queue for request in device.io} == {0, 1}
    assert (result.ios, result.errors) == (2 * BLOCKS, 0)
    assert result.runtime_s >= (BLOCKS - 1) / 2000


@pytest.mark.parametrize("poll", [False, True])
@pytest.mark.parametrize(("rate", "depth"), [(2000, 1), (100_000, 4)])
def test_a_pass_at_a_rate_is_complete_and_in_order(rate: int, depth: int, poll: bool) -> None:
    with bench(disk(), rate_iops=rate, iodepth=depth, poll=poll) as run:
        result = run.run_one()
        assert blocks_of(run.device, IN) == [*range(BLOCKS)]
    assert (result.ios, result.errors) == (BLOCKS, 0)
    assert result.runtime_s >= (BLOCKS - 1) / rate, "the last is not due before"


def test_no_io_is_early() -> None:
    """Whatever the depth: at 200 a second, 64 I/Os take 315 ms."""
    with bench(disk(), rate_iops=200, iodepth=64, queue_size=128) as run:
        assert run.run_one().runtime_s >= (BLOCKS - 1) / 200


@pytest.mark.parametrize("poll", [False, True])
def test_an_io_that_starts_late_counts_its_lateness(poll: bool) -> None:
    """One I/O is held for 200 ms; those that were due meanwhile could not start, and are late by the rest of it.

    Counted from their own start, only one of 64 latencies would show that anything was wrong.
    """

    def hold_the_first(request: Request) -> None:
        if request.type == IN and request.sector == 0:
            threading.Event().wait(0.2)

    with bench(disk(hold_the_first), rate_iops=1000, iodepth=1, poll=poll) as run:
        result = run.run_one()
    late = [200 * MS - number * MS for number in range(BLOCKS)]
    assert result.clat.mean >= sum(late) / BLOCKS
    assert result.clat.min >= min(late)


def test_jobs_do_not_start_at_once() -> None:
    with bench(disk(), rate_iops=10, numjobs=4, runtime=0.05) as run:
        run.runner._prepare(0, random=False, limit=0)
        assert run.runner._jobs.jobs["phase_ns"].tolist() == [0, 25 * MS, 50 * MS, 75 * MS]


def nothing_due(run: Bench) -> None:
    """The first I/O is due in 100 seconds, long after the run's end."""
    prepare = run.runner._prepare

    def later(*arguments: Any, **given: Any) -> None:
        prepare(*arguments, **given)
        run.runner._jobs.jobs["phase_ns"] = 100_000 * MS

    run.runner._prepare = later  # type: ignore[method-assign]


def test_the_end_does_not_wait_for_the_next_io() -> None:
    with bench(disk(), rate_iops=1, runtime=0.05, slice_s=0.05) as run:
        nothing_due(run)
        result = run.run_one()
    assert result.ios == 0


def test_a_rate_that_is_missed_is_told() -> None:
    slow = disk(lambda request: threading.Event().wait(0.01) and None)
    with bench(slow, rate_iops=100_000, iodepth=1, runtime=0.1) as run:
        result = run.run_one()
    (remark,) = result.remarks
    assert remark.endswith("of the 100000 IOPS asked for: the disk or the machine did not keep up")


def test_a_fill_is_not_held_back() -> None:
    """At one I/O a second it would take a minute."""
    with bench(disk(), rate_iops=1, runtime=0.01, slice_s=0.01, verify="crc32c", workloads=("write",)) as run:
        result = run.run_one()
        assert len(run.device.io) >= 2 * BLOCKS
    assert result.errors == 0


@pytest.mark.parametrize("poll", [False, True])
def test_a_lost_io_ends_the_run(poll: bool) -> None:
    device = disk(lambda request: HOLD if request.type == IN else None)
    with (
        bench(device, rate_iops=1, iodepth=4, runtime=600.0, timeout=0.3, poll=poll) as run,
        pytest.raises(DeviceError, match="did not answer in time"),
    ):
        run.run()


def test_an_interrupt_wakes_a_job_that_waits_for_its_time() -> None:
    with bench(disk(), rate_iops=1, runtime=600.0) as run:
        nothing_due(run)
        run.runner._on_progress = lambda *arguments: run.runner.interrupt()
        (result,) = run.run()
    assert result.ios == 0


def test_more_polling_jobs_than_cpus_cannot_keep_to_their_times() -> None:
    given: dict[str, Any] = {"rate_iops": 5, "numjobs": 500, "iodepth": 1}
    says = "--rate-iops with --numjobs 500 polling on"
    with pytest.raises(UsageError, match=says), bench(disk(), poll=True, **given):
        pass
