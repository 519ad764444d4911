"""A job file's jobs as the device sees them: which I/Os, in which order, how many at once, and what is counted."""

from __future__ import annotations

import struct
import threading
from collections import Counter
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fio_harness import fio_bench
from bench.harness import BLOCKS, BS, blocks_of, disk
from fake_device import HOLD, FakeDevice, Request
from naive.fio_job import NaiveJob
from naive.fio_map import splitmix64
from naive.virtio_blk import DISCARD, F_DISCARD, F_FLUSH, FEATURES, FLUSH, IN, IOERR, OUT, blk_config
from virtblk.bench.fio_loop import count_class, depth_class
from virtblk.bench.fio_tables import LEVEL_COMPLETE, LEVEL_DEPTH, LEVEL_SUBMIT, READ, SYNC, TRIM, WRITE
from virtblk.errors import DeviceError
from waiting import wait_until

ALL = [*range(BLOCKS)]
#: For jobs that end by the clock: enough for what they are to do, or more on a machine that has much else to do.
RUNTIMES = ("50ms", "500ms", "5s", "50s")


def kinds_of(device: FakeDevice) -> list[int]:
    return [request.type for request in device.io]


def with_discard() -> FakeDevice:
    return FakeDevice(features=FEATURES | F_DISCARD, config=blk_config(capacity=BLOCKS, discard=(1 << 14, 1, 1)))


# Which I/Os.


@pytest.mark.parametrize("path", ["bio", "request"])
@pytest.mark.parametrize(("rw", "kind", "row"), [("read", IN, READ), ("write", OUT, WRITE)])
def test_a_sequential_job_covers_its_range_in_order(rw: str, kind: int, row: int, path: str) -> None:
    with fio_bench(f"[a]\nrw={rw}\nbs=512\noffset=5k\nsize=4k\nloops=2", path=path) as bench:
        (outcome,) = bench.run()
        assert bench.device.seen == [(kind, block, BS) for block in [*range(10, 18)] * 2]
    assert outcome.stats["ios"].tolist() == [16 if row == kind_row else 0 for kind_row in range(4)]


@pytest.mark.parametrize(("rw", "kind"), [("randread", IN), ("randwrite", OUT)])
def test_a_random_job_takes_each_block_once_per_pass(rw: str, kind: int) -> None:
    with fio_bench(f"[a]\nrw={rw}\nbs=512\nsize=25k\nloops=3") as bench:
        (outcome,) = bench.run()
        seen = blocks_of(bench.device, kind)
    assert int(outcome.stats["ios"].sum()) == len(seen) == 150
    passes = [seen[:50], seen[50:100], seen[100:]]
    assert all(sorted(one) == [*range(50)] for one in passes)
    assert len({tuple(one) for one in [*passes, range(50)]}) == 4


def test_without_a_map_blocks_repeat() -> None:
    with fio_bench("[a]\nrw=randread\nbs=512\nloops=4\nnorandommap") as bench:
        bench.run()
        seen = blocks_of(bench.device, IN)
    assert len(seen) == 4 * BLOCKS
    assert set(seen) <= set(ALL)
    assert any(set(seen[start : start + BLOCKS]) != set(ALL) for start in range(0, 4 * BLOCKS, BLOCKS))


def test_seeds_and_clones_go_their_own_ways() -> None:
    seen = []
    for seed in (1, 1, 2):
        with fio_bench(
            f"[a]\nrw=randread\nbs=512\nrandseed={seed}\nnumjobs=2\n[b]\nstonewall\nrw=randread\nbs=512"
        ) as b:
            b.run()
            found = blocks_of(b.device, IN)
            seen.append(found[2 * BLOCKS :])
            assert Counter(found[: 2 * BLOCKS]) == dict.fromkeys(ALL, 2)
    assert seen[0] == seen[1] == seen[2], "b has the default seed"
    with fio_bench("[a]\nrw=randread\nbs=512\n[b]\nstonewall\nrw=randread\nbs=512") as bench:
        bench.run()
        found = blocks_of(bench.device, IN)
    assert found[:BLOCKS] != found[BLOCKS:]


@pytest.mark.parametrize("share", [0, 30, 100])
def test_a_mixed_sequential_job_has_two_positions(share: int) -> None:
    with fio_bench(f"[a]\nrw=rw\nrwmixread={share}\nbs=512\nloops=2") as bench:
        (outcome,) = bench.run()
        halves = bench.device.seen[:BLOCKS], bench.device.seen[BLOCKS:]
    for half in halves:  # a pass begins anew on both sides
        reads = [block for kind, block, _ in half if kind == IN]
        writes = [block for kind, block, _ in half if kind == OUT]
        assert reads == ALL[: len(reads)]
        assert writes == ALL[: len(writes)]
        assert len(reads) in range(int(BLOCKS * share / 100 * 0.3), min(BLOCKS, int(BLOCKS * share / 100 * 2)) + 1)
    assert outcome.stats["ios"].tolist()[:2] == [kinds_of(bench.device).count(IN), kinds_of(bench.device).count(OUT)]


def test_a_mixed_random_job_takes_each_block_once_for_one_of_both() -> None:
    with fio_bench("[a]\nrw=randrw\nbs=512\niodepth=4") as bench:
        bench.run()
        seen = bench.device.seen
    assert sorted(block for _, block, _ in seen) == ALL
    assert 10 < kinds_of(bench.device).count(IN) < 54


@pytest.mark.parametrize("rw", ["trim", "randtrim"])
def test_a_trim_is_a_discard_of_its_block(rw: str) -> None:
    with fio_bench(f"[a]\nrw={rw}\nbs=1k\niodepth=3\noffset=2k", with_discard()) as bench:
        (outcome,) = bench.run()
        ranges = [struct.unpack("<QII", request.data) for request in bench.device.io]
    assert kinds_of(bench.device) == [DISCARD] * 30
    assert outcome.stats["ios"].tolist() == [0, 0, 30, 0]
    wanted = [(block, 2, 0) for block in range(4, BLOCKS, 2)]
    assert (ranges if rw == "trim" else sorted(ranges)) == wanted
    assert (ranges == wanted) == (rw == "trim")


@pytest.mark.parametrize("depth", [1, 4])
def test_a_flush_follows_every_so_many_writes_but_the_last(depth: int) -> None:
    """As fio: none where the job ends, one where only a pass does."""
    with fio_bench(f"[a]\nrw=write\nbs=512\nfsync=8\nloops=2\niodepth={depth}") as bench:
        (outcome,) = bench.run()
        kinds = kinds_of(bench.device)
    runs = [(kind, len(list(group))) for kind, group in groupby(kinds)]
    assert runs == [(OUT, 8), (FLUSH, 1)] * 15 + [(OUT, 8)]
    assert outcome.stats["ios"].tolist() == [0, 2 * BLOCKS, 0, 15]


def test_reads_bring_no_flush() -> None:
    with fio_bench("[a]\nrw=rw\nbs=512\nfsync=4") as bench:
        bench.run()
        kinds = kinds_of(bench.device)
    writes = kinds.count(OUT)
    assert writes > 8
    assert kinds.count(FLUSH) == (writes - (kinds[-1] == OUT)) // 4


def test_a_disk_without_flush_has_stable_writes() -> None:
    with fio_bench("[a]\nrw=write\nbs=512\nfsync=8", disk(features=FEATURES & ~F_FLUSH)) as bench:
        (outcome,) = bench.run()
    assert kinds_of(bench.device) == [OUT] * BLOCKS
    assert int(outcome.stats["ios"][SYNC]) == 7


# Who runs when.


def test_sections_run_together_until_a_stone_wall() -> None:
    """Each holds its first I/O until the other's is there; the third has to wait for both to end."""
    held: list[Request] = []

    def script(request: Request) -> object:
        if request.type != IN or len(held) >= 2:
            return None
        held.append(request)
        if len(held) == 2:
            for one in held:
                device.complete(one)
        return HOLD

    device = disk(script)
    text = "[global]\nbs=512\nsize=2k\n[a]\n[b]\noffset=16k\n[c]\nstonewall\noffset=8k\nrw=write\n"
    with fio_bench(text, device) as bench:
        outcomes = bench.run()
    assert {request.sector for request in held} == {0, 32}
    assert [outcome.task.job.name for outcome in outcomes] == ["a", "b", "c"]
    assert kinds_of(device) == [IN] * 8 + [OUT] * 4
    assert outcomes[2].started_ns >= max(outcomes[0].ended_ns, outcomes[1].ended_ns)


def test_jobs_of_different_block_sizes_and_depths_keep_to_their_own() -> None:
    text = "[a]\nbs=512\niodepth=7\nsize=16k\n[b]\nrw=write\nbs=4k\niodepth=2\noffset=16k\nnumjobs=2\n"
    with fio_bench(text) as bench:
        outcomes = bench.run()
        seen = Counter(bench.device.seen)
    assert seen == Counter(
        [(IN, block, 512) for block in range(32)] + [(OUT, block, 4096) for block in range(32, 64, 8)] * 2
    )
    assert [int(outcome.stats["ios"].sum()) for outcome in outcomes] == [32, 4, 4]


def test_a_job_with_a_runtime_ends_by_itself() -> None:
    """The other runs to its size; neither waits for the other to be told."""
    text = "[a]\nbs=512\ntime_based\nruntime=100ms\n[b]\nbs=512\nrw=write\n"
    with fio_bench(text) as bench:
        a, b = bench.run()
    assert a.ended_ns - a.counted_ns >= 100_000_000
    assert int(a.stats["ios"][READ]) > 0
    assert int(b.stats["ios"][WRITE]) == BLOCKS


def test_runtime_does_not_make_a_job_longer() -> None:
    with fio_bench("[a]\nbs=512\nruntime=1000s") as bench:
        (outcome,) = bench.run()
    assert int(outcome.stats["ios"][READ]) == BLOCKS


def test_what_the_ramp_does_is_not_counted_and_the_size_comes_after_it() -> None:
    for ramp in RUNTIMES:
        with fio_bench(f"[a]\nbs=512\nramp_time={ramp}\nsize=8k") as bench:
            (outcome,) = bench.run()
            seen = blocks_of(bench.device, IN)
        if len(seen) > 17:
            break
    assert outcome.counted_ns - outcome.started_ns >= 50_000_000
    assert int(outcome.stats["ios"][READ]) == int(outcome.histogram[READ].sum()) in (16, 17)  # one may straddle its end
    assert len(seen) > 17
    assert seen == [number % 16 for number in range(len(seen))]


def test_a_job_that_ends_in_its_ramp_counts_nothing() -> None:
    device = disk(lambda request: IOERR if request.type == IN and request.sector == 9 else None)
    with fio_bench("[a]\nbs=512\nramp_time=600s", device) as bench:
        (outcome,) = bench.run()
    assert (outcome.error, int(outcome.stats["ios"].sum())) == (5, 0)
    assert outcome.started_ns < outcome.counted_ns == outcome.ended_ns


def test_both_positions_of_a_job_by_the_clock_go_round() -> None:
    for runtime in RUNTIMES:
        with fio_bench(f"[a]\nrw=rw\nbs=512\nsize=4k\ntime_based\nruntime={runtime}") as bench:
            bench.run()
            reads, writes = blocks_of(bench.device, IN), blocks_of(bench.device, OUT)
        if min(len(reads), len(writes)) > 8:
            break
    assert min(len(reads), len(writes)) > 8
    assert reads == [number % 8 for number in range(len(reads))]
    assert writes == [number % 8 for number in range(len(writes))]


# How many at once.


@pytest.mark.parametrize(("depth", "batch"), [(1, 1), (6, 1), (6, 3), (8, 0)])
def test_iodepth_are_in_flight(depth: int, batch: int) -> None:
    held: list[Request] = []
    most = 0
    left = BLOCKS

    def script(request: Request) -> object:
        nonlocal most, left
        if request.type != IN:
            return None
        held.append(request)
        most = max(most, len(held))
        if len(held) == min(depth, left):
            left -= len(held)
            for one in held:
                device.complete(one)
            held.clear()
        return HOLD

    device = disk(script)
    with fio_bench(f"[a]\nbs=512\niodepth={depth}\niodepth_batch_submit={batch}", device) as bench:
        (outcome,) = bench.run()
    assert most == depth
    levels = outcome.levels
    assert int(levels[LEVEL_DEPTH].sum()) == BLOCKS
    submitted = int(levels[LEVEL_SUBMIT].sum())
    assert submitted in range(-(-BLOCKS // (batch or depth)), BLOCKS + 1)


def test_complete_min_come_back_before_the_next_is_submitted() -> None:
    """Each I/O ends only when the job has counted the one before: it has had its chance to submit too early."""
    answered = 0
    when: list[int] = []  # how many had been answered when an I/O came

    def script(request: Request) -> object:
        if request.type != IN:
            return None
        when.append(answered)
        return HOLD

    device = disk(script)
    with fio_bench("[a]\nbs=512\niodepth=6\niodepth_batch_complete_min=3", device) as bench:
        stats = bench.runner._jobs.stats
        thread = threading.Thread(target=bench.run)
        thread.start()
        for number in range(BLOCKS):
            device.wait_for(number + 1)
            answered += 1
            device.complete(device.io[number])
            wait_until(lambda number=number: int(stats[READ]["ios"]) > number)
        thread.join()
    assert len(when) == BLOCKS
    assert all(before >= (number - 6) // 3 * 3 + 3 for number, before in enumerate(when) if number >= 6)


def test_thinking_lets_nothing_be_in_flight() -> None:
    with fio_bench("[a]\nbs=512\nsize=4k\niodepth=8\nthinktime=5ms") as bench:
        (outcome,) = bench.run()
    assert outcome.ended_ns - outcome.counted_ns >= 7 * 5_000_000
    assert outcome.levels[LEVEL_DEPTH].tolist() == [8, 0, 0, 0, 0, 0, 0]
    assert outcome.levels[LEVEL_COMPLETE].tolist() == [0, 8, 0, 0, 0, 0, 0]


def test_the_end_does_not_wait_for_a_thought() -> None:
    with fio_bench("[a]\nbs=512\nthinktime=600s\nruntime=50ms") as bench:
        (outcome,) = bench.run()
    assert int(outcome.stats["ios"][READ]) == 1


def test_jobs_have_memory_of_their_own() -> None:
    """All four I/Os are out at once, none in the memory of another."""
    held: list[Request] = []

    def script(request: Request) -> object:
        if request.type == OUT:
            held.append(request)
            if len(held) == 4:
                for one in held:
                    device.complete(one)
            return HOLD
        return None

    device = disk(script)
    text = "[global]\nrw=write\niodepth=2\n[a]\nbs=1k\nsize=2k\n[b]\nbs=512\nsize=1k\noffset=8k\n"
    with fio_bench(text, device) as bench:
        bench.run()
    assert len(held) == 4
    data = sorted((one.address, one.address + len(request.data)) for request in held for one in request.buffers[1:2])
    assert all(end <= start for (_, end), (start, _) in pairwise(data)), data


def test_a_rate_is_kept_from_above() -> None:
    with fio_bench("[a]\nbs=512\nrate_iops=500\niodepth=8") as bench:
        (outcome,) = bench.run()
        assert blocks_of(bench.device, IN) == ALL
    assert outcome.ended_ns - outcome.counted_ns >= (BLOCKS - 1) * 2_000_000


def test_jobs_with_a_rate_do_not_start_at_once() -> None:
    with fio_bench("[a]\nbs=512\nrate_iops=10\nnumjobs=4") as bench:
        bench.runner._prepare(bench.runner.waves[0])
        assert bench.runner._jobs.jobs["phase_ns"].tolist() == [0, 25_000_000, 50_000_000, 75_000_000]


def test_the_time_of_reading_back_is_none_that_writes_are_late_by() -> None:
    """It takes 200 ms, and the second pass is paced as the first was."""

    def slow(request: Request) -> None:
        if request.type == IN and request.sector == 0:
            threading.Event().wait(0.2)

    with fio_bench("[a]\nrw=write\nbs=512\nrate_iops=100\nverify=crc32c\nloops=2\nsize=8k", disk(slow)) as bench:
        (outcome,) = bench.run()
    assert outcome.error == 0
    assert outcome.ended_ns - outcome.counted_ns >= 2 * 200_000_000 + 31 * 10_000_000


def test_lateness_counts_in_lat_and_slat_and_not_in_clat() -> None:
    """The first I/O is held for 200 ms; those that were due meanwhile are late by the rest of it."""

    def hold_the_first(request: Request) -> None:
        if request.type == IN and request.sector == 0:
            threading.Event().wait(0.2)

    with fio_bench("[a]\nbs=512\nrate_iops=1000", disk(hold_the_first)) as bench:
        (outcome,) = bench.run()
    read = outcome.stats[READ]
    late = sum(200 - number for number in range(BLOCKS)) * 1_000_000
    assert int(read["lat_sum"]) >= late
    assert int(read["slat_sum"]) >= late - 200_000_000
    assert int(read["lat_sum"]) == int(read["slat_sum"]) + int(read["clat_sum"])


def test_latencies_are_those_of_the_counted() -> None:
    with fio_bench("[a]\nrw=rw\nbs=512\niodepth=4") as bench:
        (outcome,) = bench.run()
    for row in (READ, WRITE):
        stat = outcome.stats[row]
        ios = int(stat["ios"])
        assert ios == int(outcome.histogram[row].sum()) > 0
        for name in ("slat", "clat", "lat"):
            low, high, total = (int(stat[f"{name}_{field}"]) for field in ("min", "max", "sum"))
            assert 0 <= low <= total / ios <= high <= outcome.ended_ns - outcome.started_ns
            assert float(stat[f"{name}_squares"]) * ios >= float(total) ** 2 * 0.999
    assert int(outcome.stats[TRIM]["ios"]) == 0


@pytest.mark.parametrize(
    ("depth", "index"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (31, 4), (32, 5), (63, 5), (64, 6), (999, 6)]
)
def test_classes_of_depths_are_fio_s(depth: int, index: int) -> None:
    assert depth_class(depth) == index


@pytest.mark.parametrize(
    ("count", "index"),
    [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (16, 3), (17, 4), (33, 5), (64, 5), (65, 6), (999, 6)],
)
def test_classes_of_counts_are_fio_s(count: int, index: int) -> None:
    assert count_class(count) == index


# Verify, errors, ends.


@pytest.mark.parametrize("rw", ["write", "randwrite"])
def test_what_was_written_is_read_back_pass_by_pass(rw: str) -> None:
    with fio_bench(f"[a]\nrw={rw}\nbs=512\nverify=crc32c\nloops=2\niodepth=4") as bench:
        (outcome,) = bench.run()
        kinds, seen = kinds_of(bench.device), [block for _, block, _ in bench.device.seen]
    assert [(kind, len(list(group))) for kind, group in groupby(kinds)] == [(OUT, BLOCKS), (IN, BLOCKS)] * 2
    assert seen[:BLOCKS] == seen[BLOCKS : 2 * BLOCKS]
    assert sorted(seen[2 * BLOCKS : 3 * BLOCKS]) == ALL
    assert outcome.stats["ios"].tolist() == [2 * BLOCKS, 2 * BLOCKS, 0, 0]
    assert (outcome.error, outcome.note) == (0, "")


def test_only_the_writes_of_a_mixed_job_are_read_back() -> None:
    with fio_bench("[a]\nrw=randrw\nbs=512\nverify=crc32c") as bench:
        (outcome,) = bench.run()
        seen = bench.device.seen
    written = [block for kind, block, _ in seen[:BLOCKS] if kind == OUT]
    assert [(kind, block) for kind, block, _ in seen[BLOCKS:]] == [(IN, block) for block in written]
    assert outcome.error == 0


def test_a_job_that_its_time_ends_reads_back_what_it_wrote() -> None:
    with fio_bench("[a]\nrw=randwrite\nbs=512\nverify=crc32c\ntime_based\nruntime=50ms") as bench:
        (outcome,) = bench.run()
        kinds = kinds_of(bench.device)
    assert outcome.error == 0
    assert kinds.count(IN) == kinds.count(OUT) > 0


def test_a_mixed_job_by_the_clock_reads_back_pass_by_pass() -> None:
    for runtime in RUNTIMES:
        with fio_bench(f"[a]\nrw=rw\nbs=512\nsize=4k\nverify=crc32c\ntime_based\nruntime={runtime}") as bench:
            (outcome,) = bench.run()
        assert (outcome.error, outcome.note) == (0, "")
        if int(outcome.stats["ios"][WRITE]) > 8:
            return
    pytest.fail("no pass was ended")


def test_a_reader_verifies_what_an_earlier_job_wrote() -> None:
    text = "[global]\nbs=512\nverify=crc32c\n[w]\nrw=write\n[r]\nstonewall\nrw=randread\n"
    with fio_bench(text) as bench:
        assert [outcome.error for outcome in bench.run()] == [0, 0]
    with fio_bench("[r]\nbs=512\nverify=crc32c\nrw=read\n") as bench:
        (outcome,) = bench.run()
    assert outcome.note == "verify failed at offset 0: no header"


def test_a_lost_write_is_found_and_ends_the_job() -> None:
    """Acknowledged, not done, in the second pass: the block of the first is there, and is an old one."""
    count = 0

    def lose(request: Request) -> object:
        nonlocal count
        count += request.type == OUT
        return 0 if request.type == OUT and count == BLOCKS + 6 else None

    with fio_bench("[a]\nrw=write\nbs=512\nverify=crc32c\nloops=3", disk(lose)) as bench:
        (outcome,) = bench.run()
        kinds = kinds_of(bench.device)
    assert (outcome.error, outcome.task.number) == (84, 0)
    assert outcome.note == "verify failed at offset 2560: an old generation: an acknowledged write is lost"
    assert kinds.count(OUT) == 2 * BLOCKS
    assert kinds.count(IN) == BLOCKS + 6


def test_an_error_ends_its_job_and_no_other() -> None:
    text = "[a]\nbs=512\nsize=16k\n[b]\nbs=512\noffset=16k\n[c]\nstonewall\nbs=512\nsize=4k\n"
    with fio_bench(text, disk(lambda request: IOERR if request.type == IN and request.sector == 9 else None)) as bench:
        outcomes = bench.run()
    assert [(outcome.error, outcome.note) for outcome in outcomes] == [
        (5, "error at offset 4608: the device reported an I/O error"),
        (0, ""),
        (0, ""),
    ]
    assert [int(outcome.stats["ios"][READ]) for outcome in outcomes] == [9, 32, 8]


def test_an_interrupt_ends_all_of_it() -> None:
    text = "[a]\nbs=512\ntime_based\nruntime=600s\n[b]\nbs=512\nrate_iops=1\n[c]\nstonewall\nrw=write\nbs=512\n"
    with fio_bench(text) as bench:
        bench.runner._on_progress = lambda *arguments: bench.runner.interrupt()
        outcomes = bench.run()
    assert [outcome.task.job.name for outcome in outcomes] == ["a", "b"]
    assert OUT not in kinds_of(bench.device)


def test_a_lost_io_ends_the_session() -> None:
    device = disk(lambda request: HOLD if request.type == IN and request.sector == 3 else None)
    with (
        fio_bench("[a]\nbs=512\niodepth=4\ntime_based\nruntime=600s", device, timeout=0.3) as bench,
        pytest.raises(DeviceError, match="did not answer in time"),
    ):
        bench.run()


@pytest.mark.parametrize("poll", [False, True])
def test_polling_does_the_same(poll: bool) -> None:
    text = "[a]\nbs=512\nrw=randrw\niodepth=4\niodepth_batch=2\nfsync=4\n[b]\nbs=512\nsize=2k\nthinktime=100\n"
    with fio_bench(text, poll=poll) as bench:
        a, b = bench.run()
    assert int(a.stats["ios"][:2].sum()) == BLOCKS
    assert int(b.stats["ios"].sum()) == 4


@settings(max_examples=20)
@given(
    st.sampled_from(["read", "write", "randread", "randwrite", "rw", "randrw"]),
    st.integers(1, 24),
    st.integers(0, 1 << 40),
    st.integers(1, 3),
    st.integers(0, 100),
    st.integers(0, 5),
    st.booleans(),
    st.booleans(),
)
def test_one_after_another_a_job_s_ios_are_the_naive_job_s(
    rw: str, blocks: int, randseed: int, loops: int, share: int, fsync: int, norandommap: bool, verify: bool
) -> None:
    verify = verify and rw not in ("read", "randread")
    text = f"[a]\nrw={rw}\nbs=512\noffset=1k\nsize={blocks * 512}\nloops={loops}\nrwmixread={share}\nfsync={fsync}\n"
    text += f"randseed={randseed}\nnorandommap={int(norandommap)}\nverify={'crc32c' if verify else 0}\n"
    naive = NaiveJob(rw, blocks, splitmix64(randseed ^ splitmix64(0)), loops, share, fsync, norandommap, verify)
    names = {IN: "read", OUT: "write", FLUSH: "flush"}
    with fio_bench(text) as bench:
        (outcome,) = bench.run()
        seen = [(names[kind], block - 2 if kind != FLUSH else 0) for kind, block, _ in bench.device.seen]
    assert outcome.error == 0
    assert seen == naive.ios()
