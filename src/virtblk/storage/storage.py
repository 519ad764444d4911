"""What a device stores its data in: one small interface, and the keys of a disk name that several kinds share.

A storage is described to the workers by integers (kind, address), tested once per batch: `ram:`, `null:`, `file:` and
`sim:` are executed by compiled code. What is none of these, a filter on any of them included, is given `Request`
objects through `submit`. Made (`storage.open`) and closed by control code.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtblk.errors import UsageError
from virtblk.names import DiskName, format_size
from virtblk.storage.io_request import Request
from virtblk.storage.request import KIND_REQUESTS


class Storage:
    """An open storage; sizes and alignments in bytes. The attributes stay as they are while it is open.

    `can_flush`: it has a volatile cache, which a flush empties. `can_fua`: it honours FLAG_FUA itself. `can_unmap`:
    write zeroes may give space back. `writeback`: the cache mode it starts in; `writeback_settable`: whether a driver
    may change it.
    """

    name: str
    size: int
    kind: int = KIND_REQUESTS
    address: int = 0
    block_size: int = 512
    physical_block_size: int = 0  # 0: as block_size
    min_io_size: int = 0
    opt_io_size: int = 0
    alignment_offset: int = 0
    read_only: bool = False
    can_flush: bool = True
    can_fua: bool = False
    can_discard: bool = False
    can_write_zeroes: bool = False
    can_unmap: bool = False
    writeback: bool = True
    writeback_settable: bool = True

    def start(self) -> None:
        """Threads may be started; called once, before the first request."""

    def submit(self, batch: Sequence[Request]) -> None:
        """Take all requests; each ends later or at once, on any thread. Never raises; several threads may call it."""
        raise NotImplementedError

    def populate(self) -> None:
        """Have everything ready before anything is timed."""

    def counters(self) -> dict[str, float]:
        """What the storage counted, for metrics."""
        return {}

    def close(self) -> None:
        """Give everything back. No request is in flight any more. Repeatable."""


def block_size_key(name: DiskName) -> int:
    """The key `block_size`, 512 without it. Raises UsageError."""
    block_size = name.size_key("block_size", 512)
    if block_size < 512 or block_size & (block_size - 1) or block_size > 65536:
        raise UsageError(f"disk {name.text!r}: block_size {block_size}: give a power of two from 512 to 64k")
    return block_size


def size_of(name: DiskName, block_size: int) -> int:
    """The size in the name: a positive multiple of the block size. Raises UsageError."""
    size = name.size
    if size < block_size or size % block_size:
        raise UsageError(
            f"disk {name.text!r}: size {format_size(size)} is not a positive multiple of the block size {block_size}"
        )
    return size
