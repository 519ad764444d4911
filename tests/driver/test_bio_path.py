"""The bio path as the device sees it: FLUSH and FUA, splitting, a ring that is full, all ways to wait."""

from __future__ import annotations

import errno
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from conftest import INTERPRETED
from driver.harness import SPAN, driver, memory_of, read, submit, write
from fake_device import HOLD, FakeDevice, Request
from naive.blk_merge import blk_split
from naive.virtio_blk import EVENT_IDX, F_FLUSH, FEATURES, FLUSH, GET_ID, IN, INDIRECT, IOERR, OUT, UNSUPP, blk_config
from virtblk.block.bio import REQ_FUA, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, REQ_PREFLUSH, bio_init
from virtblk.driver import completion
from virtblk.driver.bio_path import virtblk_harvest, virtblk_make_request
from virtblk.driver.completion import virtblk_wait
from waiting import PATIENCE, Background, wait_until

DATA = (OUT, 9, 1024)
FLUSHED = (FLUSH, 0, 0)
#: The table of the patch: flags, bytes of data, and the requests in order.
TABLE = [
    (0, 1024, [DATA]),
    (REQ_PREFLUSH, 0, [FLUSHED]),
    (REQ_PREFLUSH, 1024, [FLUSHED, DATA]),
    (REQ_FUA, 1024, [DATA, FLUSHED]),
    (REQ_PREFLUSH | REQ_FUA, 1024, [FLUSHED, DATA, FLUSHED]),
]
WAYS = [pytest.param(None, id="polling"), pytest.param(0, id="interrupts"), pytest.param(50, id="spin-then-block")]
RINGS = [
    pytest.param(0, id="both"),
    pytest.param(EVENT_IDX, id="no event_idx"),
    pytest.param(INDIRECT, id="no indirect"),
    pytest.param(EVENT_IDX | INDIRECT, id="neither"),
]


def bits_of(mask: int) -> frozenset[int]:
    return frozenset(bit for bit in range(64) if mask >> bit & 1)


# FLUSH and FUA.


@pytest.mark.parametrize(("flags", "size", "expected"), TABLE)
def test_the_device_sees_what_the_table_says(flags: int, size: int, expected: list[tuple[int, int, int]]) -> None:
    with FakeDevice() as device, driver(device) as opened:
        assert submit(opened, REQ_OP_WRITE, 9, size, flags) == 0
        assert device.seen == expected


@pytest.mark.parametrize(("flags", "size", "expected"), TABLE)
def test_each_step_waits_for_the_one_before(flags: int, size: int, expected: list[tuple[int, int, int]]) -> None:
    with FakeDevice(lambda r: HOLD if r.type in (OUT, FLUSH) else None) as device, driver(device) as opened:
        bio = Background(submit, opened, REQ_OP_WRITE, 9, size, flags)
        for step in range(len(expected)):
            assert [r.brief for r in device.wait_for(step + 1)] == expected[: step + 1]
            time.sleep(0.01)
            assert len(device.io) == step + 1
            assert bio.running
            device.complete(device.io[step])
        assert bio.result() == 0


@pytest.mark.parametrize(("flags", "size", "expected"), TABLE)
@pytest.mark.parametrize(("status", "error"), [(IOERR, errno.EIO), (UNSUPP, errno.ENOTTY)])
def test_a_step_that_fails_is_the_last_one(
    flags: int, size: int, expected: list[tuple[int, int, int]], status: int, error: int
) -> None:
    """Defects of the merged patch: 1. a failed pre-flush still sent the data; 2. a final flush hid a failed write."""
    for failing in range(len(expected)):

        def script(request: Request, failing: int = failing) -> object:
            return status if request.type in (OUT, FLUSH) and len(device.io) == failing + 1 else None

        with FakeDevice(script) as device, driver(device) as opened:
            assert submit(opened, REQ_OP_WRITE, 9, size, flags) == error
            assert device.seen == expected[: failing + 1]
            assert device.disk.count(0) == len(device.disk)


def test_a_split_write_is_flushed_once_and_only_if_all_of_it_was_written() -> None:
    config = blk_config(size_max=512, seg_max=1)
    with FakeDevice(config=config) as device, driver(device) as opened:
        assert submit(opened, REQ_OP_WRITE, 9, 1024, REQ_PREFLUSH | REQ_FUA) == 0
        assert device.seen == [FLUSHED, (OUT, 9, 512), (OUT, 10, 512), FLUSHED]
    with FakeDevice(lambda r: IOERR if r.sector == 9 else None, config=config) as device, driver(device) as opened:
        assert submit(opened, REQ_OP_WRITE, 9, 1024, REQ_FUA) == errno.EIO
        assert device.seen == [(OUT, 9, 512), (OUT, 10, 512)]


def test_a_flush_operation() -> None:
    with FakeDevice() as device, driver(device) as opened:
        assert submit(opened, REQ_OP_FLUSH) == 0
        assert device.seen == [FLUSHED]


@pytest.mark.parametrize("flags", [0, REQ_FUA, REQ_PREFLUSH | REQ_FUA])
def test_without_the_flush_feature_no_flush_is_sent(flags: int) -> None:
    with FakeDevice(features=FEATURES & ~F_FLUSH) as device, driver(device) as opened:
        assert submit(opened, REQ_OP_WRITE, 9, 1024, flags) == 0
        assert submit(opened, REQ_OP_FLUSH) == 0
        assert submit(opened, REQ_OP_WRITE, 9, 0, flags) == 0
        assert device.seen == [DATA]


# Segments.


@pytest.mark.parametrize("mask", RINGS)
@pytest.mark.parametrize(("seg_max", "size_max"), [(126, 0), (2, 512), (3, 1024), (5, 200)])
def test_bios_of_many_segments_are_mapped_and_split_as_the_twin_does(mask: int, seg_max: int, size_max: int) -> None:
    segments = [(0, 512), (512, 512), (2048, 1024), (4096, 300), (5000, 212), (20000, 1536), (30000, 512), (9000, 512)]
    total = sum(size for _, size in segments)
    with (
        FakeDevice(config=blk_config(size_max=size_max, seg_max=seg_max)) as device,
        driver(device, without=bits_of(mask)) as opened,
    ):
        assert opened.queue is not None
        base = opened.queue.data
        memory_of(opened)[:] = np.resize(np.arange(251, dtype=np.uint8), SPAN)
        data = b"".join(memory_of(opened)[at : at + size].tobytes() for at, size in segments)
        assert submit(opened, REQ_OP_WRITE, 7, segments) == 0
        assert bytes(device.disk[7 * 512 : 7 * 512 + total]) == data

        limits = [int(opened.view.queue[0][name]) for name in ("max_segs", "max_seg_len", "max_bytes")]
        expected = blk_split([(base + at, size) for at, size in segments], *limits)
        assert [[(b.address, b.length) for b in r.buffers[1:-1]] for r in device.io] == expected
        starts = np.cumsum([0] + [sum(size for _, size in entries) // 512 for entries in expected])[:-1]
        assert [r.sector for r in device.io] == [7 + int(start) for start in starts]

        memory_of(opened)[:] = 0xEE
        assert submit(opened, REQ_OP_READ, 7, segments) == 0
        assert b"".join(memory_of(opened)[at : at + size].tobytes() for at, size in segments) == data
        covered = np.zeros(SPAN, bool)
        for at, size in segments:
            covered[at : at + size] = True
        assert (memory_of(opened)[~covered] == 0xEE).all()


def test_a_split_bio_ends_with_its_last_piece_and_its_first_error() -> None:
    with (
        FakeDevice(lambda r: HOLD if r.type == IN else None, config=blk_config(size_max=512, seg_max=1)) as device,
        driver(device) as opened,
    ):
        bio = Background(submit, opened, REQ_OP_READ, 4, 4 * 512)
        pieces = device.wait_for(4)
        assert [r.brief for r in pieces] == [(IN, sector, 512) for sector in (4, 5, 6, 7)]
        for index, answer in ((2, None), (3, UNSUPP), (0, IOERR)):
            device.complete(pieces[index], answer)
            time.sleep(0.01)
            assert bio.running
        device.complete(pieces[1], None)
        assert bio.result() == errno.ENOTTY


@pytest.mark.parametrize("segments", [[(0, 512)], [(0, 512), (2048, 100)]])
def test_segments_that_hold_less_than_the_bio_says_are_an_error(segments: list[tuple[int, int]]) -> None:
    with FakeDevice() as device, driver(device) as opened:
        assert submit(opened, REQ_OP_READ, 0, segments, length=2048) == errno.EINVAL
        assert sum(request.room for request in device.io) == 512  # what there was is sent, and waited for
        assert read(opened, 0, 512) == bytes(512)


def test_regression_segments_that_hold_more_than_the_bio_says_are_read_no_further() -> None:
    """The length bounds a bio (Linux: bi_size): the rest of its last segment was read too, over the caller's memory."""
    with FakeDevice() as device, driver(device) as opened:
        memory_of(opened)[:] = 0xEE
        assert submit(opened, REQ_OP_READ, 0, [(0, 512), (1024, 2048)], length=1024) == 0
        assert device.seen == [(IN, 0, 1024)]
        assert (memory_of(opened)[1536:] == 0xEE).all()


# A full ring, and many submitters.


def hammer(opened: object, sub: int, rounds: int) -> int:
    """Write and read back one's own sectors; returns how many rounds went wrong."""
    wrong = 0
    for i in range(rounds):
        data = bytes([sub + 1, i & 0xFF]) * 256
        wrong += write(opened, sub * 2, data, sub=sub) != 0  # type: ignore[arg-type]
        wrong += read(opened, sub * 2, 512, sub=sub) != data  # type: ignore[arg-type]
    return wrong


@pytest.mark.parametrize("poll_us", WAYS)
@pytest.mark.parametrize("mask", RINGS)
def test_many_submitters_share_a_ring_of_four_entries(
    mask: int, poll_us: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitters, rounds = (6, 6) if INTERPRETED else (16, 25)
    # A wake-up that got lost costs a whole sleep, which is too long a time where the constant is not compiled in.
    monkeypatch.setattr(completion, "SLEEP_NS", int(3 * PATIENCE * 1e9))

    def full_waits() -> int:
        return int(opened.view.submitters["ring_full_waits"].sum())

    def script(request: Request) -> None:
        if request.type != GET_ID:
            wait_until(lambda: full_waits() > 0)  # there are more submitters than entries
            time.sleep(0.001 if INTERPRETED else 0)

    with (
        FakeDevice(script) as device,
        driver(
            device, queue_size=4, submitters=submitters, poll_us=poll_us, crowded=True, without=bits_of(mask)
        ) as opened,
        ThreadPoolExecutor(submitters) as pool,
    ):
        began = time.monotonic()
        wrong = list(pool.map(lambda sub: hammer(opened, sub, rounds), range(submitters)))
        took = time.monotonic() - began
        assert wrong == [0] * submitters
        assert len(device.io) == 2 * submitters * rounds
        assert full_waits() > 0
        assert opened.view.vq.state[0]["num_free"] == 4
        assert opened.view.queue[0]["free_requests"] == opened.queue.limits.pool - int(  # type: ignore[union-attr]
            (opened.view.submitters["spare"] >= 0).sum()
        )
        assert took < 3 * PATIENCE


@pytest.mark.parametrize("mask", RINGS)
def test_interrupts_are_asked_for_only_by_those_who_block(mask: int) -> None:
    with FakeDevice() as device, driver(device, poll_us=None, without=bits_of(mask)) as opened:
        assert hammer(opened, 0, 20) == 0
        assert device.calls == 0
        assert opened._completion == []
    slow = FakeDevice(lambda request: time.sleep(0.02))
    with slow as device, driver(device, poll_us=0, without=bits_of(mask)) as opened:
        assert hammer(opened, 0, 5) == 0
        assert 0 < device.calls <= len(device.requests)


# Several bios of one submitter.


def start(opened: object, bio: int, op: int, sector: int, size: int, flags: int = 0) -> None:
    d = opened.view  # type: ignore[attr-defined]
    d.vec_addr[bio], d.vec_len[bio] = opened.queue.data + bio * 4096, size  # type: ignore[attr-defined]
    bio_init(d.bios, bio, op, flags, sector, bio, 1 if size else 0, size, 0)
    assert virtblk_make_request(d, 0, bio, 1) == 0


def harvest(opened: object) -> int:
    """The next bio that ends."""
    d = opened.view  # type: ignore[attr-defined]
    while (bio := virtblk_harvest(d, 0)) == -1:
        assert virtblk_wait(d, 0, 0, True) == 0
    return int(bio)


def test_bios_of_one_submitter_end_in_the_order_of_the_device() -> None:
    with (
        FakeDevice(lambda r: HOLD if r.type in (IN, OUT) else None) as device,
        driver(device, bios_each=8, segments_each=1) as opened,
    ):
        for bio in range(8):
            start(opened, bio, REQ_OP_READ, bio, 512)
        requests = device.wait_for(8)
        assert virtblk_harvest(opened.view, 0) == -1
        order = [5, 0, 7, 1, 6, 2, 4, 3]
        for index in order:
            device.complete(requests[index], IOERR if index == 6 else None)
        assert [harvest(opened) for _ in order] == order
        assert [int(bio["error"]) for bio in opened.view.bios] == [0, 0, 0, 0, 0, 0, errno.EIO, 0]


def test_the_steps_of_one_bio_do_not_hold_up_the_others() -> None:
    with (
        FakeDevice(lambda r: HOLD if r.type == FLUSH else None) as device,
        driver(device, bios_each=2, segments_each=1) as opened,
    ):
        start(opened, 0, REQ_OP_WRITE, 3, 512, REQ_PREFLUSH | REQ_FUA)
        (pre,) = device.wait_for(1)
        for round_number in range(3):
            start(opened, 1, REQ_OP_READ, round_number, 512)
            assert harvest(opened) == 1
        device.complete(pre)
        later = Background(harvest, opened)
        post = device.wait_for(6)[-1]
        assert [r.brief for r in device.io[-2:]] == [(OUT, 3, 512), FLUSHED]
        device.complete(post)
        assert later.result() == 0
        assert opened.view.bios[0]["error"] == 0
