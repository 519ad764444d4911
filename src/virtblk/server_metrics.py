"""What there is to count of a disk that is served, for `metrics` to write down.

A worker counts in a record of its own, which goes with its ring. `Accounts` keeps what has been counted: the figures of
a ring are added when it stops, and those of the rings that run when somebody asks, so that no counter ever falls. The
threads of sessions add, the exporter's reads; one lock, taken by control code only.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from virtblk import __version__
from virtblk.device.queue import DeviceQueue
from virtblk.device.virtio_blk import VirtioBlkDevice
from virtblk.metrics import Family, render
from virtblk.storage.storage import Storage

#: Fields of a worker's record that only grow: (field, metric, help).
COUNTERS: Final = (
    ("requests", "requests_total", "Requests answered."),
    ("kicks", "kicks_total", "Notifications from the driver that woke the queue's worker."),
    ("calls", "calls_total", "Interrupts sent to the driver."),
)


class Accounts:
    """The figures of one server, over all its sessions."""

    def __init__(self, storage: Storage, queues: int) -> None:
        self._storage = storage
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
            for index, queue in self._running.items():
                totals[index].update(_figures(queue.worker[0]))
                broken[index] += queue.broken is not None
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
        for field, metric, text in COUNTERS:
            family = Family(f"virtblk_queue_{metric}", "counter", text)
            for index, total in enumerate(totals):
                family.add(total[field], queue=index)
            yield family
        bad = Family("virtblk_queue_broken_total", "counter", "Rings that broke a rule and were stopped for it.")
        for index, count in enumerate(broken):
            bad.add(count, queue=index)
        yield bad
        for name, value in sorted(storage_counters(storage).items()):
            family = Family(f"virtblk_storage_{name}", "gauge", f"Storage counter {name}.")
            family.add(value)
            yield family


def storage_counters(storage: Storage) -> dict[str, float]:
    """`Storage.counters()`: what the storage itself counts, filters and all."""
    counters: dict[str, float] = getattr(storage, "counters", dict)()
    return counters


def _figures(worker: Any) -> dict[str, int]:
    return {field: int(worker[field]) for field, _, _ in COUNTERS}


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
