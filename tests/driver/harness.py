"""A probed driver or a Disk on a FakeDevice, and bios that a test lays out by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from fake_device import FakeDevice
from virtblk.block.bio import REQ_OP_READ, REQ_OP_WRITE, bio_init
from virtblk.disk import CALLERS, CHUNK, Disk
from virtblk.driver.submit_bio import submit_bio_wait
from virtblk.driver.virtio_blk import DriverOptions, VirtioBlk
from virtblk.jit.libc import clock_ns
from waiting import PATIENCE

#: Data memory of one submitter, in bytes.
SPAN = 64 * 1024
SEGMENTS = 32
#: What drivers are opened with unless a test says otherwise; the fixture `both_paths` changes the path.
DEFAULTS: dict[str, Any] = {"timeout": PATIENCE, "path": "bio"}


def probed(device: FakeDevice, given: dict[str, Any], patience: float = PATIENCE) -> VirtioBlk:
    """A driver that had time enough to come up on a busy machine; a test's short time-out counts from then on."""
    seconds = given["timeout"]
    opened = VirtioBlk(device.client, "fake", DriverOptions(**given | {"timeout": max(seconds, patience)}))
    time_out(opened, seconds)
    return opened


def time_out(opened: VirtioBlk, seconds: float) -> None:
    """Let what the driver waits for from now on, or waits for already, be late after `seconds`."""
    opened.options = replace(opened.options, timeout=seconds)
    for d in opened.views:
        d.queue[0]["timeout_ns"] = int(seconds * 1e9)


@contextmanager
def driver(device: FakeDevice, *, patience: float = PATIENCE, **options: Any) -> Iterator[VirtioBlk]:
    """A driver that is closed at the end of the block, with one bio of up to SEGMENTS segments for each submitter."""
    submitters = options.get("submitters", 1)
    given = DEFAULTS | {"segments_each": SEGMENTS, "data_bytes": submitters * SPAN} | options
    opened = probed(device, given, patience)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def on(device: FakeDevice, **options: Any) -> Iterator[Disk]:
    """A Disk on a fake device, set up as open() does; both are closed at the end of the block."""
    given = DEFAULTS | {"submitters": CALLERS, "data_bytes": CALLERS * CHUNK} | options
    with device, Disk("fake", probed(device, given), None) as disk:
        yield disk


def memory_of(opened: VirtioBlk, sub: int = 0) -> np.ndarray:
    """The data memory of submitter `sub`."""
    return opened.arena.array(opened.data + sub * SPAN, SPAN)


def submit(
    opened: VirtioBlk,
    op: int,
    sector: int = 0,
    segments: list[tuple[int, int]] | int = 0,
    flags: int = 0,
    *,
    sub: int = 0,
    length: int | None = None,
) -> int:
    """Submit one bio and wait for it. `segments`: (offset in the submitter's memory, bytes), or bytes from 0 on.

    Returns 0, the bio's errno, or -errno of a queue that is over.
    """
    queue, number = opened.map_submitter(sub)
    d = queue.kernel_view
    if isinstance(segments, int):
        segments = [(0, segments)] if segments else []
    first = number * opened.options.segments_each
    for i, (offset, size) in enumerate(segments):
        d.vec_addr[first + i] = opened.data + sub * SPAN + offset
        d.vec_len[first + i] = size
    total = sum(size for _, size in segments) if length is None else length
    bio_init(d.bios, number, op, flags, sector, first, len(segments), total, number)
    return int(submit_bio_wait(d, number, number, clock_ns()))


def write(opened: VirtioBlk, sector: int, data: bytes, *, flags: int = 0, sub: int = 0) -> int:
    memory_of(opened, sub)[: len(data)] = np.frombuffer(data, np.uint8)
    return submit(opened, REQ_OP_WRITE, sector, len(data), flags, sub=sub)


def read(opened: VirtioBlk, sector: int, size: int, *, sub: int = 0) -> bytes | int:
    """The bytes, or the errno that came instead."""
    memory_of(opened, sub)[:size] = 0xEE
    code = submit(opened, REQ_OP_READ, sector, size, sub=sub)
    return code or memory_of(opened, sub)[:size].tobytes()


def change_under_load(submitters: int, run: Callable[[int], int], change: Callable[[int], object]) -> None:
    """Make change after change, three at least, while every submitter runs; `run` returns how much went wrong."""
    stop = threading.Event()

    def changes() -> None:
        count = 0
        while count < 3 or not stop.is_set():
            change(count)
            count += 1

    with ThreadPoolExecutor(submitters + 1) as pool:
        changing = pool.submit(changes)
        try:
            wrong = list(pool.map(run, range(submitters)))
        finally:
            stop.set()
        changing.result()
    assert wrong == [0] * submitters
