"""256 jobs on one ring of 128, at full speed, against the device in its own process: nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from bench.harness import options
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session
from virtblk.bench.stat import RunResult

pytestmark = [pytest.mark.compiled, pytest.mark.once]

CROWD: dict[str, Any] = {"numjobs": 256, "iodepth": 64, "queue_size": 128}


def run(disk: str, **given: Any) -> list[RunResult]:
    job = options(timeout=60.0, **given)
    with Session(disk, job) as session:
        return list(Runner(session, job).run())


@pytest.mark.parametrize("poll", [False, True])
def test_every_job_ends_and_every_block_verifies(poll: bool) -> None:
    workloads = ("randwrite", "randread", "write", "read")
    results = run("ram:1m", runtime=0.3, slice_s=0.3, verify="crc32c", workloads=workloads, poll=poll, **CROWD)
    assert [result.workload for result in results] == list(workloads)
    assert [(result.errors, result.notes) for result in results] == [(0, [])] * 4
    assert sum(result.ring_full_waits for result in results) > 0


@pytest.mark.parametrize("poll", [False, True])
def test_a_crowd_stops_when_time_is_up(poll: bool) -> None:
    (result,) = run("null:1g", runtime=0.3, slice_s=0.3, workloads=("randread",), poll=poll, **CROWD)
    assert result.ios >= 256 * 64, "nobody was left out"
    assert result.errors == 0
    assert result.ring_full_waits > 0


def test_big_blocks_on_a_big_block_device_verify() -> None:
    """Each block is cut into what one request may be."""
    results = run(
        "ram:32m?block_size=4k",
        bs=2 << 20,
        iodepth=8,
        queue_size=32,
        verify="crc32c",
        workloads=("write", "randread"),
    )
    assert [(result.ios, result.errors) for result in results] == [(16, 0), (16, 0)]


@pytest.mark.parametrize("queue_size", [4, 1024])
def test_rings_of_other_sizes(queue_size: int) -> None:
    given = {"queue_size": queue_size, "numjobs": 4, "iodepth": 32, "verify": "crc32c", "workloads": ("randwrite",)}
    (result,) = run("ram:1m", **given)
    assert (result.ios, result.errors) == (4 * 2048, 0), "no I/O is lost"
    assert (result.ring_full_waits > 0) == (queue_size < 4 * 32)


def test_a_crowd_verifies_on_alternating_paths() -> None:
    given = {"runtime": 0.2, "slice_s": 0.1, "paths": ("request", "bio"), "workloads": ("randwrite",)}
    results = run("ram:1m", verify="crc32c", **given, **CROWD | {"iodepth": 4})
    assert [(result.path, result.errors, result.notes) for result in results] == [("request", 0, []), ("bio", 0, [])]
    assert all(result.ios for result in results)
