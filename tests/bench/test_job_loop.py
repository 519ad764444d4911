"""A job as its device sees it: which blocks, how many at once, and what is counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import pairwise

import numba
import pytest

from bench.harness import BLOCKS, BS, bench, blocks_of, disk
from fake_device import HOLD, FakeDevice, Request
from naive.virtio_blk import IN, OUT, blk_config
from virtblk.bench.job_loop import job_loop
from virtblk.errors import UsageError

#: For a run by the clock: more of them on a machine that does not get far in the first.
SECONDS = (0.2, 2.0, 20.0)

# Which blocks.


@pytest.mark.parametrize(("workload", "kind"), [("read", IN), ("write", OUT)])
def test_a_sequential_pass_covers_the_range_once_and_in_order(workload: str, kind: int) -> None:
    with bench(disk(), workloads=(workload,)) as run:
        result = run.run_one()
        assert run.device.seen == [(kind, block, BS) for block in range(BLOCKS)]
    assert (result.workload, result.ios, result.errors) == (workload, BLOCKS, 0)


def test_blocks_are_of_the_size_asked_for() -> None:
    with bench(disk(), bs=3 * BS) as run:
        assert run.run_one().ios == BLOCKS // 3
        assert run.device.seen == [(IN, block * 3, 3 * BS) for block in range(BLOCKS // 3)]


def test_size_is_the_end_of_the_range() -> None:
    with bench(disk(), size=10 * BS, workloads=("read", "randwrite")) as run:
        run.run()
        assert blocks_of(run.device, IN) == list(range(10))
        assert set(blocks_of(run.device, OUT)) <= set(range(10))


def test_random_blocks_stay_in_the_range_and_reach_all_of_it() -> None:
    with bench(disk(), workloads=("randread",), size=16 * BS, numjobs=16) as run:
        result = run.run_one()
        seen = Counter(blocks_of(run.device, IN))
    assert result.ios == sum(seen.values()) == 16 * 16
    assert set(seen) == set(range(16))


def test_random_is_not_sequential_and_repeats_with_its_seed() -> None:
    seen = []
    for seed in (1, 1, 2):
        with bench(disk(), workloads=("randread",), randseed=seed) as run:
            run.run()
            seen.append(blocks_of(run.device, IN))
    assert seen[0] == seen[1] != seen[2]
    assert sum(b == a + 1 for a, b in pairwise(seen[0])) < BLOCKS // 4


def test_jobs_go_their_own_random_ways() -> None:
    with bench(disk(), workloads=("randread",), numjobs=2, iodepth=1) as run:
        run.run()
        seen = blocks_of(run.device, IN)
    assert len(seen) == 2 * BLOCKS
    assert max(Counter(seen).values()) < 10


def test_workloads_run_one_after_another_in_the_order_given() -> None:
    with bench(disk(), workloads=("write", "read", "write")) as run:
        results = run.run()
        kinds = [request.type for request in run.device.io]
    assert [result.workload for result in results] == ["write", "read", "write"]
    assert kinds == [OUT] * BLOCKS + [IN] * BLOCKS + [OUT] * BLOCKS


def test_reads_alone_never_write() -> None:
    with bench(disk(), workloads=("read", "randread")) as run:
        before = bytes(run.device.disk)
        run.run()
        assert not blocks_of(run.device, OUT)
        assert run.device.disk == before


# How many at once.


class InFlight:
    """A script that holds requests back until as many are there as may be, and notes how many there were."""

    def __init__(self, depth: int, total: int) -> None:
        self.depth, self.left = depth, total
        self.held: list[Request] = []
        self.most = 0
        self.device: FakeDevice | None = None

    def __call__(self, request: Request) -> object:
        if request.type not in (IN, OUT):
            return None
        self.held.append(request)
        self.most = max(self.most, len(self.held))
        assert self.device is not None
        if len(self.held) == min(self.depth, self.left):
            self.left -= len(self.held)
            for one in self.held:
                self.device.complete(one)
            self.held.clear()
        return HOLD


def test_several_sequential_jobs_share_out_their_starts_and_each_covers_all() -> None:
    script = InFlight(4, 4 * BLOCKS)  # so that none gets ahead of the others
    device = script.device = disk(script)
    with bench(device, numjobs=4, iodepth=1) as run:
        result = run.run_one()
        seen = blocks_of(run.device, IN)
    assert result.ios == 4 * BLOCKS
    assert Counter(seen) == dict.fromkeys(range(BLOCKS), 4)
    assert set(seen[:4]) == {0, 16, 32, 48}


@pytest.mark.parametrize("poll", [False, True])
@pytest.mark.parametrize(("depth", "jobs"), [(1, 1), (7, 1), (4, 4)])
def test_exactly_iodepth_are_in_flight(depth: int, jobs: int, poll: bool) -> None:
    """A device that waits for the depth-th request before it answers gets it, and never one more."""
    total = jobs * BLOCKS
    script = InFlight(depth * jobs, total)
    device = script.device = disk(script)
    with bench(device, iodepth=depth, numjobs=jobs, poll=poll) as run:
        assert run.run_one().ios == total
    assert script.most == depth * jobs


@pytest.mark.parametrize(("depth", "batch"), [(8, 8), (8, 4), (8, 3), (5, 2)])
def test_a_batch_is_submitted_whole(depth: int, batch: int) -> None:
    """With one request answered at a time, none follows until `batch` of them may."""
    counts: list[int] = []  # requests that came between two answers
    arrived: list[Request] = []
    device = disk(lambda request: arrived.append(request) or HOLD if request.type == IN else None)
    answered = 0
    with bench(device, iodepth=depth, batch_submit=batch) as run:
        thread = threading.Thread(target=run.run)
        thread.start()
        first = depth // batch * batch
        device.wait_for(first)
        while answered < BLOCKS:
            free = depth - (len(arrived) - answered)
            before = len(arrived)
            device.complete(arrived[answered])
            answered += 1
            if free + 1 >= batch and before < BLOCKS:
                device.wait_for(min(before + batch, BLOCKS))
            counts.append(len(arrived) - before)
        thread.join()
    assert set(counts) <= {0, batch, BLOCKS % batch}
    assert len(arrived) == BLOCKS


def test_a_ring_that_is_too_small_counts_its_waits() -> None:
    with bench(disk(), iodepth=16, numjobs=2, queue_size=4) as run:
        result = run.run_one()
    assert result.ios == 2 * BLOCKS
    assert result.ring_full_waits > 0
    assert result.errors == 0


def test_a_ring_with_room_counts_none() -> None:
    with bench(disk(), iodepth=4) as run:
        assert run.run_one().ring_full_waits == 0


# What is counted.


def test_kicks_and_interrupts_are_those_the_device_saw() -> None:
    slow = disk(lambda request: time.sleep(0.01))  # so that the driver has to sleep
    with bench(slow, iodepth=1) as run:
        kicks, calls = run.device.kicks, run.device.calls
        result = run.run_one()
        assert 0 < result.kicks <= BLOCKS
        assert result.kicks >= run.device.kicks - kicks - 1  # the kick that started the ring may be seen late
        assert 0 < result.interrupts <= run.device.calls - calls + 1  # and so may GET_ID's interrupt


def test_polling_takes_no_interrupt_and_counts_busy_time() -> None:
    with bench(disk(), poll=True) as run:
        result = run.run_one()
    assert result.interrupts == 0
    assert result.busy_ns is not None
    assert 0 < result.busy_ns <= result.runtime_s * 1e9


def test_latencies_of_a_run_are_those_of_its_ios() -> None:
    with bench(disk()) as run:
        result = run.run_one()
        assert int(run.runner._jobs.histogram.sum()) == BLOCKS
    assert 0 < result.clat.min <= result.clat.mean <= result.clat.max
    assert result.clat.max <= result.runtime_s * 1e9
    assert result.busy_ns is None


def test_a_device_in_this_process_has_no_cpu_of_its_own() -> None:
    with bench(disk()) as run:
        assert run.run_one().device is None


def test_each_run_counts_for_itself() -> None:
    with bench(disk(), workloads=("read",) * 3, iodepth=16, queue_size=4) as run:
        d = run.session.device.view  # type: ignore[union-attr]
        kicks, interrupts = int(d.submitters["kicks"].sum()), int(d.queue[0]["interrupts"])
        results = run.run()
        assert sum(result.kicks for result in results) == int(d.submitters["kicks"].sum()) - kicks
        assert sum(result.ring_full_waits for result in results) == int(d.submitters["ring_full_waits"].sum())
        late = sum(result.interrupts for result in results) - (int(d.queue[0]["interrupts"]) - interrupts)
        assert -3 <= late <= 0, "an interrupt may come when its run is over"
        assert int(run.runner._jobs.histogram.sum()) == BLOCKS
    assert [result.ios for result in results] == [BLOCKS] * 3
    assert all(result.ring_full_waits > 0 for result in results)


def test_ramp_time_is_not_counted() -> None:
    with bench(disk(), ramp_time=0.01) as run:
        assert run.run_one().ios == BLOCKS
        assert len(run.device.io) > BLOCKS


def test_a_run_goes_on_where_its_ramp_ended() -> None:
    """Not over the blocks that the ramp brought into some cache."""
    with bench(disk(), ramp_time=0.01, iodepth=1) as run:
        run.run()
        seen = blocks_of(run.device, IN)
    assert seen == [i % BLOCKS for i in range(len(seen))]
    for seconds in SECONDS:
        with bench(disk(), ramp_time=seconds, iodepth=1, workloads=("randread",)) as run:
            run.run()
            seen = blocks_of(run.device, IN)
        ramp = min(len(seen) - BLOCKS, BLOCKS)
        if ramp > 4:
            break
    assert ramp > 4
    assert seen[-BLOCKS:][:ramp] != seen[:ramp]


def test_regression_a_slice_whose_job_comes_late_has_ios() -> None:
    """Its time was up before the thread had run: it did nothing, and its least latency was the largest number."""
    with bench(disk(), iodepth=4) as run:
        run.runner.interrupted = True  # so that the stop word is set from the start
        late = run.runner.slice("read", 0, 60.0)
        run.runner.close()
    assert late.ios == 4
    assert late.jobs["clat_min"][0] <= late.jobs["clat_max"][0]


def test_a_run_by_the_clock_goes_round_and_round() -> None:
    for seconds in SECONDS:
        with bench(disk(blocks=8), runtime=seconds, slice_s=seconds) as run:
            result = run.run_one()
            seen = blocks_of(run.device, IN)
        if result.ios > 8:
            break
    assert result.ios == len(seen) > 8
    assert seen == [i % 8 for i in range(len(seen))]


@pytest.mark.compiled
@pytest.mark.once
def test_the_compiled_loop_counts_no_reference() -> None:
    """With NumPy arrays in place of tables there were 508 increments in it."""
    with bench(disk()) as run:
        fresh = numba.njit(nogil=True, error_model="numpy")(job_loop.py_func)
        arguments = (run.session.device.view, run.runner._jobs, 0)  # type: ignore[union-attr]
        fresh.compile(tuple(numba.typeof(argument) for argument in arguments))
    (text,) = fresh.inspect_llvm().values()
    assert "blk_queue_bio_at" in text, "what it calls by handle shows that this is the loop"
    assert "NRT_incref" not in text


# Several virtqueues.


@pytest.mark.parametrize("poll", [False, True])
@pytest.mark.parametrize(
    ("paths", "jobs_on"),
    [(("mq",), [2, 2, 1, 1]), (("auto",), [2, 2, 1, 1]), (("bio", "mq"), [6 + 2, 2, 1, 1])],
)
def test_jobs_are_dealt_out_to_the_virtqueues(paths: tuple[str, ...], jobs_on: list[int], poll: bool) -> None:
    """Each goes over the whole range once; counters are those of all virtqueues."""
    device = disk(config=blk_config(capacity=BLOCKS, num_queues=4), queue_num=4)
    with bench(device, numjobs=6, queues=4, paths=paths, poll=poll) as run:
        opened = run.session.device
        assert opened is not None
        before = opened.kicks
        results = run.run()
        assert [(result.ios, result.errors) for result in results] == [(6 * BLOCKS, 0)] * len(paths)
        seen = Counter(request.queue for request in device.io)
        assert [seen[index] for index in range(4)] == [BLOCKS * count for count in jobs_on]
        assert sum(result.kicks for result in results) == opened.kicks - before > 0
        assert run.session.describe()["queues"] == 4


def test_paths_take_turns_on_several_virtqueues_and_every_block_verifies() -> None:
    device = disk(config=blk_config(capacity=BLOCKS, num_queues=3), queue_num=3)
    paths = ("request", "mq", "bio", "auto")
    asked = {"numjobs": 4, "queues": 3, "poll_queues": 1, "workloads": ("randwrite", "randread")}
    with bench(device, paths=paths, verify="crc32c", batch_submit=3, **asked) as run:
        results = run.run()
    assert [(result.workload, result.path) for result in results] == [
        (workload, path) for workload in ("randwrite", "randread") for path in paths
    ]
    for result in results:
        assert (result.ios, result.errors, result.notes) == (4 * BLOCKS, 0, [])


def test_more_virtqueues_than_the_disk_has_is_a_line() -> None:
    with (
        pytest.raises(UsageError, match="queues 4: vhost-user:fake has 1 virtqueue; give 1"),
        bench(disk(), queues=4, paths=("mq",)),
    ):
        raise AssertionError("it came up")
