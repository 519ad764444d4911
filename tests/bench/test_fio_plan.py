"""A job file on a certain disk: waves, ranges and memory, and what cannot work there, by file and line."""

from __future__ import annotations

import pytest

from virtblk.bench.fio_options import parse_jobs
from virtblk.bench.fio_plan import PAGE, DiskFacts, FileOptions, Task, plan
from virtblk.bench.job import JobOptions, available_memory
from virtblk.errors import UsageError

DISK = DiskFacts("ram:1m", 1 << 20, 512, False, 1 << 14)


def planned(*lines: str, disk: DiskFacts = DISK) -> list[list[Task]]:
    return plan(parse_jobs("\n".join(lines), "a.fio"), disk)


def refusal(*lines: str, disk: DiskFacts = DISK) -> str:
    with pytest.raises(UsageError) as caught:
        planned(*lines, disk=disk)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_clones_are_numbered_through_the_file() -> None:
    waves = planned("[a]", "numjobs=2", "[b]", "size=64k", "[c]", "stonewall", "offset=512k", "bs=8k")
    found = [[(task.job.name, task.number, task.start, task.blocks, task.end) for task in wave] for wave in waves]
    assert found == [
        [("a", 0, 0, 256, 1 << 20), ("a", 1, 0, 256, 1 << 20), ("b", 2, 0, 16, 1 << 16)],
        [("c", 3, 1 << 19, 64, 1 << 20)],
    ]


@pytest.mark.parametrize("rw", ["write", "randrw", "trim"])
def test_a_read_only_disk_is_only_read(rw: str) -> None:
    disk = DiskFacts("ro", 1 << 20, 512, True, 1 << 14)
    assert refusal("[a]", f"rw={rw}", disk=disk) == f"a.fio:2: rw={rw}: ro is read-only; give read or randread"
    planned("[a]", "rw=randread", disk=disk)


def test_trims_need_discard_and_its_limits() -> None:
    none, small = DiskFacts("x", 1 << 20, 512, False, 0), DiskFacts("x", 1 << 20, 512, False, 8)
    says = "a.fio:2: rw=randtrim: x offers no discard (VIRTIO_BLK_F_DISCARD)"
    assert refusal("[a]", "rw=randtrim", disk=none) == says
    assert refusal("[a]", "rw=trim", "bs=8k", disk=small) == "a.fio:3: bs=8k: a discard on x takes at most 4k"
    planned("[a]", "rw=trim", "bs=4k", disk=small)


def test_what_is_not_on_the_disk_is_told_by_line() -> None:
    assert refusal("[a]", "[b]", "size=2m") == "a.fio:3: size=2m: more than ram:1m has (1m)"


@pytest.mark.parametrize(
    ("lines", "who"),
    [
        (("[a]", "rw=write", "numjobs=2", "verify=crc32c"), "its own clones"),
        (("[a]", "rw=write", "verify=crc32c", "[b]", "rw=randwrite"), "[b]"),
        (("[b]", "rw=trim", "size=64k", "[a]", "rw=write", "offset=60k", "verify=crc32c"), "[b]"),
        (("[a]", "rw=read", "verify=crc32c", "[b]", "rw=rw"), "[b]"),
    ],
)
def test_nobody_else_changes_what_is_verified(lines: tuple[str, ...], who: str) -> None:
    assert refusal(*lines).endswith(f"verify=crc32c: {who} would change the same blocks meanwhile; give ranges apart")


def test_verify_beside_others_that_keep_away() -> None:
    planned("[a]", "rw=write", "size=64k", "verify=crc32c", "[b]", "rw=write", "offset=64k", "[c]", "rw=read")
    planned("[a]", "rw=write", "verify=crc32c", "[b]", "stonewall", "rw=write", "verify=crc32c")


def test_a_session_is_as_large_as_the_largest_wave() -> None:
    text = "[a]\nnumjobs=3\niodepth=3\nbs=1k\n[b]\niodepth=1\nbs=64k\n[c]\nstonewall\niodepth=9\nbs=512\n"
    options = FileOptions.of(parse_jobs(text, "a.fio"), JobOptions(poll=True, queue_size=64))
    assert (options.numjobs, options.iodepth, options.poll, options.queue_size) == (4, 9, True, 64)
    assert options.data_bytes == 3 * PAGE + (64 << 10)
    options.check_memory()


def test_more_memory_than_there_is() -> None:
    count = available_memory() // (64 << 20) + 1
    if count > 4096:
        pytest.skip("more memory than a file can ask for")
    text = f"[a]\nbs=64m\nnumjobs={count}\n"
    with pytest.raises(UsageError, match=r"^--job: .* of buffers for the jobs that run at the same time, and .* free$"):
        FileOptions.of(parse_jobs(text, "a.fio"), JobOptions()).check_memory()
