"""Clients that come and go as they like: at each message, at each stage of an I/O, two at a time, by the thousand.

The numbers are those of the catalogue of bad inputs, group Lifecycle.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from device.guest import header
from door.harness import Client, Door, Visitor
from naive.virtio_blk import IN, OUT
from virtblk.uapi.vhost_user import U64, VRING_STATE
from virtblk.uapi.vhost_user import FrontendRequest as R

#: The handshake of a guest, one step after the other.
HANDSHAKE: list[Callable[[Visitor], object]] = [
    lambda v: v.front.get_queue_num(),
    lambda v: v.front.get_config(60),
    lambda v: v.front.set_owner(),
    lambda v: v.front.set_mem_table(v.regions),
    lambda v: v.front.set_vring_num(0, v.queue.ring.num),
    lambda v: v.front.set_vring_base(0, 0),
    lambda v: v.front.set_vring_addr(0, v.queue.ring.desc, v.queue.ring.avail, v.queue.ring.used),
    lambda v: v.front.set_vring_call(0, v.queue.call_fd),
    lambda v: v.front.set_vring_err(0, v.queue.err_fd),
    lambda v: v.front.set_vring_kick(0, v.queue.kick_fd),
    lambda v: v.front.set_vring_enable(0, True),
    lambda v: v.queue.add([v.buffer(header(OUT, 1) + bytes(512)), v.room(1)]),
    lambda v: v.queue.wait(1),
    lambda v: v.queue.add([v.buffer(header(IN, 1)), v.room(513)]),
    lambda v: v.front.set_vring_enable(0, False),
    lambda v: v.front.get_vring_base(0),
    lambda v: v.front.rem_mem_reg(v.regions[0]),
]


@pytest.mark.parametrize("steps", range(len(HANDSHAKE) + 1))
def test_70_a_client_that_goes_after_each_step(door: Door, steps: int) -> None:
    with Visitor(door.path, start=False) as visitor:
        for step in HANDSHAKE[:steps]:
            step(visitor)


def fill(visitor: Visitor, count: int) -> None:
    """Requests on ring 0, and no word about them: some are under way when the client goes on."""
    for turn in range(count):
        buffers = [visitor.buffer(header(OUT if turn % 2 else IN, turn) + bytes(512 * (turn % 2)))]
        buffers.append(visitor.room(1 if turn % 2 else 513))
        visitor.queue.add(buffers)


@pytest.mark.parametrize("ending", ["close", "shutdown", "stop first"])
def test_70_a_client_that_goes_with_requests_under_way(door: Door, ending: str) -> None:
    for _ in range(5):
        with Visitor(door.path) as visitor:
            fill(visitor, 16)
            if ending == "shutdown":
                visitor.client.conn.shutdown()
            elif ending == "stop first":
                visitor.queue.stop()


def test_71_stopping_a_ring_answers_what_was_taken_and_no_more(door: Door) -> None:
    """Used and available index agree with the base that comes back; from there it goes on, with nothing done twice."""
    with Visitor(door.path) as visitor:
        for turn in range(10):
            fill(visitor, 4)
            base = visitor.queue.stop()
            visitor.queue.reap()
            assert base == visitor.queue.tokens - len(visitor.queue.driver.in_flight)
            visitor.queue.start()
            for token in range(4 * turn + 1, 4 * turn + 5):
                visitor.queue.wait(token)


def test_72_a_storm_of_enabling(door: Door) -> None:
    with Visitor(door.path) as visitor:
        for turn in range(100):
            if turn % 10 == 0:
                visitor.queue.add([visitor.buffer(header(IN, turn)), visitor.room(513)])
            assert visitor.client.ack(R.VHOST_USER_SET_VRING_ENABLE, VRING_STATE.pack(0, turn % 2)) == 0
        for token in range(1, 11):
            visitor.queue.wait(token)


@pytest.mark.parametrize("reset", ["owner", "features", "memory", "device"])
def test_73_a_reset_with_requests_under_way(door: Door, reset: str) -> None:
    with Visitor(door.path) as visitor:
        fill(visitor, 16)
        if reset == "owner":
            assert visitor.client.ack(R.VHOST_USER_RESET_OWNER) == 0
            visitor.front.set_vring_enable(0, True)
        elif reset == "features":
            bits = visitor.features & visitor.offered & ~(1 << 29)
            assert visitor.client.ack(R.VHOST_USER_SET_FEATURES, U64.pack(bits)) == 0
        elif reset == "memory":
            visitor.front.set_mem_table(visitor.regions)
        else:
            assert visitor.client.ack(R.VHOST_USER_RESET_DEVICE) in (0, 1)
            visitor.front.set_vring_enable(0, True)
        for token in range(1, 17):
            visitor.queue.wait(token)


def test_74_a_second_client_is_turned_away_and_the_first_served(door: Door) -> None:
    with Visitor(door.path) as visitor:
        for _ in range(20):
            with Client(door.path, negotiate=False) as second:
                assert second.is_closed()
            assert visitor.queue.read(0, 512) is not None


# 75, and the soak: random stages, flat everything.


def resident_kib() -> int:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS in /proc/self/status")


def visit(door: Door, rng: random.Random) -> None:
    """Come, get to some stage, and go in some way."""
    way = rng.randrange(4)
    if way == 0:
        Client(door.path, negotiate=False).close()
    elif way == 1:
        with Client(door.path, negotiate=False) as client:
            client.send_raw(os.urandom(rng.randrange(1, 40)))
    else:
        with Visitor(door.path, start=False) as visitor:
            for step in HANDSHAKE[: rng.randrange(len(HANDSHAKE) + 1)]:
                step(visitor)
            if way == 3:
                visitor.client.conn.shutdown()


@pytest.mark.parametrize(("visits", "kib"), [(1000, 16 << 10), pytest.param(10_000, 64 << 10, marks=pytest.mark.slow)])
def test_75_clients_at_random_stages_leave_nothing(door: Door, visits: int, kib: int) -> None:
    """Descriptors, threads and mappings to a unit; resident memory within what an allocator keeps for itself."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(50):
        visit(door, rng)
    door.check()
    door.settle()
    before = resident_kib()
    for turn in range(visits):
        visit(door, rng)
        if turn % 250 == 249:
            door.check()
            door.settle()
    door.check()
    door.settle()
    assert resident_kib() - before < kib, f"seed {seed}"
