"""`cow` against plain bytes, alone and under threads; the disk below is only read."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.filters.harness import (
    SECTOR,
    Call,
    LowerDisk,
    content,
    discard,
    filtered,
    flush,
    read,
    read_call,
    run,
    sector,
    write,
    zero,
)
from virtblk.errors import OpenError
from virtblk.storage.filters import overlay
from virtblk.storage.request import OP_NONE, OP_READ, OP_WRITE

SECTORS = 32
#: Operation, first sector, sectors, where a buffer is cut in two.
STEP = st.tuples(
    st.sampled_from(["read", "write", "write", "zero", "discard", "flush"]),
    st.integers(0, SECTORS - 1),
    st.integers(1, 8),
    st.integers(0, 700),
)


def lower_disk(**attributes: Any) -> LowerDisk:
    lower = LowerDisk(SECTORS * SECTOR, **attributes)
    lower.data[:] = b"".join(sector(100 + i) for i in range(SECTORS))
    return lower


def check_sequence(disk: Any, lower: LowerDisk, steps: list[tuple[str, int, int, int]]) -> None:
    model, before = bytearray(lower.data), bytes(lower.data)
    for number, (op, first, count, cut) in enumerate(steps):
        start, length = first * SECTOR, min(count, SECTORS - first) * SECTOR
        if op == "read":
            assert read(disk, start, length, min(cut, length - 1)) == model[start : start + length]
        elif op == "write":
            data = bytes((number + i) % 256 for i in range(length))
            model[start : start + length] = data
            assert write(disk, start, data) == 0
        elif op == "flush":
            assert flush(disk) == 0
        else:
            model[start : start + length] = bytes(length)
            assert (zero if op == "zero" else discard)(disk, (start, length)) == 0
    assert read(disk, 0, len(model)) == model
    assert lower.data == before
    assert set(lower.ops()) <= {OP_READ}
    disk.close()


@given(st.lists(STEP, max_size=20))
def test_against_plain_bytes(steps: list[tuple[str, int, int, int]]) -> None:
    lower = lower_disk(read_only=True)
    check_sequence(filtered(lower, "cow"), lower, steps)


def test_in_a_file_that_is_sparse_and_has_no_name(tmp_path: Path) -> None:
    path, lower = tmp_path / "overlay", lower_disk()
    steps = [("write", 3, 5, 100), ("discard", 4, 2, 0), ("read", 0, 8, 700), ("write", 4, 1, 0), ("zero", 3, 1, 0)]
    disk = filtered(lower, f"cow?file={path}")
    assert list(tmp_path.iterdir()) == []
    check_sequence(disk, lower, steps)


def test_the_overlay_takes_only_what_was_written() -> None:
    disk = filtered(LowerDisk(1 << 20), "cow")
    assert disk.counters()["cow_overlay_bytes"] == 0
    write(disk, 0, bytes(64 << 10))
    assert disk.counters()["cow_overlay_bytes"] == 64 << 10
    discard(disk, (0, 32 << 10))
    assert disk.counters()["cow_overlay_bytes"] == 32 << 10
    disk.close()
    assert disk.counters()["cow_overlay_bytes"] == 0


def test_a_file_without_holes_gets_zeroes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: int) -> int:
        overlay.ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(overlay._libc, "fallocate", refused)
    monkeypatch.setattr(overlay, "_ZEROES", bytes(1000))
    lower = lower_disk()
    check_sequence(filtered(lower, "cow"), lower, [("write", 0, 8, 0), ("zero", 1, 6, 0), ("read", 0, 8, 0)])


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_bytes(b"data")
    with pytest.raises(OpenError, match="it exists; give a path for a new file"):
        filtered(LowerDisk(), f"cow?file={path}")
    assert path.read_bytes() == b"data"


def test_more_pieces_than_the_kernel_takes_at_once_some_of_them_empty() -> None:
    disk = filtered(lower_disk(), "cow")
    data = Random(1).randbytes(4096)
    pieces = [memoryview(data)[i : i + 2] for i in range(0, 4096, 2)]
    pieces.insert(7, memoryview(b""))
    assert run(disk, Call(OP_WRITE, offset=512, length=4096, pieces=pieces)) == [0]
    buffer = memoryview(bytearray(8192))
    pieces = [buffer[i : i + 3] for i in range(0, 8192, 3)]
    pieces.insert(7, memoryview(bytearray()))
    assert run(disk, Call(OP_READ, offset=0, length=8192, pieces=pieces)) == [0]
    assert bytes(buffer) == sector(100) + data + b"".join(sector(100 + i) for i in range(9, 16))
    disk.close()


def test_a_read_that_is_in_part_below_ends_when_all_of_it_is_there() -> None:
    lower = lower_disk()
    disk = filtered(lower, "cow")
    for first in (1, 3):
        write(disk, first * SECTOR, sector(first))
    lower.hold = True
    call = read_call(0, 5 * SECTOR, cut=700)
    disk.submit([call.request])
    assert len(lower.held) == 3
    lower.execute(lower.held.pop())
    assert call.running
    lower.let_go()
    assert content(call) == sector(100) + sector(1) + sector(102) + sector(3) + sector(104)
    disk.close()


@pytest.mark.parametrize("failing", [0, 2 * SECTOR])
def test_a_read_fails_when_a_part_of_it_fails_below(failing: int) -> None:
    lower = lower_disk()
    disk = filtered(lower, "cow")
    write(disk, SECTOR, sector(1))
    lower.fails = lambda request: errno.EIO if request.offset == failing else 0
    assert run(disk, read_call(0, 3 * SECTOR), read_call(SECTOR, SECTOR)) == [errno.EIO, 0]
    disk.close()


def test_an_overlay_that_is_full_fails_the_write_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = filtered(lower_disk(), "cow")

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(overlay.os, "pwritev", full)
        assert write(disk, 0, sector(1)) == errno.ENOSPC
    assert read(disk, 0, SECTOR) == sector(100)
    assert write(disk, 0, sector(1)) == 0
    assert run(disk, Call(OP_NONE)) == [errno.EOPNOTSUPP]
    disk.close()


def test_threads_that_write_over_each_other_tear_no_sector() -> None:
    """Each thread writes sectors of its own number at random, and reads; every sector is whole, and someone's."""
    lower = LowerDisk(SECTORS * SECTOR)
    disk = filtered(lower, "cow")
    wrong: list[bytes] = []

    def work(number: int) -> None:
        random = Random(number)
        for _ in range(100):
            first = random.randrange(SECTORS - 8)
            count = random.randint(1, 4)
            write(disk, first * SECTOR, sector(number) * count)
            if random.random() < 0.2:
                zero(disk, (first * SECTOR, SECTOR))
            got = read(disk, first * SECTOR, count * SECTOR)
            wrong.extend(got[i : i + SECTOR] for i in range(0, len(got), SECTOR) if len(set(got[i : i + SECTOR])) > 1)
        own = number * SECTOR + (SECTORS - 4) * SECTOR
        write(disk, own, sector(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    last = read(disk, (SECTORS - 4) * SECTOR, 4 * SECTOR)
    assert last == b"".join(sector(number) for number in range(4))
    assert lower.data == bytes(SECTORS * SECTOR)
    disk.close()
