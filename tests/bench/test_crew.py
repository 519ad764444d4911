"""Job threads between runs: kept, idle, woken together, sent home."""

from __future__ import annotations

import threading
from typing import Any

from bench.harness import BLOCKS, bench, disk
from virtblk.bench.job_thread import GO_HOME, await_crew
from virtblk.jit.atomics import load_acquire_i64
from waiting import wait_until


def job_threads() -> list[int | None]:
    return sorted(thread.ident or 0 for thread in threading.enumerate() if thread.name.startswith("job"))


def test_threads_are_kept_from_slice_to_slice_and_gone_at_the_end() -> None:
    seen: set[tuple[int | None, ...]] = set()
    with bench(disk(), runtime=0.2, slice_s=0.02, numjobs=3, workloads=("read", "write")) as run:
        run.runner._on_progress = lambda *arguments: seen.add(tuple(job_threads()))
        assert job_threads() == [], "none before they are needed"
        run.run()
        assert job_threads() == []
        assert len(seen) == 1
        assert len(seen.pop()) == 3
        run.run()  # and once more, with others
        assert job_threads() == []


def test_a_slice_by_itself_and_the_end() -> None:
    with bench(disk(), numjobs=2) as run:
        for _ in range(3):
            assert run.runner.slice("read", 0, 0.0).ios == 2 * BLOCKS
        assert len(job_threads()) == 2
        run.runner.close()
        run.runner.close()
        assert job_threads() == []
        assert run.runner.slice("read", 0, 0.0).ios == 2 * BLOCKS, "others are started where they are needed again"
        run.runner.close()


def test_a_job_without_depth_has_no_part_in_a_run() -> None:
    with bench(disk(), numjobs=3, verify="crc32c") as run:
        run.runner._pass("fill", 1)
        assert run.runner._jobs.jobs["ios"].tolist() == [BLOCKS, 0, 0]
        run.runner.close()


def test_an_abandoned_run_ends_its_threads() -> None:
    with bench(disk(), numjobs=2, workloads=("read", "write")) as run:
        results: Any = run.runner.run()
        next(results)
        assert len(job_threads()) == 2
        results.close()
        assert job_threads() == []


def test_the_last_to_end_wakes_the_one_who_waits() -> None:
    """Not the bound of its sleep."""
    with bench(disk(), numjobs=4) as run:
        run.runner.slice("read", 0, 0.0)
        crew = run.runner._crew._crew
        assert await_crew(crew, 1) == 0
        assert load_acquire_i64(int(crew[0]["go"])) == 1
        run.runner.close()
        wait_until(lambda: load_acquire_i64(int(crew[0]["go"])) == GO_HOME)
