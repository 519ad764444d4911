"""`ram:SIZE` and `null:SIZE` as storages (Linux: brd, null_blk): what holds them, and what they do under a filter.

Without filters the device's workers execute them in compiled code (`storage.memory`, `storage.null`) and never come
here. Under filters `submit` does the same, at once, on the caller's thread.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from virtblk.errors import UsageError
from virtblk.mem.shm import Mapping
from virtblk.names import DiskName, format_size
from virtblk.storage.io_request import Request
from virtblk.storage.request import KIND_MEMORY, KIND_NULL, OP_DISCARD, OP_READ, OP_WRITE, OP_WRITE_ZEROES
from virtblk.storage.storage import Storage, block_size_key, size_of


class MemoryStorage(Storage):
    """A disk in anonymous memory. Raises UsageError for a size or key that cannot be."""

    kind = KIND_MEMORY
    can_fua = can_discard = can_write_zeroes = can_unmap = True

    def __init__(self, name: DiskName) -> None:
        self.name = name.text
        self.block_size = block_size_key(name)
        name.refuse_other_keys("block_size")
        self.size = size_of(name, self.block_size)
        try:
            self._mapping: Mapping | None = Mapping(self.size)
        except OSError as error:
            text = f"disk {name.text!r}: no memory for {format_size(self.size)} ({error.strerror})"
            raise UsageError(text) from error
        self._mapping.prefer_huge_pages()
        self.address = self._mapping.address

    def submit(self, batch: Sequence[Request]) -> None:
        for request in batch:
            at = self.address + request.offset
            if request.op in (OP_READ, OP_WRITE):
                for piece in request.pieces:
                    disk = memoryview((ctypes.c_char * len(piece)).from_address(at)).cast("B")
                    if request.op == OP_READ:
                        piece[:] = disk
                    else:
                        disk[:] = piece
                    at += len(piece)
            elif request.op in (OP_DISCARD, OP_WRITE_ZEROES):
                for offset, length in request.ranges:
                    ctypes.memset(self.address + offset, 0, length)
            request.end()

    def populate(self) -> None:
        """Fault all memory in, unless that is more than half of what is free."""
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self._mapping is not None and self.size <= available // 2:
            self._mapping.populate()

    def close(self) -> None:
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None


class NullStorage(Storage):
    """A disk that does nothing, at once; reads leave the buffer as it is. Raises UsageError."""

    kind = KIND_NULL
    can_fua = can_discard = can_write_zeroes = can_unmap = True

    def __init__(self, name: DiskName) -> None:
        self.name = name.text
        self.block_size = block_size_key(name)
        name.refuse_other_keys("block_size")
        self.size = size_of(name, self.block_size)

    def submit(self, batch: Sequence[Request]) -> None:
        for request in batch:
            request.end()
