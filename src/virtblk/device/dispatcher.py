"""Between a queue's worker and a storage in Python: slots become `Request` objects, and ends become slots again.

One thread per queue waits for the worker (`device.async_worker`), builds requests over guest memory and submits them in
batches. Requests end on whatever thread the storage ends them. Started and stopped by `device.queue`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from functools import partial

from virtblk.device.async_worker import MAILBOX_DTYPE, Mailbox
from virtblk.jit.atomics import load_acquire_i64, store_release_i64
from virtblk.jit.table import Table
from virtblk.jit.threads import start_thread
from virtblk.mem.shm import Words
from virtblk.storage.io_request import Request
from virtblk.storage.request import (
    FLAG_FUA,
    OP_DISCARD,
    OP_FLUSH,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
)
from virtblk.storage.storage import Storage
from virtblk.uapi.virtio_blk import SECTOR_SHIFT
from virtblk.virtio.vringh_split import Vringh

_SUBMITTED, _ENDED, _WORDS = range(3)


def example_mailbox() -> Mailbox:
    """A mailbox of no use but for its types."""
    return Mailbox(Table(1, MAILBOX_DTYPE), Table(1), Table(1), Table(1))


class Dispatcher:
    """The mailbox of one queue with `num` entries and its thread, running until `stop`."""

    def __init__(self, storage: Storage, vring: Vringh, requests: Table, slots: int, wake_fd: int, name: str) -> None:
        self._storage = storage
        self._vring = vring
        self._requests = requests
        self._wake_fd = wake_fd  # the worker's
        self._words = Words(_WORDS)
        self._ended_word = self._words.address(_ENDED)
        self._submitted_word = self._words.address(_SUBMITTED)
        self._mask = slots - 1
        self.mailbox = Mailbox(Table(1, MAILBOX_DTYPE), Table(slots), Table(slots), Table(slots))
        self.mailbox.free[:] = range(slots - 1, -1, -1)
        self._submit_fd = os.eventfd(0, os.EFD_CLOEXEC)
        state = self.mailbox.state[0]
        state["slots"] = state["free"] = slots
        state["submit_fd"] = self._submit_fd
        state["submitted"], state["ended"] = self._submitted_word, self._ended_word
        self._ending = threading.Lock()
        self._stopping = False
        self._taken = 0
        try:
            self._thread = start_thread(self._run, name=name)
        except OSError:
            os.close(self._submit_fd)
            raise

    def _run(self) -> None:
        while True:
            os.eventfd_read(self._submit_fd)
            submitted = load_acquire_i64(self._submitted_word)  # partner: the worker's release in take_chains
            if submitted != self._taken:
                slots = [int(self.mailbox.todo[at & self._mask]) for at in range(self._taken, submitted)]
                self._taken = submitted
                self._storage.submit([self._request_of(slot) for slot in slots])
            elif self._stopping:
                return

    def _request_of(self, slot: int) -> Request:
        record = self._requests[slot]
        op, flags = int(record["op"]), int(record["flags"])
        end = self._ended
        if flags & FLAG_FUA and not self._storage.can_fua:
            flags &= ~FLAG_FUA
            if self._storage.can_flush:
                end = self._written
        on_end = partial(end, slot)
        if op in (OP_READ, OP_WRITE):
            first = int(record["first"])
            pieces = [
                _bytes_at(int(self._vring.piece_addr[at]), int(self._vring.piece_len[at]))
                for at in range(first, first + int(record["count"]))
                if self._vring.piece_len[at]
            ]
            offset, length = int(record["offset"]), int(record["length"])
            return Request(op, offset=offset, length=length, pieces=pieces, flags=flags, on_end=on_end)
        if op in (OP_DISCARD, OP_WRITE_ZEROES):
            return Request(op, ranges=self._ranges_of(slot), flags=flags, on_end=on_end)
        return Request(op, on_end=on_end)

    def _ranges_of(self, slot: int) -> list[tuple[int, int]]:
        """The gathered and checked segments of a discard or write zeroes, in bytes (5.2.6: struct
        virtio_blk_discard_write_zeroes)."""
        at = int(self._requests[slot]["scratch"]) + 16
        raw = ctypes.string_at(at, 16 * int(self._requests[slot]["ranges"]))
        starts = range(0, len(raw), 16)
        return [
            (
                int.from_bytes(raw[i : i + 8], "little") << SECTOR_SHIFT,
                int.from_bytes(raw[i + 8 : i + 12], "little") << SECTOR_SHIFT,
            )
            for i in starts
        ]

    def _written(self, slot: int, request: Request, error: int) -> None:
        """A write to a storage that knows no FUA ended: it is done when a flush after it is."""
        if error:
            self._ended(slot, request, error)
        else:
            self._storage.submit([Request(OP_FLUSH, on_end=partial(self._ended, slot))])

    def _ended(self, slot: int, request: Request, error: int) -> None:
        """Any thread: give the slot back to the worker."""
        self._requests[slot]["result"] = error if error >= 0 else errno.EIO
        with self._ending:
            ended = load_acquire_i64(self._ended_word)
            self.mailbox.done[ended & self._mask] = slot
            store_release_i64(self._ended_word, ended + 1)  # partner: the worker's acquire in finish_ended
            os.eventfd_write(self._wake_fd, 1)

    def stop(self) -> None:
        """End the thread. The worker has ended, so nothing is out."""
        with self._ending:  # who ended the last one may not have woken the worker yet
            self._stopping = True
        os.eventfd_write(self._submit_fd, 1)
        self._thread.join()
        os.close(self._submit_fd)


def _bytes_at(address: int, length: int) -> memoryview:
    return memoryview((ctypes.c_char * length).from_address(address)).cast("B")
