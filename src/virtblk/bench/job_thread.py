"""A job's thread between two runs of `job_loop`: asleep until the word to go, then at work, then asleep again.

Threads are kept from slice to slice: starting 256 of them takes longer than the shortest slice lasts, and their CPU
time would be counted as the driver's. One futex wakes all of them, outside of the GIL; the last to end wakes the
control thread (`bench.crew`). Nothing here runs while a job does.
"""

from __future__ import annotations

import numpy as np

from virtblk.bench.job_loop import job_loop
from virtblk.driver.handle import queue_of
from virtblk.driver.virtblk_req import LINE_WAIT
from virtblk.jit.atomics import fetch_add_i64, load_acquire_i64, store_release_i64
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.lock import wait_finish, wait_prepare, wait_sleep, wake_up

#: What a job that waits for its next run looks after by itself.
IDLE_NS = 1_000_000_000
WAKE_ALL = 1 << 30
#: The value of `go` that ends the threads.
GO_HOME = -1

CREW_DTYPE = np.dtype(
    [
        ("go", "i8"),  # addresses: number of the run that all jobs are to do, or GO_HOME
        ("running", "i8"),  # jobs that have not ended it yet
        ("wake", "i8"),  # wait queue of the jobs
        ("idle", "i8"),  # wait queue of the control thread
        ("stop", "i8"),  # word that ends the run: what `job_loop` looks at
    ]
)


@kernel
def wait_for_go(crew, seen):
    """Sleep until there is another run than number `seen`: its number."""
    while load_acquire_i64(crew[0]["go"]) == seen:
        sequence = wait_prepare(crew[0]["wake"])
        if load_acquire_i64(crew[0]["go"]) == seen:
            wait_sleep(crew[0]["wake"], sequence, IDLE_NS)
        wait_finish(crew[0]["wake"])
    return load_acquire_i64(crew[0]["go"])


@kernel
def end_of_job(crew, failed):
    """One job is done: wake the control thread for the last, and for the first that failed."""
    last = fetch_add_i64(crew[0]["running"], -1) == 1
    if last or failed:
        wake_up(crew[0]["idle"], WAKE_ALL)


@cold_kernel
def job_thread(d, jobs, crew, j):
    """Do run after run of job `j` until it is sent home, each on the virtqueue that the job then has.

    A job of depth 0 has no part in a run.
    """
    seen = 0
    while True:
        seen = wait_for_go(crew, seen)
        if seen == GO_HOME:
            return
        if jobs.jobs[j]["depth"]:
            handle = jobs.jobs[j]["queue"]
            job_loop(queue_of(handle if handle else d.queue[0]["handle"], d.paths), jobs, j)
        end_of_job(crew, jobs.jobs[j]["result"] != 0)


@cold_kernel
def start_crew(crew, number, count):
    """Send `count` jobs into run `number`, or home."""
    store_release_i64(crew[0]["running"], count)
    store_release_i64(crew[0]["go"], number)
    fetch_add_i64(crew[0]["running"], 0)  # a fence: `go` is stored before wake_up looks for sleepers
    wake_up(crew[0]["wake"], WAKE_ALL)


@cold_kernel
def await_crew(crew, timeout_ns):
    """Sleep until all jobs have ended or one has failed, `timeout_ns` at most: how many still run."""
    sequence = wait_prepare(crew[0]["idle"])
    if load_acquire_i64(crew[0]["running"]) > 0:
        wait_sleep(crew[0]["idle"], sequence, timeout_ns)
    wait_finish(crew[0]["idle"])
    return load_acquire_i64(crew[0]["running"])


@cold_kernel
def stop_crew(d, crew):
    """End the run: set the stop word, and wake jobs of this queue that sleep until their next I/O is due."""
    fetch_add_i64(crew[0]["stop"], 1)
    for s in range(d.queue[0]["submitters"]):
        wake_up(d.submitters[s]["line"] + LINE_WAIT, WAKE_ALL)


@cold_kernel
def leave_crew(crew):
    """What a thread that died of an exception did not do any more (a checking build raises in kernels)."""
    end_of_job(crew, True)
