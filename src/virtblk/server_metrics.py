"""What there is to count of a disk that is served, for `metrics` to write down.

A worker counts in a record of its own, which goes with its ring. `Accounts` keeps what has been counted: the figures of
a ring are added when it stops, and those of the rings that run when somebody asks, so that no counter ever falls. The
threads of sessions add, the exporter's reads; one lock, taken by control code only.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from virtblk import __version__
from virtblk.device.account import (
    BUCKETS,
    COUNTERS,
    FIRST_BUCKET,
    FIRST_SHIFT,
    IOERR,
    LATENCY_NS,
    READ_BYTES,
    UNSUPP,
    WRITTEN_BYTES,
)
from virtblk.device.queue import DeviceQueue
from virtblk.device.virtio_blk import VirtioBlkDevice
from virtblk.metrics import Family, render
from virtblk.storage.request import (
    OP_DISCARD,
    OP_FLUSH,
    OP_IDENTIFY,
    OP_NONE,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
)
from virtblk.storage.storage import Storage

#: Fields of a worker's record that only grow: (field, metric, help).
FIELDS: Final = (
    ("requests", "requests_total", "Requests answered."),
    ("kicks", "kicks_total", "Notifications from the driver that woke the queue's worker."),
    ("calls", "calls_total", "Interrupts sent to the driver."),
)
#: Counters of `device.account`: (metric, help, index of the table by label).
TABLE: Final[tuple[tuple[str, str, str, dict[str, int]], ...]] = (
    (
        "requests_total",
        "Requests answered, by what they asked for; refused ones were not for the disk to do.",
        "op",
        {
            "read": OP_READ,
            "write": OP_WRITE,
            "flush": OP_FLUSH,
            "discard": OP_DISCARD,
            "write_zeroes": OP_WRITE_ZEROES,
            "get_id": OP_IDENTIFY,
            "refused": OP_NONE,
        },
    ),
    ("bytes_total", "Bytes read and written.", "op", {"read": READ_BYTES, "write": WRITTEN_BYTES}),
    ("errors_total", "Answers that were not OK, by status.", "status", {"ioerr": IOERR, "unsupp": UNSUPP}),
)
#: Upper bounds of the latency histogram's buckets, in seconds; the last bucket has none.
BOUNDS: Final = tuple((1 << (FIRST_SHIFT + bucket)) / 1e9 for bucket in range(BUCKETS - 1))


class Accounts:
    """The figures of one server, over all its sessions; of latencies only if its devices are `timed`."""

    def __init__(self, storage: Storage, queues: int, *, timed: bool = False) -> None:
        self._storage = storage
        self._timed = timed
        self._counted = np.zeros((queues, COUNTERS), np.int64)
        self._lock = threading.Lock()
        self._totals: list[Counter[str]] = [Counter() for _ in range(queues)]
        self._broken = [0] * queues
        self._running: dict[int, DeviceQueue] = {}
        self._sessions = 0
        self._active = 0

    def session_begins(self) -> None:
        """A client was accepted."""
        with self._lock:
            self._sessions += 1
            self._active += 1

    def session_ends(self) -> None:
        """It is gone."""
        with self._lock:
            self._active -= 1

    def queue_starts(self, queue: DeviceQueue) -> None:
        """A ring runs."""
        with self._lock:
            self._running[queue.index] = queue

    def queue_stops(self, index: int, stop: Callable[[], int]) -> int:
        """Call `stop`, which ends a ring's worker, and keep what it counted; returns what `stop` does."""
        base = stop()
        with self._lock:
            queue = self._running.pop(index, None)
            if queue is not None:
                self._totals[index].update(_figures(queue.worker[0]))
                self._counted[index] += queue.counters
                self._broken[index] += queue.broken is not None
        return base

    def render(self) -> str:
        """All of it as Prometheus' text."""
        return render(self._families())

    def _families(self) -> Iterator[Family]:
        storage = self._storage
        info = Family("virtblk_info", "gauge", "What is served; always 1.")
        info.add(1, version=__version__, disk=storage.name, read_only=str(bool(storage.read_only)).lower())
        size = Family("virtblk_disk_size_bytes", "gauge", "Capacity of the disk.")
        size.add(storage.size)
        with self._lock:
            totals = [Counter(total) for total in self._totals]
            broken = list(self._broken)
            counted = self._counted.copy()
            taken: list[list[int]] = [[] for _ in totals]
            for index, queue in self._running.items():
                totals[index].update(_figures(queue.worker[0]))
                broken[index] += queue.broken is not None
                counted[index] += queue.counters
                taken[index] = queue.taken_ns()
            now = time.monotonic_ns()
            running = set(self._running)
            sessions, active = self._sessions, self._active
        begun = Family("virtblk_sessions_total", "counter", "Clients that were accepted.")
        begun.add(sessions)
        here = Family("virtblk_sessions_active", "gauge", "Clients that are connected: 0 or 1.")
        here.add(active)
        yield from (info, size, begun, here)
        started = Family("virtblk_queue_running", "gauge", "Whether the ring of this queue is started and enabled.")
        for index in range(len(totals)):
            started.add(index in running, queue=index)
        yield started
        for field, metric, text in FIELDS:
            family = Family(f"virtblk_queue_{metric}", "counter", text)
            for index, total in enumerate(totals):
                family.add(total[field], queue=index)
            yield family
        bad = Family("virtblk_queue_broken_total", "counter", "Rings that broke a rule and were stopped for it.")
        for index, count in enumerate(broken):
            bad.add(count, queue=index)
        yield bad
        yield from _counter_families(counted)
        if self._timed:
            yield from _time_families(counted, taken, now)
        for name, value in sorted(storage_counters(storage).items()):
            family = Family(f"virtblk_storage_{name}", "gauge", f"Storage counter {name}.")
            family.add(value)
            yield family


def storage_counters(storage: Storage) -> dict[str, float]:
    """`Storage.counters()`: what the storage itself counts, filters and all."""
    counters: dict[str, float] = getattr(storage, "counters", dict)()
    return counters


def _counter_families(counted: npt.NDArray[np.int64]) -> Iterator[Family]:
    for metric, text, label, indices in TABLE:
        family = Family(f"virtblk_{metric}", "counter", text)
        for queue, counters in enumerate(counted.tolist()):
            for value, index in indices.items():
                family.add(counters[index], queue=queue, **{label: value})
        yield family


def _time_families(counted: npt.NDArray[np.int64], taken: list[list[int]], now: int) -> Iterator[Family]:
    latency = Family("virtblk_request_seconds", "histogram", "From taking a request off the ring to its answer.")
    for queue, counters in enumerate(counted.tolist()):
        latency.add_histogram(BOUNDS, counters[FIRST_BUCKET:], counters[LATENCY_NS] / 1e9, queue=queue)
    here = Family("virtblk_in_flight", "gauge", "Requests taken off the ring and not answered yet.")
    oldest = Family("virtblk_oldest_in_flight_seconds", "gauge", "Age of the oldest of them, 0 without any.")
    for queue, times in enumerate(taken):
        here.add(len(times), queue=queue)
        oldest.add(max(0, now - min(times, default=now)) / 1e9, queue=queue)
    yield from (latency, here, oldest)


def _figures(worker: Any) -> dict[str, int]:
    return {field: int(worker[field]) for field, _, _ in FIELDS}


class CountedDevice(VirtioBlkDevice):
    """A device that tells `accounts` of its rings."""

    accounts: Accounts | None = None

    def start_queue(self, index: int, vring: Any) -> None:
        super().start_queue(index, vring)
        if self.accounts is not None:
            self.accounts.queue_starts(self.queues[index])

    def stop_queue(self, index: int) -> int:
        if self.accounts is None:
            return super().stop_queue(index)
        stop = super().stop_queue
        return self.accounts.queue_stops(index, lambda: stop(index))
