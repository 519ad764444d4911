"""`volatile` against its naive twin, then what only happens while the disk below is slow, failing, or loses power."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naive.volatile import NaiveVolatile
from storage.filters import power
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
    write_call,
    zero,
)
from virtblk.storage.filters import overlay
from virtblk.storage.filters import volatile as volatile_module
from virtblk.storage.request import (
    FLAG_FUA,
    FLAG_UNMAP,
    OP_DISCARD,
    OP_FLUSH,
    OP_NONE,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
)
from waiting import Background, wait_until

SECTORS = 16
STEP = st.tuples(
    st.sampled_from(["read", "write", "write", "write", "fua", "zero", "zero fua", "discard", "flush", "cut"]),
    st.integers(0, SECTORS - 1),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 1.0]),
)


def lower_disk(**attributes: Any) -> LowerDisk:
    lower = LowerDisk(SECTORS * SECTOR, **attributes)
    lower.data[:] = b"".join(sector(200 + i) for i in range(SECTORS))
    return lower


def started(lower: LowerDisk, text: str = "volatile") -> Any:
    disk = filtered(lower, text)
    disk.start()
    return disk


@given(st.lists(STEP, max_size=20), st.booleans())
def test_against_the_naive_twin(steps: list[tuple[str, int, int, float]], closes_after_a_cut: bool) -> None:
    lower = lower_disk()
    disk, twin = started(lower), NaiveVolatile(bytes(lower.data))
    for number, (op, first, count, keep) in enumerate(steps):
        start, length = first * SECTOR, min(count, SECTORS - first) * SECTOR
        flags = FLAG_FUA if "fua" in op else 0
        if op == "read":
            assert read(disk, start, length, length // 3) == twin.content()[start : start + length]
        elif op in ("write", "fua"):
            data = b"".join(sector((number * 7 + i) % 200) for i in range(length // SECTOR))
            assert write(disk, start, data, flags) == 0
            twin.write(start, data, bool(flags))
        elif op in ("zero", "zero fua"):
            assert zero(disk, (start, length), flags=flags | FLAG_UNMAP) == 0
            twin.write(start, bytes(length), bool(flags))
        elif op == "discard":
            assert discard(disk, (start, length)) == 0
            twin.discard(start, length)
        elif op == "flush":
            assert flush(disk) == 0
            twin.flush()
        else:
            unflushed = len(twin.cache) * SECTOR
            forgotten = disk.power_cut(keep, seed=number)
            assert forgotten == {0.0: unflushed, 1.0: 0}.get(keep, forgotten) <= unflushed
            assert twin.cut(bytes(lower.data)) * SECTOR <= forgotten
        assert bytes(lower.data) == twin.durable
        assert read(disk, 0, SECTORS * SECTOR) == twin.content()
    if closes_after_a_cut:
        disk.power_cut()
        twin.cache.clear()
    disk.close()
    assert bytes(lower.data) == twin.content()


def test_a_cut_keeps_or_loses_each_sector_on_its_own_the_same_ones_for_the_same_seed() -> None:
    def kept(seed: int) -> list[int]:
        lower = lower_disk()
        disk = started(lower)
        write(disk, 0, sector(1) * SECTORS)
        disk.power_cut(keep=0.5, seed=seed)
        disk.close()
        return [i for i in range(SECTORS) if lower.data[i * SECTOR : (i + 1) * SECTOR] == sector(1)]

    random = Random(5)
    assert kept(5) == kept(5) == [i for i in range(SECTORS) if random.random() < 0.5]
    assert 0 < len(kept(5)) < SECTORS


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_a_larger_block_of_the_disk_below_is_not_torn(block_size: int) -> None:
    lower = lower_disk(block_size=block_size)
    disk = started(lower)
    write(disk, SECTOR, sector(1) * (SECTORS - 1))
    disk.power_cut(keep=0.5, seed=3)
    disk.close()
    kept = [lower.data[i * SECTOR] == 1 for i in range(SECTORS)]
    assert True in kept
    assert False in kept
    for first in range(0, SECTORS, block_size // SECTOR):
        assert len(set(kept[max(first, 1) : first + block_size // SECTOR])) == 1


def test_a_cut_of_a_huge_zeroed_range_ends() -> None:
    """Decisions are bounded by parts, not by sectors."""

    class Huge(LowerDisk):
        def _move(self, request: Any) -> None:
            pass

    lower = Huge()
    lower.size = 1 << 42
    disk = started(lower)
    zero(disk, (0, 1 << 40))
    forgotten = disk.power_cut(keep=0.5, seed=1)
    assert 0 < forgotten < 1 << 40
    zeroed = [r for request in lower.asked if request.op == OP_WRITE_ZEROES for r in request.ranges]
    assert sum(length for _offset, length in zeroed) == (1 << 40) - forgotten
    assert len(zeroed) <= 4096
    disk.close()


def test_only_a_flush_or_a_fua_write_reaches_the_disk_below_and_a_fua_write_brings_only_itself() -> None:
    lower = lower_disk()
    disk = started(lower)
    write(disk, 0, sector(1))
    zero(disk, (SECTOR, SECTOR))
    assert lower.asked == []
    assert write(disk, 4 * SECTOR, sector(2), FLAG_FUA) == 0
    assert [(request.op, request.offset) for request in lower.asked] == [(OP_WRITE, 4 * SECTOR), (OP_FLUSH, 0)]
    assert flush(disk) == 0
    assert lower.ops()[2:] == [OP_WRITE, OP_WRITE_ZEROES, OP_FLUSH]
    assert flush(disk) == 0
    assert lower.ops()[5:] == [OP_FLUSH]
    assert disk.counters()["volatile_memory_bytes"] == 0
    disk.close()
    assert len(lower.asked) == 6


@pytest.mark.parametrize("can_flush", [True, False])
def test_the_disk_below_is_flushed_where_it_can_be(can_flush: bool) -> None:
    lower = lower_disk(can_flush=can_flush)
    disk = started(lower)
    assert write(disk, 0, sector(1), FLAG_FUA) == 0
    assert lower.ops() == ([OP_WRITE, OP_FLUSH] if can_flush else [OP_WRITE])
    disk.close()


@pytest.mark.parametrize(("flags", "can_unmap"), [(0, True), (FLAG_UNMAP, True), (FLAG_UNMAP, False)])
def test_write_zeroes_unmap_below_where_that_was_asked_for_and_is_possible(flags: int, can_unmap: bool) -> None:
    lower = lower_disk(can_unmap=can_unmap)
    disk = started(lower)
    zero(disk, (0, SECTOR), flags=flags)
    flush(disk)
    assert lower.asked[0].flags == (flags if can_unmap else 0)
    disk.close()


def test_a_large_flush_goes_down_in_bounded_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volatile_module, "_LARGEST", 2048)
    monkeypatch.setattr(volatile_module, "_LARGEST_ZERO", 1024)
    monkeypatch.setattr(volatile_module, "_WINDOW", 3000)
    lower = lower_disk()
    disk = started(lower)
    data = b"".join(sector(i) for i in range(10))
    write(disk, 0, data)
    zero(disk, (10 * SECTOR, 5 * SECTOR))
    flush(disk)
    assert lower.data == data + bytes(5 * SECTOR) + sector(215)
    assert max(request.length for request in lower.asked) == 2048
    assert max(length for request in lower.asked for _offset, length in request.ranges) == 1024
    disk.close()


# --- while a round is under way


def holding(lower: LowerDisk, disk: Any, data: bytes = sector(1)) -> Call:
    """A flush of one write, which the disk below has been given and does not do."""
    assert write(disk, 0, data) == 0
    lower.hold = True
    call = Call(OP_FLUSH)
    disk.submit([call.request])
    wait_until(lambda: lower.held)
    return call


def test_a_cut_during_a_flush_leaves_what_the_flush_covers() -> None:
    lower = lower_disk()
    disk = started(lower)
    flushing = holding(lower, disk)
    write(disk, 0, sector(2))  # over what is being flushed
    write(disk, SECTOR, sector(3))  # not covered
    cutting = Background(disk.power_cut)
    wait_until(lambda: disk.counters()["volatile_cuts"] == 1)
    assert flushing.running
    assert read(disk, 0, SECTOR) == sector(2)
    lower.let_go()
    assert cutting.result() == SECTOR
    assert flushing.error == 0
    survived = bytes(lower.data)
    assert survived[: 2 * SECTOR] in (sector(1) + sector(201), sector(2) + sector(201))
    assert read(disk, 0, SECTORS * SECTOR) == survived
    disk.power_cut()
    assert lower.data == survived
    disk.close()


def test_a_cut_during_a_flush_leaves_what_the_next_round_will_bring() -> None:
    lower = lower_disk()
    disk = started(lower)
    flushing = holding(lower, disk)
    promised = write_call(2 * SECTOR, sector(2), FLAG_FUA)
    disk.submit([promised.request])
    cutting = Background(disk.power_cut)
    wait_until(lambda: disk.counters()["volatile_cuts"] == 1)
    lower.let_go()
    assert (cutting.result(), flushing.error, promised.error) == (0, 0, 0)
    assert lower.data[2 * SECTOR : 3 * SECTOR] == sector(2)
    disk.close()


def test_a_write_during_a_flush_is_not_taken_for_flushed() -> None:
    lower = lower_disk()
    disk = started(lower)
    flushing = holding(lower, disk)
    write(disk, 0, sector(2))
    lower.let_go()
    assert flushing.error == 0
    assert lower.data[:SECTOR] == sector(1)
    assert read(disk, 0, SECTOR) == sector(2)
    flush(disk)
    assert lower.data[:SECTOR] == sector(2)
    disk.close()


def test_a_flush_takes_only_what_was_there_when_it_came() -> None:
    lower = lower_disk()
    disk = started(lower)
    flushing = holding(lower, disk)
    for i in range(1, 8):
        write(disk, i * SECTOR, sector(i))
    lower.let_go()
    assert flushing.error == 0
    assert [request.offset for request in lower.asked if request.op == OP_WRITE] == [0]
    assert lower.data[SECTOR:] == b"".join(sector(200 + i) for i in range(1, SECTORS))
    disk.close()


def test_a_flush_during_one_that_fails_does_not_end_well_without_what_that_lost() -> None:
    lower = lower_disk()
    disk = started(lower)
    failing = holding(lower, disk)
    second = Call(OP_FLUSH)
    disk.submit([second.request])
    failures = iter([errno.EIO])
    lower.fails = lambda request: next(failures, 0)
    lower.let_go()
    assert failing.error == errno.EIO
    assert second.error == 0
    assert lower.data[:SECTOR] == sector(1)
    disk.close()


@pytest.mark.parametrize("op", [OP_WRITE, OP_FLUSH])
def test_a_flush_that_fails_loses_nothing(op: int) -> None:
    lower = lower_disk()
    disk = started(lower)
    write(disk, 0, sector(1))
    lower.fails = lambda request: errno.ENOSPC if request.op == op else 0
    assert flush(disk) == errno.ENOSPC
    assert write(disk, SECTOR, sector(2), FLAG_FUA) == errno.ENOSPC
    assert read(disk, 0, 2 * SECTOR) == sector(1) + sector(2)
    lower.fails = lambda request: 0
    assert flush(disk) == 0
    assert lower.data[: 2 * SECTOR] == sector(1) + sector(2)
    disk.close()


def test_a_discard_waits_for_the_writes_before_it_and_a_fua_write_after_it_survives() -> None:
    lower = lower_disk()
    disk = started(lower)
    flushing = holding(lower, disk)
    discarding = Call(OP_DISCARD, ranges=[(0, SECTOR)])
    after = write_call(0, sector(9), FLAG_FUA)
    disk.submit([discarding.request])
    disk.submit([after.request])
    assert len(lower.held) == 1
    assert read(disk, 0, SECTOR) == sector(9)
    lower.let_go()
    assert (flushing.error, discarding.error, after.error) == (0, 0, 0)
    assert lower.ops() == [OP_WRITE, OP_FLUSH, OP_DISCARD, OP_WRITE, OP_FLUSH]
    assert lower.data[:SECTOR] == sector(9)
    disk.close()


def test_memory_that_cannot_be_read_fails_the_flush_and_keeps_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = lower_disk()
    disk = started(lower)
    write(disk, 0, sector(1))

    def broken(*arguments: Any) -> int:
        raise OSError(errno.ENOMEM, "no memory")

    def out_of_memory(size: int) -> bytearray:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(overlay.os, "preadv", broken)
        assert flush(disk) == errno.ENOMEM
        patch.setattr(volatile_module, "bytearray", out_of_memory, raising=False)
        assert flush(disk) == errno.ENOMEM
        assert run(disk, read_call(0, SECTOR)) == [errno.ENOMEM]
    assert flush(disk) == 0
    assert lower.data[:SECTOR] == sector(1)
    disk.close()


# --- the trigger file


def test_the_trigger_file_cuts_the_power_of_an_idle_disk_and_goes(tmp_path: Path) -> None:
    trigger, lower = tmp_path / "cut", lower_disk()
    disk = started(lower, f"volatile?cut={trigger}")
    for _ in range(2):
        write(disk, 0, sector(1))
        trigger.touch()
        wait_until(lambda: not trigger.exists())
        assert read(disk, 0, SECTOR) == sector(200)
    assert disk.counters()["volatile_cuts"] == 2
    assert disk.counters()["volatile_forgotten_bytes"] == 2 * SECTOR
    disk.close()


def test_the_trigger_file_is_looked_for_before_each_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volatile_module, "_TRIGGER_SECONDS", 3600)
    trigger, lower = tmp_path / "cut", lower_disk()
    disk = started(lower, f"volatile?cut={trigger}&keep=100%")
    for number in range(1, 4):
        write(disk, 0, sector(number))
        trigger.touch()
        assert read(disk, 0, SECTOR) == sector(number)
        wait_until(lambda: not trigger.exists())
        assert lower.data[:SECTOR] == sector(number)
    trigger.touch()  # again, and nothing looked in between
    read(disk, 0, SECTOR)
    wait_until(lambda: not trigger.exists())
    assert disk.counters()["volatile_cuts"] == 4
    disk.close()


def test_a_trigger_file_at_close_is_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volatile_module, "_TRIGGER_SECONDS", 3600)
    trigger, lower = tmp_path / "cut", lower_disk()
    disk = started(lower, f"volatile?cut={trigger}")
    write(disk, 0, sector(1))
    trigger.touch()
    disk.close()
    assert lower.data[:SECTOR] == sector(200)
    assert not trigger.exists()


def test_a_trigger_that_cannot_be_removed_cuts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trigger, lower = tmp_path / "cut", lower_disk()
    disk = started(lower, f"volatile?cut={trigger}")
    trigger.mkdir()
    wait_until(lambda: "cannot remove" in caplog.text)
    flush(disk)
    write(disk, 0, sector(1))
    assert read(disk, 0, SECTOR) == sector(1)
    assert disk.counters()["volatile_cuts"] == 1
    trigger.rmdir()
    flush(disk)
    trigger.touch()
    wait_until(lambda: not trigger.exists())
    assert disk.counters()["volatile_cuts"] == 2
    disk.close()


# --- what is refused, and the end


def test_what_the_disk_below_cannot_do() -> None:
    lower = lower_disk(can_discard=False, can_write_zeroes=False)
    disk = started(lower)
    assert discard(disk, (0, SECTOR)) == errno.EOPNOTSUPP
    assert zero(disk, (0, SECTOR)) == errno.EOPNOTSUPP
    assert run(disk, Call(OP_NONE)) == [errno.EOPNOTSUPP]
    disk.close()
    disk = started(lower_disk(read_only=True))
    assert write(disk, 0, sector(1)) == errno.EROFS
    assert discard(disk, (0, SECTOR)) == errno.EROFS
    assert read(disk, 0, SECTOR) == sector(200)
    disk.close()


def test_a_discard_that_fails_below_says_so() -> None:
    lower = lower_disk()
    lower.fails = lambda request: errno.EIO if request.op == OP_DISCARD else 0
    disk = started(lower)
    assert discard(disk, (0, SECTOR)) == errno.EIO
    disk.close()


def test_a_cut_whose_survivors_cannot_be_written_is_an_error() -> None:
    lower = lower_disk()
    disk = started(lower)
    write(disk, 0, sector(1))
    lower.fails = lambda request: errno.ENOSPC
    with pytest.raises(OSError, match="No space left") as caught:
        disk.power_cut(keep=1.0)
    assert caught.value.errno == errno.ENOSPC
    lower.fails = lambda request: 0
    disk.close()
    assert lower.data[:SECTOR] == sector(1)


def test_a_close_says_what_it_could_not_write(caplog: pytest.LogCaptureFixture) -> None:
    lower = lower_disk()
    disk = started(lower)
    write(disk, 0, sector(1))
    lower.fails = lambda request: errno.EIO
    disk.close()
    assert "what was not flushed is lost: Input/output error" in caplog.text
    assert lower.closes == 1


def test_a_disk_below_that_does_not_answer_does_not_hold_the_close(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(volatile_module, "_PATIENCE_SECONDS", 0.05)
    lower = lower_disk()
    disk = started(lower)
    flushing = holding(lower, disk)
    with pytest.raises(OSError, match="in time") as caught:
        disk.power_cut()
    assert caught.value.errno == errno.ETIMEDOUT
    disk.close()
    assert "does not take what was not flushed" in caplog.text
    lower.let_go()
    assert flushing.error == 0


# --- durability


class SlowDisk(LowerDisk):
    """Takes a moment, so that cuts fall into flushes."""

    def execute(self, request: Any) -> None:
        time.sleep(0.0002)
        super().execute(request)


def writes_and_cuts(seed: int, forgetful: bool = False) -> power.Verdict:
    """Three writers on a volatile disk, one cut at some point of it, and what the judge says of the disk below."""
    lower = SlowDisk(SECTORS * SECTOR)
    disk = started(lower)
    if forgetful:  # a filter with a bug: it ends a flush without having done it
        disk._promise_all = lambda request: request.end(0)
    log, random = power.PowerLog(bytes(lower.data)), Random(seed)
    stop = threading.Event()

    def work(random: Random) -> None:
        while not stop.is_set():
            if random.random() < 0.2:
                flushing = log.flush()
                log.ended(flushing, flush(disk))
                continue
            first = random.randrange(SECTORS - 3)
            data = b"".join(random.randbytes(SECTOR) for _ in range(random.randint(1, 3)))
            fua = random.random() < 0.2
            entry = log.write(first * SECTOR, data, fua)
            log.ended(entry, write(disk, first * SECTOR, data, FLAG_FUA if fua else 0))

    writers = [Background(work, Random(seed + i)) for i in range(1, 4)]
    wanted = random.randrange(5, 100)
    wait_until(lambda: len(log._writes) > wanted)
    with log.cut():
        disk.power_cut(keep=random.choice([0.0, 0.5]), seed=seed)
    stop.set()
    for writer in writers:
        writer.result()
    with log.cut():
        disk.power_cut(keep=random.choice([0.0, 0.5]), seed=seed)
    verdict = log.judge(bytes(lower.data))
    disk.close()
    return verdict


@pytest.mark.parametrize("cuts", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_flushed_write_is_missing_and_no_sector_is_torn_after_cuts_at_random_points(cuts: int) -> None:
    verdicts = [writes_and_cuts(seed) for seed in range(cuts)]
    assert [verdict for verdict in verdicts if verdict.missing or verdict.torn] == []
    assert any(verdict.forgotten for verdict in verdicts)


def test_a_filter_that_only_pretends_to_flush_is_found_out() -> None:
    assert any(writes_and_cuts(seed, forgetful=True).missing for seed in range(25))


def test_reads_below_and_in_memory_make_one_answer() -> None:
    lower = lower_disk()
    disk = started(lower)
    write(disk, SECTOR, sector(1))
    lower.hold = True
    call = read_call(0, 3 * SECTOR)
    disk.submit([call.request])
    assert [request.op for request in lower.held] == [OP_READ, OP_READ]
    lower.let_go()
    assert content(call) == sector(200) + sector(1) + sector(202)
    disk.close()
