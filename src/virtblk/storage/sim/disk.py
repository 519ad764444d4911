"""`sim:PROFILE?k=v` as a storage: its data in sparse memory, its model, and what it does under a filter.

Without filters the device's workers run the model in compiled code (`device.sim_worker`) and never come here but for
the memory. Under filters `submit` hands requests to one thread, which runs the same model and ends them in its order.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from virtblk.errors import UsageError
from virtblk.jit.threads import start_thread
from virtblk.mem.shm import Mapping, Words
from virtblk.names import DiskName, format_size
from virtblk.storage.io_request import Request
from virtblk.storage.ram import MemoryStorage
from virtblk.storage.request import FLAG_FUA, KIND_SIM, OP_WRITE_ZEROES
from virtblk.storage.sim.profiles import make_model, make_queue, parse_profile
from virtblk.storage.sim.queue import NOTHING_DUE, model_time, real_ns, sim_queue_due, sim_queue_poll, sim_queue_submit
from virtblk.storage.storage import Storage, block_size_key

_CLOSE_SECONDS: Final = 10.0


class SimStorage(MemoryStorage):
    """A simulated disk. Raises UsageError for a profile, size or parameter that cannot be. `clock` is for tests."""

    kind = KIND_SIM

    def __init__(self, name: DiskName, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.name = name.text
        self.block_size = block_size_key(name)
        values = parse_profile(name)
        self.size = values["size"]
        if self.size % self.block_size:
            raise UsageError(f"disk {name.text!r}: size {format_size(self.size)}: give a multiple of {self.block_size}")
        self._clock = clock
        self.model = make_model(name.rest, values)
        self._words = Words(1)
        self.model.state[0]["lock"] = self._words.address(0)
        self.model.state[0]["base_ns"] = clock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Condition()
        self._backlog: deque[Request] = deque()
        self._closing = False
        self._queue = make_queue(0)
        self._out: dict[int, Request] = {}
        fd = -1
        try:
            fd = os.memfd_create("virtblk-sim", os.MFD_CLOEXEC)
            os.ftruncate(fd, self.size)  # sparse: memory is taken where something is written or read
            self._mapping = Mapping(self.size, fd)
        except OSError as error:
            text = f"disk {name.text!r}: no memory for {format_size(self.size)} ({error.strerror})"
            raise UsageError(text) from error
        finally:
            if fd >= 0:
                os.close(fd)
        self.address = self._mapping.address

    def populate(self) -> None:
        """Nothing: the disk is sparse."""

    # Under filters.

    def submit(self, batch: Sequence[Request]) -> None:
        with self._wake:
            self._backlog.extend(batch)
            failure = 0
            if self._thread is None:
                try:
                    self._thread = start_thread(self._run, name="virtblk-sim")
                except OSError as error:
                    failure = error.errno or 1
                    self._backlog.clear()
            self._wake.notify()
        for request in batch if failure else ():
            request.end(failure)

    def _run(self) -> None:
        while not self._closing:
            pause = self.turn()
            with self._wake:
                self._wake.wait_for(self._has_work, pause)

    def _has_work(self) -> bool:
        return self._closing or bool(self._backlog and self._queue.state[0]["free"])

    def turn(self) -> float | None:
        """End what has ended, begin what has come; seconds until there is more to do, None for ever."""
        now = int(model_time(self.model, self._clock()))
        sim_queue_poll(self.model, self._queue, now)
        queue, state = self._queue, self._queue.state[0]
        for slot in queue.ended[: state["ended"]].tolist():
            queue.free[state["free"]] = slot
            state["free"] += 1
            super().submit([self._out.pop(slot)])
        state["ended"] = 0
        while state["free"]:
            with self._wake:
                if not self._backlog:
                    break
                request = self._backlog.popleft()
            state["free"] -= 1
            slot = int(queue.free[state["free"]])
            self._out[slot] = request
            offset, length = extent(request)
            fua = request.flags & FLAG_FUA
            sim_queue_submit(self.model, queue, slot, request.op, offset, length, fua, now)
        due = int(sim_queue_due(self.model, queue))
        return None if due == NOTHING_DUE else max(0, int(real_ns(self.model, due, now))) / 1e9

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
            self._thread = None
        super().close()


def extent(request: Request) -> tuple[int, int]:
    """(offset, length) of what the model is told: of write zeroes all bytes, as if they followed the first."""
    if request.op == OP_WRITE_ZEROES:
        return request.ranges[0][0] if request.ranges else 0, sum(length for _, length in request.ranges)
    return request.offset, request.length


def open_sim(name: DiskName) -> Storage:
    """The disk that `name` describes. Raises UsageError."""
    return SimStorage(name)
