"""`rate`: no more than so many requests or bytes a second (Linux: io.max of the io controller; nbdkit: rate).

===========  ==============================================================================================
iops=        requests a second, of any operation
bw=          bytes of data read and written a second, as a size: 100m
burst=       how much may be saved up while the disk is idle, as a time at that rate: 100ms unless given
===========  ==============================================================================================

A token bucket, kept as one number: the time at which all that was let through is paid for. A request starts when that
time is no later than now, and puts it off by its own cost; a request larger than the bucket passes all the same, and
those after it wait longer. Requests start in the order in which they came.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Final

from virtblk.errors import UsageError
from virtblk.names import FilterName
from virtblk.storage.filters.filter import Filter
from virtblk.storage.io_request import Request
from virtblk.storage.storage import Storage
from virtblk.storage.timer import Timer

_BURST_SECONDS: Final = 0.1


class Rate(Filter):
    filter_name: ClassVar[str] = "rate"

    def __init__(self, lower: Storage, name: FilterName, timer: Timer | None = None) -> None:
        super().__init__(lower, name)
        name.refuse_other_keys("iops", "bw", "burst")
        iops, bandwidth = name.integer_key("iops"), name.size_key("bw")
        if iops is None and bandwidth is None:
            raise UsageError(f"filter {name.text!r}: give iops=, bw= or both, as in rate?iops=1000")
        if iops == 0:
            raise name.refuse("iops", "give 1 or more")
        if bandwidth == 0:
            raise name.refuse("bw", "give 1 or more")
        self.request_seconds = 1 / iops if iops else 0.0
        self.byte_seconds = 1 / bandwidth if bandwidth else 0.0
        self.burst = name.time_key("burst", _BURST_SECONDS)
        self.timer = timer or Timer("virtblk-rate")
        self._lock = threading.Lock()
        # When all that was let through so far is paid for, by each of the two limits.
        self._paid_requests = self._paid_bytes = float("-inf")
        self._delayed = 0

    def start(self) -> None:
        super().start()
        self.timer.start()

    def submit(self, batch: Sequence[Request]) -> None:
        at_once: list[Request] = []
        with self._lock:
            now = self.timer.clock()
            for request in batch:
                when = self._start_time(request, now)
                if when <= now and not self.timer.waiting:
                    at_once.append(request)
                else:
                    self._delayed += 1
                    self.timer.at(when, partial(self.lower.submit, [request]))
        if at_once:
            self.lower.submit(at_once)

    def _start_time(self, request: Request, now: float) -> float:
        """When the request may start; it has been charged for."""
        when = max(now, self._paid_requests, self._paid_bytes)
        self._paid_requests = max(self._paid_requests, when - self.burst) + self.request_seconds
        self._paid_bytes = max(self._paid_bytes, when - self.burst) + request.length * self.byte_seconds
        return when

    def close(self) -> None:
        self.timer.close()
        super().close()

    def own_counters(self) -> dict[str, float]:
        return {"delayed": self._delayed, "waiting": self.timer.waiting}
