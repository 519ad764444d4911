"""What the assignments of a job file mean, and what virtblk refuses of them (fio: options.c, fixup_options).

Control context. The options are those of `_OPTIONS`, under fio's names, with fio's units and defaults. An option that
fio has and virtblk has not is refused, for a run that left it out would not be the one that was asked for; ioengine
and direct alone are accepted without effect. Every complaint is a UsageError with file and line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Final

from virtblk.bench.fio_job import WORKLOADS, Amount, FioJob
from virtblk.bench.fio_names import FIO_OPTIONS
from virtblk.bench.fio_parse import Assignment, Section, parse_sections, read_job_file
from virtblk.bench.job import MAX_BS, MAX_DEPTH, MAX_JOBS, MAX_RATE

MAX_SECONDS: Final = 10**6
MAX_PERCENTILES: Final = 20
_LARGEST: Final = 1 << 62

#: fio's other names for options that are here.
ALIASES: Final = {
    "readwrite": "rw",
    "blocksize": "bs",
    "timeout": "runtime",
    "fileoffset": "offset",
    "iodepth_batch": "iodepth_batch_submit",
    "iodepth_batch_complete": "iodepth_batch_complete_min",
    "wait_for_previous": "stonewall",
}
#: The one option whose name in fio's JSON is the alias.
_IN_JSON: Final = {"iodepth_batch_submit": "iodepth_batch"}
#: Accepted, and without effect: how fio gets at a file.
IRRELEVANT: Final = {
    "ioengine": "the disk is reached through virtio-blk, whatever engine fio would use",
    "direct": "no page cache lies between virtblk and its device",
}
_SHIFTS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_NANOSECONDS: Final = {
    "d": 86_400_000_000_000,
    "h": 3_600_000_000_000,
    "m": 60_000_000_000,
    "s": 1_000_000_000,
    "sec": 1_000_000_000,
    "ms": 1_000_000,
    "msec": 1_000_000,
    "us": 1000,
    "usec": 1000,
}
_SIZE = re.compile(r"(0x[0-9a-f]{1,16}|[0-9]{1,20})(?:([kmgtp])?b?)", re.IGNORECASE | re.ASCII)
_KIBI = re.compile(r"[0-9]{1,20}[kmgtp]ib?", re.IGNORECASE | re.ASCII)
_TIME = re.compile(r"([0-9]{1,18})([a-z]*)", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"0x[0-9a-f]{1,16}|[0-9]{1,20}", re.IGNORECASE | re.ASCII)
_PERCENT = re.compile(r"([0-9]{1,3})%", re.ASCII)


def _text_of(one: Assignment) -> str:
    if one.value is None:
        raise one.refuse("give a value, as name=value")
    return one.value


def _number(one: Assignment, least: int, most: int) -> int:
    text = _text_of(one)
    if not _NUMBER.fullmatch(text) or not least <= int(text, 16 if text[:2] in ("0x", "0X") else 10) <= most:
        raise one.refuse(f"give a whole number from {least} to {most}")
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)


def _whole(least: int, most: int) -> Callable[[Assignment], int]:
    return lambda one: _number(one, least, most)


def _flag(one: Assignment) -> bool:
    if one.value is None:
        return True
    return _number(one, 0, 1) == 1


def _bytes(one: Assignment) -> int:
    text = _text_of(one)
    match = _SIZE.fullmatch(text)
    if match is None:
        if _KIBI.fullmatch(text):
            raise one.refuse("for fio these are powers of 1000, unless kb_base says otherwise; give k, m, g")
        if "," in text:
            raise one.refuse("give one value; different ones for reads and writes are not in this version")
        raise one.refuse("give bytes or a size such as 4k, 512m, 1g")
    digits = match[1]
    value = int(digits, 16 if digits[:2] in ("0x", "0X") else 10) << _SHIFTS[(match[2] or "").lower()]
    if value > _LARGEST:
        raise one.refuse("too large")
    return value


def _block_size(one: Assignment) -> int:
    value = _bytes(one)
    if not 512 <= value <= MAX_BS or value % 512:
        raise one.refuse(f"give 512 to {MAX_BS >> 20}m, a multiple of 512")
    return value


def _amount(one: Assignment) -> Amount:
    match = _PERCENT.fullmatch(_text_of(one))
    if match is None:
        return Amount(_bytes(one))
    if int(match[1]) > 100:
        raise one.refuse("give at most 100%")
    return Amount(int(match[1]), True)


def _size(one: Assignment) -> Amount:
    amount = _amount(one)
    if amount.value == 0:
        raise one.refuse("give a block or more, or leave it out for all of the disk")
    return amount


def _offset(one: Assignment) -> Amount:
    amount = _amount(one)
    if not amount.percent and amount.value % 512:
        raise one.refuse("give a multiple of 512")
    if amount.percent and amount.value == 100:
        raise one.refuse("there the disk ends; give less")
    return amount


def _nanoseconds(one: Assignment, unit: str) -> int:
    match = _TIME.fullmatch(_text_of(one))
    factor = _NANOSECONDS.get((match[2] or unit).lower()) if match else None
    if match is None or factor is None:
        raise one.refuse("give a whole number, with d, h, m, s, ms or us where it is no number of " + _UNITS[unit])
    value = int(match[1]) * factor
    if value > MAX_SECONDS * _NANOSECONDS["s"]:
        raise one.refuse(f"give at most {MAX_SECONDS} seconds")
    return value


_UNITS: Final = {"s": "seconds", "us": "microseconds"}


def _seconds(one: Assignment) -> int:
    return _nanoseconds(one, "s")


def _microseconds(one: Assignment) -> int:
    return _nanoseconds(one, "us") // 1000


def _workload(one: Assignment) -> str:
    text = _text_of(one)
    word = "rw" if text == "readwrite" else text
    if word not in WORKLOADS:
        raise one.refuse(f"give one of {', '.join(WORKLOADS)}")
    return word


def _verify(one: Assignment) -> str:
    text = _text_of(one)
    if text not in ("0", "none", "crc32c", "crc32c-intel"):
        raise one.refuse("give crc32c, or 0 for none")
    return "none" if text in ("0", "none") else "crc32c"


def _percentiles(one: Assignment) -> tuple[float, ...]:
    words = _text_of(one).split(":")
    if len(words) > MAX_PERCENTILES:
        raise one.refuse(f"give at most {MAX_PERCENTILES}")
    values = []
    for word in words:
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,12})?", word.strip(), re.ASCII) or not 0 < float(word) <= 100:
            raise one.refuse("give per cent, more than 0 and at most 100, such as 50:99:99.9")
        values.append(float(word))
    return tuple(sorted(set(values)))


def _rate(one: Assignment) -> int:
    if "," in _text_of(one):
        raise one.refuse("give one value; different ones for reads and writes are not in this version")
    return _number(one, 0, MAX_RATE)


def _name(one: Assignment) -> str:
    return _text_of(one).replace("\\:", ":")


#: Every option that virtblk has, and what reads its value.
_OPTIONS: Final[dict[str, Callable[[Assignment], Any]]] = {
    "rw": _workload,
    "rwmixread": _whole(0, 100),
    "bs": _block_size,
    "size": _size,
    "offset": _offset,
    "iodepth": _whole(1, MAX_DEPTH),
    "iodepth_batch_submit": _whole(0, MAX_DEPTH),
    "iodepth_batch_complete_min": _whole(0, MAX_DEPTH),
    "numjobs": _whole(1, MAX_JOBS),
    "runtime": _seconds,
    "time_based": _flag,
    "ramp_time": _seconds,
    "loops": _whole(1, 10**9),
    "rate_iops": _rate,
    "thinktime": _microseconds,
    "randseed": _whole(0, _LARGEST - 1),
    "norandommap": _flag,
    "verify": _verify,
    "fsync": _whole(0, 10**9),
    "group_reporting": _flag,
    "percentile_list": _percentiles,
    "filename": _name,
    "stonewall": _flag,
}
KNOWN: Final = (*_OPTIONS, *IRRELEVANT)


@dataclass(frozen=True)
class JobFile:
    """A job file, checked. `notes`: what it says that means nothing here, a line each."""

    path: str
    jobs: list[FioJob]
    global_options: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def waves(self) -> list[list[FioJob]]:
        """The jobs that run at the same time, wave by wave."""
        count = self.jobs[-1].wave + 1
        return [[job for job in self.jobs if job.wave == wave] for wave in range(count)]


def parse_job_file(path: str) -> JobFile:
    """Read and check a job file. Raises UsageError with file and line."""
    return parse_jobs(read_job_file(path), path)


def parse_jobs(text: str, path: str) -> JobFile:
    """Check the text of a job file. Raises UsageError with file and line."""
    sections = parse_sections(text, path)
    jobs: list[FioJob] = []
    notes: dict[str, str] = {}
    wave = 0
    for section in sections:
        values, set_at = _values_of(section, notes)
        if values.pop("stonewall", False) and jobs:
            wave += 1
        given = _as_text(section.own)
        job = FioJob(section.name, section.where, wave, set_at=set_at, given=given, **values)
        jobs.append(_fix_up(job))
        count = sum(other.numjobs for other in jobs if other.wave == wave)
        if count > MAX_JOBS:
            raise job.refuse("numjobs", f"with it {count} jobs would run at a time; at most {MAX_JOBS} can")
    defaults = _as_text(sections[-1].inherited)
    return JobFile(path, jobs, defaults, list(notes.values()))


def _canonical(one: Assignment) -> str:
    return ALIASES.get(one.name, one.name)


def _as_text(assignments: list[Assignment]) -> dict[str, str]:
    """What fio repeats in its JSON: options that were given with a value, under the name that fio thinks is theirs."""
    named = ((_canonical(one), one.value) for one in assignments)
    return {_IN_JSON.get(name, name): value for name, value in named if value is not None}


def _values_of(section: Section, notes: dict[str, str]) -> tuple[dict[str, Any], dict[str, Assignment]]:
    """The values of a section, the later of two assignments being the one that counts, and where they were set."""
    values: dict[str, Any] = {}
    set_at: dict[str, Assignment] = {}
    for one in section.inherited + section.own:
        name = _canonical(one)
        if name in IRRELEVANT:
            notes.setdefault(one.where, f"{one.where}: {one} has no effect: {IRRELEVANT[name]}")
            continue
        if name not in _OPTIONS:
            raise _unknown(one)
        values[name] = _OPTIONS[name](one)
        set_at[name] = one
    return values, set_at


def _unknown(one: Assignment) -> Exception:
    if one.name in FIO_OPTIONS:
        return one.refuse("fio has this option, virtblk has not; leave it out")
    near = _nearest(one.name)
    return one.refuse(f"no option of fio's or virtblk's{f'; did you mean {near}?' if near else ''}")


def _nearest(name: str) -> str:
    return next(iter(get_close_matches(name, KNOWN, 1, 0.75)), "")


def _fix_up(job: FioJob) -> FioJob:
    """What options mean for each other (fio: fixup_options)."""
    depth = job.iodepth
    batch = job.iodepth_batch_submit
    if batch == 0 or batch > depth:
        batch = depth
    job = replace(
        job,
        iodepth_batch_submit=batch,
        iodepth_batch_complete_min=min(max(job.iodepth_batch_complete_min, 1), depth),
    )
    if job.time_based and not job.runtime:
        raise job.refuse("time_based", "give a runtime besides")
    if job.rate_iops and job.mixed:
        raise job.refuse("rate_iops", f"with rw={job.rw} fio paces reads and writes apart; not in this version")
    if job.rate_iops and job.thinktime:
        raise job.refuse("thinktime", "with rate_iops each I/O has its own time; leave out one of them")
    if job.rate_iops and batch > 1:
        raise job.refuse("iodepth_batch_submit", "with rate_iops each I/O has its own time; give 1")
    if job.verify != "none" and "trim" in job.rw:
        raise job.refuse("verify", f"nothing can be known of blocks after rw={job.rw}; leave it out")
    return job
