"""Stacks of filters, what all of them forward, and every value that is refused."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from storage.filters.harness import SECTOR, Call, LowerDisk, filtered, flush, read, run, sector, write
from virtblk.errors import OpenError, UsageError
from virtblk.storage.filters import FILTERS, apply_filters, only_read
from virtblk.storage.io_request import Request
from virtblk.storage.request import KIND_REQUESTS, OP_FLUSH

#: A filter of each kind that lets everything through at once.
HARMLESS = {
    "cow": "cow",
    "delay": "delay?all=0s",
    "error": "error?rate=0",
    "log": "log",
    "rate": "rate?iops=1000000000",
    "readonly": "readonly",
    "stats": "stats",
    "volatile": "volatile",
}
FORWARDED = {
    "name": "ram:other",
    "size": 64 * SECTOR,
    "block_size": 1024,
    "physical_block_size": 4096,
    "min_io_size": 8192,
    "opt_io_size": 16384,
    "alignment_offset": 3,
    "read_only": True,
    "can_flush": False,
    "can_fua": True,
    "can_discard": False,
    "can_write_zeroes": False,
    "can_unmap": False,
    "writeback": False,
    "writeback_settable": False,
}
#: What each filter changes of that, and to what.
CHANGED: dict[str, dict[str, Any]] = {
    "cow": {
        "read_only": False,
        "can_flush": True,
        "can_discard": True,
        "can_write_zeroes": True,
        "can_unmap": True,
        "writeback_settable": True,
    },
    "volatile": {"can_flush": True, "writeback_settable": True},
}


def test_every_filter_is_tried_here() -> None:
    assert set(HARMLESS) == set(FILTERS)


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_like_its_disk_but_for_what_it_changes(name: str) -> None:
    lower = LowerDisk(**FORWARDED)
    disk = filtered(lower, HARMLESS[name])
    assert {key: getattr(disk, key) for key in FORWARDED} == FORWARDED | CHANGED.get(name, {})
    assert (disk.kind, disk.address) == (KIND_REQUESTS, 0)
    disk.start()
    disk.populate()
    disk.close()
    disk.close()
    assert (lower.starts, lower.populates) == (1, 1)
    assert lower.closes >= 1


@pytest.mark.parametrize("name", set(FILTERS) - {"readonly"})
def test_a_harmless_filter_lets_requests_through(name: str) -> None:
    lower = LowerDisk()
    disk = filtered(lower, HARMLESS[name])
    disk.start()
    assert write(disk, 512, sector(7)) == 0
    assert flush(disk) == 0
    assert read(disk, 0, 1536) == sector(0) + sector(7) + sector(0)
    assert disk.counters()["ram_asked"] == len(lower.asked)
    disk.close()


@pytest.mark.parametrize("name", FILTERS)
def test_an_error_of_the_disk_below_comes_through(name: str) -> None:
    lower = LowerDisk()
    lower.fails = lambda request: errno.ENOSPC
    disk = filtered(lower, HARMLESS[name])
    disk.start()
    assert [call.error for call in _reads(disk)] == [errno.ENOSPC]
    disk.close()


def _reads(disk: Any) -> list[Call]:
    call = Call(0, offset=0, length=512, pieces=[memoryview(bytearray(512))])
    run(disk, call)
    return [call]


def test_the_first_filter_is_the_outermost() -> None:
    """The outer one fails everything, so that the inner one is never asked."""
    lower = LowerDisk()
    disk = apply_filters(lower, ["error?kind=ENOSPC", "error?kind=EOPNOTSUPP", "stats"])
    assert flush(disk) == errno.ENOSPC
    assert disk.counters()["error_2_injected"] == 1
    assert disk.counters()["error_injected"] == 0
    assert disk.counters()["stats_flush_count"] == 0
    assert lower.asked == []
    disk.close()
    disk = apply_filters(lower, ["stats", "error?kind=ENOSPC"])
    assert flush(disk) == errno.ENOSPC
    assert disk.counters()["stats_flush_errors"] == 1
    disk.close()


def test_no_filter_is_the_disk_itself() -> None:
    lower = LowerDisk()
    assert apply_filters(lower, []) is lower


def test_counters_of_a_disk_carry_its_scheme_once() -> None:
    class Counting(LowerDisk):
        def counters(self) -> dict[str, float]:
            return {"ram_asked": 1, "other": 2}

    assert filtered(Counting(), "error").counters() == {"error_injected": 0, "ram_asked": 1, "ram_other": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is unknown (known: cow, delay, error, log, rate, readonly, stats, volatile)"),
        ("slow", "'slow' is unknown (known: cow,"),
        ("error?rate", "'rate' is not key=value"),
        ("error?", "'' is not key=value"),
        ("error?=1", "'=1' is not key=value"),
        ("error?rate=1&rate=1", "key 'rate' is given twice"),
        ("cow?colour=red", "unknown key 'colour' (known: file)"),
        ("cow?file=", "file '': give the path of a file"),
        ("delay", "say what to delay, as in delay?all=10ms"),
        ("delay?colour=red", "unknown key 'colour' (known: read, write, flush, discard, zero, all)"),
        ("delay?read=10", "read '10': give a time with its unit, such as 200us, 10ms, 1.5s"),
        ("delay?all=-1s", "all '-1s': give a time with its unit"),
        ("delay?zero=1d", "zero '1d': give a time with its unit"),
        ("delay?flush=25000m", "flush '25000m' is longer than a day"),
        ("error?colour=red", "unknown key 'colour' (known: rate, kind, op, range, file, seed)"),
        ("error?rate=11", "rate '11': give a number from 0 to 1, or a percentage such as 10%"),
        ("error?rate=101%", "rate '101%': give a number"),
        ("error?rate=-1", "rate '-1': give a number"),
        ("error?rate=nan", "rate 'nan': give a number"),
        ("error?kind=ENOENT", "kind 'ENOENT': give one of EIO, ENOSPC, EOPNOTSUPP"),
        ("error?op=reed", "op 'reed': give one or more of read, write, flush, discard, zero, joined by +"),
        ("error?op=", "op '': give one or more"),
        ("error?range=4k", "range '4k': give OFFSET-LENGTH in bytes, such as 1m-64k"),
        ("error?range=0-x", "range 'x': give bytes or a size"),
        ("error?range=0-0", "range '0-0': it is empty, or goes beyond the disk's 16384 bytes"),
        ("error?range=8k-16k", "range '8k-16k': it is empty, or goes beyond"),
        ("error?range=0-4k&op=flush", "a flush touches no range"),
        ("error?file=", "file '': give the path of a file"),
        ("error?file=a\0b", "give the path of a file"),
        ("error?seed=x", "seed 'x': give a whole number"),
        ("error?seed=-1", "seed '-1': give a whole number"),
        ("log?colour=red", "unknown key 'colour' (known: file)"),
        ("rate", "give iops=, bw= or both, as in rate?iops=1000"),
        ("rate?burst=1s", "give iops=, bw= or both"),
        ("rate?iops=0", "iops '0': give 1 or more"),
        ("rate?iops=1.5", "iops '1.5': give a whole number"),
        ("rate?bw=0", "bw '0': give 1 or more"),
        ("rate?bw=fast", "bw 'fast': give bytes or a size"),
        ("rate?iops=1,burst=1", "burst '1': give a time"),
        ("rate?colour=red", "unknown key 'colour' (known: iops, bw, burst)"),
        ("readonly?a=b", "unknown key 'a' (known: none)"),
        ("stats?colour=red", "unknown key 'colour' (known: file)"),
        ("volatile?colour=red", "unknown key 'colour' (known: cut, keep, seed)"),
        ("volatile?keep=2", "keep '2': give a number from 0 to 1"),
        ("volatile?cut=", "cut '': give the path of a file"),
        ("volatile?seed=1k", "seed '1k': give a whole number"),
    ],
)
def test_filters_that_cannot_be(text: str, words: str) -> None:
    lower = LowerDisk()
    with pytest.raises(UsageError) as caught:
        apply_filters(lower, ["stats", "volatile", text])
    assert str(caught.value).startswith(f"filter {text!r}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert lower.closes == 1


def test_a_stack_whose_outer_filter_cannot_be_leaves_nothing_open() -> None:
    """The inner ones hold memory files; conftest.py looks."""
    lower = LowerDisk()
    with pytest.raises(UsageError, match="say what to delay"):
        apply_filters(lower, ["delay", "cow", "volatile"])
    assert lower.closes >= 1


@pytest.mark.parametrize("text", ["log?file={}", "stats?file={}", "cow?file={}/"])
def test_a_file_that_cannot_be_opened(text: str, tmp_path: Path) -> None:
    text = text.format(tmp_path)
    with pytest.raises(OpenError) as caught:
        apply_filters(LowerDisk(), [text])
    assert caught.value.errno in (errno.EISDIR, errno.EEXIST)
    assert f"filter {text!r}: " in str(caught.value)


def test_which_stacks_never_write_their_disk() -> None:
    assert only_read(["stats", "cow"])
    assert only_read(["readonly"])
    assert not only_read(["stats", "volatile"])
    assert not only_read([])
    with pytest.raises(UsageError, match="unknown"):
        only_read(["cow", "slow"])


def test_a_request_of_a_filter_under_filters_ends_once() -> None:
    ends = []
    disk = apply_filters(LowerDisk(), ["log", "stats", "error?rate=0", "log", "stats"])
    disk.start()
    disk.submit([Request(OP_FLUSH, on_end=lambda request, error: ends.append(error))])
    assert ends == [0]
    disk.close()
