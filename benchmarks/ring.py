"""What the bio path costs over the bare ring: both on one connection, in alternating slices, with an interval.

    .venv/bin/python benchmarks/ring.py vhost-user:/path/to/socket --iodepth 1,32,128

The bare loop knows no bio, no lock and no statistics: it fills a header, adds it to the ring, offers one kick per
batch, and reaps. The bio path is what `virtblk bench` runs, statistics and all. Both poll. Each pair of slices runs in
random order with the ring drained in between; the ratio is the median of the pairs' ratios, its interval at 95 %. Only
the ratio is worth quoting: the machine's speed drifts, and both arms drift with it.
"""

from __future__ import annotations

import argparse
import errno
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from virtblk.bench.bootstrap import paired_ratio
from virtblk.bench.job import JobOptions, parse_cpus, parse_workloads
from virtblk.bench.job_loop import job_loop
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session
from virtblk.block.bio import REQ_OP_READ, REQ_OP_WRITE
from virtblk.driver.virtblk_req import virtblk_add_req, virtblk_setup_req
from virtblk.errors import DeviceError, UsageError, VirtblkError
from virtblk.jit.arith import mix64
from virtblk.jit.atomics import cpu_pause, load_acquire_i64, store_release_i64
from virtblk.jit.kernel import kernel
from virtblk.jit.warmup import ensure
from virtblk.names import parse_size
from virtblk.uapi.virtio_blk import SECTOR_SHIFT, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from virtblk.virtio.virtio_ring_split import virtqueue_get_buf, virtqueue_kick_prepare, virtqueue_notify

#: Fewer have no interval at 95 %.
MIN_PAIRS = 6


@kernel
def bare_ring_loop(d, stop, depth, bs, blocks, random, write, buffers, seed):
    """Keep `depth` requests in flight until the word at `stop` is set: I/Os done, or -1 once the queue is over.

    Request `k` of the pool serves slot `k` throughout. They all fit into the ring: nobody waits for room here.
    """
    kind = VIRTIO_BLK_T_OUT if write else VIRTIO_BLK_T_IN
    elems = d.queue[0]["sg_elems"]
    ready = d.free  # the pool is idle meanwhile: its stack serves as the list of slots to submit
    for k in range(depth):
        ready[k] = k
    count = depth
    issued = 0
    done = 0
    while True:
        stopping = issued > 0 and load_acquire_i64(stop) != 0  # a slice has I/Os, however late its thread comes to run
        if not stopping and count:
            for i in range(count):
                k = ready[i]
                block = mix64(seed + issued) % blocks if random else issued % blocks
                issued += 1
                d.sg_addr[k * elems + 1] = buffers + k * bs
                d.sg_len[k * elems + 1] = bs
                virtblk_setup_req(d, k, 0, -1, kind, block * bs >> SECTOR_SHIFT, 1, not write, bs)
                if virtblk_add_req(d, k) < 0:
                    return -1
            if virtqueue_kick_prepare(d.vq):
                virtqueue_notify(d.vq)
            count = 0
        if stopping and done == issued:
            return done
        while True:
            k, _ = virtqueue_get_buf(d.vq)
            if k < 0:
                break
            ready[count] = k
            count += 1
            done += 1
        if k < -1 or d.queue[0]["error"]:
            return -1
        if count == 0:
            cpu_pause()


class Arms:
    """The two loops on one session; each call runs one slice and returns IOPS."""

    def __init__(self, session: Session, options: JobOptions, workload: str) -> None:
        self.runner = Runner(session, options)
        self.runner.set_path("bio")
        self.d = session.device.view
        self.options = options
        self.random = workload.startswith("rand")
        self.write = workload.endswith("write")
        self.stop = self.runner._stop
        self.buffers = session.device.queue.data
        self.blocks = self.runner._blocks
        self.slices = 0
        state = self.d.vq.state[0]
        if options.iodepth * (1 if state["indirect"] else 3) > state["num"]:
            raise UsageError(f"--iodepth {options.iodepth} does not fit a ring of {state['num']}; see --queue-size")
        ensure(bare_ring_loop, *self._bare_arguments())

    def _bare_arguments(self):
        options = self.options
        return (
            self.d,
            self.stop,
            options.iodepth,
            options.bs,
            self.blocks,
            int(self.random),
            int(self.write),
            self.buffers,
            self.slices << 32,
        )

    def _timed(self, loop: Callable[[], int], seconds: float) -> float:
        counts: list[int] = []
        thread = threading.Thread(target=lambda: counts.append(loop()))
        store_release_i64(self.stop, 0)
        began = time.monotonic()
        thread.start()
        try:
            thread.join(seconds)  # it ends early only with the queue
        finally:
            store_release_i64(self.stop, 1)
            thread.join(self.options.timeout)
            if thread.is_alive():  # the bare loop knows no time-out
                self.runner._device.break_queue(errno.ETIMEDOUT)
                thread.join()
        passed = time.monotonic() - began
        if counts[0] < 0:
            raise self.runner._device.broken_error()
        return counts[0] / passed

    def bare(self, seconds: float) -> float:
        """One slice of the bare ring."""
        self.slices += 1
        pool = self.d.free.copy()
        try:
            return self._timed(lambda: int(bare_ring_loop(*self._bare_arguments())), seconds)
        finally:
            self.d.free[:] = pool

    def bio(self, seconds: float) -> float:
        """One slice of the bio path."""
        self.slices += 1
        jobs = self.runner._jobs
        op = REQ_OP_WRITE if self.write else REQ_OP_READ
        self.runner._prepare(op, random=self.random, limit=0, only_first=False)
        jobs.jobs["seed"] = self.slices << 32

        def loop() -> int:
            job_loop(self.d, jobs, 0)
            return int(jobs.jobs[0]["ios"]) if jobs.jobs[0]["result"] == 0 else -1

        return self._timed(loop, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("disk", nargs="?", default="null:1g", metavar="DISK", help="disk name (default null:1g, in a child process)")
    add("--iodepth", default="1,32,128", metavar="LIST", help="I/Os in flight (default 1,32,128)")
    add("--rw", default="randread", metavar="LIST", help="workloads, as bench has them (default randread)")
    add("--bs", default="4k", metavar="SIZE", help="bytes per I/O (default 4k)")
    add("--queue-size", default="128", metavar="N", help="ring entries, a power of two (default 128)")
    add("--pairs", default="25", metavar="N", help=f"pairs of slices, {MIN_PAIRS} or more (default 25)")
    add("--slice", type=float, default=0.2, metavar="S", help="seconds per slice (default 0.2)")
    add("--timeout", type=float, default=30.0, metavar="S", help="give up on a silent device after this (default 30)")
    add("--device-cpus", metavar="LIST", help="move the device to these CPUs; two sides on one CPU time the scheduler")
    options = parser.parse_args()
    device_cpus = parse_cpus("--device-cpus", options.device_cpus) if options.device_cpus else None
    pair_count = parse_size(options.pairs, "--pairs")
    if not MIN_PAIRS <= pair_count <= 10_000:
        raise UsageError(f"--pairs {options.pairs}: give {MIN_PAIRS} to 10000")
    if not 0.001 <= options.slice <= 3600:
        raise UsageError(f"--slice {options.slice:g}: give seconds from 0.001 to 3600")
    jobs = [
        JobOptions(
            bs=parse_size(options.bs, "--bs"),
            iodepth=parse_size(depth, "--iodepth"),
            poll=True,
            queue_size=parse_size(options.queue_size, "--queue-size"),
            workloads=(workload,),
            timeout=options.timeout,
            device_cpus=device_cpus,
        )
        for workload in parse_workloads(options.rw)
        for depth in options.iodepth.split(",")
    ]
    rng = np.random.default_rng()
    print(
        f"{options.disk}: bio path over bare ring, {pair_count} pairs of {options.slice:g} s slices, 95 % interval",
        flush=True,
    )
    for job in jobs:
        (workload,) = job.workloads
        if job.writes:
            print(f"{workload} writes to the disk", flush=True)
        with Session(options.disk, job) as session:
            arms = Arms(session, job, workload)
            for arm in (arms.bare, arms.bio):
                arm(min(0.1, options.slice))
            pairs = np.zeros((pair_count, 2))
            for pair in pairs:
                for which in rng.permutation(2):
                    pair[which] = (arms.bare, arms.bio)[which](options.slice)
        ratio = paired_ratio(pairs[:, 0].tolist(), pairs[:, 1].tolist(), 95)
        assert ratio is not None, "MIN_PAIRS"
        bare, bio = np.median(pairs, axis=0)
        print(
            f"{workload:>9} QD {job.iodepth:<4} bare {bare / 1e3:8.1f}k  bio {bio / 1e3:8.1f}k IOPS   "
            f"bio/bare {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VirtblkError as error:
        print(f"ring.py: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, DeviceError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
