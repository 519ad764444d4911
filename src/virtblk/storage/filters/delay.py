"""`delay`: every request starts later, without holding a thread (Linux: dm-delay; nbdkit: delay).

===================================== ====================================================================
read= write= flush= discard= zero=    how much later, each operation on its own: 200us, 10ms, 1.5s
all=                                  all the operations that have no time of their own
===================================== ====================================================================

Requests of the same delay keep their order. At close, what still waits goes on at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from virtblk.errors import UsageError
from virtblk.names import FilterName
from virtblk.storage.filters.filter import OP_NAMES, Filter
from virtblk.storage.io_request import Request
from virtblk.storage.storage import Storage
from virtblk.storage.timer import Timer


class Delay(Filter):
    filter_name: ClassVar[str] = "delay"

    def __init__(self, lower: Storage, name: FilterName, timer: Timer | None = None) -> None:
        super().__init__(lower, name)
        name.refuse_other_keys(*OP_NAMES.values(), "all")
        if not name.keys:
            raise UsageError(f"filter {name.text!r}: say what to delay, as in delay?all=10ms")
        every = name.time_key("all", 0.0)
        self.seconds = {op: name.time_key(key, every) for op, key in OP_NAMES.items()}
        self.timer = timer or Timer("virtblk-delay")

    def start(self) -> None:
        super().start()
        self.timer.start()

    def submit(self, batch: Sequence[Request]) -> None:
        by_delay: dict[float, list[Request]] = {}
        for request in batch:
            by_delay.setdefault(self.seconds.get(request.op, 0.0), []).append(request)
        now = self.timer.clock()
        for seconds, requests in by_delay.items():
            if seconds:
                self.timer.at(now + seconds, partial(self.lower.submit, requests))
            else:
                self.lower.submit(requests)

    def close(self) -> None:
        self.timer.close()
        super().close()

    def own_counters(self) -> dict[str, float]:
        return {"waiting": self.timer.waiting}
