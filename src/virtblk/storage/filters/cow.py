"""`cow`: all that is written goes to an overlay; the disk below is only read (Linux: dm-snapshot; nbdkit: cow).

======  ==================================================================================================
file=   a new file for the overlay, sparse; unlinked as soon as it is open. Without it the overlay is memory
======  ==================================================================================================

A byte of the disk is in one of two states:

============  ==========================  ============================================================
state         read from                   becomes so by
============  ==========================  ============================================================
0             the disk below              being there
1             the overlay                 a write; write zeroes and discard, which leave a hole in it
============  ==========================  ============================================================

States change byte by byte, so no write has to read first. The overlay dies with the disk: flush has nothing to do,
and nothing that a guest wrote outlives close().
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from typing import ClassVar, Final

from virtblk.names import FilterName
from virtblk.storage.extent_map import ExtentMap
from virtblk.storage.filters.filter import Filter
from virtblk.storage.filters.overlay import Overlay, read_through
from virtblk.storage.io_request import Request
from virtblk.storage.request import OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES
from virtblk.storage.storage import Storage

OVERLAID: Final = 1


class CopyOnWrite(Filter):
    filter_name: ClassVar[str] = "cow"

    def __init__(self, lower: Storage, name: FilterName) -> None:
        super().__init__(lower, name)
        name.refuse_other_keys("file")
        self.read_only = False
        self.can_flush = self.can_fua = True
        self.can_discard = self.can_write_zeroes = self.can_unmap = True
        self.writeback_settable = True
        self.overlay = Overlay(name, lower.size, name.path_key("file"))
        self.extents = ExtentMap()
        # Held over copies to and from the overlay, never over a request of the disk below, which nobody changes.
        self._lock = threading.Lock()

    def submit(self, batch: Sequence[Request]) -> None:
        below: list[Request] = []
        ended: list[tuple[Request, int]] = []
        with self._lock:
            for request in batch:
                try:
                    wanted = self._execute(request)
                except OSError as error:
                    ended.append((request, error.errno or errno.EIO))
                    continue
                below += wanted
                if not wanted:
                    ended.append((request, 0))
        if below:
            self.lower.submit(below)
        for request, code in ended:
            request.end(code)

    def _execute(self, request: Request) -> list[Request]:
        """Do what the overlay can do; the reads that the disk below has to do."""
        if request.op == OP_READ:
            return read_through(request, self.extents, self.overlay)
        if request.op == OP_WRITE:
            self.overlay.write(request.pieces, request.offset)
            self.extents.assign(request.offset, request.offset + request.length, OVERLAID)
        elif request.op in (OP_DISCARD, OP_WRITE_ZEROES):
            for offset, length in request.ranges:
                self.overlay.zero(offset, length)
                self.extents.assign(offset, offset + length, OVERLAID)
        elif request.op != OP_FLUSH:
            raise OSError(errno.EOPNOTSUPP, "no such operation")
        return []

    def close(self) -> None:
        super().close()
        with self._lock:
            self.overlay.close()

    def own_counters(self) -> dict[str, float]:
        with self._lock:
            return {"overlay_bytes": self.overlay.allocated}
