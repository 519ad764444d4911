"""`stats`: how many requests of which size and alignment (Linux: the histograms of blktrace's btt; nbdkit: stats).

======  =================================================================
file=   the report is written to this file, which it replaces, at close
======  =================================================================

Sizes are counted by powers of two: 4k holds 4096 to 8191 bytes. The alignment of an offset is the largest power of
two that divides it, 1m at most. Discard and write zeroes count their ranges one by one there.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Final

from virtblk.errors import OpenError
from virtblk.names import FilterName, format_size
from virtblk.storage.filters.filter import OP_NAMES, Filter, touched
from virtblk.storage.io_request import Request
from virtblk.storage.storage import Storage

log = logging.getLogger("virtblk.storage")

_LARGEST_ALIGNMENT: Final = 1 << 20


class OpStats:
    """What was asked of one operation."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.errors = 0
        self.sizes: Counter[int] = Counter()
        self.alignments: Counter[int] = Counter()


class Stats(Filter):
    filter_name: ClassVar[str] = "stats"

    def __init__(self, lower: Storage, name: FilterName) -> None:
        super().__init__(lower, name)
        name.refuse_other_keys("file")
        self.path = name.path_key("file")
        if self.path is not None:
            try:
                with open(self.path, "ab"):
                    pass  # better known now than at the end
            except OSError as error:
                raise OpenError(
                    error.errno, f"filter {name.text!r}: cannot write {self.path}: {error.strerror}"
                ) from error
        self._lock = threading.Lock()
        self._ops = {op: OpStats() for op in OP_NAMES}
        self._closed = False

    def submit(self, batch: Sequence[Request]) -> None:
        with self._lock:
            for request in batch:
                stats = self._ops.get(request.op)
                if stats is None:
                    continue
                stats.count += 1
                for offset, length in touched(request):
                    stats.bytes += length
                    stats.sizes[1 << (length.bit_length() - 1)] += 1
                    stats.alignments[min(_LARGEST_ALIGNMENT, offset & -offset or _LARGEST_ALIGNMENT)] += 1
        for request in batch:
            request.then(self._ended)
        self.lower.submit(batch)

    def _ended(self, request: Request, error: int) -> int:
        if error:
            with self._lock:
                if request.op in self._ops:
                    self._ops[request.op].errors += 1
        return error

    def report(self) -> str:
        """A line for each operation that was asked for, and its two histograms."""
        lines = []
        with self._lock:
            for op, stats in self._ops.items():
                if stats.count:
                    lines.append(f"{OP_NAMES[op]} count={stats.count} bytes={stats.bytes} errors={stats.errors}")
                    for title, histogram in (("size", stats.sizes), ("alignment", stats.alignments)):
                        if histogram:
                            row = " ".join(f"{format_size(key)}={histogram[key]}" for key in sorted(histogram))
                            lines.append(f"  {title} {row}")
        return "".join(line + "\n" for line in lines)

    def close(self) -> None:
        super().close()
        if self.path is None or self._closed:
            return
        self._closed = True
        try:
            with open(self.path, "w", encoding="ascii") as file:
                file.write(self.report())
        except OSError as error:
            log.warning("stats filter: cannot write %s: %s", self.path, error.strerror)

    def own_counters(self) -> dict[str, float]:
        found = {}
        with self._lock:
            for op, stats in self._ops.items():
                for key in ("count", "bytes", "errors"):
                    found[f"{OP_NAMES[op]}_{key}"] = getattr(stats, key)
        return found
