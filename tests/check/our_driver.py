"""Our own driver as a driver under test: what a program does with a disk, and what it reports of it."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import virtblk
from virtblk.check.driver_device import CAPACITY
from virtblk.check.driver_random import Chaos, Expected
from virtblk.check.driver_trial import Function, Outcome
from virtblk.errors import DeviceError, OpenError
from virtblk.uapi.virtio_blk import VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT

#: Seconds without an answer after which our driver gives up; the checks' own time-out is longer.
TIMEOUT = 1.0
BLOCK = 4096


def work(path: str, *, poll_us: int | None = 0, timeout: float = TIMEOUT, rounds: int = 3) -> Outcome:
    """Write, flush, read back and compare, from two threads, through interrupts."""
    words: list[str] = []
    try:
        with virtblk.open(f"vhost-user:{path}", poll_us=poll_us, timeout=timeout) as disk:
            if disk.size < 64 * BLOCK:
                return Outcome(2, f"too small: {disk.size} bytes")
            threads = [threading.Thread(target=_one, args=(disk, number, rounds, words)) for number in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    except OpenError as error:
        return Outcome(2, str(error))
    except OSError as error:
        words.append(str(error))
    return Outcome(1, words[0]) if words else Outcome(0, "done")


def _one(disk: virtblk.Disk, number: int, rounds: int, words: list[str]) -> None:
    try:
        for turn in range(rounds):
            data = bytes([1 + number * 16 + turn]) * BLOCK
            offset = (number * 16 + turn) * BLOCK
            disk.pwrite(data, offset)
            disk.flush()
            if disk.pread(BLOCK, offset) != data:
                words.append(f"wrong data at {offset}")
    except OSError as error:
        words.append(str(error))


def driver(call: Callable[[str], Outcome] = work) -> Function:
    return Function(call)


class Hammer:
    """Our driver against one connection's `Chaos`: looks at each I/O, and at what the device made of it."""

    def __init__(self, chaos: Chaos, ios: int = 4000) -> None:
        self.chaos, self.ios = chaos, ios
        self.wrong: list[str] = []
        self.over = False

    def __call__(self, path: str) -> Outcome:
        try:
            with virtblk.open(f"vhost-user:{path}", poll_us=0, timeout=30) as disk:
                if disk.size < CAPACITY * 512 or disk.block_size > BLOCK or disk.read_only:
                    return Outcome(2, "another disk than was asked for")
                threads = [threading.Thread(target=self._hammer, args=(disk, number)) for number in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        except OpenError as error:
            if not (self.chaos.fatal or self.chaos.doubtful):
                self.wrong.append(f"not opened: {error}")
            return Outcome(2, str(error)) if not self.wrong else Outcome(1, f"Traceback: {self.wrong[0]}")
        if self.wrong:
            return Outcome(1, f"Traceback (most recent call last): {self.wrong[0]}")
        return Outcome(1 if self.chaos.failing or self.over else 0, "")

    def _hammer(self, disk: virtblk.Disk, number: int) -> None:
        """Blocks of its own; what a block may hold is known: what was written last, and what may have been."""
        numbers = random.Random(self.chaos.seed * 2 + number)
        may_hold: dict[int, set[bytes]] = {}
        first = number * 512  # in blocks
        try:
            for turn in range(self.ios):
                block = first + numbers.randrange(8)
                kind = numbers.randrange(5)
                if kind == 0 and number == 0:
                    self._one(VIRTIO_BLK_T_FLUSH, 0, disk.flush)
                elif kind < 3:
                    data = (turn * 2 + number).to_bytes(4, "little") * (BLOCK // 4)
                    before = may_hold.get(block)
                    offset = block * BLOCK
                    if before is not None:
                        before.add(data)
                    if self._one(VIRTIO_BLK_T_OUT, block, partial(disk.pwrite, data, offset)) is not None:
                        may_hold[block] = {data}
                else:
                    found = self._one(VIRTIO_BLK_T_IN, block, partial(disk.pread, BLOCK, block * BLOCK))
                    if found is not None and block in may_hold and not self._may_be(found, may_hold[block]):
                        self.wrong.append(f"block {block} holds what was never written there: {found[:8].hex()}")
                        return
                if self.over or self.wrong:
                    return
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")

    def _may_be(self, found: bytes, written: set[bytes]) -> bool:
        """Whether a block may hold this. A driver that has to cut its I/Os may have written a part of it."""
        if not self.chaos.doubtful:
            return found in written
        sectors = {data[:512] for data in written}
        return all(found[at : at + 512] in sectors for at in range(0, BLOCK, 512))

    def _one(self, kind: int, block: int, call: Callable[[], Any]) -> Any:
        """One I/O, and whether it came to what it had to come to. None where it failed."""
        try:
            result = call()
            failed = False
        except DeviceError as error:
            if not self.chaos.fatal:
                self.wrong.append(f"the session ended for nothing: {error}")
            self.over = True
            return None
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EOPNOTSUPP):
                self.wrong.append(f"an error of its own: {error}")
            result, failed = None, True
        expected = self.chaos.expected.pop((kind, block * BLOCK // 512), None)
        # A spoilt configuration may make the driver cut its I/Os: the first piece went well then, and another did not.
        if failed and expected is Expected.DONE and not self.chaos.doubtful:
            self.wrong.append(f"request {kind} of block {block} failed, and was done")
        if not failed and expected is Expected.FAILED:
            self.wrong.append(f"request {kind} of block {block} was reported as done, and failed")
        return True if result is None and not failed else result
