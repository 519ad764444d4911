"""Our own driver as a driver under test: what a program does with a disk, and what it reports of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import virtblk
from virtblk.check.driver_trial import Function, Outcome
from virtblk.errors import OpenError

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
