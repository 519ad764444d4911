"""Storages whose operations block: a pool of threads runs them (nbdkit: parallel requests; QEMU: aio=threads).

A subclass says what each operation does, and raises OSError; the base turns requests into calls and results into ends.
`submit` is called by the dispatcher threads of the device's queues, the operations run on the pool's threads.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
from collections.abc import Sequence
from typing import ClassVar

from virtblk.jit.threads import start_thread
from virtblk.storage.io_request import Request
from virtblk.storage.request import (
    FLAG_FUA,
    FLAG_UNMAP,
    OP_DISCARD,
    OP_FLUSH,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
)
from virtblk.storage.storage import Storage

log = logging.getLogger("virtblk.storage")


class BlockingStorage(Storage):
    """The pool. Threads start with `start`, and end with `close`, which waits for what runs."""

    THREADS: ClassVar[int] = 8

    def __init__(self) -> None:
        self._todo: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()

    # What a subclass defines. All raise OSError.

    def pread(self, pieces: Sequence[memoryview], offset: int) -> None:
        """Fill all pieces from `offset` on."""
        raise NotImplementedError

    def pwrite(self, pieces: Sequence[memoryview], offset: int, fua: bool) -> None:
        """Write all pieces from `offset` on; with `fua` they are durable on return."""
        raise NotImplementedError

    def flush(self) -> None:
        """Make all that ended before durable."""
        raise NotImplementedError

    def discard(self, offset: int, length: int) -> None:
        """The range is not needed any more."""
        raise NotImplementedError

    def write_zeroes(self, offset: int, length: int, unmap: bool, fua: bool) -> None:
        """The range reads as zeroes from now on; with `unmap` its space may be given back."""
        raise NotImplementedError

    # The pool.

    def start(self) -> None:
        with self._starting:
            while len(self._threads) < self.THREADS:
                self._threads.append(start_thread(self._work, name=f"virtblk-pool{len(self._threads)}"))

    def submit(self, batch: Sequence[Request]) -> None:
        for request in batch:
            self._todo.put(request)

    def _work(self) -> None:
        while (request := self._todo.get()) is not None:
            request.end(self._errno_of(request))

    def _errno_of(self, request: Request) -> int:
        try:
            self.execute(request)
        except OSError as error:
            return error.errno or errno.EIO
        except MemoryError:
            return errno.ENOMEM
        except Exception:  # a defect of ours must not leave a guest waiting
            log.exception("%s: a request failed", self.name)
            return errno.EIO
        return 0

    def execute(self, request: Request) -> None:
        """Do one request on the calling thread. Raises OSError."""
        fua = bool(request.flags & FLAG_FUA)
        if request.op == OP_READ:
            self.pread(request.pieces, request.offset)
        elif request.op == OP_WRITE:
            self.pwrite(request.pieces, request.offset, fua)
        elif request.op == OP_FLUSH:
            self.flush()
        elif request.op == OP_DISCARD:
            for offset, length in request.ranges:
                self.discard(offset, length)
        elif request.op == OP_WRITE_ZEROES:
            for offset, length in request.ranges:
                self.write_zeroes(offset, length, bool(request.flags & FLAG_UNMAP), fua)
        else:
            raise OSError(errno.EOPNOTSUPP, f"operation {request.op}")

    def close(self) -> None:
        """End the threads after the requests that were submitted. Repeatable."""
        with self._starting:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._todo.put(None)
        for thread in threads:
            thread.join()
