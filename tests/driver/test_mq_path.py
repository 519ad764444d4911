"""The mq path as the device sees it: plugs and tags, a full ring, a scheduler, flushes between, all paths at once."""

from __future__ import annotations

import errno
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import INTERPRETED
from driver.harness import change_under_load, driver, memory_of, read, submit, time_out, write
from driver.test_bio_path import FLUSHED, RINGS, WAYS, bits_of, hammer
from driver.test_request_path import harvest, held, idle, outlast, plug, reap, submit_one, unplug
from fake_device import HOLD, Answer, FakeDevice, Request
from naive.blk_mq import NaiveBlkMq
from naive.block_layer import Bio
from naive.virtio_blk import FLUSH, IN, IOERR, OUT, blk_config
from virtblk.bench.overdue import in_flight
from virtblk.block.bio import REQ_FUA, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, bio_init
from virtblk.driver import completion
from virtblk.driver.virtio_blk import VirtioBlk
from virtblk.errors import UsageError
from waiting import PATIENCE, Background, wait_until


def tags(device: FakeDevice, **options: Any) -> Any:
    """A driver on the mq path whose submitter has many bios."""
    return driver(device, **({"path": "mq", "bios_each": 40, "segments_each": 1} | options))


# The plug.


@pytest.mark.parametrize(
    ("sectors", "seen"),
    [
        ([8, 9, 10, 11], [(OUT, 8, 2048)]),
        ([11, 10, 9, 8], [(OUT, 8, 2048)]),
        ([9, 8, 10, 20], [(OUT, 8, 1536), (OUT, 20, 512)]),
        ([30, 20, 10, 0], [(OUT, 30, 512), (OUT, 20, 512), (OUT, 10, 512), (OUT, 0, 512)]),
        ([8, 20, 9, 21], [(OUT, 8, 512), (OUT, 20, 512), (OUT, 9, 512), (OUT, 21, 512)]),
    ],
)
@pytest.mark.parametrize("status", [None, IOERR])
@pytest.mark.parametrize("mask", RINGS)
def test_a_plug_goes_out_as_one_batch_in_its_order(
    sectors: list[int], seen: list[tuple[int, int, int]], status: int | None, mask: int
) -> None:
    with (
        FakeDevice(lambda r: status if r.type == OUT else None) as device,
        tags(device, without=bits_of(mask)) as opened,
    ):
        for bio, sector in enumerate(sectors):
            memory_of(opened)[bio * 1024 : bio * 1024 + 512] = sector + 1
            assert plug(opened, bio, REQ_OP_WRITE, sector) == 0
        assert device.seen == []
        kicks = int(opened.view.submitters[0]["kicks"])
        unplug(opened)
        assert sorted(harvest(opened, 4)) == [(bio, errno.EIO if status else 0) for bio in range(4)]
        assert device.seen == seen
        assert opened.merges == 4 - len(seen)
        assert opened.view.submitters[0]["kicks"] <= kicks + 1
        if status is None:
            for sector in sectors:
                assert bytes(device.disk[sector * 512 : sector * 512 + 512]) == bytes([sector + 1]) * 512
        idle(opened)


def test_a_full_plug_goes_out_before_the_next_request() -> None:
    with FakeDevice(held) as device, tags(device) as opened:
        size = opened.queue.limits.plug_size
        assert size == 32
        for bio in range(size):
            plug(opened, bio, REQ_OP_READ, 10 * bio)
        assert device.seen == []
        plug(opened, size, REQ_OP_READ, 10 * size)
        assert [request.sector for request in device.wait_for(size)] == [10 * bio for bio in range(size)]
        unplug(opened)
        for request in device.wait_for(size + 1):
            device.complete(request)
        assert harvest(opened, size + 1) == [(bio, 0) for bio in range(size + 1)]
        idle(opened)


def test_a_single_bio_needs_no_plug() -> None:
    """It goes to the ring when it is submitted, and what follows is not kept waiting for it."""
    with FakeDevice() as device, tags(device) as opened:
        assert write(opened, 5, b"x" * 512) == 0
        assert read(opened, 5, 512) == b"x" * 512
        assert opened.view.q.plugged[0] == 0
        assert opened.view.submitters[0]["tags"] == 0
        assert device.seen == [(OUT, 5, 512), (IN, 5, 512)]
        idle(opened)


@pytest.mark.parametrize("nomerges", ["0", "1", "2"])
def test_nomerges(nomerges: str) -> None:
    with FakeDevice() as device, tags(device) as opened:
        opened.sysfs.write("queue/nomerges", nomerges)
        for bio in range(4):
            plug(opened, bio, REQ_OP_READ, bio)
        unplug(opened)
        harvest(opened, 4)
        assert opened.merges == (0 if nomerges == "2" else 3)
        assert len(device.io) == 4 - opened.merges


BIOS = st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(1, 3), st.booleans()), min_size=1, max_size=60)


@settings(deadline=None, max_examples=25)
@given(BIOS, st.sampled_from([(126, 0), (2, 0), (126, 512)]))
def test_the_device_sees_what_the_twin_sends(bios: list[tuple[bool, int, int, bool]], limits: tuple[int, int]) -> None:
    seg_max, size_max = limits
    config = blk_config(seg_max=seg_max, size_max=size_max)
    with FakeDevice(config=config) as device, tags(device, bios_each=60, queue_size=64, poll_us=None) as opened:
        max_segs, max_bytes = (int(opened.view.queue[0][name]) for name in ("max_segs", "max_bytes"))
        twin = NaiveBlkMq(max_segs=max_segs, max_bytes=max_bytes)
        expected = []

        def flush() -> None:
            twin.flush_plug(0)
            unplug(opened)

        for number, (writes, sector, sectors, ends) in enumerate(bios):
            sectors = min(sectors, max_bytes // 512)
            op = REQ_OP_WRITE if writes else REQ_OP_READ
            segs = sectors if size_max else 1
            bio = Bio(number, op, sector, sectors, segs)
            if twin.submit(0, bio, 0) == "full":
                twin.flush_plug(0)
                twin.submit(0, bio, 0)
            memory_of(opened)[number * 1024 : number * 1024 + 512] = number
            assert plug(opened, number, op, sector, sectors * 512) == 0
            if ends:
                flush()
        flush()
        expected = [(OUT if rq.op else IN, rq.sector, rq.sectors * 512) for rq in twin.driver]
        assert sorted(harvest(opened, len(bios))) == [(number, 0) for number in range(len(bios))]
        assert device.seen == expected
        idle(opened)


# A full ring.


@pytest.mark.parametrize("mask", RINGS)
def test_the_rest_of_a_plug_waits_for_room(mask: int) -> None:
    with FakeDevice(held) as device, tags(device, queue_size=8, without=bits_of(mask)) as opened:
        count = 20

        def batch() -> None:
            for bio in range(count):
                plug(opened, bio, REQ_OP_READ, 10 * bio)
            unplug(opened)

        sending = Background(batch)
        for done in range(count):
            assert sending.running or done > count - 9
            device.complete(device.wait_for(done + 1)[done])
        sending.result()
        assert harvest(opened, count) == [(bio, 0) for bio in range(count)]
        assert [request.sector for request in device.io] == [10 * bio for bio in range(count)]
        assert opened.view.submitters[0]["ring_full_waits"] >= 1
        idle(opened)


@pytest.mark.parametrize("poll_us", WAYS)
@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("scheduler", ["none", "mq-deadline"])
def test_many_submitters_of_plugs_share_four_entries(
    poll_us: int | None, crowded: bool, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitters, rounds, each = (5, 3, 6) if INTERPRETED else (10, 15, 6)
    monkeypatch.setattr(completion, "SLEEP_NS", 5_000_000_000)  # where it is not compiled in, a lost wake-up shows
    with (
        FakeDevice((lambda request: time.sleep(0.001)) if INTERPRETED else None) as device,
        tags(device, queue_size=4, submitters=submitters, bios_each=each, poll_us=poll_us, crowded=crowded) as opened,
        ThreadPoolExecutor(submitters) as pool,
    ):
        opened.sysfs.write("queue/scheduler", scheduler)
        opened.sysfs.write("queue/nr_requests", "4")

        def run(sub: int) -> int:
            wrong = 0
            for round_ in range(rounds):
                for k in range(each):
                    sector = (sub * 97 + round_ * 31 + k * (1 + k % 2)) % 2000
                    plug(opened, sub * each + k, REQ_OP_WRITE if k % 3 else REQ_OP_READ, sector, sub=sub)
                unplug(opened, sub)
                wrong += sum(error for _, error in harvest(opened, each, sub))
            return wrong

        assert list(pool.map(run, range(submitters))) == [0] * submitters
        assert len(device.io) + opened.merges == submitters * rounds * each
        idle(opened)


# A scheduler.


def test_mq_deadline_sorts_what_the_ring_has_no_room_for() -> None:
    with FakeDevice(held) as device, tags(device, queue_size=8, poll_us=None) as opened:
        opened.sysfs.write("queue/scheduler", "mq-deadline")
        for bio in range(8):
            plug(opened, bio, REQ_OP_READ, 1000 + 10 * bio)
        unplug(opened)
        first = device.wait_for(8)
        plug(opened, 8, REQ_OP_READ, 2000)  # takes the place on the dispatch list
        unplug(opened)
        for bio, sector in enumerate((30, 70, 50, 51, 71, 49), 9):
            plug(opened, bio, REQ_OP_READ, sector)
            unplug(opened)
        assert opened.merges == 3
        for request in first:
            device.complete(request)
        assert sorted(harvest(opened, 8)) == [(bio, 0) for bio in range(8)]
        later = device.wait_for(12)[8:]
        assert [request.brief for request in later] == [(IN, 2000, 512), (IN, 30, 512), (IN, 49, 1536), (IN, 70, 1024)]
        for request in later:
            device.complete(request)
        assert sorted(harvest(opened, 7)) == [(bio, 0) for bio in range(8, 15)]
        idle(opened)


def test_what_waits_in_the_scheduler_is_not_out() -> None:
    with FakeDevice(held) as device, tags(device, queue_size=4, poll_us=None) as opened:
        opened.sysfs.write("queue/scheduler", "mq-deadline")
        for bio in range(5):
            plug(opened, bio, REQ_OP_READ, 10 * bio)
        unplug(opened)
        first = device.wait_for(4)
        for request in first:
            device.complete(request)
        assert harvest(opened, 4) == [(bio, 0) for bio in range(4)]
        (last,) = device.wait_for(5)[4:]
        assert in_flight(opened.views)[:, 1].max() > int(opened.view.bios[4]["submitted_ns"])
        device.complete(last)
        assert harvest(opened) == [(4, 0)]
        idle(opened)


@pytest.mark.parametrize("poll_us", WAYS)
def test_a_plug_waits_for_requests_of_the_pool(poll_us: int | None) -> None:
    with FakeDevice(held) as device, tags(device, poll_us=poll_us) as opened:
        opened.sysfs.write("queue/scheduler", "mq-deadline")
        opened.sysfs.write("queue/nr_requests", "4")

        def batch() -> None:
            for bio in range(10):
                plug(opened, bio, REQ_OP_READ, 10 * bio)
            unplug(opened)

        sending = Background(batch)
        device.wait_for(4)
        wait_until(lambda: int(opened.view.submitters[0]["request_waits"]) == 1)
        assert len(device.io) == 4
        for done in range(10):
            device.complete(device.wait_for(done + 1)[done])
        sending.result()
        assert harvest(opened, 10) == [(bio, 0) for bio in range(10)]
        idle(opened)


def test_schedulers_that_change_under_load_lose_nothing() -> None:
    submitters, rounds = (5, 10) if INTERPRETED else (10, 60)
    with (
        FakeDevice() as device,
        driver(device, path="mq", queue_size=4, submitters=submitters, crowded=True) as opened,
    ):

        def change(count: int) -> None:
            opened.sysfs.write("queue/scheduler", ("mq-deadline", "none")[count % 2])
            opened.sysfs.write("queue/nr_requests", ("4", "128", "9")[count % 3])
            opened.sysfs.write("queue/nomerges", "021"[count % 3])

        opened.sysfs.write("queue/scheduler", "mq-deadline")  # compiled before the race begins
        change_under_load(submitters, lambda sub: hammer(opened, sub, rounds), change)
        idle(opened)


def test_each_path_has_its_scheduler() -> None:
    with FakeDevice() as device, driver(device, path="mq") as opened:
        attribute = "queue/scheduler"
        assert opened.sysfs.read(attribute) == "[none] mq-deadline"
        opened.sysfs.write(attribute, "mq-deadline")
        assert opened.sysfs.read(attribute) == "none [mq-deadline]"
        assert opened.sysfs.read("queue/iosched/fifo_batch") == "16"
        opened.set_path("request")
        assert opened.sysfs.read(attribute) == "[noop] deadline"
        opened.sysfs.write(attribute, "none")
        assert (opened.sysfs.read(attribute), opened.view.q.state[0]["elevator"]) == ("[noop] deadline", 0)
        opened.sysfs.write(attribute, "deadline")
        assert opened.view.q.state[0]["elevator"] == 1
        opened.set_path("mq")
        assert (opened.sysfs.read(attribute), opened.view.q.state[0]["elevator"]) == ("[none] mq-deadline", 0)
        with pytest.raises(UsageError, match="set queue/scheduler to mq-deadline first"):
            opened.sysfs.read("queue/iosched/fifo_batch")
        with pytest.raises(
            UsageError, match=r"'cfq': give one of noop, deadline \(request path\) or none, mq-deadline"
        ):
            opened.sysfs.write(attribute, "cfq")


# Flushes, and what else is the block layer's.


def test_a_flush_takes_the_plug_with_it() -> None:
    with FakeDevice() as device, tags(device) as opened:
        plug(opened, 0, REQ_OP_WRITE, 8)
        plug(opened, 1, REQ_OP_WRITE, 9)
        plug(opened, 2, REQ_OP_FLUSH, 0, 0)
        plug(opened, 3, REQ_OP_WRITE, 10, flags=REQ_FUA)
        plug(opened, 4, REQ_OP_WRITE, 11)
        unplug(opened)
        assert sorted(harvest(opened, 5)) == [(bio, 0) for bio in range(5)]
        kinds = sorted(device.seen)
        assert kinds == sorted([(OUT, 8, 1024), FLUSHED, (OUT, 10, 512), FLUSHED, (OUT, 11, 512)])
        assert device.seen[0] == (OUT, 8, 1024)
        idle(opened)


def test_large_bios_go_out_in_pieces_that_merge_with_nothing() -> None:
    with FakeDevice(config=blk_config(size_max=512, seg_max=1)) as device, driver(device, path="mq") as opened:
        data = np.random.default_rng(3).bytes(40 * 512)
        assert write(opened, 3, data) == 0
        assert bytes(device.disk[3 * 512 : 43 * 512]) == data
        assert read(opened, 3, 40 * 512) == data
        assert device.seen == [(kind, 3 + n, 512) for kind in (OUT, IN) for n in range(40)]
        idle(opened)


@pytest.mark.parametrize("queue_size", [4, 64])
def test_a_plug_of_pieces_and_bios_that_meet(queue_size: int) -> None:
    """Pieces of a large bio in the plug, with whole bios before and behind them: each byte at its place."""
    config = blk_config(size_max=1024, seg_max=1)
    with FakeDevice(config=config) as device, tags(device, segments_each=4, queue_size=queue_size) as opened:
        d = opened.view
        memory = memory_of(opened)
        memory[:8192] = np.resize(np.arange(251, dtype=np.uint8), 8192)
        plug(opened, 0, REQ_OP_WRITE, 100)
        d.vec_addr[8:12] = opened.queue.data + 4096 + 1024 * np.arange(4)[::-1]
        d.vec_len[8:12] = 1024
        bio_init(d.bios, 1, REQ_OP_WRITE, 0, 101, 8, 4, 4096, 0)
        assert submit_one(d, 0, 1) == 0
        plug(opened, 2, REQ_OP_WRITE, 109)
        assert device.seen == []
        unplug(opened)
        assert sorted(harvest(opened, 3)) == [(0, 0), (1, 0), (2, 0)]
        whole = memory[:512].tobytes() + b"".join(memory[4096 + 1024 * k :][:1024].tobytes() for k in (3, 2, 1, 0))
        assert bytes(device.disk[100 * 512 : 110 * 512]) == whole + memory[2048:2560].tobytes()
        assert device.seen == [(OUT, 100, 512), *((OUT, 101 + 2 * k, 1024) for k in range(4)), (OUT, 109, 512)]
        idle(opened)


# All paths at once.


def test_all_paths_complete_in_one_reap() -> None:
    with FakeDevice(held) as device, tags(device, poll_us=None) as opened:
        for bio in range(9):
            opened.set_path(("request", "bio", "mq")[bio % 3])
            plug(opened, bio, REQ_OP_READ, 10 * bio)
            unplug(opened)
        opened.set_path("mq")
        for request, status in zip(device.wait_for(9), (None, IOERR) * 4 + (None,), strict=True):
            device.complete(request, status)
        assert reap(opened.view, 0) == 9
        assert harvest(opened, 9) == [(bio, errno.EIO if bio % 2 else 0) for bio in range(9)]
        idle(opened)


# Devices that go, lie, or are late.


def broken(device: FakeDevice, opened: VirtioBlk, code: int, spoil: Any) -> None:
    """Some wait for their completion, the others for room: all come back when `spoil` was done."""
    waiting = [Background(submit, opened, REQ_OP_READ, 10 * sub, 512, sub=sub) for sub in range(9)]
    device.wait_for(4)
    wait_until(lambda: int(opened.view.submitters["ring_full_waits"].sum()) == 5)
    spoil()
    assert [each.result() for each in waiting] == [-code] * 9
    plug(opened, 0, REQ_OP_READ, 7)
    assert submit(opened, REQ_OP_READ, 0, 512) == -code
    assert submit(opened, REQ_OP_FLUSH) == -code
    assert len(device.io) == 4


@pytest.mark.parametrize("poll_us", WAYS)
def test_a_device_that_goes_releases_everybody(poll_us: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "SLEEP_NS", 5_000_000_000)
    with FakeDevice(held) as device, driver(device, path="mq", submitters=9, queue_size=4, poll_us=poll_us) as opened:
        broken(device, opened, errno.ENODEV, device.hang_up)


@pytest.mark.parametrize("poll_us", WAYS)
def test_a_device_that_lies_releases_everybody(poll_us: int | None) -> None:
    with FakeDevice(held) as device, driver(device, path="mq", submitters=9, queue_size=4, poll_us=poll_us) as opened:
        lie = Answer(0, bytes(512), used_id=9999)
        broken(device, opened, errno.EPROTO, lambda: device.complete(device.io[0], lie))


@pytest.mark.parametrize("poll_us", [None, 0])
def test_a_lost_write_is_noticed_while_flushes_come_and_go(poll_us: int | None) -> None:
    def script(request: Request) -> object:
        return HOLD if request.type == OUT else time.sleep(0.01) if request.type == FLUSH else None

    with FakeDevice(script) as device, driver(device, path="mq", submitters=2, poll_us=poll_us) as opened:
        lost = Background(submit, opened, REQ_OP_WRITE, 9, 512)
        device.wait_for(1)
        assert [submit(opened, REQ_OP_FLUSH, sub=1) for _ in range(3)] == [0] * 3
        time_out(opened, 1)
        patience = time.monotonic() + PATIENCE
        while lost.running and time.monotonic() < patience:
            assert submit(opened, REQ_OP_FLUSH, sub=1) in (0, -errno.ETIMEDOUT)
        device.hang_up()  # so that a failure ends, too
        assert lost.result() == -errno.ETIMEDOUT


@pytest.mark.parametrize("poll_us", [None, 0])
def test_a_sequence_of_flushes_is_not_late_as_long_as_none_of_them_is(poll_us: int | None) -> None:
    """The writes of three submitters, and then FLUSHes on their behalf: only what the device has can be late."""
    with (
        FakeDevice(held) as device,
        driver(device, path="mq", submitters=3, poll_us=poll_us) as opened,
        ThreadPoolExecutor(3) as pool,
    ):
        jobs = [pool.submit(write, opened, 10 * sub, b"x" * 512, flags=REQ_FUA, sub=sub) for sub in range(3)]
        for request in device.wait_for(3):
            device.complete(request)
        flushes: list[Request] = []

        def next_or_none() -> bool:
            return len(device.io) > 3 + len(flushes) or all(job.done() for job in jobs)

        while not all(job.done() for job in jobs):
            wait_until(next_or_none)
            for request in device.io[3 + len(flushes) :]:
                flushes.append(request)
                outlast(opened)
                device.complete(request)
        assert [job.result() for job in jobs] == [0] * 3
        assert flushes
        assert {request.type for request in flushes} == {FLUSH}
        idle(opened)
