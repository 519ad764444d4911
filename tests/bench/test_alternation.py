"""Arms that take turns on one connection: the order of slices, the drain between them, and what each is told of."""

from __future__ import annotations

from typing import Any

import pytest

from bench.harness import BLOCKS, Bench, bench, blocks_of, disk
from fake_device import Answer, Request
from naive.verify import decode
from naive.virtio_blk import IN, IOERR, OK, OUT
from virtblk.bench.comparison import compare
from virtblk.bench.slices import Slice
from virtblk.bench.stat import RunResult
from virtblk.errors import DeviceError
from virtblk.jit.atomics import load_acquire_i64

BOTH = ("request", "bio")


class Watched:
    """A bench that notes each slice, and what was in flight and done when it was about to start."""

    def __init__(self, run: Bench) -> None:
        self.run = run
        self.slices: list[Slice] = []
        self.paths: list[str] = []
        self.in_flight: list[int] = []
        self.seen: list[int] = []
        slice_of, set_path = run.runner.slice, run.session.device.set_path  # type: ignore[union-attr]

        def watched_slice(*arguments: Any, **given: Any) -> Slice:
            self.slices.append(slice_of(*arguments, **given))
            return self.slices[-1]

        def watched_path(path: str) -> None:
            bios = run.session.device.view.bios  # type: ignore[union-attr]
            self.in_flight.append(int((bios["remaining"] > 0).sum()))
            self.seen.append(len(run.device.io))
            self.paths.append(path)
            set_path(path)

        run.runner.slice = watched_slice  # type: ignore[method-assign]
        run.session.device.set_path = watched_path  # type: ignore[method-assign,union-attr]

    @property
    def order(self) -> list[tuple[int, int]]:
        return [(one.round, one.arm) for one in self.slices]


def order_of(seed: int, paths: tuple[str, ...] = BOTH, rounds: int = 10) -> list[tuple[int, int]]:
    given: dict[str, Any] = {"runtime": 0.01 * rounds, "slice_s": 0.01, "paths": paths}
    with bench(disk(), randseed=seed, **given) as run:
        watched = Watched(run)
        run.run()
    return watched.order


def test_every_round_has_a_slice_of_every_arm() -> None:
    order = order_of(1, ("request", "bio", "bio"))
    assert [number for number, _ in order] == [number for number in range(10) for _ in range(3)]
    for start in range(0, 30, 3):
        assert sorted(arm for _, arm in order[start : start + 3]) == [0, 1, 2]


def test_the_order_within_a_round_is_random_and_repeats_with_its_seed() -> None:
    orders = [order_of(seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert {arm for _, arm in orders[0][::2]} == {0, 1}, "each begins a round now and then"


def test_nothing_is_in_flight_when_the_path_changes() -> None:
    with bench(disk(), paths=BOTH, runtime=0.16, slice_s=0.02, iodepth=8, numjobs=3) as run:
        watched = Watched(run)
        results = run.run()
        assert len(run.device.io) == sum(result.ios for result in results)
    assert watched.in_flight == [0] * len(watched.in_flight)
    assert len(watched.paths) > 2
    for before, after in zip(watched.seen, watched.seen[1:], strict=False):
        assert after > before, "each had its slice"
    assert set(watched.paths) == set(BOTH)


def test_the_queue_is_on_the_path_of_the_slice() -> None:
    used: list[tuple[str, int]] = []
    with bench(disk(), paths=BOTH, runtime=0.1, slice_s=0.01) as run:

        def on_progress(*arguments: Any) -> None:
            queue = run.session.device.view.queue  # type: ignore[union-attr]
            used.append((run.runner._path, int(queue[0]["path"])))

        run.runner._on_progress = on_progress
        run.run()
    assert set(used) == {("request", 0), ("bio", 1)}


def test_one_pass_is_one_slice_of_each_arm() -> None:
    with bench(disk(), paths=BOTH, workloads=("read", "write"), iodepth=1) as run:
        results = run.run()
        kinds = [request.type for request in run.device.io]
        assert blocks_of(run.device, IN) == [*range(BLOCKS)] * 2
    assert [(result.workload, result.path, result.arm, result.ios) for result in results] == [
        ("read", "request", 0, BLOCKS),
        ("read", "bio", 1, BLOCKS),
        ("write", "request", 0, BLOCKS),
        ("write", "bio", 1, BLOCKS),
    ]
    assert kinds == [IN] * 2 * BLOCKS + [OUT] * 2 * BLOCKS
    assert [result.dropped for result in results] == [0] * 4


def test_equal_paths_are_arms_of_their_own() -> None:
    with bench(disk(), paths=("bio", "bio"), runtime=0.2, slice_s=0.02) as run:
        results = run.run()
        total = len(run.device.io)
    assert [(result.path, result.arm) for result in results] == [("bio", 0), ("bio", 1)]
    dropped = {result.dropped for result in results}
    assert len(dropped) == 1
    assert [len(result.samples["iops"]) for result in results] == [10 - dropped.pop()] * 2
    assert sum(result.ios for result in results) <= total
    (found,) = compare(results, 95.0)
    assert (found.base_arm, found.arm, found.pairs) == (0, 1, 10 - results[0].dropped)


def test_what_a_run_counts_is_what_its_slices_did() -> None:
    with bench(disk(), paths=BOTH, runtime=0.1, slice_s=0.02) as run:
        watched = Watched(run)
        results = run.run()
    for result in results:
        mine = [one for one in watched.slices if one.arm == result.arm]
        assert result.ios == sum(one.ios for one in mine)
        assert result.runtime_s == pytest.approx(sum(one.elapsed_s for one in mine))
        assert result.samples["iops"] == [one.iops for one in mine]
        assert result.samples["round"] == list(range(5))
        assert result.clat.max == max(int(one.jobs["clat_max"][0]) for one in mine)


def test_a_sequential_workload_goes_on_from_slice_to_slice_whatever_the_arm() -> None:
    """An arm that went over the blocks of the other would find them in a cache."""
    with bench(disk(), paths=BOTH, runtime=0.1, slice_s=0.02, iodepth=1) as run:
        run.run()
        seen = blocks_of(run.device, IN)
    assert seen == [i % BLOCKS for i in range(len(seen))]


def test_a_random_workload_has_other_blocks_in_each_slice() -> None:
    with bench(disk(), paths=BOTH, workloads=("randread",), iodepth=1) as run:
        run.run()
        seen = blocks_of(run.device, IN)
    assert seen[:BLOCKS] != seen[BLOCKS:]


def test_merges_are_those_of_the_slice() -> None:
    with bench(disk(), paths=BOTH) as run:
        device = run.session.device
        assert device is not None
        counts = iter([10, 13, 13, 20])
        merges = property(lambda self: next(counts))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(device), "merges", merges)
            watched = Watched(run)
            results = run.run()
    assert [one.merges for one in watched.slices] == [3, 7]
    assert [result.merges for result in results] == [
        next(one.merges for one in watched.slices if one.arm == arm) for arm in (0, 1)
    ]


def test_each_arm_has_its_ramp() -> None:
    with bench(disk(), paths=BOTH, ramp_time=0.02) as run:
        watched = Watched(run)
        results = run.run()
        assert len(run.device.io) > 2 * BLOCKS
    assert [one.arm for one in watched.slices[:2]] == [0, 1]
    assert len(watched.slices) == 4
    assert [result.ios for result in results] == [BLOCKS, BLOCKS]


# --verify.


@pytest.mark.parametrize("workload", ["read", "write", "randread", "randwrite"])
def test_a_sound_disk_verifies_on_alternating_paths(workload: str) -> None:
    given: dict[str, Any] = {"runtime": 0.2, "slice_s": 0.02, "numjobs": 2}
    with bench(disk(), paths=BOTH, verify="crc32c", workloads=(workload,), **given) as run:
        results = run.run()
    assert [(result.errors, result.notes) for result in results] == [(0, [])] * 2
    assert all(result.ios for result in results)


def test_every_slice_of_writes_is_a_generation() -> None:
    with bench(disk(), paths=BOTH, verify="crc32c", workloads=("write",), iodepth=1) as run:
        run.run()
        written = [decode(request.data).generation for request in run.device.io if request.type == OUT]
    assert written == [1] * BLOCKS + [2] * BLOCKS + [3] * BLOCKS


@pytest.mark.parametrize("loses", [2, 3])
def test_a_lost_write_is_told_with_the_arm_that_wrote_it(loses: int) -> None:
    """The first write of a block is the fill's, the second that of the first slice, and the third replaces it."""
    writes = 0

    def lose(request: Request) -> object:
        nonlocal writes
        if request.type != OUT or request.sector != 7:
            return None
        writes += 1
        return Answer(OK) if writes == loses else None

    with bench(disk(lose), paths=BOTH, verify="crc32c", workloads=("write",)) as run:
        watched = Watched(run)
        results = run.run()
    last = watched.slices[-1].arm
    wanted = [1 if result.arm == last and loses == 3 else 0 for result in results]
    assert [result.errors for result in results] == wanted


def test_errors_are_told_with_the_arm_that_had_them() -> None:
    reads = 0

    def fail_in_the_first_slice(request: Request) -> object:
        nonlocal reads
        reads += request.type == IN
        return IOERR if request.type == IN and reads == 5 else None

    with bench(disk(fail_in_the_first_slice), paths=BOTH, iodepth=1) as run:
        watched = Watched(run)
        results = run.run()
    first = watched.slices[0].arm
    assert [result.errors for result in results] == [int(result.arm == first) for result in results]
    assert next(result for result in results if result.errors).notes[0].startswith("first error at offset")


# The end.


def interrupt_in_slice(run: Bench, number: int) -> list[RunResult]:
    slice_of = run.runner.slice
    count = 0

    def on_progress(*arguments: Any) -> None:
        if count == number + 1:
            run.runner.interrupt()

    def counted(*arguments: Any, **given: Any) -> Slice:
        nonlocal count
        count += 1
        return slice_of(*arguments, **given)

    run.runner.slice = counted  # type: ignore[method-assign]
    run.runner._on_progress = on_progress
    return run.run()


@pytest.mark.parametrize(("number", "arms"), [(0, 1), (1, 2), (5, 2)])
def test_what_was_measured_before_ctrl_c_is_told(number: int, arms: int) -> None:
    given: dict[str, Any] = {"runtime": 600.0, "slice_s": 0.1, "paths": BOTH, "workloads": ("read", "write")}
    with bench(disk(), **given) as run:
        results = interrupt_in_slice(run, number)
        assert not blocks_of(run.device, OUT), "no other workload is begun"
        assert sum(result.ios for result in results) == len(run.device.io)
    assert len(results) == arms
    assert sum(len(result.samples["iops"]) for result in results) == number, "the one that was cut short is no sample"
    compare(results, 95.0)


def test_a_device_that_goes_in_a_slice_ends_the_run_and_leaves_no_thread() -> None:
    count = 0

    def hang_up(request: Request) -> None:
        nonlocal count
        count += request.type == IN
        if count == 100:
            device.hang_up()

    device = disk(hang_up)
    with bench(device, paths=BOTH, runtime=60.0, slice_s=0.05, numjobs=2) as run:
        with pytest.raises(DeviceError, match="closed the connection"):
            run.run()
        assert run.runner._crew._threads == []
        assert load_acquire_i64(int(run.runner._crew._crew[0]["running"])) == 0
