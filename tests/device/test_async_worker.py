"""The device on a storage that takes its time: any order, stopping and breaking with requests out, FUA by flushes.

The storage of these tests holds every request until the test ends it; the driver is ours, over a socketpair.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from device.guest import Guest, header
from driver.harness import driver, memory_of, read, submit, write
from naive.virtio_blk import IN
from virtblk.block.bio import REQ_FUA, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE
from virtblk.driver.virtio_blk import VirtioBlk
from virtblk.server import LocalDevice
from virtblk.storage.io_request import Request
from virtblk.storage.request import FLAG_FUA, OP_FLUSH, OP_READ, OP_WRITE
from virtblk.storage.storage import Storage
from waiting import Background, wait_until


class HeldStorage(Storage):
    """A disk of 1 MiB in a bytearray that holds requests until `release`, or serves them at once with `honest`."""

    name = "held:"
    size = 1 << 20

    def __init__(self, *, honest: bool = False, can_fua: bool = False) -> None:
        self.honest = honest
        self.can_fua = can_fua
        self.data = bytearray(self.size)
        self.held: list[Request] = []
        self.seen: list[tuple[int, int, int, int]] = []
        self.closed = False
        self._lock = threading.Lock()

    def submit(self, batch: Sequence[Request]) -> None:
        with self._lock:
            self.seen += [(r.op, r.offset, r.length, r.flags) for r in batch]
            self.held += batch
        if self.honest:
            for request in batch:
                self.release(request)

    def release(self, request: Request, error: int = 0) -> None:
        """Do what it asks for, unless there is an error to report, and end it."""
        with self._lock:
            self.held.remove(request)
        at = request.offset
        for piece in request.pieces if not error else ():
            if request.op == OP_READ:
                piece[:] = self.data[at : at + len(piece)]
            else:
                self.data[at : at + len(piece)] = piece
            at += len(piece)
        request.end(error)

    def wait_for(self, count: int) -> list[Request]:
        wait_until(lambda: len(self.held) >= count)
        return list(self.held)

    def close(self) -> None:
        self.closed = True


@contextmanager
def served(storage: HeldStorage, **options: object) -> Iterator[VirtioBlk]:
    """A driver on a device on the storage; GET_ID is the device's own answer, so that probing needs no release."""
    local = LocalDevice(storage, serial="held")
    try:
        with driver_of(local, **options) as opened:
            yield opened
    finally:
        local.close()


@contextmanager
def driver_of(local: LocalDevice, **options: object) -> Iterator[VirtioBlk]:
    class Client:
        client = local.client

    with driver(Client(), **options) as opened:  # type: ignore[arg-type]  # all that it uses of a FakeDevice
        yield opened


def test_data_goes_both_ways() -> None:
    storage = HeldStorage(honest=True)
    with served(storage) as opened:
        assert opened.serial == "held"
        assert write(opened, 3, b"abc".ljust(1024, b"x")) == 0
        assert read(opened, 3, 1024) == b"abc".ljust(1024, b"x")
        assert submit(opened, REQ_OP_FLUSH) == 0
    assert storage.seen == [(OP_WRITE, 1536, 1024, 0), (OP_READ, 1536, 1024, 0), (OP_FLUSH, 0, 0, 0)]
    assert storage.closed


def test_requests_end_in_any_order_on_any_thread() -> None:
    storage = HeldStorage()
    with served(storage, submitters=3) as opened:
        bios = [Background(submit, opened, REQ_OP_READ, 8 * sub, 512, sub=sub) for sub in range(3)]
        held = {request.offset: request for request in storage.wait_for(3)}
        for sub in (2, 0, 1):
            storage.data[4096 * sub : 4096 * sub + 512] = bytes([sub + 1]) * 512
            Background(storage.release, held[4096 * sub]).result()
            assert bios[sub].result() == 0
            assert (memory_of(opened, sub)[:512] == sub + 1).all()


@pytest.mark.parametrize(
    ("error", "bio_errno"), [(errno.EIO, errno.EIO), (errno.ENOSPC, errno.EIO), (errno.EOPNOTSUPP, errno.ENOTTY)]
)
def test_an_error_is_a_status(error: int, bio_errno: int) -> None:
    storage = HeldStorage()
    with served(storage) as opened:
        bio = Background(submit, opened, REQ_OP_READ, 0, 512)
        storage.release(storage.wait_for(1)[0], error)
        assert bio.result() == bio_errno
        bio = Background(submit, opened, REQ_OP_READ, 0, 512)
        storage.release(storage.wait_for(1)[0])
        assert bio.result() == 0


def test_more_requests_than_the_ring_holds_all_end() -> None:
    storage = HeldStorage(honest=True)
    with served(storage, submitters=16, queue_size=4) as opened:

        def some(sub: int) -> set[int]:
            return {submit(opened, REQ_OP_WRITE, sub * 8, 512, sub=sub) for _ in range(25)}

        workers = [Background(some, sub) for sub in range(16)]
        assert [worker.result() for worker in workers] == [{0}] * 16
    assert len(storage.seen) == 16 * 25


def test_stopping_waits_for_what_is_out() -> None:
    """The driver goes while a read is out: the memory that it fills stays until it has ended."""
    storage = HeldStorage()
    local = LocalDevice(storage, serial="held")
    with driver_of(local, timeout=1.0) as opened:
        bio = Background(submit, opened, REQ_OP_READ, 0, 512)
        (request,) = storage.wait_for(1)
        assert bio.result() == -errno.ETIMEDOUT
    closing = Background(local.close)
    assert closing.running
    request.pieces[0][:] = bytes(512)  # a storage may still write there: this would be the crash
    storage.release(request)
    closing.result()
    assert storage.closed


def test_a_broken_ring_acknowledges_nothing_and_waits_for_what_is_out() -> None:
    storage = HeldStorage()
    with Guest(storage) as guest:
        queue = guest.queue
        queue.add([guest.buffer(header(IN, 0)), guest.room(513)])
        (request,) = storage.wait_for(1)
        queue.ring.set_avail_idx(queue.driver.idx + 1000)
        queue.kick()
        wait_until(lambda: guest.device.queues[0].broken)
        request.pieces[0][:] = b"y" * 512
        storage.release(request)
        assert queue.broke()  # said once the worker has ended
        assert queue.reap() == 0


@pytest.mark.parametrize("can_fua", [False, True])
def test_fua(can_fua: bool) -> None:
    """A write that is to be durable: FUA where the storage knows it, else a flush behind it (5.2.6.2)."""
    storage = HeldStorage(honest=True, can_fua=can_fua)
    with served(storage, without=frozenset({9})) as opened:  # without VIRTIO_BLK_F_FLUSH
        assert submit(opened, REQ_OP_WRITE, 0, 512) == 0
    expected = [(OP_WRITE, 0, 512, FLAG_FUA)] if can_fua else [(OP_WRITE, 0, 512, 0), (OP_FLUSH, 0, 0, 0)]
    assert storage.seen == expected


def test_a_failed_write_is_not_flushed_and_a_failed_flush_fails_the_write() -> None:
    storage = HeldStorage()
    with served(storage, without=frozenset({9})) as opened:
        bio = Background(submit, opened, REQ_OP_WRITE, 0, 512)
        storage.release(storage.wait_for(1)[0], errno.EIO)
        assert bio.result() == errno.EIO
        assert [op for op, *_ in storage.seen] == [OP_WRITE]
        bio = Background(submit, opened, REQ_OP_WRITE, 0, 512)
        storage.release(storage.wait_for(1)[0])
        wait_until(lambda: [r.op for r in storage.held] == [OP_FLUSH])
        storage.release(storage.held[0], errno.EIO)
        assert bio.result() == errno.EIO


def test_a_storage_of_the_programs_own_under_many_submitters() -> None:
    storage = HeldStorage(honest=True)
    rng = np.random.default_rng(1)
    with served(storage, submitters=4) as opened:

        def work(sub: int, sectors: Sequence[int]) -> list[int]:
            codes = []
            for sector in sectors:
                codes.append(write(opened, sector, bytes([sector % 251]) * 512, sub=sub))
                codes.append(0 if read(opened, sector, 512, sub=sub) == bytes([sector % 251]) * 512 else 1)
            return codes

        shares: list[list[int]] = [[int(s) * 4 + sub for s in rng.integers(0, 500, 30)] for sub in range(4)]
        results: list[Callable[[], list[int]]] = [Background(work, sub, shares[sub]).result for sub in range(4)]
        assert all(set(result()) == {0} for result in results)


def test_flags_reach_the_storage() -> None:
    storage = HeldStorage(honest=True, can_fua=True)
    with served(storage) as opened:
        assert submit(opened, REQ_OP_WRITE, 0, 512, REQ_FUA) == 0
    assert [op for op, *_ in storage.seen] == [OP_WRITE, OP_FLUSH]  # FUA is the driver's flush while FLUSH is there
