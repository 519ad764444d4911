"""Where the paths spend their time: each stage of an I/O, timed by itself, on one thread.

    .venv/bin/python benchmarks/profile_paths.py --batch 1,32

A queue of the driver's without a device: the same thread plays the device between the stages, untimed, and says yes to
everything. So there are no cache lines that travel, no interrupts and no waiting: what is left is the work of the path.
Stages are timed over a whole round of `--iodepth` I/Os, paths take turns round by round, and the figures are medians of
nanoseconds per I/O with the quartiles. Absolute times are this machine's of this minute; the table compares.
"""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np

from virtblk.bench.job import parse_cpus
from virtblk.bench.report import format_table
from virtblk.block.bio import REQ_OP_READ, bio_init
from virtblk.driver.bio_path import virtblk_harvest
from virtblk.driver.completion import virtblk_done
from virtblk.driver.queue import QueueLimits, QueueSetup
from virtblk.driver.submit_bio import blk_finish_plug, blk_start_plug, submit_bio
from virtblk.driver.virtio_blk import PATHS
from virtblk.errors import UsageError, VirtblkError
from virtblk.jit.arith import mix64
from virtblk.jit.atomics import load_acquire_u16, load_u16, store_release_u16, store_u8, store_u32
from virtblk.jit.kernel import cold_kernel
from virtblk.jit.libc import clock_ns
from virtblk.jit.table import Table
from virtblk.jit.warmup import ensure, progress
from virtblk.mem.shm import Arena
from virtblk.uapi.virtio_ring import (
    AVAIL_IDX,
    AVAIL_RING,
    USED_ELEM_ID,
    USED_ELEM_LEN,
    USED_ELEM_SIZE,
    USED_IDX,
    USED_RING,
)

BS = 512  # as the literals in the kernel
STAGES = ("submit", "unplug", "reap", "harvest")
SECTORS = 1 << 20


@cold_kernel
def say_yes(d):
    """The device: everything available is used, with status OK."""
    avail = d.vq.state[0]["avail"]
    used = d.vq.state[0]["used"]
    mask = d.vq.state[0]["num"] - 1
    end = load_acquire_u16(avail + AVAIL_IDX)
    at = load_u16(used + USED_IDX)
    while at != end:
        head = load_u16(avail + AVAIL_RING + 2 * (at & mask))
        store_u8(d.requests[d.vq.token[head]]["status"], 0)
        elem = used + USED_RING + USED_ELEM_SIZE * (at & mask)
        store_u32(elem + USED_ELEM_ID, head)
        store_u32(elem + USED_ELEM_LEN, 1)
        at = (at + 1) & 0xFFFF
    store_release_u16(used + USED_IDX, at)


@cold_kernel
def one_round(d, times, depth, batch, random, start, buffers):
    """`depth` reads in batches, from submission to harvest: how many came back; nanoseconds per stage in `times`."""
    done = 0
    for first in range(0, depth, batch):
        now = clock_ns()
        if batch > 1:
            blk_start_plug(d, 0)
        for k in range(first, first + batch):
            d.vec_addr[k] = buffers + k * 512
            d.vec_len[k] = 512
            sector = mix64(start + k) % SECTORS if random else (start + k) % SECTORS
            bio_init(d.bios, k, REQ_OP_READ, 0, sector, k, 1, 512, 0)
            submit_bio(d, 0, k, now)
        between = clock_ns()
        blk_finish_plug(d, 0)
        times[0] += between - now
        times[1] += clock_ns() - between
    say_yes(d)
    now = clock_ns()
    virtblk_done(d, 0, True)
    between = clock_ns()
    while virtblk_harvest(d, 0) >= 0:
        done += 1
    times[2] += between - now
    times[3] += clock_ns() - between
    return done


def profile(depth: int, batch: int, random: bool, rounds: int) -> dict[str, np.ndarray]:
    """Nanoseconds per I/O: for each path an array of [rounds, stages]."""
    limits = QueueLimits(
        num=256,
        max_segs=126,
        max_seg_len=1 << 20,
        max_bytes=1 << 20,
        event_idx=True,
        indirect=True,
        can_flush=True,
        submitters=1,
        bios_each=depth,
        segments_each=1,
        data_bytes=depth * BS,
    )
    arena = Arena(limits.arena_bytes)
    queue = QueueSetup(arena, limits, timeout_ns=10**9, poll_ns=-1)
    d, times = queue.kernel_view, Table(len(STAGES))
    found: dict[str, list[np.ndarray]] = {path: [] for path in ("request", "bio", "mq")}
    try:
        with progress():
            ensure(one_round, d, times, 0, 1, 0, 0, 0)
        for round_ in range(rounds):
            for path, rows in found.items():
                d.queue[0]["path"] = PATHS[path]
                times[:] = 0
                if one_round(d, times, depth, batch, int(random), round_ * depth, queue.data) != depth:
                    raise UsageError("an I/O was lost")
                rows.append(np.array(times) / depth)
    finally:
        queue.close()
        arena.close()
    return {path: np.array(rows[len(rows) // 10 :]) for path, rows in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--iodepth", type=int, default=128, metavar="N", help="I/Os of a round, up to the ring of 256 (default 128)")
    add("--batch", default="1,32", metavar="LIST", help="bios between two unplugs (default 1,32)")
    add("--rounds", type=int, default=3000, metavar="N", help="rounds per line (default 3000)")
    add("--cpus-allowed", metavar="LIST", help="run there (default: the first CPU)")
    options = parser.parse_args()
    batches = [int(text) for text in options.batch.split(",")]
    for batch in batches:
        if not 1 <= batch <= options.iodepth <= 256 or options.iodepth % batch:
            raise UsageError(f"--batch {batch}: give a divisor of --iodepth {options.iodepth}, which is at most 256")
    if options.rounds < 10:
        raise UsageError(f"--rounds {options.rounds}: give 10 or more")
    cpus = parse_cpus("--cpus-allowed", options.cpus_allowed) if options.cpus_allowed else None
    os.sched_setaffinity(0, cpus or {min(os.sched_getaffinity(0))})
    rows = []
    for random in (False, True):
        for batch in batches:
            for path, samples in profile(options.iodepth, batch, random, options.rounds).items():
                low, middle, high = np.percentile(samples.sum(axis=1), [25, 50, 75])
                cells = [(stage, f"{np.median(samples[:, i]):.0f}") for i, stage in enumerate(STAGES)]
                kind = "random" if random else "sequential"
                head = [("path", path), ("offsets", f"{kind}, batches of {batch}")]
                rows.append([*head, *cells, ("ns/IO", f"{middle:.0f} [{low:.0f}, {high:.0f}]")])
    print(format_table(rows))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VirtblkError as error:
        print(f"profile_paths: {error}", file=sys.stderr)
        sys.exit(2)
