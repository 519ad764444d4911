"""What the bio path costs the request path while `use_bio` is off: a driver with it against one built without it.

    .venv/bin/python benchmarks/use_bio_off.py --iodepth 1,32

Both arms run the request path, each on a connection of its own to a device process of its own, of one kind and on one
CPU. One is built as always, with both paths, the other without the bio path (driver.virtblk_req.RequestPathOnly). They
take turns in pairs of slices in random order; the other device sleeps meanwhile. Both poll. Busy time is that of rounds
in which something ended, from before the reap until everything was submitted again.

What a process or a connection got of memory and cache makes some percent, and stays as long as it lives. So both
connections are made anew again and again, and each time the arms change devices. Two such turns make one ratio, the
geometric mean of their medians, in which the devices cancel out; intervals are bootstrapped over these ratios: one
that holds 1 means that no difference was found.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import threading
import time
from contextlib import ExitStack
from typing import Final

import numpy as np

from virtblk.bench.bootstrap import median_interval
from virtblk.bench.job import parse_cpus
from virtblk.block.bio import REQ_OP_READ, bio_init
from virtblk.disk import connect
from virtblk.driver.bio_path import virtblk_harvest
from virtblk.driver.completion import virtblk_done
from virtblk.driver.submit_bio import blk_finish_plug, submit_bio
from virtblk.driver.virtblk_req import BothPaths, RequestPathOnly
from virtblk.driver.virtio_blk import DriverOptions, VirtioBlk
from virtblk.errors import DeviceError, UsageError, VirtblkError
from virtblk.jit.arith import mix64
from virtblk.jit.atomics import cpu_pause, load_acquire_i64, store_release_i64
from virtblk.jit.kernel import kernel
from virtblk.jit.libc import clock_ns
from virtblk.jit.table import Table
from virtblk.jit.warmup import ensure
from virtblk.mem.shm import Words
from virtblk.names import parse_size
from virtblk.server import ChildDevice
from virtblk.uapi.virtio_blk import SECTOR_SHIFT

#: The arms, by what their drivers are built with.
ARMS: Final = {"both paths": BothPaths, "request path only": RequestPathOnly}
MAX_DEPTH: Final = 128
#: Fewer ratios than six have no interval at 95 %, and two turns make one.
MIN_TURNS: Final = 12


@kernel
def request_loop(d, stop, depth, bs, blocks, buffers, seed, figures):
    """Random reads, `depth` of them in flight, until the word at `stop` is set: 0, or -1 once the queue is over.

    `figures` takes the I/Os done and the busy nanoseconds. Bio `k` serves slot `k` throughout.
    """
    issued = 0
    ended = 0
    for k in range(depth):
        d.vec_addr[k] = buffers + k * bs
        d.vec_len[k] = bs
    while True:
        began = clock_ns()
        stopping = issued > 0 and load_acquire_i64(stop) != 0  # a slice has I/Os, however late its thread comes to run
        if virtblk_done(d, 0, True) < 0:
            return -1
        found = 0
        while True:
            k = -1
            if issued < depth:
                k = issued  # at first every slot is new
                if stopping:
                    break
            else:
                k = virtblk_harvest(d, 0)
                if k < 0:
                    break
                ended += 1
                if d.bios[k]["error"]:
                    return -1
            found += 1
            if not stopping:
                block = mix64(seed + issued) % blocks
                issued += 1
                bio_init(d.bios, k, REQ_OP_READ, 0, block * bs >> SECTOR_SHIFT, k, 1, bs, 0)
                if submit_bio(d, 0, k, began) < 0:
                    return -1
        if found:
            if blk_finish_plug(d, 0) < 0:
                return -1
            figures[1] += clock_ns() - began
        else:
            cpu_pause()
        if stopping and found == 0 and ended == issued:
            figures[0] = ended
            return 0


class Side:
    """A device process and the driver's connection to it, opened anew for each arm that runs on it."""

    def __init__(self, disk: str, cpus: str) -> None:
        self.child = ChildDevice(disk, cpus=cpus)

    def open(self, arm: str, depth: int, bs: int, timeout: float) -> VirtioBlk:
        options = DriverOptions(
            timeout=timeout,
            poll_us=None,
            bios_each=depth,
            data_bytes=depth * bs,
            path="request",
            paths=ARMS[arm](),
        )
        device, _ = connect(f"vhost-user:{self.child.path}", options)
        return device

    def close(self) -> None:
        self.child.close()


class Arm:
    """One driver; `run` measures a slice: (IOPS, busy nanoseconds per I/O)."""

    def __init__(self, device: VirtioBlk, depth: int, bs: int) -> None:
        self.device = device
        self.words = Words(1)
        self.stop = self.words.address(0)
        self.figures = Table(2)
        self.slices = 0
        blocks = device.size // bs
        if blocks == 0:
            raise UsageError(f"--bs {bs}: the disk has {device.size} bytes")
        if bs % device.topology.block_size:
            raise UsageError(f"--bs {bs}: give a multiple of the disk's block size, {device.topology.block_size}")
        assert device.queue is not None
        self.arguments = (device.view, self.stop, depth, bs, blocks, device.queue.data)
        ensure(request_loop, *self.arguments, 0, self.figures)

    def run(self, seconds: float) -> tuple[float, float]:
        """One slice. Raises DeviceError once the queue is over."""
        self.slices += 1
        self.figures[:] = 0
        codes: list[int] = []
        seed = self.slices << 32
        thread = threading.Thread(target=lambda: codes.append(request_loop(*self.arguments, seed, self.figures)))
        store_release_i64(self.stop, 0)
        began = time.monotonic()
        thread.start()
        try:
            thread.join(seconds)  # it ends early only with the queue
        finally:
            store_release_i64(self.stop, 1)
            thread.join(self.device.options.timeout)
            if thread.is_alive():  # the loop knows no time-out
                self.device.break_queue(errno.ETIMEDOUT)
                thread.join()
        passed = time.monotonic() - began
        if codes[0] < 0:
            if self.device.error == 0:
                raise DeviceError(errno.EIO, f"{self.device.title}: a read failed")
            raise self.device.broken_error()
        done, busy = (int(figure) for figure in self.figures)
        return done / passed, busy / done


def ratio_of_arms(figures: np.ndarray) -> tuple[float, float, float]:
    """Median of the ratios of all two turns and its 95 % interval; `figures`: [turn, pair, arm]."""
    turns = np.log(np.median(figures[:, :, 0] / figures[:, :, 1], axis=1))
    ratios = np.exp(turns.reshape(-1, 2).mean(axis=1))
    interval = median_interval(ratios.tolist(), 95)
    assert interval is not None, "MIN_TURNS"
    return float(np.median(ratios)), *interval


def measure(sides: list[Side], depth: int, options: argparse.Namespace, bs: int, turns: int, pairs: int) -> np.ndarray:
    """`pairs` pairs of slices in each turn: [turn, pair, arm, (IOPS, busy)]. The arms change devices every turn."""
    figures = np.zeros((turns, pairs, 2, 2))
    rng = np.random.default_rng()
    for turn in range(turns):
        with ExitStack() as stack:
            arms = []
            for index, arm in enumerate(ARMS):
                device = sides[(index + turn) % 2].open(arm, depth, bs, options.timeout)
                stack.callback(device.close)
                arms.append(Arm(device, depth, bs))
            for arm in arms:
                arm.run(min(0.1, options.slice))  # warm-up
            for pair in range(pairs):
                for which in rng.permutation(2):
                    figures[turn, pair, which] = arms[which].run(options.slice)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("disk", nargs="?", default="null:1g", metavar="DISK", help="disk of each device process (default null:1g)")
    add("--iodepth", default="1,32", metavar="LIST", help="I/Os in flight (default 1,32)")
    add("--bs", default="4k", metavar="SIZE", help="bytes per I/O (default 4k)")
    add("--turns", default="20", metavar="N", help="connections of each arm, an even number, 12 or more (default 20)")
    add("--pairs", default="5", metavar="N", help="pairs of slices on each of them (default 5)")
    add("--slice", type=float, default=0.2, metavar="S", help="seconds per slice (default 0.2)")
    add("--timeout", type=float, default=30.0, metavar="S", help="give up on a silent device after this (default 30)")
    add("--driver-cpus", metavar="LIST", help="where the driver runs (default: the first CPU)")
    add("--device-cpus", metavar="LIST", help="where both devices run (default: the last CPU)")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    driver_cpus = parse_cpus("--driver-cpus", options.driver_cpus) if options.driver_cpus else tuple(cpus[:1])
    device_cpus = parse_cpus("--device-cpus", options.device_cpus) if options.device_cpus else tuple(cpus[-1:])
    bs = parse_size(options.bs, "--bs")
    turns, pairs = parse_size(options.turns, "--turns"), parse_size(options.pairs, "--pairs")
    depths = [parse_size(depth, "--iodepth") for depth in options.iodepth.split(",")]
    if bs < 512 or bs % 512 or bs > 1 << 20:
        raise UsageError(f"--bs {bs}: give a multiple of 512, at most 1m")
    for depth in depths:
        if not 1 <= depth <= MAX_DEPTH:
            raise UsageError(f"--iodepth {depth}: give 1 to {MAX_DEPTH}")
    if not MIN_TURNS <= turns <= 1000 or turns % 2:
        raise UsageError(f"--turns {options.turns}: give an even number from {MIN_TURNS} to 1000")
    if not 1 <= pairs <= 10_000:
        raise UsageError(f"--pairs {options.pairs}: give 1 to 10000")
    if not 0.001 <= options.slice <= 3600:
        raise UsageError(f"--slice {options.slice:g}: give seconds from 0.001 to 3600")
    print(
        f"{options.disk}: request path, built with both paths over built without the bio path, "
        f"{turns} turns of {pairs} pairs of {options.slice:g} s slices, 95 % interval",
        flush=True,
    )
    with ExitStack() as stack:
        sides = []
        for _ in ARMS:
            side = Side(options.disk, ",".join(map(str, device_cpus)))
            stack.callback(side.close)
            side.child.wait_ready()  # one after the other: the second finds what the first compiled
            sides.append(side)
        os.sched_setaffinity(0, driver_cpus)
        for depth in depths:
            figures = measure(sides, depth, options, bs, turns, pairs)
            line = f"QD {depth:<4}"
            for index, name in enumerate(("IOPS", "busy")):
                both, only = np.median(figures[:, :, :, index], axis=(0, 1))
                ratio, low, high = ratio_of_arms(figures[:, :, :, index])
                shown = f"{both / 1e3:.1f}k / {only / 1e3:.1f}k" if name == "IOPS" else f"{both:.1f} / {only:.1f} ns"
                line += f"  {name} {shown}  {ratio:.4f} [{low:.4f}, {high:.4f}]"
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VirtblkError as error:
        print(f"use_bio_off.py: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, DeviceError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
