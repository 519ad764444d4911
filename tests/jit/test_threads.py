"""Threads in kernels: what a peer can catch them in, and how they come back."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest

from virtblk.jit.atomics import store_release_i64
from virtblk.jit.kernel import INTERPRETED, kernel
from virtblk.jit.libc import eventfd_signal, poll_out
from virtblk.jit.threads import end_thread, start_thread
from virtblk.mem.shm import Words
from waiting import PATIENCE

FULL = 2**64 - 2


@kernel
def signal_once(fd):
    return eventfd_signal(fd)


def test_regression_a_thread_in_a_blocked_write_comes_back_to_end() -> None:
    """As a device or driver whose peer took O_NONBLOCK off the eventfd and filled it between our poll and our write."""
    words = Words(1)
    done = words.address(0)
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(fd, FULL)
    results: list[int] = []
    entered = threading.Event()

    def work() -> None:
        entered.set()
        results.append(int(signal_once(fd)))
        store_release_i64(done, 1)

    try:
        assert poll_out(fd) == 0, "who asks first does not get caught"
        thread = start_thread(work, name="caught")
        assert entered.wait(PATIENCE)
        time.sleep(0.1)
        assert not results, "it blocks"
        if not INTERPRETED:
            assert end_thread(thread, done, 10)
            assert results == [-errno.EINTR]
        else:  # Python's own write() begins again after a signal
            os.eventfd_read(fd)
            assert end_thread(thread, done, 10)
    finally:
        os.close(fd)


def test_a_thread_that_does_not_end_is_told_of() -> None:
    words = Words(1)
    leave = threading.Event()
    thread = start_thread(leave.wait, name="busy")
    assert not end_thread(thread, words.address(0), 0.2)
    leave.set()
    thread.join()


def test_regression_no_thread_to_be_had_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="no thread for worker") as caught:
        start_thread(print, name="worker")
    assert caught.value.errno == errno.EAGAIN
