"""An io_uring from kernels: what goes in comes out, the queues run full and round, and a system without says so."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from virtblk.jit import io_uring
from virtblk.jit.atomics import load_i64
from virtblk.jit.io_uring import (
    CQE_USER_DATA,
    IORING_OP_READ,
    IORING_OP_WRITE,
    IoUring,
    cqe_result,
    io_uring_enter,
    prepare,
    unavailable,
    uring_cqe_seen,
    uring_get_sqe,
    uring_peek_cqe,
    uring_pending,
    uring_submit,
    uring_take_back,
)
from virtblk.jit.kernel import kernel
from waiting import wait_until

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no io_uring here: {unavailable()}")

WIDE = (1 << 40) + 12345  # more than 32 bits


@kernel
def fill_one(ring, opcode, fd, address, length, offset, user_data):
    sqe = uring_get_sqe(ring)
    if sqe:
        prepare(sqe, opcode, fd, address, length, offset, 0, user_data)
    return sqe


@kernel
def hand_over(ring):
    return uring_submit(ring)


@kernel
def waiting(ring):
    return uring_pending(ring)


@kernel
def take_back(ring):
    return uring_take_back(ring)


@kernel
def next_one(ring):
    """(user data, result) of a completion, or (-1, 0)."""
    cqe = uring_peek_cqe(ring)
    if cqe == 0:
        return -1, 0
    found = load_i64(cqe + CQE_USER_DATA), cqe_result(cqe)
    uring_cqe_seen(ring)
    return found


@kernel
def enter(fd):
    return io_uring_enter(fd, 1, 0, 0)


@pytest.fixture
def ring() -> Iterator[IoUring]:
    ring = IoUring(8)
    yield ring
    ring.close()
    ring.close()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "disk").write_bytes(bytes(range(256)) * 16)
    fd = os.open(tmp_path / "disk", os.O_RDWR)
    yield fd
    os.close(fd)


def completions(ring: IoUring, count: int) -> dict[int, int]:
    found: dict[int, int] = {}

    def one() -> bool:
        user_data, result = next_one(ring.table)
        if user_data >= 0:
            assert user_data not in found
            found[int(user_data)] = int(result)
        return len(found) == count

    wait_until(one)
    assert next_one(ring.table) == (-1, 0)
    return found


def test_reads_and_writes_reach_the_file(ring: IoUring, fd: int) -> None:
    data = np.zeros(100, np.uint8)
    assert fill_one(ring.table, IORING_OP_READ, fd, data.ctypes.data, 100, 7, WIDE) > 0
    assert waiting(ring.table) == 1
    assert hand_over(ring.table) == 1
    assert (waiting(ring.table), hand_over(ring.table)) == (0, 0)
    assert completions(ring, 1) == {WIDE: 100}
    assert data.tobytes() == bytes(range(7, 107))
    fill_one(ring.table, IORING_OP_WRITE, fd, data.ctypes.data, 100, WIDE, 1)
    hand_over(ring.table)
    assert completions(ring, 1) == {1: 100}
    assert os.pread(fd, 100, WIDE) == data.tobytes()


def test_an_error_is_negative(ring: IoUring, fd: int) -> None:
    fill_one(ring.table, IORING_OP_READ, 1 << 20, 0, 1, 0, 0)
    fill_one(ring.table, IORING_OP_READ, fd, 8, 100, 0, 1)
    fill_one(ring.table, IORING_OP_READ, fd, 8, 100, 1 << 20, 2)
    hand_over(ring.table)
    assert completions(ring, 3) == {0: -errno.EBADF, 1: -errno.EFAULT, 2: 0}


def test_a_full_queue_gives_no_entry(ring: IoUring, fd: int) -> None:
    data = np.zeros(8 * 256, np.uint8)
    for turn in range(40):  # the indices go round the queues
        for n in range(8):
            assert fill_one(ring.table, IORING_OP_READ, fd, data.ctypes.data + 256 * n, n + 1, n, n)
        assert fill_one(ring.table, IORING_OP_READ, fd, data.ctypes.data, 1, 0, 99) == 0
        assert hand_over(ring.table) == 8
        assert completions(ring, 8) == {n: n + 1 for n in range(8)}, turn
    assert [data[256 * n] for n in range(8)] == list(range(8))


def test_an_entry_is_zeroed_before_it_is_used_again(ring: IoUring, fd: int) -> None:
    data = np.zeros(8, np.uint8)
    first = fill_one(ring.table, IORING_OP_READ, fd, data.ctypes.data, 1, 0, WIDE)
    for _ in range(8):
        hand_over(ring.table)
        completions(ring, 1)
        sqe = fill_one(ring.table, 0, 0, 0, 0, 0, 0)
    assert sqe == first
    assert [load_i64(int(sqe) + at) for at in range(0, 64, 8)] == [0] * 8


def test_what_the_system_does_not_take_can_be_taken_back(ring: IoUring, fd: int) -> None:
    data = np.zeros(8, np.uint8)
    for n in range(3):
        fill_one(ring.table, IORING_OP_READ, fd, data.ctypes.data, 1, 0, n)
    assert [take_back(ring.table) for _ in range(4)] == [2, 1, 0, -1]
    fill_one(ring.table, IORING_OP_READ, fd, data.ctypes.data, 1, 0, 7)
    assert hand_over(ring.table) == 1
    assert completions(ring, 1) == {7: 1}


def test_entering_what_is_none_fails() -> None:
    assert enter(1 << 20) == -errno.EBADF


def test_a_ring_can_be_too_large() -> None:
    with pytest.raises(OSError, match="too large") as caught:
        IoUring(1 << 20)
    assert caught.value.errno == errno.ENOSPC


def test_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable() == ""
    monkeypatch.setattr(io_uring, "_SYS_SETUP", 100_000)  # no such call, as before Linux 5.1
    assert "io_uring_setup" in unavailable()
    monkeypatch.undo()
    monkeypatch.setattr(io_uring, "_OPS", (250,))
    assert unavailable() == "io_uring without operation 250"
    monkeypatch.undo()
    monkeypatch.setattr(io_uring, "_FEATURES", 1 << 30)
    assert "too old" in unavailable()
    monkeypatch.undo()
    monkeypatch.setenv("VIRTBLK_NO_IO_URING", "1")
    assert unavailable() == "VIRTBLK_NO_IO_URING is set"
    monkeypatch.setenv("VIRTBLK_NO_IO_URING", "0")
    assert unavailable() == ""
