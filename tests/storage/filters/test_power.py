"""The judge of power cuts: what it must find, and what it must let pass."""

from __future__ import annotations

import errno

import pytest

from storage.filters.power import SECTOR, Logged, PowerLog, Verdict

OLD, NEW, NEWER = (bytes([fill]) * SECTOR for fill in (1, 2, 3))


def log_of(sectors: int = 2) -> PowerLog:
    return PowerLog(OLD * sectors)


def written(log: PowerLog, data: bytes = NEW, offset: int = 0, fua: bool = False) -> Logged:
    entry = log.write(offset, data, fua)
    log.ended(entry)
    return entry


def flushed(log: PowerLog, error: int = 0) -> None:
    log.ended(log.flush(), error)


def cut(log: PowerLog) -> None:
    with log.cut():
        pass


def test_a_flushed_write_that_is_missing_is_found() -> None:
    log = log_of()
    written(log)
    flushed(log)
    cut(log)
    assert log.judge(OLD + OLD) == Verdict(missing=[0])
    assert log.judge(NEW + OLD) == Verdict()


def test_a_fua_write_that_is_missing_is_found() -> None:
    log = log_of()
    written(log, fua=True, offset=SECTOR)
    cut(log)
    assert log.judge(OLD + OLD) == Verdict(missing=[1])
    assert log.judge(OLD + NEW) == Verdict()


def test_a_write_that_nobody_flushed_may_be_there_or_not() -> None:
    log = log_of()
    written(log, NEW + NEW)
    cut(log)
    assert log.judge(NEW + NEW) == Verdict()
    assert log.judge(NEW + OLD) == Verdict(forgotten=[1])


def test_a_torn_sector_is_found() -> None:
    log = log_of()
    written(log)
    cut(log)
    assert log.judge(NEW[:100] + OLD[100:] + OLD) == Verdict(torn=[0])
    assert log.judge(OLD + NEWER) == Verdict(torn=[1], forgotten=[0])


def test_an_older_version_is_as_good_as_missing() -> None:
    log = log_of()
    written(log, NEW)
    flushed(log)
    written(log, NEWER)
    cut(log)
    assert log.judge(NEW + OLD) == Verdict(forgotten=[0])
    assert log.judge(NEWER + OLD) == Verdict()
    assert log.judge(OLD + OLD) == Verdict(missing=[0])


def test_of_two_writes_at_once_either_may_win() -> None:
    log = log_of()
    first, second = log.write(0, NEW), log.write(0, NEWER)
    log.ended(second)
    log.ended(first)
    flushed(log)
    cut(log)
    assert log.judge(NEW + OLD) == log.judge(NEWER + OLD) == Verdict()
    assert log.judge(OLD + OLD) == Verdict(missing=[0])


def test_a_write_that_never_ended_may_be_there() -> None:
    log = log_of()
    written(log, NEW, fua=True)
    log.write(0, NEWER)
    cut(log)
    assert log.judge(NEWER + OLD) == log.judge(NEW + OLD) == Verdict()


@pytest.mark.parametrize(
    "what", ["during", "failed write", "failed flush", "flush not ended", "cut before", "cut within"]
)
def test_what_promises_nothing(what: str) -> None:
    log = log_of()
    entry = log.write(0, NEW)
    if what == "during":
        flushing = log.flush()
        log.ended(entry)
        log.ended(flushing)
    elif what == "failed write":
        log.ended(entry, errno.EIO)
        flushed(log)
    else:
        log.ended(entry)
        if what == "failed flush":
            flushed(log, errno.EIO)
        elif what == "flush not ended":
            log.flush()
        elif what == "cut before":
            cut(log)
            flushed(log)
        else:
            with log.cut():
                flushed(log)
    cut(log)
    assert log.judge(OLD + OLD).missing == []


def test_what_was_promised_before_and_after_a_cut_counts() -> None:
    log = log_of()
    written(log)
    flushed(log)
    cut(log)
    written(log, NEWER, SECTOR)
    flushed(log)
    cut(log)
    assert log.judge(OLD + OLD) == Verdict(missing=[0, 1])
    assert log.judge(NEW + NEWER) == Verdict()


def test_a_fua_write_over_which_the_power_was_cut_promises_nothing() -> None:
    log = log_of()
    with log.cut():
        written(log, fua=True)
    assert log.judge(OLD + OLD).missing == []


def test_a_discarded_sector_may_hold_anything_until_it_is_written() -> None:
    log = log_of()
    written(log, fua=True)
    log.ended(log.discard(0, SECTOR))
    assert log.judge(bytes(SECTOR) + OLD) == Verdict()
    written(log, NEWER, fua=True)
    assert log.judge(bytes(SECTOR) + OLD) == Verdict(missing=[0])
