"""What a device stores its data in: one small interface, and the storages of this version.

A storage is described to the workers by integers (kind, address), tested once per batch; it executes batches of
`storage.request` records. Made and closed by control code.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from virtblk.errors import UsageError
from virtblk.mem.shm import Mapping
from virtblk.names import DiskName, format_size
from virtblk.storage.io_request import Request
from virtblk.storage.request import KIND_MEMORY, KIND_NULL


@dataclass
class Storage:
    """An open storage: `size` in bytes, and what the kernels need to reach it."""

    name: str
    size: int
    kind: int
    address: int = 0
    block_size: int = 512
    read_only: bool = False
    can_flush: bool = True
    _mapping: Mapping | None = None
    physical_block_size: int = 0
    min_io_size: int = 0
    opt_io_size: int = 0
    alignment_offset: int = 0
    can_fua: bool = False
    can_discard: bool = False
    can_write_zeroes: bool = False
    can_unmap: bool = False
    writeback: bool = True
    writeback_settable: bool = True

    def submit(self, batch: Sequence[Request]) -> None:
        """Take all requests; each ends later or at once, on any thread."""
        raise NotImplementedError

    def start(self) -> None:
        """Before the first request."""

    def counters(self) -> dict[str, float]:
        """For metrics."""
        return {}

    def populate(self) -> None:
        """Have all memory ready before anything is timed, unless that is more than half of what is free."""
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self._mapping is not None and self.size <= available // 2:
            self._mapping.populate()

    def close(self) -> None:
        """Give the memory back. No worker runs any more."""
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None


def open_storage(name: DiskName) -> Storage:
    """Open the storage that `name` describes. Raises UsageError for a size or key that cannot work."""
    if name.scheme not in ("ram", "null"):
        raise UsageError(f"disk {name.text!r}: {name.scheme}: is no storage of this version; ram: and null: are")
    block_size = name.size_key("block_size", 512)
    if block_size < 512 or block_size & (block_size - 1) or block_size > 65536:
        raise UsageError(f"disk {name.text!r}: block_size {block_size}: give a power of two from 512 to 64k")
    name.refuse_other_keys("block_size")
    size = name.size
    if size < block_size or size % block_size:
        raise UsageError(
            f"disk {name.text!r}: size {format_size(size)} is not a positive multiple of the block size {block_size}"
        )
    if name.scheme == "null":
        return Storage(name.text, size, KIND_NULL, block_size=block_size)
    try:
        mapping = Mapping(size)
    except OSError as error:
        raise UsageError(f"disk {name.text!r}: no memory for {format_size(size)} ({error.strerror})") from error
    mapping.prefer_huge_pages()
    return Storage(name.text, size, KIND_MEMORY, mapping.address, block_size, _mapping=mapping)
