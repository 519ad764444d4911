"""`error`: requests fail (Linux: dm-flakey, null_blk's badblocks; nbdkit: error).

=======  ===================================================================================================
rate=    how many fail, at random: 0.1 or 10%; all unless given
kind=    with which errno: EIO (unless given), ENOSPC or EOPNOTSUPP
op=      which operations, joined by +: read+write; of read, write, flush, discard, zero; all unless given
range=   OFFSET-LENGTH in bytes, as in 1m-64k: only requests that touch these 64k; a flush touches nothing
file=    errors happen only while this file exists; looked for once per batch
seed=    a whole number: the same requests in the same order fail again
=======  ===================================================================================================

A request that fails here never reaches the disk below. The counter `error_injected` is the number of requests that
were ended with an error; it changes before they end.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from random import Random
from typing import ClassVar, Final

from virtblk.errors import UsageError
from virtblk.names import FilterName, parse_size
from virtblk.storage.filters.filter import OP_NAMES, Filter, touched
from virtblk.storage.io_request import Request
from virtblk.storage.request import OP_FLUSH
from virtblk.storage.storage import Storage

KINDS: Final = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EOPNOTSUPP": errno.EOPNOTSUPP}


class Error(Filter):
    filter_name: ClassVar[str] = "error"

    def __init__(self, lower: Storage, name: FilterName) -> None:
        super().__init__(lower, name)
        name.refuse_other_keys("rate", "kind", "op", "range", "file", "seed")
        self.rate = name.fraction_key("rate", 1.0)
        kind = name.keys.get("kind", "EIO")
        if kind not in KINDS:
            raise name.refuse("kind", f"give one of {', '.join(KINDS)}")
        self.errno = KINDS[kind]
        self.ops = _ops(name)
        self.range = _range(name, lower.size)
        if self.range is not None and self.ops == {OP_FLUSH}:
            raise UsageError(
                f"filter {name.text!r}: a flush touches no range: leave out range= or name other operations"
            )
        self.trigger = name.path_key("file")
        self._random = Random(name.integer_key("seed"))
        self._lock = threading.Lock()
        self._injected = 0

    def submit(self, batch: Sequence[Request]) -> None:
        if self.trigger is not None and not os.path.exists(self.trigger):
            self.lower.submit(batch)
            return
        below: list[Request] = []
        failing: list[Request] = []
        with self._lock:
            for request in batch:
                fails = self._is_target(request) and self._random.random() < self.rate
                (failing if fails else below).append(request)
            self._injected += len(failing)
        if below:
            self.lower.submit(below)
        for request in failing:
            request.end(self.errno)

    def _is_target(self, request: Request) -> bool:
        if request.op not in self.ops:
            return False
        if self.range is None:
            return True
        start, stop = self.range
        return any(offset < stop and start < offset + length for offset, length in touched(request))

    def own_counters(self) -> dict[str, float]:
        return {"injected": self._injected}


def _ops(name: FilterName) -> set[int]:
    by_name = {text: op for op, text in OP_NAMES.items()}
    if "op" not in name.keys:
        return set(OP_NAMES)
    chosen = name.keys["op"].split("+")
    for text in chosen:
        if text not in by_name:
            raise name.refuse("op", f"give one or more of {', '.join(by_name)}, joined by +")
    return {by_name[text] for text in chosen}


def _range(name: FilterName, size: int) -> tuple[int, int] | None:
    if "range" not in name.keys:
        return None
    first, dash, second = name.keys["range"].partition("-")
    if not dash:
        raise name.refuse("range", "give OFFSET-LENGTH in bytes, such as 1m-64k")
    offset, length = parse_size(first, name.what("range")), parse_size(second, name.what("range"))
    if not length or offset + length > size:
        raise name.refuse("range", f"it is empty, or goes beyond the disk's {size} bytes")
    return offset, offset + length
