"""System calls: the Python twin and the native body answer alike, errors included."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from conftest import INTERPRETED
from virtblk.jit import libc
from virtblk.jit.atomics import store_u32
from virtblk.jit.kernel import kernel
from virtblk.jit.libc import (
    clock_ns,
    eventfd_drain,
    eventfd_signal,
    futex_wait,
    futex_wake,
    poll_in2,
    poll_in3,
    poll_out,
    ppoll_in2,
    preadv,
    pwritev,
    sched_yield,
)
from waiting import PATIENCE, sleeps_on, wait_until

MS = 1_000_000
NAMES = sorted(libc.__all__)


@kernel
def perform(op, a, b, c, d):
    """Function number `op` of NAMES, natively."""
    if op == 0:
        return clock_ns()
    if op == 1:
        return eventfd_drain(a)
    if op == 2:
        return eventfd_signal(a)
    if op == 3:
        return futex_wait(a, b, c)
    if op == 4:
        return futex_wake(a, b)
    if op == 5:
        return poll_in2(a, b, c)
    if op == 6:
        return poll_in3(a, b, c, d)
    if op == 7:
        return poll_out(a)
    if op == 8:
        return ppoll_in2(a, b, c)
    if op == 9:
        return preadv(a, b, c, d)
    if op == 10:
        return pwritev(a, b, c, d)
    return sched_yield()


Call = Callable[..., int]


@pytest.fixture(params=["twin", "native"])
def call(request: pytest.FixtureRequest) -> Call:
    """call(name, *arguments), by the one way or the other."""
    if request.param == "twin":
        return lambda name, *arguments: int(getattr(libc, name)(*arguments))
    return lambda name, *arguments: int(perform(NAMES.index(name), *arguments, *[0] * (4 - len(arguments))))


@pytest.fixture
def word() -> Iterator[int]:
    """Address of a u32 that is 5."""
    array = np.array([5, 0], np.uint32)
    yield int(array.ctypes.data)
    assert array[1] == 0


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Read end, write end; a test may close either."""
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            continue


def test_every_function_is_here() -> None:
    assert len(NAMES) == 12
    assert NAMES[5] == "poll_in2"


def test_clock_thread_and_core(call: Call) -> None:
    before = time.monotonic_ns()
    assert before <= call("clock_ns") <= time.monotonic_ns()
    assert call("sched_yield") == 0


# Futex.


@pytest.mark.parametrize("expected", [4, 0, 5 + 256, -5])
def test_futex_does_not_wait_for_another_value(call: Call, word: int, expected: int) -> None:
    assert call("futex_wait", word, expected, 10_000 * MS) == -errno.EAGAIN


@pytest.mark.parametrize("timeout", [0, 1, 20 * MS, 1_020 * MS])
def test_futex_times_out(call: Call, word: int, timeout: int) -> None:
    began = time.monotonic_ns()
    assert call("futex_wait", word, 5, timeout) == -errno.ETIMEDOUT
    assert timeout <= time.monotonic_ns() - began < timeout + 5_000 * MS


@pytest.mark.parametrize("expected", [-1, 2**32 - 1, (7 << 32) - 1])
def test_futex_compares_32_bits(call: Call, word: int, expected: int) -> None:
    store_u32(word, -1)
    assert call("futex_wait", word, expected, 0) == -errno.ETIMEDOUT


def test_futex_refuses_an_impossible_timeout_or_address(call: Call, word: int) -> None:
    assert call("futex_wait", word, 5, -MS) == -errno.EINVAL
    assert call("futex_wait", word + 1, 5, MS) == -errno.EINVAL


def asleep(tid: int) -> bool:
    with open(f"/proc/self/task/{tid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "S"


def sleepers(call: Call, count: int, *arguments: int) -> tuple[list[threading.Thread], list[int]]:
    """Threads that block in call(*arguments), and where their results go."""
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(call(*arguments))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while not asleep(thread.native_id or 0):
            time.sleep(0.001)
    return threads, results


def test_futex_wakes_as_many_as_asked(call: Call, word: int) -> None:
    assert call("futex_wake", word, 1) == 0
    perform(3, word, 4, 0, 0)  # compiled before threads start
    threads, results = sleepers(call, 3, "futex_wait", word, 5, 60_000 * MS)
    wait_until(lambda: all(sleeps_on(thread, word) for thread in threads))
    assert call("futex_wake", word, 2) == 2
    assert call("futex_wake", word, 1 << 30) == 1
    for thread in threads:
        thread.join()
    assert results == [0, 0, 0]


@pytest.mark.compiled
@pytest.mark.parametrize(
    "arguments", [("poll_in2", -1, -1, 60_000), ("ppoll_in2", -1, -1, 60_000 * MS), ("futex_wait", 0, 5, 60_000 * MS)]
)
def test_a_signal_ends_a_native_wait(word: int, arguments: tuple[object, ...]) -> None:
    """With -EINTR: the loops look at their stop word then. (The twin goes on waiting, as Python does.)"""
    numbers = [word if value == 0 else value for value in arguments[1:]]
    old = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        op = NAMES.index(str(arguments[0]))
        (thread,), results = sleepers(lambda *_: int(perform(op, *numbers, 0)), 1)
        end = time.monotonic() + PATIENCE / 2
        while thread.is_alive() and time.monotonic() < end:  # it may have slept on the GIL, and have yet to wait
            signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)
            thread.join(0.02)
        assert results == [-errno.EINTR]
    finally:
        signal.signal(signal.SIGUSR1, old)


# Signal and drain.


def test_signal_and_drain_an_eventfd(call: Call, event: int) -> None:
    assert call("eventfd_drain", event) == -errno.EAGAIN
    assert [call("eventfd_signal", event) for _ in range(3)] == [8, 8, 8]
    assert os.eventfd_read(event) == 3
    call("eventfd_signal", event)
    assert call("eventfd_drain", event) == 8
    assert call("eventfd_drain", event) == -errno.EAGAIN


def test_a_full_eventfd_says_again(call: Call, event: int) -> None:
    os.eventfd_write(event, (1 << 64) - 2)
    assert call("eventfd_signal", event) == -errno.EAGAIN
    assert call("poll_out", event) == 0
    assert os.eventfd_read(event) == (1 << 64) - 2
    assert call("poll_out", event) == 1


def test_regression_a_drain_does_not_block_though_the_peer_made_the_description_blocking(call: Call) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        assert call("eventfd_drain", fd) == -errno.EAGAIN
    finally:
        os.close(fd)


def test_signal_and_drain_a_pipe(call: Call, pipe: tuple[int, int]) -> None:
    """A call or kick fd of User-Mode Linux: eight bytes a signal, taken many at a time, and its end is 0."""
    assert call("eventfd_drain", pipe[0]) == -errno.EAGAIN
    for _ in range(65):
        assert call("eventfd_signal", pipe[1]) == 8
    assert call("eventfd_drain", pipe[0]) == 512
    assert os.read(pipe[0], 100) == b"\1\0\0\0\0\0\0\0"
    os.close(pipe[1])
    assert call("eventfd_drain", pipe[0]) == 0


def test_a_pipe_that_is_full_or_that_nobody_reads(call: Call, pipe: tuple[int, int]) -> None:
    while call("eventfd_signal", pipe[1]) == 8:
        pass
    assert call("eventfd_signal", pipe[1]) == -errno.EAGAIN
    assert call("poll_out", pipe[1]) == 0
    os.close(pipe[0])
    assert call("poll_out", pipe[1]) == 1  # a write would not block: it fails
    assert call("eventfd_signal", pipe[1]) == -errno.EPIPE


@pytest.mark.parametrize("fd", [-1, 1 << 20])
def test_no_such_fd(call: Call, fd: int) -> None:
    assert call("eventfd_signal", fd) == call("eventfd_drain", fd) == -errno.EBADF


def test_poll_out_without_an_fd(call: Call) -> None:
    """poll(2) passes over a negative fd; one that is not open makes no write block."""
    assert call("poll_out", -1) == 0
    assert call("poll_out", 1 << 20) == 1


# Waiting for two.


@pytest.mark.parametrize("fired", [0, 1, 2, 3])
def test_poll_tells_which(call: Call, event: int, fired: int) -> None:
    other = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        for bit, fd in ((1, event), (2, other)):
            if fired & bit:
                os.eventfd_write(fd, 1)
        assert call("poll_in2", event, other, 0) == fired
        assert call("poll_in2", other, event, 10 if fired == 0 else -1) == (fired >> 1 | fired << 1) & 3
        assert call("ppoll_in2", event, other, 0) == call("ppoll_in2", event, other, 999) == fired
    finally:
        os.close(other)


def test_poll_passes_over_minus_one(call: Call, event: int) -> None:
    os.eventfd_write(event, 1)
    assert call("poll_in2", -1, event, -1) == 2
    assert call("poll_in2", event, -1, -1) == 1
    assert call("poll_in2", event, event, -1) == 3
    assert call("poll_in2", -1, -1, 1) == 0
    assert call("poll_in2", -2, -1, 0) == 0


def test_poll_waits_no_longer_than_told(call: Call, event: int) -> None:
    began = time.monotonic()
    assert call("poll_in2", event, -1, 50) == 0
    assert time.monotonic() - began >= 0.05
    began = time.monotonic()
    assert call("ppoll_in2", event, -1, 1_000_050_000) == 0  # more than a second, and a part of a millisecond
    assert time.monotonic() - began >= 1.00005


def test_poll_wakes_up(call: Call, event: int) -> None:
    threads, results = sleepers(call, 1, "poll_in2", -1, event, -1)
    os.eventfd_write(event, 1)
    threads[0].join(PATIENCE)
    assert results == [2]


def test_hang_up_fires(call: Call, pipe: tuple[int, int]) -> None:
    """Also with nothing to read: whoever waits must learn that nobody will write."""
    assert call("poll_in2", pipe[0], -1, 0) == 0
    os.close(pipe[1])
    assert call("poll_in2", -1, pipe[0], -1) == 2
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert call("poll_in2", ours.fileno(), -1, -1) == 1
    assert call("ppoll_in2", -1, pipe[0], MS) == 2
    assert call("poll_in2", 1 << 20, -1, -1) == 1  # not open: a wait would never end


def test_the_fixture_tells_twin_from_native(call: Call) -> None:
    """With the JIT on, `perform` is compiled; otherwise everything here tests the twins twice."""
    assert hasattr(perform, "py_func") != INTERPRETED
    assert call("sched_yield") == 0


# Waiting for three.


@pytest.mark.parametrize("fired", range(8))
def test_poll_tells_which_of_three(call: Call, event: int, fired: int) -> None:
    fds = [event, *(os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2))]
    try:
        for bit, fd in enumerate(fds):
            if fired >> bit & 1:
                os.eventfd_write(fd, 1)
        assert call("poll_in3", *fds, 10 if fired == 0 else -1) == fired
        assert call("poll_in3", fds[0], fds[1], -1, 0) == fired & 3
    finally:
        for fd in fds[1:]:
            os.close(fd)


# Reading and writing at an offset.


def test_vectored_reads_and_writes(call: Call) -> None:
    fd = os.memfd_create("file")
    try:
        data = np.frombuffer(b"abcdefgh", np.uint8).copy()
        pieces = np.array([data.ctypes.data, 3, data.ctypes.data + 5, 2], np.int64)
        assert call("pwritev", fd, pieces.ctypes.data, 2, 100) == 5
        assert os.pread(fd, 100, 98) == b"\0\0abcfg"
        assert call("preadv", fd, pieces.ctypes.data, 2, 101) == 4
        assert data.tobytes() == b"bcfdeggh"
        assert call("preadv", fd, pieces.ctypes.data, 2, 105) == 0
        assert call("preadv", fd, pieces.ctypes.data, 2, -5) == call("pwritev", fd, 0, -1, 0) == -errno.EINVAL
    finally:
        os.close(fd)
    for name in ("preadv", "pwritev"):
        assert call(name, -1, pieces.ctypes.data, 2, 0) == -errno.EBADF
