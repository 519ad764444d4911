"""One running virtqueue of the device: its worker thread, and what the worker needs.

Started and stopped by the session's control thread (`device.virtio_blk`); the loop itself is `device.worker` for disks
that answer at once, `device.file_worker` for files, `device.sim_worker` for simulated disks, and `device.async_worker`
with a `device.dispatcher` for the others.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from virtblk.device.account import COUNTERS
from virtblk.device.async_worker import async_worker_loop
from virtblk.device.dispatcher import Dispatcher, example_mailbox
from virtblk.device.file_queue import FileResources, example_file_queue
from virtblk.device.file_worker import file_worker_loop
from virtblk.device.request import DiskView
from virtblk.device.sim_worker import sim_worker_loop
from virtblk.device.slots import MAX_SLOTS, SLOT_PIECES
from virtblk.device.worker import PIECES, WORD_DONE, WORD_STOP, WORDS, WORKER_DTYPE, worker_loop
from virtblk.jit.atomics import store_release_i64
from virtblk.jit.libc import eventfd_signal, poll_out
from virtblk.jit.table import Table
from virtblk.jit.threads import end_thread, fine_timers, start_thread
from virtblk.jit.warmup import ensure
from virtblk.mem.guest_memory import GuestMemory
from virtblk.mem.shm import Words
from virtblk.storage.file import FileStorage
from virtblk.storage.request import BATCH, KIND_FILE, KIND_REQUESTS, KIND_SIM, REQUEST_DTYPE, give_scratch
from virtblk.storage.sim.disk import SimStorage
from virtblk.storage.sim.profiles import make_queue
from virtblk.storage.sim.state import QUEUE_OPS
from virtblk.storage.storage import Storage
from virtblk.uapi.virtio_ring import (
    VRING_AVAIL_ALIGN_SIZE,
    VRING_DESC_ALIGN_SIZE,
    VRING_USED_ALIGN_SIZE,
    avail_size,
    desc_table_size,
    used_size,
)
from virtblk.vhost_user.vring import Vring
from virtblk.virtio.vringh_split import BAD_VRING_TEXT, VRINGH_DTYPE, Vringh, vringh_init

log = logging.getLogger("virtblk.device")

_POLL_FOREVER = 1 << 62
#: A worker looks at its stop word between batches; memory copies of one batch are what it may still have to finish, or
#: what a storage in Python was given.
STOP_TIMEOUT = 30.0


def compile_worker(memory: GuestMemory, disk: DiskView, storage: Storage) -> None:
    """Compile what serves a ring, before a driver waits for its answer: the first time takes many seconds."""
    vring = Vringh(Table(1, VRINGH_DTYPE), Table(1), Table(1))
    ensure(vringh_init, vring, 0)
    arguments = (vring, memory.table, disk, Table(1, REQUEST_DTYPE), Table(1, WORKER_DTYPE), Table(1))
    if storage.kind == KIND_REQUESTS:
        ensure(async_worker_loop, *arguments, example_mailbox())
    elif storage.kind == KIND_FILE:
        ensure(file_worker_loop, *arguments, example_file_queue())
    elif isinstance(storage, SimStorage) and storage.kind == KIND_SIM:
        ensure(sim_worker_loop, *arguments, storage.model, make_queue(0, 1))
    else:
        ensure(worker_loop, *arguments)


class DeviceQueue:
    """Serves ring `vring.index` from construction until `stop`. Raises ValueError for rings that are not in memory."""

    def __init__(
        self,
        memory: GuestMemory,
        disk: DiskView,
        storage: Storage,
        vring: Vring,
        *,
        event_idx: bool,
        indirect: bool,
        poll_ns: int,
        delay_ns: int = 0,
        timed: bool = False,
    ):
        num = vring.num
        self.index = vring.index
        self._err_fd = vring.err_fd
        waits = storage.kind == KIND_REQUESTS
        is_file = storage.kind == KIND_FILE
        is_sim = storage.kind == KIND_SIM
        records = min(num, MAX_SLOTS) if waits or is_file else min(num, QUEUE_OPS) if is_sim else BATCH
        pieces = records * SLOT_PIECES if waits or is_file or is_sim else PIECES
        self._vring = Vringh(Table(1, VRINGH_DTYPE), Table(pieces), Table(pieces))
        state = self._vring.state[0]
        areas = (
            ("desc", vring.desc, desc_table_size(num), VRING_DESC_ALIGN_SIZE),
            ("avail", vring.avail, avail_size(num), VRING_AVAIL_ALIGN_SIZE),
            ("used", vring.used, used_size(num), VRING_USED_ALIGN_SIZE),
        )
        for name, user, size, alignment in areas:
            host = memory.user_to_host(user, size)
            if host % alignment:
                raise ValueError(f"{name} ring at user address {user:#x} is not aligned to {alignment} bytes")
            state[name] = host
        state["num"], state["event_idx"], state["indirect"] = num, event_idx, indirect
        vringh_init(self._vring, vring.base)

        self._words = Words(WORDS)
        self._requests = Table(records, REQUEST_DTYPE)
        self._scratch = give_scratch(self._requests)
        self.counters = Table(COUNTERS)
        self.worker = Table(1, WORKER_DTYPE)
        worker = self.worker[0]
        worker["stop"], worker["done"] = self._words.address(WORD_STOP), self._words.address(WORD_DONE)
        worker["call_fd"] = vring.call_fd
        worker["kick_fd"] = vring.kick_fd
        worker["poll_ns"] = poll_ns if vring.kick_fd >= 0 else _POLL_FOREVER
        worker["delay_ns"] = delay_ns
        worker["timed"] = timed
        self._arguments: tuple[Any, ...] = (
            self._vring,
            memory.table,
            disk,
            self._requests,
            self.worker,
            self.counters,
        )
        loops: dict[int, Any] = {
            KIND_REQUESTS: async_worker_loop,
            KIND_FILE: file_worker_loop,
            KIND_SIM: sim_worker_loop,
        }
        self._loop = loops.get(storage.kind, worker_loop)
        self._exact = is_sim
        self._dispatcher: Dispatcher | None = None
        self._file: FileResources | None = None
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        worker["stop_fd"] = self._stop_fd
        try:
            if waits:
                name = f"virtblk-dispatch{self.index}"
                self._dispatcher = Dispatcher(storage, self._vring, self._requests, records, self._stop_fd, name)
                self._arguments += (self._dispatcher.mailbox,)
            elif isinstance(storage, FileStorage) and is_file:
                self._file = FileResources(storage, records)
                self._arguments += (self._file.queue,)
            elif isinstance(storage, SimStorage) and is_sim:
                self._arguments += (storage.model, make_queue(self.index, records))
            ensure(self._loop, *self._arguments)
            self._thread = start_thread(self._run, name=f"virtblk-vq{self.index}")
        except OSError:
            if self._dispatcher is not None:
                self._dispatcher.stop()
            if self._file is not None:
                self._file.close()
            os.close(self._stop_fd)
            raise

    def _run(self) -> None:
        if self._exact:
            fine_timers()
        self._loop(*self._arguments)
        if self.broken:
            extra = {"event": "queue_broken", "queue": self.index, "reason": self.broken}
            log.warning("queue %d is broken: %s", self.index, self.broken, extra=extra)
            if self._err_fd >= 0 and poll_out(self._err_fd) == 1:  # the peer's: never block there
                eventfd_signal(self._err_fd)

    def taken_ns(self) -> list[int]:
        """When the requests that are in flight were taken (CLOCK_MONOTONIC). From any thread: the worker goes on.

        A worker whose storage answers at once keeps this only if it is `timed`.
        """
        return [taken for taken in self._requests["taken_ns"].tolist() if taken]

    @property
    def broken(self) -> str | None:
        """Why the ring is broken, or None."""
        state = self._vring.state[0]
        value = int(state["bad_value"]) % (1 << 64)  # an address of 2**63 and more is negative there
        return BAD_VRING_TEXT[int(state["bad"])].format(value=value) if state["bad"] else None

    def stop(self) -> int:
        """Finish what was taken, end the worker, return the available index that comes next (16 bits)."""
        store_release_i64(self._words.address(WORD_STOP), 1)
        if self._stop_fd >= 0:
            os.eventfd_write(self._stop_fd, 1)
            while not end_thread(self._thread, self._words.address(WORD_DONE), STOP_TIMEOUT):
                if self._dispatcher is None and self._file is None and not self._exact:
                    # Its memory is about to be unmapped under it; there is no way on from here.
                    log.critical("queue %d: the worker did not stop within %g s", self.index, STOP_TIMEOUT)
                    os.abort()
                # The storage still works on guest memory, which must stay until it has done.
                log.warning("queue %d: waiting for the disk to end what it was given", self.index)
            if self._dispatcher is not None:
                self._dispatcher.stop()
            if self._file is not None:
                self._file.close()
            os.close(self._stop_fd)
            self._stop_fd = -1
        return int(self._vring.state[0]["last_avail"])
