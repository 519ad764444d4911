"""Defects that lose data which was promised to be durable (virtio 1.2, 5.2.6.2); their disks have a volatile cache."""

from __future__ import annotations

from typing import Final

from .mutant import VOLATILE, Mutant, mutant

DEVICE: Final = "device/virtio_blk.py"
_THROUGH: Final = "through = self._has_cache and not (writeback and self._accepts(VIRTIO_BLK_F_FLUSH))"

MUTANTS: Final[tuple[Mutant, ...]] = (
    mutant(
        "flush_does_nothing",
        "blk.durable-after-flush",
        "A flush is OK at once; what is in the cache stays there.",
        "storage/filters/volatile.py",
        "            self._promise_all(request)\n            return False\n",
        "            return True\n",
        disk=VOLATILE,
    ),
    mutant(
        "write_through_forgotten",
        "blk.durable-write-through",
        "With writeback 0, writes stay in the cache.",
        DEVICE,
        _THROUGH,
        "through = self._has_cache and not self._accepts(VIRTIO_BLK_F_FLUSH)",
        disk=VOLATILE,
    ),
    mutant(
        "no_flush_not_durable",
        "blk.durable-without-flush",
        "A driver without FLUSH gets a volatile cache.",
        DEVICE,
        _THROUGH,
        "through = self._has_cache and not writeback",
        disk=VOLATILE,
    ),
)
