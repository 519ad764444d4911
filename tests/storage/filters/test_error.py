"""`error`: how many fail, which, and that the counter tells the truth."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from random import Random

import pytest

from storage.filters.harness import SECTOR, Call, LowerDisk, filtered, flush, read_call, run, write_call
from virtblk.storage.request import OP_DISCARD, OP_FLUSH, OP_WRITE_ZEROES


def ends(text: str, count: int = 300) -> list[int]:
    lower = LowerDisk()
    disk = filtered(lower, text)
    errors = run(disk, *[read_call(i % 32 * SECTOR, SECTOR) for i in range(count)])
    assert disk.counters()["error_injected"] == sum(1 for error in errors if error)
    assert len(lower.asked) == errors.count(0)
    disk.close()
    return errors


@pytest.mark.parametrize("rate", ["0", "0%", "0.0"])
def test_none_fail(rate: str) -> None:
    assert set(ends(f"error?rate={rate}")) == {0}


@pytest.mark.parametrize("text", ["error", "error?rate=1", "error?rate=100%"])
def test_all_fail(text: str) -> None:
    assert set(ends(text)) == {errno.EIO}


def test_a_tenth_fails_the_same_ones_for_the_same_seed() -> None:
    random = Random(42)
    expected = [errno.EIO if random.random() < 0.1 else 0 for _ in range(300)]
    assert 0 < expected.count(errno.EIO) < 100
    assert ends("error?rate=10%&seed=42") == ends("error?rate=0.1&seed=42") == expected
    assert ends("error?rate=10%&seed=43") != expected


@pytest.mark.parametrize("kind", ["EIO", "ENOSPC", "EOPNOTSUPP"])
def test_the_kind(kind: str) -> None:
    assert set(ends(f"error?kind={kind}", 3)) == {getattr(errno, kind)}


def everything() -> list[Call]:
    return [
        read_call(0, 1024),
        write_call(1024, bytes(1024)),
        Call(OP_FLUSH),
        Call(OP_DISCARD, ranges=[(0, 512), (4096, 512)]),
        Call(OP_WRITE_ZEROES, ranges=[(2048, 512)]),
    ]


@pytest.mark.parametrize(
    ("keys", "failing"),
    [
        ("op=read", [0]),
        ("op=write+flush", [1, 2]),
        ("op=discard+zero+read", [0, 3, 4]),
        ("range=0-512", [0, 3]),
        ("range=512-1k", [0, 1]),
        ("range=1536-512", [1]),
        ("range=2k-512", [4]),
        ("range=4k-512", [3]),
        ("range=8k-8k", []),
        ("range=0-16k", [0, 1, 3, 4]),
        ("range=0-16k&op=write", [1]),
    ],
)
def test_operations_and_ranges(keys: str, failing: list[int]) -> None:
    disk = filtered(LowerDisk(), f"error?{keys}")
    errors = run(disk, *everything())
    assert [i for i, error in enumerate(errors) if error] == failing
    assert disk.counters()["error_injected"] == len(failing)
    disk.close()


def test_what_cannot_fail_takes_nothing_from_the_random_numbers() -> None:
    disk = filtered(LowerDisk(), "error?rate=50%&seed=1&op=flush")
    random = Random(1)
    for _ in range(50):
        assert run(disk, read_call(0, SECTOR), Call(OP_FLUSH)) == [0, errno.EIO if random.random() < 0.5 else 0]
    disk.close()


def test_only_while_the_trigger_file_exists(tmp_path: Path) -> None:
    trigger = tmp_path / "fail now"
    disk = filtered(LowerDisk(), f"error?file={trigger}")
    for _ in range(2):
        assert flush(disk) == 0
        trigger.touch()
        assert flush(disk) == errno.EIO
        trigger.unlink()
    assert flush(disk) == 0
    assert disk.counters()["error_injected"] == 2
    disk.close()


def test_the_counter_is_exact_under_threads_and_ahead_of_the_end() -> None:
    disk = filtered(LowerDisk(), "error?rate=30%")
    failed = []

    def work() -> None:
        for _ in range(200):
            if flush(disk):
                failed.append(disk.counters()["error_injected"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert disk.counters()["error_injected"] == len(failed)
    assert max(failed) == len(failed)
    assert all(count >= 1 for count in failed)
    disk.close()
