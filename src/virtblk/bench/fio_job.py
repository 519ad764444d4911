"""One job of a job file, as it is to be run: fio's options under fio's names, checked by themselves.

`bench.fio_options` makes these of a file's text, `bench.fio_runner` runs them. Control context.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from virtblk.bench.fio_parse import Assignment
from virtblk.bench.job import DEFAULT_BS, PERCENTILES
from virtblk.errors import UsageError
from virtblk.names import format_size

#: What a job can do to a disk, in fio's order of directions.
READ, WRITE, TRIM = range(3)
DIRECTIONS: Final = ("read", "write", "trim")
#: `rw=`: the directions of its I/Os, and whether they are random.
WORKLOADS: Final = {
    "read": ((READ,), False),
    "write": ((WRITE,), False),
    "trim": ((TRIM,), False),
    "randread": ((READ,), True),
    "randwrite": ((WRITE,), True),
    "randtrim": ((TRIM,), True),
    "rw": ((READ, WRITE), False),
    "randrw": ((READ, WRITE), True),
}
DEFAULT_RANDSEED: Final = 0x89


@dataclass(frozen=True)
class Amount:
    """A size or an offset: bytes, or per cent of the disk."""

    value: int
    percent: bool = False

    def of(self, disk_size: int) -> int:
        """In bytes, on a disk of `disk_size`."""
        return disk_size * self.value // 100 if self.percent else self.value

    def __str__(self) -> str:
        return f"{self.value}%" if self.percent else format_size(self.value)


@dataclass(frozen=True)
class FioJob:
    """One section. Sizes in bytes, `runtime` and `ramp_time` in nanoseconds, 0 for none, `thinktime` in microseconds.

    `size` None: from `offset` to the end of the disk. Jobs of one `wave` run at the same time, and a wave begins when
    the one before is over; fio counts the same as `groupid`.
    """

    name: str
    where: str
    wave: int = 0
    rw: str = "read"
    rwmixread: int = 50
    bs: int = DEFAULT_BS
    size: Amount | None = None
    offset: Amount = Amount(0)
    iodepth: int = 1
    iodepth_batch_submit: int = 1
    iodepth_batch_complete_min: int = 1
    numjobs: int = 1
    runtime: int = 0
    time_based: bool = False
    ramp_time: int = 0
    loops: int = 1
    rate_iops: int = 0
    thinktime: int = 0
    randseed: int = DEFAULT_RANDSEED
    norandommap: bool = False
    verify: str = "none"
    fsync: int = 0
    group_reporting: bool = False
    percentile_list: tuple[float, ...] = PERCENTILES
    filename: str | None = None
    #: Where each option was last set, for complaints that come later.
    set_at: dict[str, Assignment] = field(default_factory=dict)
    #: The section's own options as text: fio's `job options`.
    given: dict[str, str] = field(default_factory=dict)

    @property
    def directions(self) -> tuple[int, ...]:
        """READ, WRITE, TRIM: those that the job has."""
        return WORKLOADS[self.rw][0]

    @property
    def random(self) -> bool:
        """Whether its offsets are random."""
        return WORKLOADS[self.rw][1]

    @property
    def mixed(self) -> bool:
        """Whether it both reads and writes."""
        return len(self.directions) > 1

    @property
    def changes(self) -> bool:
        """Whether it changes what is on the disk."""
        return self.directions != (READ,)

    def refuse(self, name: str, advice: str) -> UsageError:
        """The error for an option that cannot work with what is known now, by name and line where it was given."""
        if name in self.set_at:
            return self.set_at[name].refuse(advice)
        return UsageError(f"{self.where}: [{self.name}]: {name}: {advice}")

    def range_on(self, disk_size: int, block_size: int, title: str) -> tuple[int, int]:
        """(first byte, blocks of `bs`) on a disk of `disk_size` bytes. Raises UsageError for what is not on it."""
        if self.bs % block_size:
            raise self.refuse("bs", f"no multiple of the block size {block_size} of {title}")
        start = self.offset.of(disk_size)
        if self.offset.percent:
            start -= start % self.bs
        if start % block_size:
            raise self.refuse("offset", f"no multiple of the block size {block_size} of {title}")
        if start >= disk_size:
            raise self.refuse("offset", f"{title} ends at {format_size(disk_size)}")
        size = self.size.of(disk_size) if self.size else disk_size - start
        if start + size > disk_size:
            at = f" at offset {self.offset}" if start else ""
            raise self.refuse("size", f"more than {title} has{at} ({format_size(disk_size)})")
        if size < self.bs:
            raise self.refuse("bs", f"more than the range of {format_size(size)}")
        if size % self.bs and self.size and not self.size.percent:
            raise self.refuse("size", f"no multiple of bs={format_size(self.bs)}")
        return start, size // self.bs
