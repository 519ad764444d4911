"""A queue on a simulated disk, through a whole device: right data, the order of the model, all ended at a stop."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.guest import Guest, header, segment
from naive.virtio_blk import DISCARD, FLUSH, GET_ID, IN, IOERR, OK, OUT, UNSUPP, WRITE_ZEROES

SECTORS = 2048
#: Fast enough that a test does not wait for platters.
DISKS = ("sim:sata?size=1m&speed=100", "sim:sata?size=1m&speed=100&write_cache=64k", "sim:fusion-io?size=1m&speed=100")

REQUESTS = st.lists(
    st.tuples(st.sampled_from([IN, OUT, OUT, FLUSH, WRITE_ZEROES, DISCARD]), st.integers(0, 200), st.integers(1, 16)),
    max_size=12,
)


@pytest.mark.parametrize("disk", DISKS)
def test_any_requests_against_plain_bytes(disk: str) -> None:
    with Guest(disk) as guest:
        twin = bytearray(SECTORS * 512)

        @given(REQUESTS)
        def run(requests: list[tuple[int, int, int]]) -> None:
            for kind, sector, sectors in requests:
                at = slice(sector * 512, (sector + sectors) * 512)
                if kind == IN:
                    assert guest.queue.read(sector, sectors * 512) == twin[at]
                    continue
                data = random.randbytes(sectors * 512)
                sent = header(kind, sector)
                if kind == OUT:
                    twin[at] = data
                    sent += data
                elif kind != FLUSH:
                    twin[at] = bytes(len(data))
                    sent = header(kind) + segment(sector, sectors)
                assert guest.queue.request(sent, 1).status == OK

        run()


@pytest.mark.parametrize("disk", DISKS)
def test_a_ring_full_of_requests(disk: str) -> None:
    """More than slots, on two queues that share the disk."""
    with Guest(disk, num=512, queues=2, size=8 << 20) as guest:
        assert guest.queue.write(0, bytes(range(256)) * 128) == OK
        rooms = [[guest.room(512) for _ in range(170)] for _ in guest.queues]
        tokens = [
            [queue.add([guest.buffer(header(IN, n % 64)), room, guest.room(1)]) for n, room in enumerate(mine)]
            for queue, mine in zip(guest.queues, rooms, strict=True)
        ]
        for queue, mine in zip(guest.queues, tokens, strict=True):
            assert [queue.wait(token) for token in mine] == [513] * 170
        for mine in rooms:
            assert all(guest.load(room.address, 512) == bytes(range(256)) * 2 for room in mine)


@pytest.mark.parametrize("disk", DISKS)
def test_requests_that_are_none_of_the_disks_business(disk: str) -> None:
    with Guest(disk, serial="sim under test") as guest:
        queue = guest.queue
        assert queue.request(header(GET_ID), 21).data == b"sim under test".ljust(20, b"\0")
        assert queue.request(header(77), 1).status == UNSUPP
        assert queue.request(header(IN, SECTORS), 513).status == IOERR
        assert queue.request(header(IN, 0), 1).status == OK
        assert queue.request(b"short", 1).status == IOERR


def test_requests_come_back_in_the_models_order() -> None:
    """The drive begins the first that comes, the far one, and the host sorts the others. All are there at the start."""
    with Guest("sim:sata?size=100g&depth=1&speed=10", num=256) as guest:
        queue = guest.queue
        queue.stop()
        last = (100 << 30) // 512 - 1
        tokens = [
            queue.add([guest.buffer(header(IN, place)), guest.room(513)])
            for place in (last, last // 2, last // 8, last // 4)
        ]
        heads = {head: tokens.index(token) for head, (token, *_) in queue.driver.in_flight.items()}
        queue.start()
        for token in tokens:
            queue.wait(token)
        assert [heads[queue.ring.used_elem(n)[0]] for n in range(4)] == [0, 2, 3, 1]


@pytest.mark.parametrize("disk", DISKS)
def test_stopping_ends_what_was_taken(disk: str) -> None:
    with Guest(disk, num=512, size=8 << 20) as guest:
        queue = guest.queue
        room, status = guest.room(512), guest.room(1)
        for turn in range(3):
            tokens = [queue.add([guest.buffer(header(IN, n)), room, status]) for n in range(100)]
            base = queue.stop()
            queue.reap()
            assert sorted(queue.done) == tokens[: base - 100 * turn]
            queue.start()
            for token in tokens:
                assert queue.wait(token) == 513


def test_a_broken_ring_leaves_the_other_queue_alone() -> None:
    with Guest(DISKS[0], queues=2) as guest:
        one, two = guest.queues
        assert one.write(0, b"a" * 512) == OK
        one.ring.set_avail_idx(one.driver.idx + 1000)
        one.kick()
        assert one.broke()
        assert two.read(0, 512) == b"a" * 512
