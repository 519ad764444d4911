"""A job file's job on a thread of the crew: `bench.job_thread`, with `fio_loop` in place of `job_loop`.

A thread of its own kind, so that the plain bench neither compiles nor carries what only job files need.
"""

from __future__ import annotations

from virtblk.bench.fio_loop import fio_loop
from virtblk.bench.job_thread import GO_HOME, end_of_job, wait_for_go
from virtblk.jit.kernel import cold_kernel


@cold_kernel
def fio_thread(d, jobs, crew, j):
    """Do run after run of job `j` until it is sent home. A job of depth 0 has no part in a run."""
    seen = 0
    while True:
        seen = wait_for_go(crew, seen)
        if seen == GO_HOME:
            return
        if jobs.jobs[j]["depth"]:
            fio_loop(d, jobs, j)
        end_of_job(crew, jobs.jobs[j]["result"] != 0)
