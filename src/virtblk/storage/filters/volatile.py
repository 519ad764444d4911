"""`volatile`: a disk whose cache loses power on command (Linux: dm-log-writes, null_blk's write cache).

=======  ===================================================================================================
cut=     cut the power when this file appears; it is removed when the disk below is what a power cut left
keep=    how much of what was not flushed survives a cut, at random: 0 (unless given), 0.5, 10%, 1
seed=    a whole number: the same cuts keep the same sectors
=======  ===================================================================================================

Writes and write zeroes stay in memory, where reads see them, until a flush, or a FUA write of theirs, has them
written to the disk below. A cut forgets what nobody was promised, sector by sector (block by block where the disk
below has larger ones); then the disk goes on. A close writes everything: the machine was shut down in order.

A byte of the disk has these bits; 0 is the disk below:

==========  =================================================================================================
DATA, ZERO  it is in memory (ZERO: as a hole; UNMAP: the guest would have it deallocated)
DIRTY       changed since it was last being written below
PROMISED    a flush or FUA write that has not ended covers it: a cut must leave it
WRITING     it is being written below; a cut must leave it
==========  =================================================================================================

`submit` changes memory and promises. One thread, the destager, does all that changes the disk below, so that no two
such requests overlap: it takes the discards, then what is PROMISED (a round), then flushes the disk below, then ends
the requests that waited. What is not DIRTY again after that leaves memory. A round is what was promised when it
began: writes that go on meanwhile do not make it longer.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from random import Random
from typing import ClassVar, Final

from virtblk.jit.threads import start_thread
from virtblk.names import FilterName
from virtblk.storage.extent_map import ExtentMap, Run
from virtblk.storage.filters.filter import WRITING_OPS, Filter
from virtblk.storage.filters.overlay import Overlay, Together, read_through
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

DATA, ZERO, UNMAP, DIRTY, PROMISED, WRITING = 1, 2, 4, 8, 16, 32
#: Bytes that are copied out of memory and in flight below at one time, and the largest write.
_WINDOW: Final = 4 << 20
_LARGEST: Final = 1 << 20
_LARGEST_ZERO: Final = 1 << 30
#: A cut decides on at most so many parts of one extent: a guest may have zeroed terabytes.
_PARTS: Final = 4096
#: Seconds: how often the trigger file is looked for while the disk is idle; how long a cut, and a close, may take.
_TRIGGER_SECONDS: Final = 0.05
_PATIENCE_SECONDS: Final = 60.0


class Volatile(Filter):
    filter_name: ClassVar[str] = "volatile"

    def __init__(self, lower: Storage, name: FilterName) -> None:
        super().__init__(lower, name)
        name.refuse_other_keys("cut", "keep", "seed")
        self.keep = name.fraction_key("keep", 0.0)
        self.cut_path = name.path_key("cut")
        self._random = Random(name.integer_key("seed"))
        self.can_flush = self.can_fua = self.writeback_settable = True
        self.overlay = Overlay(name, lower.size)
        self.extents = ExtentMap()
        self._lock = threading.Lock()  # over all below; never held over a request of `lower` or an end
        self._work = threading.Condition(self._lock)
        self._waiting: list[Request] = []  # flushes and FUA writes for the next round
        self._discards: list[Request] = []
        self._closing = False
        self._closed = False
        self._triggered = False
        self._thread: threading.Thread | None = None
        self._cuts = self._forgotten = self._destaged = 0

    def start(self) -> None:
        super().start()
        self._thread = start_thread(self._run, name="virtblk-volatile")

    def submit(self, batch: Sequence[Request]) -> None:
        self._look_for_trigger()
        below: list[Request] = []
        ended: list[tuple[Request, int]] = []
        with self._lock:
            for request in batch:
                try:
                    if request.op == OP_READ:
                        wanted = read_through(request, self.extents, self.overlay)
                        below += wanted
                        done = not wanted
                    else:
                        done = self._change(request)
                except OSError as error:
                    ended.append((request, error.errno or errno.EIO))
                else:
                    if done:
                        ended.append((request, 0))
        if below:
            self.lower.submit(below)
        for request, code in ended:
            request.end(code)

    def _change(self, request: Request) -> bool:
        """Do it in memory. False: it ends after the next round."""
        if request.op in WRITING_OPS and self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if request.op == OP_WRITE:
            self.overlay.write(request.pieces, request.offset)
            self._dirty(request, request.offset, request.length, DATA)
        elif request.op == OP_WRITE_ZEROES and self.can_write_zeroes:
            for offset, length in request.ranges:
                self.overlay.zero(offset, length)
                self._dirty(request, offset, length, ZERO | (UNMAP if request.flags & FLAG_UNMAP else 0))
        elif request.op == OP_DISCARD and self.can_discard:
            for offset, length in request.ranges:
                self._drop(offset, offset + length)
            self._discards.append(request)
            self._work.notify()
            return False
        elif request.op == OP_FLUSH:
            self._promise_all(request)
            return False
        else:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if request.flags & FLAG_FUA:
            self._waiting.append(request)
            self._work.notify()
            return False
        return True

    def _promise_all(self, flush: Request) -> None:
        """Have the next round take all that is dirty, and then end `flush`."""
        for start, stop, state in self.extents.occupied():
            if state & DIRTY:
                self.extents.update(start, stop, lambda old: old | PROMISED)
        self._waiting.append(flush)
        self._work.notify()

    def _dirty(self, request: Request, offset: int, length: int, kind: int) -> None:
        new = kind | DIRTY | (PROMISED if request.flags & FLAG_FUA else 0)
        self.extents.update(offset, offset + length, lambda old: new | old & (PROMISED | WRITING))

    def _drop(self, start: int, stop: int) -> None:
        """Leave it to the disk below, and give the memory back: whole pages, if nothing else is in them."""
        self.extents.assign(start, stop, 0)
        first, last = start - start % mmap.PAGESIZE, stop + -stop % mmap.PAGESIZE
        if any(state for _start, _stop, state in self.extents.runs(first, start)):
            first = start
        if any(state for _start, _stop, state in self.extents.runs(stop, last)):
            last = stop
        with contextlib.suppress(OSError):  # what is there is not looked at any more
            self.overlay.zero(first, last - first)

    def close(self) -> None:
        """Write what is left to the disk below, and close both. Takes a minute at most, then says what is lost."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._look_for_trigger()
            with self._lock:
                if any(state & DIRTY for _start, _stop, state in self.extents.occupied()):
                    self._promise_all(Request(OP_FLUSH, on_end=self._last_ended))
                self._closing = True
                self._work.notify()
            self._thread.join(_PATIENCE_SECONDS)
            if self._thread.is_alive():
                log.warning("%s: the disk below does not take what was not flushed: it is lost", self.name)
        with self._lock:
            self.overlay.close()
        super().close()

    def _last_ended(self, _request: Request, error: int) -> None:
        if error:
            log.warning("%s: what was not flushed is lost: %s", self.name, os.strerror(error))

    def own_counters(self) -> dict[str, float]:
        with self._lock:
            return {
                "cuts": self._cuts,
                "forgotten_bytes": self._forgotten,
                "destaged_bytes": self._destaged,
                "memory_bytes": self.overlay.allocated,
            }

    # --- the power cut

    def power_cut(self, keep: float = 0.0, seed: int | None = None) -> int:
        """Forget what was not flushed, each sector with probability 1 - keep; how many bytes are forgotten.

        The cut itself is at one instant. Returns when the disk below is what the cut left: what was flushed, what was
        promised by then, and what was kept. Raises OSError where that could not be written, ETIMEDOUT after a minute.
        """
        ended = threading.Event()
        errors = []

        def on_end(_request: Request, error: int) -> None:
            errors.append(error)
            ended.set()

        with self._lock:
            forgotten = self._forget(keep, Random(seed), Request(OP_FLUSH, on_end=on_end))
        if not ended.wait(_PATIENCE_SECONDS):
            raise OSError(errno.ETIMEDOUT, "the disk below did not take what survived the power cut in time")
        if errors[0]:
            raise OSError(errors[0], os.strerror(errors[0]))
        return forgotten

    def _forget(self, keep: float, random: Random, after: Request) -> int:
        """The cut. What is kept is promised by it, so that it survives the next one; `after` ends when it is below."""
        forgotten = 0
        for run in self.extents.occupied():
            promised = run[2] & (PROMISED | WRITING)
            for start, stop, kept in _survivors(run, max(512, self.block_size), 1.0 if promised else keep, random):
                if kept:
                    self.extents.update(start, stop, lambda old: old | PROMISED)
                else:
                    self._drop(start, stop)
                    forgotten += stop - start
        self._cuts += 1
        self._forgotten += forgotten
        self._waiting.append(after)
        self._work.notify()
        return forgotten

    def _look_for_trigger(self) -> None:
        """Cut the power where the trigger file has appeared."""
        if self.cut_path is None:
            return
        with self._lock:
            there = os.path.exists(self.cut_path)
            if there and not self._triggered:
                forgotten = self._forget(self.keep, self._random, Request(OP_FLUSH, on_end=self._trigger_done))
                log.warning("%s: power cut: %d bytes forgotten", self.name, forgotten)
            self._triggered = there

    def _trigger_done(self, _request: Request, error: int) -> None:
        assert self.cut_path is not None
        if error:
            log.warning("%s: what survived the power cut is not on the disk yet: %s", self.name, os.strerror(error))
        with self._lock:
            try:
                os.unlink(self.cut_path)
            except FileNotFoundError:
                pass
            except OSError as failure:  # it counts again when somebody else has removed it
                log.warning("%s: cannot remove %s: %s", self.name, self.cut_path, failure.strerror)
                return
            self._triggered = False

    # --- the destager

    def _run(self) -> None:
        pause = None if self.cut_path is None else _TRIGGER_SECONDS
        while True:
            with self._work:
                if not self._waiting and not self._discards:
                    if self._closing:
                        return
                    self._work.wait(pause)
            self._look_for_trigger()
            self._round()

    def _round(self) -> None:
        """Bring down what is promised, and end the requests that wait for it."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            discards, self._discards = self._discards, []
            if not waiting and not discards:
                return
            ranges = [(start, stop) for start, stop, state in self.extents.occupied() if state & PROMISED]
            for start, stop in ranges:
                self.extents.update(start, stop, lambda old: (old | WRITING) & ~(PROMISED | DIRTY))
        for request in discards:
            request.end(self._below([Request(OP_DISCARD, ranges=list(request.ranges))]))
        if not waiting:
            return
        error = 0
        try:
            for window in self._windows(ranges):
                error = self._below(window)
                if error:
                    break
        except OSError as failure:
            error = failure.errno or errno.EIO
        except MemoryError:
            error = errno.ENOMEM
        if not error and self.lower.can_flush:
            error = self._below([Request(OP_FLUSH)])
        self._finish(ranges, error)
        for request in waiting:
            request.end(error)

    def _windows(self, ranges: list[tuple[int, int]]) -> Iterator[list[Request]]:
        """What is being written, as batches of requests that do not overlap."""
        batch: list[Request] = []
        copied = 0
        for start, stop in ranges:
            while start < stop:
                request, start = self._copy_out(start, stop)
                if request is not None:
                    batch.append(request)
                    copied += request.length
                if copied >= _WINDOW:
                    yield batch
                    batch, copied = [], 0
        if batch:
            yield batch

    def _copy_out(self, start: int, stop: int) -> tuple[Request | None, int]:
        """The request that writes the first extent after `start` as it is now, and where it ends."""
        with self._lock:
            first, last, state = self.extents.runs(start, min(stop, start + _LARGEST))[0]
            if not state & WRITING:  # discarded meanwhile
                return None, last
            if state & ZERO:
                first, last, state = self.extents.runs(start, min(stop, start + _LARGEST_ZERO))[0]
                flags = FLAG_UNMAP if state & UNMAP and self.lower.can_unmap else 0
                return Request(OP_WRITE_ZEROES, ranges=[(first, last - first)], flags=flags), last
            data = memoryview(bytearray(last - first))
            self.overlay.read([data], first)
            return Request(OP_WRITE, offset=first, length=len(data), pieces=[data]), last

    def _finish(self, ranges: list[tuple[int, int]], error: int) -> None:
        """What was written leaves memory; where that failed it stays, and is dirty."""
        with self._lock:
            for start, stop in ranges:
                for first, last, state in self.extents.runs(start, stop):
                    if not state & WRITING:
                        continue
                    if error:
                        # A flush that came meanwhile did not promise this; it must not end well without it.
                        promise = PROMISED if self._waiting else 0
                        self.extents.assign(first, last, (state | DIRTY | promise) & ~WRITING)
                    elif state & (DIRTY | PROMISED):
                        self.extents.assign(first, last, state & ~WRITING)
                    else:
                        self._drop(first, last)
                    self._destaged += 0 if error else last - first

    def _below(self, batch: list[Request]) -> int:
        """Have the disk below do them; the first error."""
        ended = threading.Event()
        errors = []

        def on_all(error: int) -> None:
            errors.append(error)
            ended.set()

        together = Together(len(batch), on_all)

        def on_each(request: Request, error: int) -> int:
            together.one_ended(request, error)
            return error

        for request in batch:
            request.then(on_each)
        self.lower.submit(batch)
        ended.wait()  # as long as the disk below may take; it ends every request
        return errors[0]


def _survivors(run: Run, unit: int, keep: float, random: Random) -> Iterator[tuple[int, int, bool]]:
    """`run` cut into pieces that are kept or lost, at multiples of `unit` bytes."""
    start, stop, _state = run
    if keep in (0.0, 1.0):
        yield start, stop, keep == 1.0
        return
    parts = -(-(stop - start) // unit)
    unit *= -(-parts // _PARTS)
    first, kept = start, random.random() < keep
    at = start - start % unit + unit
    while at < stop:
        if (decision := random.random() < keep) != kept:
            yield first, at, kept
            first, kept = at, decision
        at += unit
    yield first, stop, kept
