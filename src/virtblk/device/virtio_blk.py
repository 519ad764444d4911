"""The virtio-blk device behind a vhost-user back end: features, config space, queues (virtio 1.2, 5.2).

`vhost_user.backend` calls it on the session's control thread; `device.queue` runs the rings.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np

from virtblk.device.queue import DeviceQueue, compile_worker
from virtblk.device.request import DISK_DTYPE, DiskView
from virtblk.errors import UsageError
from virtblk.jit.table import Table
from virtblk.mem.guest_memory import GuestMemory
from virtblk.storage.storage import Storage
from virtblk.uapi.virtio_blk import (
    BLK_CONFIG,
    BLK_CONFIG_SIZE_1_1,
    SECTOR_SHIFT,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_ID_BYTES,
)
from virtblk.uapi.virtio_config import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from virtblk.vhost_user.vring import Vring

log = logging.getLogger("virtblk.device")

#: What QEMU, SPDK and libvhost-server offer too: 128 descriptors less header and status.
SEG_MAX: Final = 126
SIZE_MAX: Final = 1 << 20
DEFAULT_POLL_US: Final = 32


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
            VIRTIO_BLK_F_MQ,
        }
        if storage.read_only:
            bits.add(VIRTIO_BLK_F_RO)
        if storage.can_flush:
            bits.add(VIRTIO_BLK_F_FLUSH)
        self.features = sum(1 << bit for bit in bits - without)
        config = np.zeros(1, BLK_CONFIG)
        config[0]["capacity"] = storage.size >> SECTOR_SHIFT
        config[0]["size_max"], config[0]["seg_max"] = SIZE_MAX, SEG_MAX
        config[0]["blk_size"] = storage.block_size
        config[0]["num_queues"] = queues
        self._config = config.tobytes().ljust(BLK_CONFIG_SIZE_1_1, b"\0")
        compile_worker(memory, self._disk, storage)

    def set_features(self, bits: int) -> None:
        """Accept `bits`. Raises ValueError without VERSION_1: there is no legacy interface here (6.1)."""
        if not bits >> VIRTIO_F_VERSION_1 & 1:
            raise ValueError("VIRTIO_F_VERSION_1 was not accepted; this device has no legacy interface")
        self._accepted = bits
        self._disk.state[0]["flush"] = bits >> VIRTIO_BLK_F_FLUSH & 1

    def get_config(self) -> bytes:
        """The whole config space."""
        return self._config

    def set_config(self, offset: int, data: bytes, flags: int) -> None:
        """Nothing is writable without CONFIG_WCE: raises ValueError."""
        raise ValueError("read-only")

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
