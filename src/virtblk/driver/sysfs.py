"""The disk's attributes by their sysfs names, read and set as text (Linux: blk-sysfs.c, elevator.c, virtio_blk's own).

`serial`, `cache_type`, `queue/nr_requests`, `queue/scheduler`, `queue/nomerges`, and `queue/iosched/*` of the scheduler
that is set, in Linux's formats (`[noop] deadline`) and units (milliseconds). The request path and the mq path have a
scheduler each, and its name says which of them is meant: `noop` and `deadline` as of 2012, `none` and `mq-deadline` as
of today. On the path auto `queue/scheduler` shows what that has chosen, and `queue/auto` what it knows. Control
context; what changes is changed under the queue lock, whether I/O is in flight or not.

On the mq path and on auto `mq/N/` is virtqueue N: `nr_tags` (ring entries), `type` (`default` or `poll`, as debugfs has
it) and `submitters`, which are what Linux's `cpu_list` has as CPUs. What is set in `queue/` is set for every virtqueue,
each of which has a scheduler and a pool of `nr_requests` of its own (Linux too counts nr_requests per hardware queue).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

from virtblk.block.request import ELEVATOR_DEADLINE, ELEVATOR_NOOP, MAX_NR_REQUESTS, MIN_NR_REQUESTS
from virtblk.driver.map_queues import MQ_PATHS
from virtblk.driver.queue import QueueSetup
from virtblk.driver.virtblk_req import VirtblkQueue
from virtblk.errors import UsageError
from virtblk.jit.lock import mutex_lock, mutex_unlock, wake_up

#: By path; each has its own, under the names that Linux had and has for them.
SCHEDULERS: Final = {
    "request": {"noop": ELEVATOR_NOOP, "deadline": ELEVATOR_DEADLINE},
    "mq": {"none": ELEVATOR_NOOP, "mq-deadline": ELEVATOR_DEADLINE},
}
CACHE_TYPES: Final = {"write through": False, "write back": True}
_MS: Final = 1_000_000


class _Number(NamedTuple):
    """An attribute that is a number: its field, its range, and what one unit of it is in the field."""

    field: str
    least: int
    most: int
    unit: int = 1


_QUEUE: Final = {
    "nr_requests": _Number("nr_requests", MIN_NR_REQUESTS, MAX_NR_REQUESTS),
    "nomerges": _Number("nomerges", 0, 2),
}
_DEADLINE: Final = {
    "read_expire": _Number("read_expire", 0, 1 << 31, _MS),
    "write_expire": _Number("write_expire", 0, 1 << 31, _MS),
    "writes_starved": _Number("writes_starved", 0, 1 << 31),
    "fifo_batch": _Number("fifo_batch", 1, 1 << 31),
    "front_merges": _Number("front_merges", 0, 1),
}


@contextmanager
def queue_lock(d: VirtblkQueue) -> Iterator[None]:
    """Hold the queue lock. Bounded work only: submitters wait meanwhile."""
    lock = int(d.queue[0]["lock"])
    mutex_lock(lock)
    try:
        yield
    finally:
        mutex_unlock(lock)


class Device(Protocol):
    """What attributes are of: `driver.virtio_blk.VirtioBlk`."""

    serial: str
    writeback: bool  # the cache mode
    elevators: dict[str, int]  # by path: the scheduler that is set for it

    @property
    def path(self) -> str:
        """The path that bios take."""

    @property
    def queues(self) -> Sequence[QueueSetup]:
        """The virtqueues."""

    @property
    def views(self) -> Sequence[Any]:
        """What the kernels take of each (driver.virtblk_req.VirtblkQueue)."""

    def is_polled(self, index: int) -> bool:
        """Whether virtqueue `index` has no interrupts."""

    def mapped_submitters(self, index: int) -> range:
        """The disk's submitters that use virtqueue `index` on a path that uses all of them."""

    def switch_elevator(self, elevator: int) -> None:
        """Set the scheduler of the path that bios take."""

    def set_writeback(self, writeback: bool) -> None:
        """Switch the cache mode. Raises UsageError, OSError, DeviceError."""


class Sysfs:
    """The attributes of one disk. Raises UsageError for names and values that there are not."""

    def __init__(self, device: Device) -> None:
        self._device = device

    @property
    def _state(self):  # type: ignore[no-untyped-def]  # a NumPy record, of the first virtqueue: all are set alike
        return self._device.views[0].q.state[0]

    @property
    def _path(self) -> str:
        """The path whose schedulers are shown: the one that bios take, or request where that has none."""
        return "mq" if self._device.path in ("mq", "auto") else "request"

    @property
    def _elevator(self) -> int:
        if self._device.path != "auto":
            return self._device.elevators[self._path]
        return max(int(d.q.state[0]["elevator"]) for d in self._device.views)  # each virtqueue finds out for itself

    @property
    def scheduler(self) -> str:
        """The name of the scheduler that is set, or that the path auto has chosen for now."""
        elevator = self._elevator
        return next(name for name, number in SCHEDULERS[self._path].items() if number == elevator)

    def names(self) -> list[str]:
        """All attributes there are now; those of `queue/iosched/` depend on the scheduler."""
        names = ["serial", "cache_type", "queue/scheduler", *(f"queue/{name}" for name in _QUEUE)]
        if self._device.path == "auto":
            names.append("queue/auto")
        names += self._hctx()
        if self._elevator == ELEVATOR_DEADLINE:
            names += [f"queue/iosched/{name}" for name in _DEADLINE]
        return names

    def _hctx(self) -> dict[str, str]:
        """The attributes of the virtqueues by name, with their texts; none on paths that are older than they."""
        device = self._device
        if device.path not in MQ_PATHS:
            return {}
        texts = {}
        for index, queue in enumerate(device.queues):
            texts[f"mq/{index}/nr_tags"] = str(queue.limits.num)
            texts[f"mq/{index}/type"] = "poll" if device.is_polled(index) else "default"
            texts[f"mq/{index}/submitters"] = ", ".join(str(number) for number in device.mapped_submitters(index))
        return texts

    def _number(self, name: str) -> _Number:
        if name not in self.names():
            elsewhere = name.removeprefix("queue/iosched/") in _DEADLINE
            wanted = "mq-deadline" if self._path == "mq" else "deadline"
            hint = f"; set queue/scheduler to {wanted} first" if elsewhere else ""
            raise UsageError(f"no attribute {name!r}{hint} (there are: {', '.join(self.names())})")
        table = _DEADLINE if name.startswith("queue/iosched/") else _QUEUE
        return table[name.rpartition("/")[2]]

    def read(self, name: str) -> str:
        """The attribute's text, as `cat` would show it."""
        if name == "serial":
            return self._device.serial
        if name == "cache_type":
            return "write back" if self._device.writeback else "write through"
        if name == "queue/scheduler":
            return " ".join(f"[{known}]" if known == self.scheduler else known for known in SCHEDULERS[self._path])
        if name == "queue/auto" and self._device.path == "auto":
            known = ("merging", "elevator", "windows", "trials", "changes")
            sums = {field: sum(int(d.auto[0][field]) for d in self._device.views) for field in known}
            return " ".join(f"{field}={value}" for field, value in sums.items())
        if name in (hctx := self._hctx()):
            return hctx[name]
        number = self._number(name)
        return str(int(self._state[number.field]) // number.unit)

    def write(self, name: str, text: str) -> None:
        """Set the attribute, as `echo text >` would."""
        if name == "queue/scheduler":
            if self._device.path == "auto":
                raise UsageError(f"queue/scheduler {text!r}: the path auto chooses its own; take the path mq")
            path = next((path for path, names in SCHEDULERS.items() if text in names), None)
            if path is None:
                known = " or ".join(f"{', '.join(names)} ({path} path)" for path, names in SCHEDULERS.items())
                raise UsageError(f"queue/scheduler {text!r}: give one of {known}")
            self._device.elevators[path] = SCHEDULERS[path][text]
            if path == self._device.path or (path, self._device.path) == ("request", "bio"):
                self._device.switch_elevator(SCHEDULERS[path][text])
            return
        if name == "cache_type":
            if text not in CACHE_TYPES:
                raise UsageError(f"cache_type {text!r}: give one of {', '.join(CACHE_TYPES)}")
            self._device.set_writeback(CACHE_TYPES[text])
            return
        if name == "serial":
            raise UsageError("serial cannot be set: it is the device's")
        if name == "queue/auto" and self._device.path == "auto":
            raise UsageError("queue/auto cannot be set: it says what the path auto has found out")
        if name in self._hctx():
            raise UsageError(f"{name} cannot be set: virtqueues are as they were opened")
        number = self._number(name)
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1
        if not number.least <= value <= number.most:
            unit = " milliseconds" if number.unit == _MS else ""
            raise UsageError(f"{name} {text!r}: give {number.least} to {number.most}{unit}")
        for d in self._device.views:
            with queue_lock(d):
                d.q.state[0][number.field] = value * number.unit
            wake_up(int(d.queue[0]["request_wait"]), 1 << 30)  # a larger pool has room


class Iosched(MutableMapping[str, int]):
    """`queue/iosched/*` as a mapping; what keys there are depends on the scheduler. Times are milliseconds."""

    _PREFIX: Final = "queue/iosched/"

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._PREFIX) for name in self._sysfs.names() if name.startswith(self._PREFIX))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, key: str) -> int:
        if key not in list(self):
            raise KeyError(key)
        return int(self._sysfs.read(self._PREFIX + key))

    def __setitem__(self, key: str, value: int) -> None:
        self._sysfs.write(self._PREFIX + key, str(value))

    def __delitem__(self, key: str) -> None:
        raise UsageError(f"queue/iosched/{key} cannot be removed")


class QueueAttributes:
    """The directory `queue` of a disk in sysfs: what the request path does with a bio.

    Setting raises UsageError for what cannot be.
    """

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self.iosched = Iosched(sysfs)

    @property
    def scheduler(self) -> str:
        """The scheduler that is set: noop or deadline, on the mq path none or mq-deadline."""
        return self._sysfs.scheduler

    @scheduler.setter
    def scheduler(self, name: str) -> None:
        self._sysfs.write("queue/scheduler", name)

    @property
    def nr_requests(self) -> int:
        """Requests that may be in use at once."""
        return int(self._sysfs.read("queue/nr_requests"))

    @nr_requests.setter
    def nr_requests(self, count: int) -> None:
        self._sysfs.write("queue/nr_requests", str(count))

    @property
    def nomerges(self) -> int:
        """0 merges all it can, 1 only with what lies at hand, 2 nothing."""
        return int(self._sysfs.read("queue/nomerges"))

    @nomerges.setter
    def nomerges(self, value: int) -> None:
        self._sysfs.write("queue/nomerges", str(value))
