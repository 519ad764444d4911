"""Several virtqueues: who uses which, what they share (their end, and nothing else), and what is told of them."""

from __future__ import annotations

import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import INTERPRETED
from driver.harness import driver, memory_of, read, submit, write
from driver.test_bio_path import WAYS, hammer
from driver.test_request_path import finish_plug, harvest_one, held, idle, submit_one, wait_for_one
from fake_device import HOLD, Answer, FakeDevice, Fault, Request
from naive.blk_mq import NaiveBlkMq
from naive.block_layer import Bio
from naive.virtio_blk import F_MQ, FEATURES, FLUSH, IN, OUT, P_MQ, PROTOCOL_FEATURES, blk_config
from virtblk.block.bio import REQ_FUA, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, bio_init
from virtblk.driver import completion, virtio_blk
from virtblk.driver.map_queues import map_queue, mapped_submitters
from virtblk.driver.sysfs import queue_lock
from virtblk.driver.virtio_blk import DriverOptions, VirtioBlk
from virtblk.errors import OpenError, UsageError
from virtblk.uapi.vhost_user import FrontendRequest as R
from virtblk.uapi.virtio_blk import VIRTIO_BLK_F_MQ
from waiting import PATIENCE, Background, wait_until

#: Bios of a submitter, and what each has of the data memory, in bytes.
EACH = 40
ROOM = 2048


def disk(script: Any = None, queues: int = 4, **options: Any) -> FakeDevice:
    """A device of several virtqueues."""
    return FakeDevice(script, **({"config": blk_config(num_queues=queues), "queue_num": queues} | options))


def several(device: FakeDevice, queues: int = 4, **options: Any) -> Any:
    """A driver on the mq path that uses `queues` of them."""
    return driver(device, **({"path": "mq", "queues": queues, "submitters": queues} | options))


def by_queue(device: FakeDevice, queues: int = 4) -> list[list[tuple[int, int, int]]]:
    """What came on each virtqueue."""
    return [[request.brief for request in device.io if request.queue == index] for index in range(queues)]


class Plugger:
    """Plugs of one submitter, whose bios are EACH, numbered from 0."""

    def __init__(self, opened: VirtioBlk, sub: int) -> None:
        queue, self.number = opened.map_submitter(sub)
        self.view, self.first = queue.kernel_view, self.number * EACH
        self.data = opened.data + sub * EACH * ROOM
        self.used = 0

    def plug(self, op: int, sector: int, size: int) -> None:
        bio = self.first + self.used
        self.view.vec_addr[bio], self.view.vec_len[bio] = self.data + self.used * ROOM, size
        bio_init(self.view.bios, bio, op, 0, sector, bio, 1, size, self.number)
        self.used += 1
        assert submit_one(self.view, self.number, bio) == 0

    def unplug(self) -> None:
        assert finish_plug(self.view, self.number) == 0

    def harvest(self) -> list[int]:
        """The errors of all that was plugged."""
        errors = []
        while len(errors) < self.used:
            if (bio := int(harvest_one(self.view, self.number))) >= 0:
                errors.append(int(self.view.bios[bio]["error"]))
            else:
                assert bio == -1
                assert wait_for_one(self.view, self.number) == 0
        return errors


# Who uses which.


@given(st.integers(1, 9), st.integers(0, 40))
def test_submitters_are_dealt_out_in_turn(queues: int, submitters: int) -> None:
    hands: list[list[int]] = [[] for _ in range(queues)]
    for submitter, hand in zip(range(submitters), cycle(hands)):
        hand.append(submitter)
    for queue, hand in enumerate(hands):
        assert list(mapped_submitters(queue, submitters, queues)) == hand
        for number, submitter in enumerate(hand):
            assert map_queue(submitter, queues) == (queue, number)


@pytest.mark.parametrize("poll_us", WAYS)
def test_mq_and_auto_use_all_virtqueues_and_the_others_the_first(poll_us: int | None) -> None:
    with disk() as device, several(device, submitters=6, poll_us=poll_us) as opened:
        for turn, path in enumerate(("mq", "request", "auto", "bio", "mq")):
            opened.set_path(path)
            for sub in range(6):
                before = len(device.io)
                data = bytes([16 * turn + sub + 1]) * 512
                assert write(opened, 10 * sub, data, sub=sub) == 0
                assert read(opened, 10 * sub, 512, sub=sub) == data
                wanted = sub % 4 if path in ("mq", "auto") else 0
                came = [(request.queue, request.brief) for request in device.io[before:]]
                assert came == [(wanted, (OUT, 10 * sub, 512)), (wanted, (IN, 10 * sub, 512))]
        idle(opened)


STEPS = st.lists(
    st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 12), st.integers(1, 3), st.booleans()),
    min_size=1,
    max_size=EACH,
)


@settings(deadline=None, max_examples=12 if INTERPRETED else 25)
@given(STEPS, st.integers(1, 4), st.integers(1, 6), st.sampled_from([126, 2]))
def test_each_virtqueue_sees_what_its_twin_sends(
    steps: list[tuple[int, bool, int, int, bool]], queues: int, submitters: int, seg_max: int
) -> None:
    config = blk_config(num_queues=4, seg_max=seg_max)
    options = {
        "submitters": submitters,
        "bios_each": EACH,
        "segments_each": 1,
        "data_bytes": submitters * EACH * ROOM,
        "poll_us": None,
    }
    with disk(config=config) as device, several(device, queues, **options) as opened:
        limits = {name: int(opened.view.queue[0][name]) for name in ("max_segs", "max_bytes")}
        twins = [NaiveBlkMq(submitters=submitters, **limits) for _ in range(queues)]
        pluggers = [Plugger(opened, sub) for sub in range(submitters)]
        for number, (sub, writes, sector, sectors, ends) in enumerate(steps):
            sub %= submitters
            twin, place = twins[sub % queues], sub // queues
            op = REQ_OP_WRITE if writes else REQ_OP_READ
            bio = Bio(number, op, sector, sectors, 1)
            if twin.submit(place, bio, 0) == "full":
                twin.flush_plug(place)
                twin.submit(place, bio, 0)
            pluggers[sub].plug(op, sector, sectors * 512)
            if ends:
                twin.flush_plug(place)
                pluggers[sub].unplug()
        for sub, plugger in enumerate(pluggers):
            twins[sub % queues].flush_plug(sub // queues)
            plugger.unplug()
        for plugger in pluggers:
            assert plugger.harvest() == [0] * plugger.used
        seen = by_queue(device)
        for queue, twin in enumerate(twins):
            assert seen[queue] == [(OUT if rq.op else IN, rq.sector, rq.sectors * 512) for rq in twin.driver]
        assert seen[queues:] == [[]] * (4 - queues)
        assert opened.merges == len(steps) - len(device.io)
        idle(opened)


@pytest.mark.parametrize("poll_us", WAYS)
@pytest.mark.parametrize(("queues", "path", "cores"), [(2, "mq", 1), (3, "auto", 2), (4, "mq", 2)])
def test_many_submitters_on_few_virtqueues_of_four_entries(
    queues: int, path: str, cores: int, poll_us: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitters, rounds = (7, 6) if INTERPRETED else (13, 25)
    monkeypatch.setattr(completion, "SLEEP_NS", 5_000_000_000)  # where it is not compiled in, a lost wake-up shows
    options = {"submitters": submitters, "crowded": True, "cores": cores, "path": path}
    with (
        disk((lambda request: time.sleep(0.001)) if INTERPRETED else None) as device,
        several(device, queues, queue_size=4, poll_us=poll_us, **options) as opened,
        ThreadPoolExecutor(submitters) as pool,
    ):
        assert [int(d.queue[0]["crowded"]) for d in opened.views] == [2 if queues > cores else 1] * queues
        assert sum(pool.map(lambda sub: hammer(opened, sub, rounds), range(submitters))) == 0
        assert len(device.io) == 2 * rounds * submitters
        idle(opened)


def test_pollers_of_more_virtqueues_than_cores_matter_only_on_paths_that_use_them() -> None:
    with disk() as device, several(device, crowded=True, submitters=9, cores=2, poll_us=None) as opened:
        crowded = {}
        for path in ("bio", "mq", "request", "auto"):
            opened.set_path(path)
            crowded[path] = int(opened.view.queue[0]["crowded"])
        assert crowded == {"bio": 1, "mq": 2, "request": 1, "auto": 2}


# What they share.


@pytest.mark.parametrize("poll_us", WAYS)
@pytest.mark.parametrize("sub", [0, 2])
def test_a_submitter_alone_on_its_virtqueue_takes_no_lock_of_others(sub: int, poll_us: int | None) -> None:
    """Somebody holds the lock of every other virtqueue, and never lets go."""
    size = {"bios_each": EACH, "segments_each": 1, "data_bytes": 4 * EACH * ROOM}
    with disk() as device, several(device, poll_us=poll_us, **size) as opened:

        def work() -> list[int]:
            plugger = Plugger(opened, sub)
            for number in range(6):
                plugger.plug(REQ_OP_WRITE, 20 * number, 512)
            plugger.unplug()
            return plugger.harvest()

        def steps() -> list[int]:
            wait_bio = Plugger(opened, sub)
            wait_bio.plug(REQ_OP_READ, 7, 512)
            wait_bio.unplug()
            return wait_bio.harvest() + work()

        with ExitStack() as locks:
            for index, d in enumerate(opened.views):
                if index != sub:
                    locks.enter_context(queue_lock(d))
            assert Background(steps).result() == [0] * 7
        assert [len(seen) for seen in by_queue(device)] == [7 if index == sub else 0 for index in range(4)]
        idle(opened)


def test_flush_and_fua_go_where_their_submitter_is() -> None:
    """Which is enough: a FLUSH on any virtqueue covers every write that ended before it, on all of them (5.2.6)."""
    with disk() as device, several(device) as opened:
        assert write(opened, 1, b"a" * 512, sub=1) == 0
        assert submit(opened, REQ_OP_FLUSH, sub=0) == 0
        assert write(opened, 2, b"b" * 512, flags=REQ_FUA, sub=3) == 0
        assert by_queue(device) == [[(FLUSH, 0, 0)], [(OUT, 1, 512)], [], [(OUT, 2, 512), (FLUSH, 0, 0)]]
        assert [request.brief for request in device.io][:2] == [(OUT, 1, 512), (FLUSH, 0, 0)]
        idle(opened)


@pytest.mark.parametrize("poll_us", WAYS)
@pytest.mark.parametrize(("code", "end"), [(errno.ENODEV, "hang up"), (errno.EPROTO, "lie"), (errno.EIO, "break")])
def test_the_end_of_one_virtqueue_is_that_of_all(
    code: int, end: str, poll_us: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On each some wait for their completion and one for room: all come back."""
    monkeypatch.setattr(completion, "SLEEP_NS", 5_000_000_000)
    with disk(held) as device, several(device, 3, submitters=15, queue_size=4, poll_us=poll_us) as opened:
        waiting = [Background(submit, opened, REQ_OP_READ, 10 * sub, 512, sub=sub) for sub in range(15)]
        device.wait_for(12)
        wait_until(lambda: opened.ring_full_waits == 3)
        if end == "hang up":
            device.hang_up()
        elif end == "lie":
            victim = next(request for request in device.io if request.queue == 2)
            device.complete(victim, Answer(0, bytes(512), used_id=9999))
        else:
            opened.break_queue(code)
        assert [each.result() for each in waiting] == [-code] * 15
        assert [int(d.queue[0]["error"]) for d in opened.views] == [code] * 3
        for sub in range(3):
            assert submit(opened, REQ_OP_READ, 0, 512, sub=sub) == -code
            assert submit(opened, REQ_OP_FLUSH, sub=sub) == -code
        assert len(device.io) == 12
        assert ("used id 9999" in str(opened.broken_error())) == (end == "lie")


@pytest.mark.parametrize("poll_us", [None, 0])
def test_a_virtqueue_that_is_silent_ends_all(poll_us: int | None) -> None:
    def script(request: Request) -> object:
        return HOLD if request.queue == 2 else None

    with disk(script) as device, several(device, poll_us=poll_us, timeout=0.5) as opened:
        assert write(opened, 6, b"x" * 512, sub=2) == -errno.ETIMEDOUT
        assert [submit(opened, REQ_OP_READ, 5, 512, sub=sub) for sub in range(4)] == [-errno.ETIMEDOUT] * 4
        assert opened.error == errno.ETIMEDOUT


@pytest.mark.parametrize("poll_queues", [0, 1])
def test_close_stops_every_ring_and_every_thread(poll_queues: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtio_blk, "CLOSE_TIMEOUT", PATIENCE)
    with disk() as device:
        opened = VirtioBlk(device.client, "fake", DriverOptions(queues=4, poll_queues=poll_queues, submitters=4))
        threads = [thread for thread, _ in opened._completion]
        assert [thread.name for thread in threads] == [f"{opened.name}-req.{n}" for n in range(4 - poll_queues)]
        opened.close()
        assert not any(thread.is_alive() for thread in threads)
        assert device.messages.count(R.VHOST_USER_GET_VRING_BASE) == 4
        assert all(vring.half is None for vring in device.vrings)


@pytest.mark.parametrize("request_", [R.VHOST_USER_SET_VRING_ADDR, R.VHOST_USER_SET_VRING_KICK])
def test_a_ring_that_does_not_start_is_no_disk(request_: R) -> None:
    """Nor is anything left behind: what the first rings had started is ended."""
    before = threading.active_count()
    with disk(faults={request_: Fault.REFUSE}) as device:
        with pytest.raises(OpenError, match=request_.name):
            VirtioBlk(device.client, "fake", DriverOptions(queues=4))
        wait_until(lambda: threading.active_count() <= before + 1)  # the device's


# Poll queues.


@pytest.mark.parametrize("poll_us", [0, 50])
def test_the_last_virtqueues_are_polled(poll_us: int) -> None:
    """The device interrupts for everything; nobody listens where polling is all there is."""
    with (
        disk(always_call=True) as device,
        several(device, submitters=4, poll_queues=2, poll_us=poll_us) as opened,
    ):
        assert [opened.is_polled(index) for index in range(4)] == [False, False, True, True]
        assert [int(d.queue[0]["poll_ns"]) for d in opened.views] == [1000 * poll_us] * 2 + [-1] * 2
        assert len(opened._completion) == 2
        for sub in range(4):
            assert write(opened, sub, bytes([sub + 1]) * 512, sub=sub) == 0
            assert read(opened, sub, 512, sub=sub) == bytes([sub + 1]) * 512
        wait_until(lambda: all(d.queue[0]["interrupts"] > 0 for d in opened.views[:2]))
        assert [int(d.queue[0]["interrupts"]) for d in opened.views[2:]] == [0, 0]
        assert opened.interrupts == sum(int(d.queue[0]["interrupts"]) for d in opened.views[:2])
        idle(opened)


# What is asked for, and what is told.


@pytest.mark.parametrize(
    ("options", "asked", "text"),
    [
        ({}, {"queues": 5}, "queues 5: fake has 4 virtqueues; give 1 to 4"),
        ({}, {"queues": 0}, "queues 0: fake has 4 virtqueues; give 1 to 4"),
        ({"queue_num": 2}, {"queues": 3}, "queues 3: fake has 2 virtqueues; give 1 to 2"),
        ({"config": blk_config(num_queues=1)}, {"queues": 2}, "queues 2: fake has 1 virtqueue; give 1"),
        (
            {"features": FEATURES & ~F_MQ},
            {"queues": 2},
            "queues 2: fake has 1 virtqueue (it does not offer VIRTIO_BLK_F_MQ); give 1",
        ),
        ({"protocol_features": PROTOCOL_FEATURES & ~P_MQ}, {"queues": 2}, "queues 2: fake has 1 virtqueue; give 1"),
        ({}, {"queues": 2, "poll_queues": 3}, "poll_queues 3: give 0 to 2, the number of queues"),
        ({}, {"poll_queues": -1}, "poll_queues -1: give 0 to 1, the number of queues"),
    ],
)
def test_more_than_there_are_is_a_line(options: dict[str, Any], asked: dict[str, Any], text: str) -> None:
    with disk(**options) as device:
        with pytest.raises(UsageError) as caught:
            VirtioBlk(device.client, "fake", DriverOptions(**asked))
        assert str(caught.value) == text


def test_mq_is_negotiated_and_all_virtqueues_may_be_used() -> None:
    with disk() as device, several(device) as opened:
        assert opened.has(VIRTIO_BLK_F_MQ)
        assert device.accepted & F_MQ
        assert (opened.num_queues, len(opened.queues)) == (4, 4)
        assert [vring.num for vring in device.vrings] == [128] * 4


def test_a_virtqueue_without_submitters_does_no_harm() -> None:
    with disk() as device, several(device, submitters=2) as opened:
        for sub in range(2):
            assert write(opened, sub, b"x" * 512, sub=sub) == 0
        assert [len(seen) for seen in by_queue(device)] == [1, 1, 0, 0]
        idle(opened)


def test_sysfs_shows_the_virtqueues_and_sets_them_all() -> None:
    with disk() as device, several(device, 3, submitters=5, poll_queues=1, queue_size=16) as opened:
        sysfs = opened.sysfs
        assert {name: sysfs.read(name) for name in sysfs.names() if name.startswith("mq/")} == {
            "mq/0/nr_tags": "16",
            "mq/0/type": "default",
            "mq/0/submitters": "0, 3",
            "mq/1/nr_tags": "16",
            "mq/1/type": "default",
            "mq/1/submitters": "1, 4",
            "mq/2/nr_tags": "16",
            "mq/2/type": "poll",
            "mq/2/submitters": "2",
        }
        with pytest.raises(UsageError, match="mq/0/nr_tags cannot be set"):
            sysfs.write("mq/0/nr_tags", "8")
        sysfs.write("queue/scheduler", "mq-deadline")
        sysfs.write("queue/nr_requests", "9")
        sysfs.write("queue/iosched/fifo_batch", "3")
        for d in opened.views:
            state = d.q.state[0]
            assert (state["elevator"], state["nr_requests"], state["fifo_batch"]) == (1, 9, 3)
        assert sum(hammer(opened, sub, 2) for sub in range(5)) == 0
        opened.set_path("bio")
        assert not any(name.startswith("mq/") for name in sysfs.names())
        opened.set_path("auto")
        assert sysfs.read("queue/auto").startswith("merging=3 elevator=0 ")
        assert "mq/2/type" in sysfs.names()
        idle(opened)


def test_counters_are_sums() -> None:
    with disk() as device, several(device) as opened:
        for sub in range(4):
            memory_of(opened, sub)[:512] = sub
            for _ in range(sub + 1):
                assert submit(opened, REQ_OP_WRITE, sub, 512, sub=sub) == 0
        kicks = [int(d.submitters["kicks"].sum()) for d in opened.views]
        assert opened.kicks == sum(kicks)
        assert min(kicks) > 0
        assert [int(d.queue[0]["ended"]) for d in opened.views[1:]] == [2, 3, 4]
