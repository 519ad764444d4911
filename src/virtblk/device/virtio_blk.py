"""The virtio-blk device behind a vhost-user back end: features, config space, queues (virtio 1.2, 5.2).

It offers what the storage can do, and no more. `writeback` is the one config field that a driver may write.

`vhost_user.backend` calls it on the session's control thread; `device.queue` runs the rings.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
import numpy.typing as npt

from virtblk.device.queue import DeviceQueue, compile_worker
from virtblk.device.request import DISK_DTYPE, DiskView
from virtblk.device.worker import BATCH_BYTES
from virtblk.errors import UsageError
from virtblk.jit.table import Table
from virtblk.mem.guest_memory import GuestMemory
from virtblk.storage.request import KIND_MEMORY, KIND_SIM, MAX_RANGES
from virtblk.storage.storage import Storage
from virtblk.uapi.virtio_blk import (
    BLK_CONFIG_1_1,
    BLK_CONFIG_WRITEBACK,
    SECTOR_SHIFT,
    VIRTBLK_F_SORT,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_ID_BYTES,
)
from virtblk.uapi.virtio_config import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from virtblk.vhost_user.vring import Vring

log = logging.getLogger("virtblk.device")

#: What QEMU, SPDK and libvhost-server offer too: 128 descriptors less header and status.
SEG_MAX: Final = 126
SIZE_MAX: Final = 1 << 20
DEFAULT_POLL_US: Final = 32
#: What a device may ask of its driver (`virtblk serve --hint`), and the bits that say so.
HINTS: Final[dict[str, frozenset[int]]] = {"none": frozenset(), "sort": frozenset({VIRTBLK_F_SORT})}
#: Sectors of one segment of a discard or write zeroes: 256 MiB.
MAX_RANGE_SECTORS: Final = 1 << 19
#: The same where the worker itself sets every byte to zero, 8 MiB: a request of MAX_RANGES such segments (256 MiB)
#: takes a fraction of a second even on memory never used before, and that much may be to do when a worker is stopped.
MAX_MEMORY_RANGE_SECTORS: Final = BATCH_BYTES >> SECTOR_SHIFT


class VirtioBlkDevice:
    """One device on `storage`; `memory` is the session's. Implements vhost_user.vring.Device."""

    def __init__(
        self,
        storage: Storage,
        memory: GuestMemory,
        *,
        queues: int = 1,
        serial: str = "",
        poll_us: int = DEFAULT_POLL_US,
        delay_ns: int = 0,
        timed: bool = False,
        hint: str = "none",
        without: frozenset[int] = frozenset(),
    ) -> None:
        if not 1 <= queues <= 256:
            raise UsageError(f"{queues} queues: give 1 to 256")
        encoded = serial.encode("ascii", "replace")
        if len(encoded) > VIRTIO_BLK_ID_BYTES:
            raise UsageError(f"serial {serial!r} is longer than {VIRTIO_BLK_ID_BYTES} bytes")
        self.max_queues = queues
        self._memory = memory
        self._storage = storage
        self._poll_ns = poll_us * 1000
        self._delay_ns = delay_ns
        self._timed = timed
        self._queues: dict[int, DeviceQueue] = {}
        self._vrings: dict[int, Vring] = {}
        self._accepted = 0
        self._serial = np.frombuffer(encoded.ljust(VIRTIO_BLK_ID_BYTES, b"\0"), np.uint8).copy()
        self._disk = DiskView(Table(1, DISK_DTYPE))
        state = self._disk.state[0]
        state["capacity"] = storage.size >> SECTOR_SHIFT
        state["read_only"] = storage.read_only
        state["kind"], state["address"] = storage.kind, storage.address
        state["serial"] = self._serial.ctypes.data

        bits = {
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_MQ,
        }
        bits |= optional_features(storage) | HINTS[hint]
        bits -= without
        if VIRTIO_BLK_F_FLUSH not in bits:
            bits.discard(VIRTIO_BLK_F_CONFIG_WCE)  # 5.2.5.2: not without FLUSH
        self.features = sum(1 << bit for bit in bits)
        self._config = config_space(storage, queues, bits)
        state["max_discard_sectors"] = self._config["max_discard_sectors"][0]
        state["max_write_zeroes_sectors"] = self._config["max_write_zeroes_sectors"][0]
        self._has_cache = storage.can_flush
        self._first_writeback = self._writeback = storage.writeback
        self._set_cache_mode(storage.writeback)
        compile_worker(memory, self._disk, storage)

    def set_features(self, bits: int) -> None:
        """Accept `bits`. Raises ValueError without VERSION_1: there is no legacy interface here (6.1)."""
        if not bits >> VIRTIO_F_VERSION_1 & 1:
            raise ValueError("VIRTIO_F_VERSION_1 was not accepted; this device has no legacy interface")
        caching = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_CONFIG_WCE
        same_mode = bits & caching == self._accepted & caching
        self._accepted = bits
        state = self._disk.state[0]
        state["flush"] = self._accepts(VIRTIO_BLK_F_FLUSH)
        state["discard"] = self._accepts(VIRTIO_BLK_F_DISCARD)
        state["write_zeroes"] = self._accepts(VIRTIO_BLK_F_WRITE_ZEROES)
        if same_mode:  # said again (to log for a migration, say): what the driver chose stays
            self._set_cache_mode(self._writeback)
        elif self._accepts(VIRTIO_BLK_F_CONFIG_WCE) and not self._accepts(VIRTIO_BLK_F_FLUSH):
            self._set_cache_mode(False)  # 5.2.5.2
        else:
            self._set_cache_mode(self._first_writeback)

    def _accepts(self, bit: int) -> bool:
        return bool(self._accepted >> bit & 1)

    def _set_cache_mode(self, writeback: bool) -> None:
        """Write-back or write-through. Whatever the mode, writes are durable where FLUSH was not accepted (5.2.6.2)."""
        self._writeback = writeback
        through = self._has_cache and not (writeback and self._accepts(VIRTIO_BLK_F_FLUSH))
        self._disk.state[0]["write_through"] = through
        if self.features >> VIRTIO_BLK_F_CONFIG_WCE & 1:
            self._config["writeback"] = writeback

    def get_config(self) -> bytes:
        """The whole config space."""
        return self._config.tobytes()

    def set_config(self, offset: int, data: bytes, flags: int) -> None:
        """Switch the cache mode (5.2.6.1); the rest is read-only. Writes made after the answer see it.

        Raises ValueError for all but one byte, 0 or 1, at `writeback`, after CONFIG_WCE was accepted.
        """
        if offset != BLK_CONFIG_WRITEBACK or len(data) != 1:
            raise ValueError("read-only")
        if not self._accepts(VIRTIO_BLK_F_CONFIG_WCE):
            raise ValueError("writeback is read-only, CONFIG_WCE was not accepted")
        if data[0] > 1:
            raise ValueError(f"writeback {data[0]}, expected 0 or 1")
        self._set_cache_mode(bool(data[0]))

    def start_queue(self, index: int, vring: Vring) -> None:
        """Start the worker of ring `index`. Raises ValueError for a ring that is not in guest memory or misaligned."""
        self._queues[index] = DeviceQueue(
            self._memory,
            self._disk,
            self._storage,
            vring,
            event_idx=bool(self._accepted >> VIRTIO_RING_F_EVENT_IDX & 1),
            indirect=bool(self._accepted >> VIRTIO_RING_F_INDIRECT_DESC & 1),
            poll_ns=self._poll_ns,
            delay_ns=self._delay_ns,
            timed=self._timed,
        )
        self._vrings[index] = vring

    def stop_queue(self, index: int) -> int:
        """Drain and stop ring `index`; returns the next available index."""
        queue = self._queues.pop(index, None)
        return queue.stop() if queue is not None else self._vrings[index].base

    def set_call(self, index: int, fd: int) -> None:
        """The ring's call fd changed. Its worker pauses: it might be about to write to the number that gets closed."""
        vring = self._vrings[index]
        vring.base = self.stop_queue(index)
        vring.call_fd = fd
        self.start_queue(index, vring)

    @property
    def queues(self) -> dict[int, DeviceQueue]:
        """The rings that run, by index."""
        return self._queues


def optional_features(storage: Storage) -> set[int]:
    """The feature bits that depend on the storage."""
    can = {
        VIRTIO_BLK_F_RO: storage.read_only,
        VIRTIO_BLK_F_FLUSH: storage.can_flush,
        VIRTIO_BLK_F_CONFIG_WCE: storage.can_flush and storage.writeback_settable,
        VIRTIO_BLK_F_DISCARD: storage.can_discard and not storage.read_only,
        VIRTIO_BLK_F_WRITE_ZEROES: storage.can_write_zeroes and not storage.read_only,
    }
    return {bit for bit, able in can.items() if able}


def config_space(storage: Storage, queues: int, bits: set[int]) -> npt.NDArray[np.void]:
    """struct virtio_blk_config for a device that offers `bits`; fields of other features are 0."""
    config = np.zeros(1, BLK_CONFIG_1_1)
    block = storage.block_size
    config["capacity"] = storage.size >> SECTOR_SHIFT
    config["size_max"], config["seg_max"] = SIZE_MAX, SEG_MAX
    config["blk_size"] = block
    config["num_queues"] = queues
    # 5.2.4: sizes in logical blocks; the physical block is 2**exp of them.
    config["physical_block_exp"] = max(1, storage.physical_block_size // block).bit_length() - 1
    config["alignment_offset"] = min(storage.alignment_offset // block, 0xFF)
    config["min_io_size"] = min(max(1, storage.min_io_size // block), 0xFFFF)
    config["opt_io_size"] = min(storage.opt_io_size // block, 0xFFFFFFFF)
    in_memory = storage.kind == KIND_MEMORY or storage.kind == KIND_SIM
    most = MAX_MEMORY_RANGE_SECTORS if in_memory else MAX_RANGE_SECTORS
    if VIRTIO_BLK_F_DISCARD in bits:
        config["max_discard_sectors"], config["max_discard_seg"] = most, MAX_RANGES
        config["discard_sector_alignment"] = block >> SECTOR_SHIFT
    if VIRTIO_BLK_F_WRITE_ZEROES in bits:
        config["max_write_zeroes_sectors"], config["max_write_zeroes_seg"] = most, MAX_RANGES
        config["write_zeroes_may_unmap"] = storage.can_unmap
    return config
