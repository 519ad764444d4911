"""The driver and the device together lose no write that was flushed, FUA or written through when the power fails.

Three threads write, flush and use FUA on a `ram:` disk under the filter `volatile`, through rings and both paths of the
driver; the power is cut at a random point. What the driver then reads is judged by what it had been told before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, SupportsIndex

import pytest

from conftest import INTERPRETED
from storage.filters.power import SECTOR, PowerLog, Verdict
from virtblk.disk import CALLERS, CHUNK, Disk
from virtblk.driver.virtio_blk import DriverOptions, VirtioBlk
from virtblk.names import parse_filter, parse_name
from virtblk.server import LocalDevice
from virtblk.storage.filters import FILTERS
from virtblk.storage.filters.volatile import Volatile
from virtblk.storage.io_request import Request
from virtblk.storage.open import open_storage
from virtblk.storage.request import FLAG_FUA, OP_FLUSH
from waiting import Background

SECTORS = 24
WRITERS = 3
#: Sectors of the longest write.
LONGEST = 4
#: Seconds that the driver waits for the device, on a machine that is busy compiling.
TIMEOUT = 60.0
#: Cuts on each of the two paths.
CUTS = 10 if INTERPRETED else 25


class Forgetful(Volatile):
    """A cache with a bug: flushes and FUA write nothing back, and end well."""

    def submit(self, batch: Sequence[Request]) -> None:
        others = []
        for request in batch:
            if request.op == OP_FLUSH:
                request.end()
            else:
                request.flags &= ~FLAG_FUA
                others.append(request)
        super().submit(others)


class InTurn(list[int]):
    """A Disk's callers, taken in turn: so all virtqueues are used even where no two calls overlap."""

    def pop(self, index: SupportsIndex = 0, /) -> int:
        return super().pop(index)


class Machine:
    """A disk in use, and the cache below it that can lose its power."""

    def __init__(self, disk: Disk, cache: Volatile, seed: int) -> None:
        self._disk, self._cache, self._seed = disk, cache, seed
        self._through = disk.cache_type == "write through"
        self._content = disk.pread(disk.size, 0)

    @property
    def views(self) -> list[Any]:
        """The driver's virtqueues."""
        return self._disk._device.views

    def use_and_cut(self, keep: float) -> Verdict:
        """Writers at work, a cut at a random point of it, another when they have stopped; then the disk is judged."""
        self._seed += 1
        log, random = PowerLog(self._content), Random(self._seed)
        stop, progress = threading.Event(), threading.Semaphore(0)
        writers = [Background(self._work, log, Random(random.random()), stop, progress) for _ in range(WRITERS)]
        try:
            for _ in range(random.randrange(3, 50)):
                assert progress.acquire(timeout=TIMEOUT), "the writers do not get on"
            self._cut(log, keep)
        finally:
            stop.set()
            for writer in writers:
                writer.result(2 * TIMEOUT)
        self._cut(log, keep)
        self._content = self._disk.pread(self._disk.size, 0)
        return log.judge(self._content)

    def _cut(self, log: PowerLog, keep: float) -> None:
        with log.cut():
            self._cache.power_cut(keep, self._seed)

    def _work(self, log: PowerLog, random: Random, stop: threading.Event, progress: threading.Semaphore) -> None:
        while not stop.is_set():
            if random.random() < 0.2:
                flush = log.flush()
                self._disk.flush()
                log.ended(flush)
            else:
                self._write(log, random, fua=random.random() < 0.2)
            progress.release()
        self._write(log, random, fua=False)  # nobody flushes the last of these

    def _write(self, log: PowerLog, random: Random, fua: bool) -> None:
        count = random.randint(1, LONGEST)
        offset = random.randrange(SECTORS - count + 1) * SECTOR
        data = random.randbytes(count * SECTOR)
        write = log.write(offset, data, fua or self._through)
        self._disk.pwrite(data, offset, fua=fua)
        log.ended(write)


@contextmanager
def machine(
    path: str, cache_type: str, seed: int, cache_class: type[Volatile] = Volatile, queues: int = 1
) -> Iterator[Machine]:
    cache = cache_class(open_storage(parse_name(f"ram:{SECTORS * SECTOR}")), parse_filter("volatile", FILTERS))
    cache.start()
    device = LocalDevice(cache, queues=queues)
    options = DriverOptions(timeout=TIMEOUT, submitters=CALLERS, data_bytes=CALLERS * CHUNK, path=path, queues=queues)
    try:
        driver = VirtioBlk(device.client, "volatile", options)
    except BaseException:
        device.close()
        raise
    with Disk("volatile", driver, device) as disk:
        if queues > 1:
            disk._free = InTurn(disk._free)
        disk.cache_type = cache_type
        yield Machine(disk, cache, seed)


@pytest.mark.parametrize("cuts", [CUTS, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", ["bio", "request"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize("cache_type", ["write back", "write through"])
def test_no_promised_write_is_missing_after_cuts_at_random_points(
    cache_type: str, keep: float, path: str, cuts: int
) -> None:
    with machine(path, cache_type, seed=cuts * 1000) as used:
        verdicts = [used.use_and_cut(keep) for _ in range(cuts)]
    assert [verdict for verdict in verdicts if verdict.missing or verdict.torn] == []
    # The cuts do take what nobody was promised, and there is no such thing where all is written through.
    assert any(verdict.forgotten for verdict in verdicts) == (cache_type == "write back")


@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize("cache_type", ["write back", "write through"])
def test_a_flush_on_one_virtqueue_covers_what_ended_on_the_others(cache_type: str, keep: float) -> None:
    """Three writers, each of whose calls takes the next of four virtqueues."""
    with machine("mq", cache_type, seed=5000, queues=4) as used:
        verdicts = [used.use_and_cut(keep) for _ in range(CUTS // 2)]
        assert all(d.queue[0]["ended"] > 0 for d in used.views)
    assert [verdict for verdict in verdicts if verdict.missing or verdict.torn] == []
    assert any(verdict.forgotten for verdict in verdicts) == (cache_type == "write back")


@pytest.mark.parametrize("path", ["bio", "request"])
@pytest.mark.parametrize("cache_type", ["write back", "write through"])
def test_a_cache_that_writes_nothing_back_is_found_out(cache_type: str, path: str) -> None:
    with machine(path, cache_type, seed=1, cache_class=Forgetful) as used:
        verdicts = [used.use_and_cut(keep=0.0) for _ in range(CUTS)]
    assert any(verdict.missing for verdict in verdicts)
    assert not any(verdict.torn for verdict in verdicts)
