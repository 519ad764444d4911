"""What one queue on a file needs besides its ring: an io_uring, slots, iovecs, and memory of its own to copy through.

Made and closed by `device.queue`, on the session's control thread; used by `device.file_worker`.
"""

from __future__ import annotations

import os

from virtblk.device.file_request import (
    CHUNK,
    FILE_QUEUE_DTYPE,
    FILE_SLOT_DTYPE,
    IOVEC_BYTES,
    SLOT_IOVECS,
    FileQueue,
)
from virtblk.jit.io_uring import URING_DTYPE, IoUring
from virtblk.jit.table import Table
from virtblk.mem.shm import Mapping
from virtblk.storage.file import FileStorage
from virtblk.storage.file_state import FILE_DTYPE


def example_file_queue() -> FileQueue:
    """One of no use but for its types."""
    return FileQueue(Table(1, FILE_QUEUE_DTYPE), Table(1, URING_DTYPE), Table(1, FILE_SLOT_DTYPE), Table(1), Table(1))


class FileResources:
    """For a queue with `slots` slots. Raises OSError where the system gives no io_uring."""

    def __init__(self, storage: FileStorage, slots: int) -> None:
        self._flush_fd = -1
        self._memory: Mapping | None = None
        self._ring = IoUring(slots + 1)  # one submission of each slot, and a flush
        try:
            self._flush_fd = storage.description()
            self._memory = Mapping(2 * CHUNK)
        except BaseException:
            self.close()
            raise
        self._iovecs = Table(slots * SLOT_IOVECS * IOVEC_BYTES // 8)
        self.queue = FileQueue(
            Table(1, FILE_QUEUE_DTYPE), self._ring.table, Table(slots, FILE_SLOT_DTYPE), Table(slots), Table(slots)
        )
        self.queue.free[:] = range(slots - 1, -1, -1)
        state, file = self.queue.state[0], storage.state[0]
        state["slots"] = state["free"] = slots
        for key in ("fd", "memory_align", "unsafe", "punch", "zero"):
            state[key] = file[key]
        state["flush_fd"] = self._flush_fd
        state["failed"] = storage.address + int(FILE_DTYPE.fields["failed"][1])  # type: ignore[index]
        state["iovecs"] = self._iovecs.address
        state["bounce"], state["zeroes"] = self._memory.address, self._memory.address + CHUNK

    def close(self) -> None:
        """The worker has ended, with nothing in flight."""
        self._ring.close()
        if self._flush_fd >= 0:
            os.close(self._flush_fd)
            self._flush_fd = -1
        if self._memory is not None:
            self._memory.close()
            self._memory = None
