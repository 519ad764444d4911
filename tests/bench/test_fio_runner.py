"""What the control thread sees of a job file's run: samples of the jobs' speed, their CPU, and progress."""

from __future__ import annotations

import numpy as np
import pytest

from bench.fio_harness import fio_bench
from virtblk.bench.fio_runner import SAMPLE_SECONDS, Sampler, make_jobs
from virtblk.bench.fio_tables import KINDS, READ, TRIM, WRITE


def test_samples_are_what_each_job_did_meanwhile() -> None:
    jobs = make_jobs(2, 1)
    ios = jobs.stats.reshape(-1, KINDS)["ios"]
    sampler = Sampler(jobs, 2)
    began = sampler._last
    ios[0, READ], ios[1, WRITE] = 50, 10
    sampler.look(began + SAMPLE_SECONDS * 0.9)
    assert sampler.samples == [[[], [], []], [[], [], []]], "not yet"
    sampler.look(began + 0.5)
    ios[0, READ], ios[1, WRITE], ios[1, TRIM] = 150, 10, 4
    sampler.look(began + 1.5)
    assert sampler.samples == [[[100.0, 100.0], [], []], [[], [20.0, 0.0], [4.0]]]


def test_what_is_no_whole_sample_does_not_count() -> None:
    """Job 0 is in its ramp at first, job 1 ends early."""
    jobs = make_jobs(2, 1)
    jobs.jobs["ramp_ns"][0] = 1
    jobs.jobs["ramping"][0] = 1
    ios = jobs.stats.reshape(-1, KINDS)["ios"]
    sampler = Sampler(jobs, 2)
    began = sampler._last
    ios[1, READ] = 10
    sampler.look(began + 1)
    jobs.jobs["ramping"][0] = 0
    ios[0, READ], ios[1, READ] = 30, 20
    sampler.look(began + 2)
    jobs.jobs["ended_ns"][1] = 1
    ios[0, READ], ios[1, READ] = 70, 25
    sampler.look(began + 3)
    assert [samples[READ] for samples in sampler.samples] == [[40.0], [10.0, 10.0]]


def test_a_job_s_cpu_is_that_of_its_thread_in_its_wave() -> None:
    """One thread does both waves, and each is charged with its own part."""
    text = "[busy]\nbs=512\ntime_based\nruntime=300ms\n[idle]\nstonewall\nbs=512\nsize=512\n"
    with fio_bench(text, poll=True) as bench:
        busy, idle = bench.run()
    assert busy.usage.cpu_s > 0
    known = bench.runner._usages
    assert len(known) == 1, "one thread for both"
    (total,) = known.values()
    assert busy.usage.cpu_s + idle.usage.cpu_s == pytest.approx(total.cpu_s)


def test_progress_counts_the_ios_of_the_wave() -> None:
    told: list[tuple[str, float, int, int]] = []
    text = "[a]\nbs=512\nloops=2\n[b]\nbs=1k\nsize=4k\n[c]\nstonewall\nbs=512\nruntime=1\nramp_time=0\nsize=1k\n"
    with fio_bench(text) as bench:
        bench.runner._on_progress = lambda label, passed, planned, ios, limit: told.append((label, planned, ios, limit))
        bench.run()
    last = {label: (planned, ios, limit) for label, planned, ios, limit in told}
    assert last == {"a and 1 more": (0.0, 128 + 4, 128 + 4), "c": (1.0, 2, 0)}


def test_buffers_do_not_compress() -> None:
    with fio_bench("[a]\nbs=512\niodepth=4\nrw=write\nsize=16k\n") as bench:
        bench.run()
        written = [request.data for request in bench.device.io]
    assert min(len(np.unique(np.frombuffer(data, np.uint8))) for data in written) > 150
    assert len(set(written)) == 4


def test_interrupted_before_it_began_nothing_runs() -> None:
    with fio_bench("[a]\nbs=512\n") as bench:
        bench.runner.interrupt()
        assert bench.run() == []
        assert bench.runner._usages == {}
