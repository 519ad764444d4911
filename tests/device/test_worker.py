"""A batch at the edge of its lists, called as the worker calls it, with canaries behind them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from device.guest import CANARY, Guest, header
from naive.ring import Buffer
from naive.virtio_blk import IN
from virtblk.device.queue import DeviceQueue
from virtblk.device.worker import PIECES, process_batch
from virtblk.jit.table import Table
from virtblk.mem.regions import MAX_REGIONS
from virtblk.storage.request import BATCH
from virtblk.virtio.vringh_split import BAD_PIECES, MAX_PIECES, Vringh

PAGE = 4096


class Batches:
    """The device half of a guest's ring, whose worker has been stopped; `run` does what it would do in one turn."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        queue: DeviceQueue = guest.device.queues[0]
        vring, *self._rest = queue._arguments
        queue.stop()
        self.lists = [np.full(PIECES + 64, CANARY, np.int64) for _ in range(2)]
        addr, length = (Table.of(array[:PIECES]) for array in self.lists)
        self.vring = Vringh(vring.state, addr, length)

    def run(self) -> int:
        count = int(process_batch(self.vring, *self._rest))
        for array in self.lists:
            assert (array[PIECES:] == CANARY).all(), "written behind the list of pieces"
        return count


@pytest.fixture
def batches() -> Iterator[Batches]:
    """32 regions of one page each, that touch: a buffer over all of them comes out as 32 pieces."""
    with Guest(num=8192, regions=32, size=32 * 64 * PAGE) as guest:
        yield Batches(guest)


def test_a_batch_takes_no_more_than_its_records(batches: Batches) -> None:
    guest = batches.guest
    for sector in range(BATCH + 5):
        guest.queue.add([guest.buffer(header(IN, sector)), guest.room(513)])
    assert batches.run() == BATCH
    assert batches.run() == 5
    assert batches.run() == 0
    assert guest.queue.reap() == BATCH + 5


def test_regression_a_batch_that_is_nearly_full_has_room_for_a_chain_over_all_regions(batches: Batches) -> None:
    """Three chains of many pieces, then one with MAX_PIECES - 1 and one buffer more, which crosses 31 boundaries."""
    guest = batches.guest
    sent, status = guest.buffer(header(IN)), guest.room(1)
    byte = guest.room(1)
    everything = Buffer(guest.regions[0].guest_addr + 8, guest.size - 16, True)
    room = PIECES - MAX_PIECES  # what the worker left free, once, was MAX_PIECES without the regions
    for pieces in (1000, 1000, room - 1 - 2000):
        guest.queue.add([sent, *[byte] * (pieces - 2), status])
    token = guest.queue.add([sent, *[byte] * (MAX_PIECES - 2), everything])
    counts = [batches.run() for _ in range(3)]
    assert counts[:2] == [3, -2]  # the last chain has too many pieces, but it is taken only where there is room for it
    assert guest.queue.reap() == 3
    assert token not in guest.queue.done
    assert batches.vring.state[0]["bad"] == BAD_PIECES


def test_a_chain_over_all_regions(batches: Batches) -> None:
    guest = batches.guest
    everything = Buffer(guest.regions[0].guest_addr, guest.size, True)
    guest.queue.add([guest.buffer(header(255)), everything])
    assert batches.run() == 1
    assert batches.lists[0][0] != CANARY
    assert int((batches.lists[0] != CANARY).sum()) == 1 + MAX_REGIONS
    assert guest.load(guest.regions[-1].guest_addr + guest.regions[-1].size - 1, 1) == b"\2"  # UNSUPP, in the last byte
