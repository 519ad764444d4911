"""The request path as the device sees it: flushes, merges, splits, a full ring, an empty pool, both paths at once.

What the mq path has to do alike runs on both; the rest of it is in test_mq_path.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from conftest import INTERPRETED
from driver.harness import SPAN, driver, memory_of, read, submit, write
from driver.test_bio_path import DATA, FLUSHED, RINGS, TABLE, WAYS, bits_of, hammer
from fake_device import HOLD, Answer, FakeDevice, Request
from naive.blk_merge import blk_split
from naive.virtio_blk import F_FLUSH, FEATURES, FLUSH, GET_ID, IN, IOERR, OUT, UNSUPP, blk_config
from virtblk.bench.overdue import in_flight
from virtblk.block.bio import (
    REQ_FUA,
    REQ_OP_FLUSH,
    REQ_OP_GET_ID,
    REQ_OP_READ,
    REQ_OP_WRITE,
    REQ_PREFLUSH,
    bio_init,
)
from virtblk.block.request import RQ_DISPATCH, RQ_DRIVER, RQ_ELEVATOR
from virtblk.driver import completion
from virtblk.driver.bio_path import virtblk_harvest
from virtblk.driver.completion import virtblk_done, virtblk_wait
from virtblk.driver.submit_bio import blk_finish_plug, blk_start_plug, submit_bio
from virtblk.driver.sysfs import queue_lock
from virtblk.driver.virtblk_req import RequestPathOnly
from virtblk.driver.virtio_blk import VirtioBlk
from virtblk.errors import UsageError
from virtblk.jit.kernel import kernel
from virtblk.jit.libc import clock_ns
from waiting import PATIENCE, Background, wait_until


def held(request: Request) -> object:
    return None if request.type == GET_ID else HOLD


@pytest.fixture(params=["request", "mq", "mq-deadline"])
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test on the mq path, too, without a scheduler and with one."""
    monkeypatch.setitem(REQUESTS, "path", request.param.partition("-")[0])
    monkeypatch.setitem(REQUESTS, "scheduler", request.param if "-" in request.param else "")


#: What `requests` opens its drivers with; the fixture `layers` changes it.
REQUESTS = {"path": "request", "scheduler": ""}


@contextmanager
def requests(device: FakeDevice, **options: Any) -> Iterator[VirtioBlk]:
    """A driver on the request path, or on the one that `layers` says."""
    with driver(device, **({"path": REQUESTS["path"]} | options)) as opened:
        if REQUESTS["scheduler"]:
            opened.sysfs.write("queue/scheduler", REQUESTS["scheduler"])
        yield opened


# submit_bio and its kind become part of who calls them: a test needs callers.


@kernel
def submit_one(d, sub, bio):
    blk_start_plug(d, sub)
    return submit_bio(d, sub, bio, clock_ns())


@kernel
def finish_plug(d, sub):
    return blk_finish_plug(d, sub)


@kernel
def harvest_one(d, sub):
    return virtblk_harvest(d, sub)


@kernel
def wait_for_one(d, sub):
    return virtblk_wait(d, sub, 0, True)


@kernel
def reap(d, sub):
    return virtblk_done(d, sub, True)


def plug(opened: VirtioBlk, bio: int, op: int, sector: int, size: int = 512, flags: int = 0, sub: int = 0) -> int:
    """Submit a bio without a word about whether there is more. Its memory is at bio * 1024 of the first submitter's."""
    d = opened.view
    assert opened.queue is not None
    d.vec_addr[bio], d.vec_len[bio] = opened.queue.data + bio * 1024, size
    bio_init(d.bios, bio, op, flags, sector, bio, 1 if size else 0, size, sub)
    return int(submit_one(d, sub, bio))


def unplug(opened: VirtioBlk, sub: int = 0) -> None:
    assert finish_plug(opened.view, sub) == 0


def harvest(opened: VirtioBlk, count: int = 1, sub: int = 0) -> list[tuple[int, int]]:
    """The next `count` bios that end, with their errors."""
    ended = []
    while len(ended) < count:
        if (bio := int(harvest_one(opened.view, sub))) >= 0:
            ended.append((bio, int(opened.view.bios[bio]["error"])))
        else:
            assert bio == -1
            assert wait_for_one(opened.view, sub) == 0
    return ended


def idle(opened: VirtioBlk) -> None:
    """Nothing is out, and nothing was lost on the way."""
    for d in opened.views:
        assert d.q.state[0]["in_use"] == 0
        assert d.q.state[0]["sorted"] == 0
        assert not (d.q.rq["where"] == RQ_DRIVER).any()
        assert d.vq.state[0]["num_free"] == d.vq.state[0]["num"]
        spares = int((d.submitters["spare"] >= 0).sum() + d.submitters["tags"].sum())
        assert d.queue[0]["free_requests"] + spares == len(d.requests)
    assert not in_flight(opened.views)[:, 1].any()


# FLUSH and FUA.


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize(("flags", "size", "expected"), TABLE)
def test_the_device_sees_what_the_table_says(flags: int, size: int, expected: list[tuple[int, int, int]]) -> None:
    with FakeDevice() as device, requests(device) as opened:
        for _ in range(2):
            assert submit(opened, REQ_OP_WRITE, 9, size, flags) == 0
        assert device.seen == expected * 2
        idle(opened)


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize(("flags", "size", "expected"), TABLE)
@pytest.mark.parametrize(("status", "error"), [(IOERR, errno.EIO), (UNSUPP, errno.ENOTTY)])
def test_a_step_that_fails_is_the_last_one(
    flags: int, size: int, expected: list[tuple[int, int, int]], status: int, error: int
) -> None:
    for failing in range(len(expected)):

        def script(request: Request, failing: int = failing) -> object:
            return status if request.type in (OUT, FLUSH) and len(device.io) == failing + 1 else None

        with FakeDevice(script) as device, requests(device) as opened:
            assert submit(opened, REQ_OP_WRITE, 9, size, flags) == error
            assert device.seen == expected[: failing + 1]
            idle(opened)


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize(("flags", "size", "expected"), TABLE)
def test_each_step_waits_for_the_one_before(flags: int, size: int, expected: list[tuple[int, int, int]]) -> None:
    with FakeDevice(held) as device, requests(device) as opened:
        bio = Background(submit, opened, REQ_OP_WRITE, 9, size, flags)
        for step in range(len(expected)):
            assert [r.brief for r in device.wait_for(step + 1)] == expected[: step + 1]
            assert bio.running
            device.complete(device.io[step])
        assert bio.result() == 0
        assert device.seen == expected


@pytest.mark.usefixtures("layers")
def test_one_flush_serves_all_that_wait_for_it() -> None:
    with FakeDevice(held) as device, requests(device, bios_each=8, segments_each=1) as opened:
        plug(opened, 0, REQ_OP_FLUSH, 0, 0)
        unplug(opened)
        (first,) = device.wait_for(1)
        for bio in range(1, 8):
            plug(opened, bio, REQ_OP_FLUSH, 0, 0)
        unplug(opened)
        device.complete(first)
        assert harvest(opened) == [(0, 0)]
        device.complete(device.wait_for(2)[1], IOERR)
        assert harvest(opened, 7) == [(bio, errno.EIO) for bio in range(1, 8)]
        assert device.seen == [FLUSHED] * 2
        idle(opened)


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("flags", [0, REQ_FUA, REQ_PREFLUSH | REQ_FUA])
def test_without_the_flush_feature_no_flush_is_sent(flags: int) -> None:
    with FakeDevice(features=FEATURES & ~F_FLUSH) as device, requests(device) as opened:
        assert submit(opened, REQ_OP_WRITE, 9, 1024, flags) == 0
        assert submit(opened, REQ_OP_FLUSH) == 0
        assert submit(opened, REQ_OP_WRITE, 9, 0, flags) == 0
        assert device.seen == [DATA]
        idle(opened)


def test_regression_a_bio_that_needed_no_device_is_not_out() -> None:
    """It stayed marked as waiting for a request, and looked ever older once bios took the other path."""
    with FakeDevice(features=FEATURES & ~F_FLUSH) as device, requests(device) as opened:
        assert submit(opened, REQ_OP_FLUSH) == 0
        opened.set_path("bio")
        assert not in_flight(opened.views)[:, 1].any()


@pytest.mark.usefixtures("layers")
def test_reads_are_not_forced_to_the_medium() -> None:
    with FakeDevice() as device, requests(device) as opened:
        assert submit(opened, REQ_OP_READ, 9, 1024, REQ_FUA) == 0
        assert submit(opened, REQ_OP_READ, 9, 1024, REQ_PREFLUSH) == 0
        assert device.seen == [(IN, 9, 1024), FLUSHED, (IN, 9, 1024)]


@pytest.mark.usefixtures("layers")
def test_a_split_write_is_flushed_before_its_end() -> None:
    config = blk_config(size_max=512, seg_max=1)
    with FakeDevice(config=config) as device, requests(device) as opened:
        assert submit(opened, REQ_OP_WRITE, 9, 1024, REQ_PREFLUSH | REQ_FUA) == 0
        kinds = [kind for kind, _, _ in device.seen]
        assert sorted(device.seen[kinds.index(OUT) :][: kinds.count(OUT)])[:1] == [(OUT, 9, 512)]
        assert (kinds[0], kinds[-1], kinds.count(OUT)) == (FLUSH, FLUSH, 2)
        idle(opened)
    with FakeDevice(lambda r: IOERR if r.sector == 9 else None, config=config) as device, requests(device) as opened:
        assert submit(opened, REQ_OP_WRITE, 9, 1024, REQ_FUA) == errno.EIO
        idle(opened)


# Segments.


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("mask", RINGS)
@pytest.mark.parametrize(("seg_max", "size_max"), [(126, 0), (2, 512), (3, 1024), (5, 200)])
def test_bios_of_many_segments_are_mapped_and_split_as_the_twin_does(mask: int, seg_max: int, size_max: int) -> None:
    segments = [(0, 512), (512, 512), (2048, 1024), (4096, 300), (5000, 212), (20000, 1536), (30000, 512), (9000, 512)]
    total = sum(size for _, size in segments)
    with (
        FakeDevice(config=blk_config(size_max=size_max, seg_max=seg_max)) as device,
        requests(device, without=bits_of(mask)) as opened,
    ):
        base = opened.queue.data
        memory_of(opened)[:] = np.resize(np.arange(251, dtype=np.uint8), SPAN)
        data = b"".join(memory_of(opened)[at : at + size].tobytes() for at, size in segments)
        assert submit(opened, REQ_OP_WRITE, 7, segments) == 0
        assert bytes(device.disk[7 * 512 : 7 * 512 + total]) == data
        limits = [int(opened.view.queue[0][name]) for name in ("max_segs", "max_seg_len", "max_bytes")]
        expected = blk_split([(base + at, size) for at, size in segments], *limits)
        assert [[(b.address, b.length) for b in r.buffers[1:-1]] for r in device.io] == expected
        memory_of(opened)[:] = 0xEE
        assert submit(opened, REQ_OP_READ, 7, segments) == 0
        assert b"".join(memory_of(opened)[at : at + size].tobytes() for at, size in segments) == data
        covered = np.zeros(SPAN, bool)
        for at, size in segments:
            covered[at : at + size] = True
        assert (memory_of(opened)[~covered] == 0xEE).all()
        idle(opened)


def test_a_bio_of_more_pieces_than_the_pool_and_the_plug_hold() -> None:
    with FakeDevice(config=blk_config(size_max=512, seg_max=1)) as device, requests(device) as opened:
        opened.sysfs.write("queue/nr_requests", "4")
        data = np.random.default_rng(3).bytes(40 * 512)
        assert write(opened, 3, data) == 0
        assert bytes(device.disk[3 * 512 : 43 * 512]) == data
        assert read(opened, 3, 40 * 512) == data
        assert device.seen == [(kind, 3 + n, 512) for kind in (OUT, IN) for n in range(40)]
        assert opened.view.submitters[0]["request_waits"] > 0
        idle(opened)


@pytest.mark.usefixtures("layers")
def test_a_split_bio_ends_with_its_last_piece_and_its_first_error() -> None:
    with FakeDevice(held, config=blk_config(size_max=512, seg_max=1)) as device, requests(device) as opened:
        bio = Background(submit, opened, REQ_OP_READ, 4, 4 * 512)
        pieces = device.wait_for(4)
        for index, answer in ((2, None), (3, UNSUPP), (0, IOERR)):
            device.complete(pieces[index], answer)
            assert bio.running
        device.complete(pieces[1], None)
        assert bio.result() == errno.ENOTTY
        idle(opened)


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("segments", [[(0, 512)], [(0, 512), (2048, 100)]])
def test_segments_that_hold_less_than_the_bio_says_are_an_error(segments: list[tuple[int, int]]) -> None:
    with FakeDevice() as device, requests(device) as opened:
        assert submit(opened, REQ_OP_READ, 0, segments, length=2048) == errno.EINVAL
        assert sum(request.room for request in device.io) == 512
        assert read(opened, 0, 512) == bytes(512)
        idle(opened)


# Merges.


@pytest.mark.parametrize(
    ("sectors", "seen"),
    [
        ([8, 9, 10, 11], [(OUT, 8, 2048)]),
        ([11, 10, 9, 8], [(OUT, 8, 2048)]),
        ([9, 8, 10, 20], [(OUT, 8, 1536), (OUT, 20, 512)]),
        ([30, 20, 10, 0], [(OUT, 0, 512), (OUT, 10, 512), (OUT, 20, 512), (OUT, 30, 512)]),
    ],
)
@pytest.mark.parametrize("status", [None, IOERR])
def test_the_plug_makes_one_request_of_neighbours(
    sectors: list[int], seen: list[tuple[int, int, int]], status: int | None
) -> None:
    with (
        FakeDevice(lambda r: status if r.type == OUT else None) as device,
        requests(device, bios_each=4, segments_each=1) as opened,
    ):
        for bio, sector in enumerate(sectors):
            memory_of(opened)[bio * 1024 : bio * 1024 + 512] = sector + 1
            assert plug(opened, bio, REQ_OP_WRITE, sector) == 0
        assert device.seen == []
        unplug(opened)
        ended = harvest(opened, 4)
        assert sorted(ended) == [(bio, errno.EIO if status else 0) for bio in range(4)]
        assert device.seen == seen
        assert opened.merges == 4 - len(seen)
        if status is None:
            for sector in sectors:
                assert bytes(device.disk[sector * 512 : sector * 512 + 512]) == bytes([sector + 1]) * 512
        assert opened.view.submitters[0]["kicks"] <= 2  # GET_ID's, and one for the plug
        idle(opened)


@pytest.mark.parametrize("scheduler", ["noop", "deadline"])
def test_bios_merge_in_the_elevator_while_the_ring_is_full(scheduler: str) -> None:
    with FakeDevice(held) as device, requests(device, bios_each=12, segments_each=1, queue_size=8) as opened:
        opened.sysfs.write("queue/scheduler", scheduler)
        for bio in range(8):
            plug(opened, bio, REQ_OP_READ, 100 * bio)
            unplug(opened)
        first = device.wait_for(8)
        plug(opened, 8, REQ_OP_READ, 1000)  # takes the place on the dispatch list, behind which the elevator fills
        unplug(opened)
        assert opened.view.q.state[0]["stopped"] == 1
        for bio, sector in ((9, 50), (10, 51), (11, 52)):
            plug(opened, bio, REQ_OP_READ, sector)
            unplug(opened)
        assert opened.view.q.state[0]["sorted"] == 1
        assert opened.merges == 2
        for request in first:
            device.complete(request)
        assert harvest(opened, 8) == [(bio, 0) for bio in range(8)]
        later = device.wait_for(10)[8:]
        assert [request.brief for request in later] == [(IN, 1000, 512), (IN, 50, 1536)]
        for request in later:
            device.complete(request)
        assert harvest(opened, 4) == [(bio, 0) for bio in range(8, 12)]
        assert opened.view.q.state[0]["stops"] >= 1
        idle(opened)


# A full ring, an empty pool, many submitters.


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("poll_us", WAYS)
@pytest.mark.parametrize("crowded", [False, True])
def test_many_submitters_share_four_entries_and_four_requests(
    poll_us: int | None, crowded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitters, rounds = (6, 5) if INTERPRETED else (12, 25)
    monkeypatch.setattr(completion, "SLEEP_NS", 5_000_000_000)  # where it is not compiled in, a lost wake-up shows
    with (
        FakeDevice((lambda request: time.sleep(0.001)) if INTERPRETED else None) as device,
        requests(device, queue_size=4, submitters=submitters, poll_us=poll_us, crowded=crowded) as opened,
        ThreadPoolExecutor(submitters) as pool,
    ):
        opened.sysfs.write("queue/nr_requests", "4")
        assert list(pool.map(lambda sub: hammer(opened, sub, rounds), range(submitters))) == [0] * submitters
        assert len(device.io) + opened.merges == 2 * submitters * rounds
        idle(opened)


@pytest.mark.parametrize("poll_us", WAYS)
def test_an_empty_pool_makes_submitters_wait_until_requests_come_back(poll_us: int | None) -> None:
    submitters = 10
    with FakeDevice(held) as device, requests(device, submitters=submitters, poll_us=poll_us, crowded=True) as opened:
        opened.sysfs.write("queue/nr_requests", "4")
        waiting = [Background(submit, opened, REQ_OP_READ, 10 * sub, 512, sub=sub) for sub in range(submitters)]
        device.wait_for(4)
        wait_until(lambda: int(opened.view.submitters["request_waits"].sum()) == submitters - 4)
        assert len(device.io) == 4
        for done in range(submitters):
            device.complete(device.wait_for(min(done + 4, submitters))[done])
        assert [each.result() for each in waiting] == [0] * submitters
        idle(opened)


def test_a_larger_pool_lets_who_waits_go_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "SLEEP_NS", 5_000_000_000)
    with FakeDevice(held) as device, requests(device, submitters=6, poll_us=0) as opened:
        opened.sysfs.write("queue/nr_requests", "4")
        waiting = [Background(submit, opened, REQ_OP_READ, 10 * sub, 512, sub=sub) for sub in range(6)]
        wait_until(lambda: int(opened.view.submitters["request_waits"].sum()) == 2)
        opened.sysfs.write("queue/nr_requests", "6")
        for request in device.wait_for(6):
            device.complete(request)
        assert [each.result() for each in waiting] == [0] * 6


# GET_ID.


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize(("status", "error"), [(None, 0), (IOERR, errno.EIO), (UNSUPP, errno.EIO), (77, errno.EIO)])
def test_get_id_takes_the_request_path(status: int | None, error: int) -> None:
    with FakeDevice(serial=b"a serial of 20 bytes") as device, requests(device) as opened:
        assert opened.serial == "a serial of 20 bytes"
        device.script = lambda request: status
        memory_of(opened)[:20] = 0
        assert submit(opened, REQ_OP_GET_ID, 0, 20) == error
        assert memory_of(opened)[:20].tobytes() == (bytes(20) if error else b"a serial of 20 bytes")
        assert opened.view.q.state[0]["dispatched"] == 2
        idle(opened)


# Both paths at once.


def test_both_paths_complete_in_one_reap() -> None:
    with FakeDevice(held) as device, requests(device, bios_each=4, segments_each=1, poll_us=None) as opened:
        for bio in range(4):
            opened.set_path(("request", "bio")[bio % 2])
            plug(opened, bio, REQ_OP_READ, 10 * bio)
            unplug(opened)
        for request, status in zip(device.wait_for(4), (None, None, IOERR, IOERR), strict=True):
            device.complete(request, status)
        assert reap(opened.view, 0) == 4
        assert harvest(opened, 4) == [(0, 0), (1, 0), (2, errno.EIO), (3, errno.EIO)]
        opened.set_path("request")
        idle(opened)


def test_a_queue_that_bios_stopped_is_started_by_their_completion() -> None:
    with FakeDevice(held) as device, requests(device, bios_each=5, segments_each=1, queue_size=4) as opened:
        opened.set_path("bio")
        for bio in range(4):
            plug(opened, bio, REQ_OP_READ, 10 * bio)
        filled = device.wait_for(4)
        opened.set_path("request")
        plug(opened, 4, REQ_OP_READ, 77)
        unplug(opened)
        assert opened.view.q.state[0]["stopped"] == 1
        device.complete(filled[2])
        assert harvest(opened) == [(2, 0)]
        later = device.wait_for(5)[4]
        assert later.brief == (IN, 77, 512)
        for request in (later, filled[0], filled[1], filled[3]):
            device.complete(request)
        assert harvest(opened, 4) == [(4, 0), (0, 0), (1, 0), (3, 0)]
        idle(opened)


def test_regression_a_queue_that_starts_meanwhile_leaves_a_bio_that_is_being_split_alone() -> None:
    """Who waited for room reaped, started the queue, and went on splitting its bio at another bio's data."""
    with (
        FakeDevice(held, config=blk_config(size_max=512, seg_max=1)) as device,
        requests(device, bios_each=6, segments_each=4, queue_size=4, poll_us=None) as opened,
    ):
        device.disk[:] = np.repeat(np.arange(2048) % 251, 512).astype(np.uint8).tobytes()
        d = opened.view
        opened.set_path("bio")
        for bio in range(4):  # the ring is full
            plug(opened, bio, REQ_OP_READ, 100 + bio)
        opened.set_path("request")
        plug(opened, 4, REQ_OP_READ, 200)
        unplug(opened)
        opened.set_path("bio")
        memory = memory_of(opened)[16384 : 16384 + 1536]
        d.vec_addr[8:11] = opened.queue.data + 16384 + 512 * np.arange(3)
        d.vec_len[8:11] = 512
        bio_init(d.bios, 5, REQ_OP_READ, 0, 50, 8, 3, 1536, 0)
        split = Background(submit_one, d, 0, 5)
        for done in range(7):
            device.complete(device.wait_for(done + 1)[done])
        assert split.result() == 0
        for request in device.wait_for(8)[7:]:
            device.complete(request)
        assert sorted(harvest(opened, 6)) == [(bio, 0) for bio in range(6)]
        assert memory.tobytes() == np.repeat(np.arange(50, 53), 512).astype(np.uint8).tobytes()
        opened.set_path("request")
        idle(opened)


# Devices that go, lie, or are late.


def broken(device: FakeDevice, opened: VirtioBlk, code: int, submitters: int, spoil: Any) -> None:
    """Some wait for their completion, the others for a request: all come back when `spoil` was done."""
    opened.sysfs.write("queue/nr_requests", "6")
    waiting = [Background(submit, opened, REQ_OP_READ, 10 * sub, 512, sub=sub) for sub in range(submitters)]
    device.wait_for(4)
    wait_until(lambda: int(opened.view.submitters["request_waits"].sum()) == submitters - 6)
    spoil()
    assert [each.result() for each in waiting] == [-code] * submitters
    assert submit(opened, REQ_OP_READ, 0, 512) == -code
    assert submit(opened, REQ_OP_FLUSH) == -code
    assert len(device.io) == 4


@pytest.mark.parametrize("poll_us", WAYS)
def test_a_device_that_goes_releases_everybody(poll_us: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "SLEEP_NS", 5_000_000_000)
    with FakeDevice(held) as device, requests(device, submitters=9, queue_size=4, poll_us=poll_us) as opened:
        broken(device, opened, errno.ENODEV, 9, device.hang_up)


@pytest.mark.parametrize("poll_us", WAYS)
def test_a_device_that_lies_releases_everybody(poll_us: int | None) -> None:
    with FakeDevice(held) as device, requests(device, submitters=9, queue_size=4, poll_us=poll_us) as opened:
        lie = Answer(0, bytes(512), used_id=9999)
        broken(device, opened, errno.EPROTO, 9, lambda: device.complete(device.io[0], lie))


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("poll_us", WAYS)
@pytest.mark.parametrize("crowded", [False, True])
def test_a_device_that_is_silent_releases_everybody(poll_us: int | None, crowded: bool) -> None:
    with (
        FakeDevice(held) as device,
        requests(device, submitters=8, queue_size=4, poll_us=poll_us, crowded=crowded, timeout=0.5) as opened,
    ):
        waiting = [Background(submit, opened, REQ_OP_READ, 10 * sub, 512, sub=sub) for sub in range(8)]
        assert [each.result() for each in waiting] == [-errno.ETIMEDOUT] * 8
        assert len(device.io) <= 4


def outlast(opened: VirtioBlk) -> None:
    """Let everybody who waits for a completion find that the time-out is over, though what the device has is not late.

    Real time has no part in it: the time-out is the shortest there is, and what is out starts in a distant future.
    """
    d = opened.view
    with queue_lock(d):  # whoever starts requests is through with it
        for rq in (*range(d.q.state[0]["most_used"]), d.q.state[0]["flush_rq"]):
            if d.q.rq[rq]["where"] == RQ_DRIVER:
                d.q.rq[rq]["start_ns"] = clock_ns() + int(100 * PATIENCE * 1e9)
    looks = int(d.queue[0]["reaps"])
    timeout_ns, d.queue[0]["timeout_ns"] = int(d.queue[0]["timeout_ns"]), 1
    wait_until(lambda: d.queue[0]["reaps"] >= looks + 20 or opened.error)
    d.queue[0]["timeout_ns"] = timeout_ns


@pytest.mark.parametrize("scheduler", ["", "mq-deadline"])
@pytest.mark.parametrize("nr_requests", ["128", "4"])
@pytest.mark.parametrize(("poll_us", "crowded"), [(None, False), (None, True), (0, False)])
def test_a_request_that_waits_in_the_queue_is_not_late(
    scheduler: str, nr_requests: str, poll_us: int | None, crowded: bool
) -> None:
    """After a FLUSH that ended long ago: only what the device has can be late, and its time runs from its start.

    Four requests are out, and four wait for the ring, or for one of four requests of the pool.
    """
    submitters = 8
    with (
        FakeDevice(lambda request: HOLD if request.type == IN else None) as device,
        driver(
            device,
            path="mq" if scheduler else "request",
            submitters=submitters,
            queue_size=4 if nr_requests == "128" else 16,
            poll_us=poll_us,
            crowded=crowded,
        ) as opened,
    ):
        d = opened.view
        if scheduler:
            opened.sysfs.write("queue/scheduler", scheduler)
        opened.sysfs.write("queue/nr_requests", nr_requests)
        assert submit(opened, REQ_OP_FLUSH) == 0
        waiting = [Background(submit, opened, REQ_OP_READ, 8 * sub, 512, sub=sub) for sub in range(submitters)]
        requests = device.wait_for(5)[1:]
        queued = (RQ_ELEVATOR, RQ_DISPATCH)
        wait_until(lambda: np.isin(d.q.rq["where"], queued).sum() + d.submitters["request_waits"].sum() == 4)
        if nr_requests == "128":  # who waits for the pool may not wait longer than the time-out for anything to end
            outlast(opened)
        assert all(each.running for each in waiting)
        assert len(device.io) == 5
        started = clock_ns()
        for request in requests:
            device.complete(request)
        requests = device.wait_for(9)[5:]
        out = d.q.rq["where"] == RQ_DRIVER
        assert out.sum() == 4
        assert (d.q.rq["start_ns"][out] >= started).all()
        outlast(opened)
        for request in requests:
            device.complete(request)
        assert [each.result() for each in waiting] == [0] * submitters
        idle(opened)


@pytest.mark.usefixtures("both_paths")
@pytest.mark.parametrize("poll_us", WAYS)
@pytest.mark.parametrize("crowded", [False, True])
def test_regression_what_ended_in_time_is_not_late(poll_us: int | None, crowded: bool) -> None:
    """Somebody was about to reap when the time-out was over: who waited meanwhile gave the device up."""
    with FakeDevice(held) as device, driver(device, submitters=2, poll_us=poll_us, crowded=crowded) as opened:
        d = opened.view
        waiting = [Background(submit, opened, REQ_OP_READ, 8 * sub, 512, sub=sub) for sub in range(2)]
        requests = device.wait_for(2)
        with queue_lock(d):
            for request in requests:
                device.complete(request)
            timeout_ns, d.queue[0]["timeout_ns"] = int(d.queue[0]["timeout_ns"]), 1
            time.sleep(0.2)  # for them to look at the clock
        assert [each.result() for each in waiting] == [0, 0]
        d.queue[0]["timeout_ns"] = timeout_ns
        assert opened.error == 0


@pytest.mark.parametrize("poll_us", WAYS)
@pytest.mark.parametrize("crowded", [False, True])
def test_regression_who_is_late_for_one_request_is_asked_about_the_others_anew(
    poll_us: int | None, crowded: bool
) -> None:
    """The oldest request seemed late and had in truth ended: who waited for a young one gave the device up."""
    with FakeDevice(held) as device, requests(device, submitters=2, poll_us=poll_us, crowded=crowded) as opened:
        d = opened.view
        waiting = [Background(submit, opened, REQ_OP_READ, 8 * sub, 512, sub=sub) for sub in range(2)]
        old, young = sorted(device.wait_for(2), key=lambda request: request.sector)
        with queue_lock(d):
            for rq in range(2):
                late = d.q.rq[rq]["sector"] == old.sector
                d.q.rq[rq]["start_ns"] = clock_ns() + int((-1 if late else 1) * 100 * PATIENCE * 1e9)
            device.complete(old)
            timeout_ns, d.queue[0]["timeout_ns"] = int(d.queue[0]["timeout_ns"]), 1
            time.sleep(0.2)  # for them to look at the clock
        assert waiting[0].result() == 0
        assert opened.error == 0
        d.queue[0]["timeout_ns"] = timeout_ns
        device.complete(young)
        assert waiting[1].result() == 0
        idle(opened)


# Without the bio path.


def test_a_queue_without_the_bio_path_does_io() -> None:
    with FakeDevice() as device, requests(device, paths=RequestPathOnly(), poll_us=None) as opened:
        assert opened.path == "request"
        with pytest.raises(UsageError, match="built without the bio path"):
            opened.set_path("bio")
        data = np.random.default_rng(5).bytes(4096)
        assert write(opened, 5, data) == 0
        assert read(opened, 5, 4096) == data
        assert submit(opened, REQ_OP_FLUSH) == 0
        assert device.seen == [(OUT, 5, 4096), (IN, 5, 4096), FLUSHED]
        idle(opened)
