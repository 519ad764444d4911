"""Runs made by hand, and a bench on a device that a test controls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from driver.harness import time_out
from fake_device import FakeDevice
from naive.virtio_blk import blk_config
from virtblk.bench.cpu import Usage
from virtblk.bench.job import PERCENTILES, JobOptions
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session
from virtblk.bench.stat import Clat, RunResult
from virtblk.driver.virtio_blk import DriverOptions, VirtioBlk
from waiting import PATIENCE

#: The disk of most tests.
BS = 512
BLOCKS = 64


def a_run(**given: Any) -> RunResult:
    """A result with figures that are easy to tell apart."""
    clat = Clat(1000, 90_000, 20_000.0, 5_000.0, {f"{p:.6f}": int(p * 100) for p in PERCENTILES})
    fields: dict[str, Any] = {
        "path": "bio",
        "workload": "randread",
        "bs": 4096,
        "iodepth": 32,
        "numjobs": 1,
        "ios": 1_000_000,
        "errors": 0,
        "runtime_s": 4.0,
        "clat": clat,
        "driver": Usage(1.5, 0.5, 2.0, 17, 3, 1234),
        "device": Usage(2.5, 0.5, 3.0),
        "busy_ns": None,
        "kicks": 2000,
        "interrupts": 31_000,
        "ring_full_waits": 5,
        "steal_s": 0.0,
    }
    return RunResult(**fields | given)


def options(**given: Any) -> JobOptions:
    """One quick pass over the disk in 512-byte blocks on the bio path, unless told otherwise."""
    default: dict[str, Any] = {"bs": 512, "runtime": 0, "iodepth": 4, "timeout": 20.0, "workloads": ("read",)}
    return JobOptions(**default | {"paths": ("bio",)} | given)


def disk(script: Any = None, blocks: int = BLOCKS, **given: Any) -> FakeDevice:
    """A small disk that answers by `script`, as fake_device describes it."""
    return FakeDevice(script, **({"config": blk_config(capacity=blocks)} | given))


def blocks_of(device: FakeDevice, kind: int) -> list[int]:
    """The sectors that requests of one type asked for, in order of arrival."""
    return [request.sector for request in device.io if request.type == kind]


class Bench:
    """A bench whose disk is a FakeDevice in this process: everything it did is in `device.io`."""

    def __init__(self, device: FakeDevice, session: Session, job: JobOptions, runner: Runner) -> None:
        self.device, self.session, self.job, self.runner = device, session, job, runner

    def run(self) -> list[RunResult]:
        return list(self.runner.run())

    def run_one(self) -> RunResult:
        (result,) = self.runner.run()
        return result


def connect(device: FakeDevice, name: str, options: DriverOptions) -> tuple[VirtioBlk, None]:
    """A session's driver on `device`: it has all the time it wants to come up, and the time-out of `options` then."""
    opened = VirtioBlk(device.client, name, replace(options, timeout=max(options.timeout, PATIENCE)))
    time_out(opened, options.timeout)
    return opened, None


@contextmanager
def bench(device: FakeDevice, job: JobOptions | None = None, **given: Any) -> Iterator[Bench]:
    """`given` are job options. The device is closed at the end as well."""
    job = job or options(**given)
    with ExitStack() as stack:
        stack.callback(device.close)
        patch = stack.enter_context(pytest.MonkeyPatch.context())

        patch.setattr("virtblk.bench.session.connect", partial(connect, device))
        session = stack.enter_context(Session("vhost-user:fake", job))
        yield Bench(device, session, job, Runner(session, job))
