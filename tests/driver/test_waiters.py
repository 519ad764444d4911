"""Who waits for room in the ring or for a request of the pool: woken one at a time, and each wakes the next."""

from __future__ import annotations

import pytest

from driver.harness import driver
from driver.test_request_path import harvest, held, idle, plug, unplug
from fake_device import FakeDevice
from virtblk.block.bio import REQ_OP_READ
from virtblk.driver import completion
from virtblk.driver.virtio_blk import VirtioBlk
from virtblk.jit.lock import waiters
from waiting import PATIENCE, Background, wait_until

#: Path, its scheduler, what its submitters wait for on a ring and in a pool of four.
WAITS = [
    ("bio", "noop", "queue_wait"),
    ("request", "noop", "request_wait"),
    ("request", "deadline", "request_wait"),
    ("mq", "none", "queue_wait"),
    ("mq", "mq-deadline", "request_wait"),
]


@pytest.fixture(autouse=True)
def only_a_wake_up_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not compiled in: nobody looks again by itself before the test has given up."""
    monkeypatch.setattr(completion, "SLEEP_NS", int(3 * PATIENCE * 1e9))


def read_one(opened: VirtioBlk, sub: int) -> list[tuple[int, int]]:
    """A plug with one bio in it, far from all others'."""
    assert plug(opened, sub, REQ_OP_READ, 100 * sub, sub=sub) == 0
    unplug(opened, sub)
    return harvest(opened, 1, sub)


@pytest.mark.parametrize(("path", "scheduler", "queue"), WAITS)
def test_one_reap_makes_room_for_several_and_wakes_the_first_of_them(path: str, scheduler: str, queue: str) -> None:
    """The first finds that it leaves room, and wakes the second; nothing else ends that would."""
    given = {"submitters": 7, "bios_each": 1, "segments_each": 1, "queue_size": 4}
    with (
        FakeDevice(held) as device,
        driver(device, path=path, poll_us=0, **given) as opened,
    ):
        opened.sysfs.write("queue/scheduler", scheduler)
        opened.sysfs.write("queue/nr_requests", "4")
        address = int(opened.view.queue[0][queue])
        reading = [Background(read_one, opened, sub) for sub in range(4)]
        device.wait_for(4)
        reading += [Background(read_one, opened, sub) for sub in range(4, 7)]
        wait_until(lambda: waiters(address) == 3)
        device.complete_all(device.io[:3])
        device.complete_all(device.wait_for(7)[3:])
        assert [one.result() for one in reading] == [[(sub, 0)] for sub in range(7)]
        idle(opened)
