"""The disk under test and where its two sides run: child device or foreign one, pinning, process ids.

Control context. A `Session` holds everything that has to go again when a bench ends, however it ends.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, cast

from virtblk.bench.cpu import usage_of
from virtblk.bench.crew import compile_crew
from virtblk.bench.job import JobOptions
from virtblk.bench.job_loop import JOB_DTYPE, Jobs, job_loop
from virtblk.block.request import ELEVATOR_NOOP
from virtblk.disk import connect, feature_names
from virtblk.driver.queue import example_queue
from virtblk.driver.sysfs import SCHEDULERS, Device, Sysfs
from virtblk.driver.virtio_blk import DriverOptions, VirtioBlk, compile_driver
from virtblk.errors import OpenError, UsageError
from virtblk.jit.table import Table
from virtblk.jit.warmup import ensure, progress
from virtblk.names import parse_name
from virtblk.server import ChildDevice, LocalDevice
from virtblk.storage.open import open_storage
from virtblk.storage.storage import Storage

#: Where a key of `--queue` may lie: given whole, below queue/, or among the elevator's own.
QUEUE_PREFIXES: Final = ("", "queue/", "queue/iosched/")


def choose_cpus(options: JobOptions, foreign: bool) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None, str]:
    """(driver's CPUs, device's CPUs, a phrase for the report). None: not pinned.

    With two CPUs and more, driver and device get one each unless options say otherwise; a device that is not ours
    is moved only when asked. With `share_core` both get the same one.
    """
    allowed = sorted(os.sched_getaffinity(0))
    driver, device = options.driver_cpus, options.device_cpus
    if options.share_core:
        driver = device = driver or (allowed[0],)
        return driver, device, f"driver and device share cpu {_list(driver)}"
    if len(allowed) >= 2:
        driver = driver or (next((cpu for cpu in allowed if cpu not in (device or ())), allowed[0]),)
        if device is None and not foreign:
            device = (next((cpu for cpu in allowed if cpu not in driver), allowed[-1]),)
    parts = [
        f"driver on cpu {_list(driver)}" if driver else "driver not pinned",
        f"device on cpu {_list(device)}" if device else ("device where it runs" if foreign else "device not pinned"),
    ]
    return driver, device, ", ".join(parts)


def example_jobs() -> Jobs:
    """Jobs of no use but for their types."""
    return Jobs(Table(1, JOB_DTYPE), Table(1), Table(1), Table(1), Table(1))


def compile_jobs() -> None:
    """Compile what a plain bench runs, or load it from the cache."""
    ensure(job_loop, example_queue(), example_jobs(), 0)
    compile_crew(example_queue(), example_jobs())


def set_queue(sysfs: Sysfs, queue: Sequence[tuple[str, str]], title: str) -> None:
    """Set what `--queue` says: the scheduler first, since what others there are depends on it. Raises UsageError."""
    for key, value in sorted(queue, key=lambda pair: not pair[0].endswith("scheduler")):
        names = sysfs.names()
        name = next((f"{prefix}{key}" for prefix in QUEUE_PREFIXES if f"{prefix}{key}" in names), None)
        if name is None or not name.startswith("queue/"):
            known = ", ".join(sorted(one.removeprefix("queue/") for one in names if one.startswith("queue/")))
            raise UsageError(f"--queue {key}={value}: {title} has no {key}; it has {known}")
        try:
            sysfs.write(name, value)
        except UsageError as error:
            raise UsageError(f"--queue {key}={value}: {error}") from error


class _NoDevice:
    """What the attributes ask of a device: of one without virtqueues, on the path that a session begins with."""

    def __init__(self) -> None:
        self.path = DriverOptions.path
        self.elevators = dict.fromkeys(SCHEDULERS, ELEVATOR_NOOP)
        self.views: tuple[()] = ()
        self.queues: tuple[()] = ()

    def switch_elevator(self, elevator: int) -> None:
        """There is nothing to drain."""


def check_options(name: str, options: JobOptions, title: str = "") -> None:
    """Refuse what can be seen to fail without a device, before anything compiles. Raises UsageError and OpenError.

    Messages call the disk `title`, or else by its name.
    """
    check_terms(name, options)
    with known_storage(name) as storage:
        if storage is not None:
            options.check_disk(storage.size, storage.block_size, storage.read_only, title or name)


def check_terms(name: str, options: JobOptions) -> None:
    """The part of it for which no size matters. Raises UsageError."""
    set_queue(Sysfs(cast(Device, _NoDevice())), options.queue, name)
    check_machine(name, options)


def check_machine(name: str, options: JobOptions) -> None:
    """What this machine has not: memory for the buffers, CPUs for all that poll. Raises UsageError."""
    options.check_memory()
    driver_cpus, _, _ = choose_cpus(options, parse_name(name).scheme == "vhost-user")
    polls = "--poll" if options.poll else "--poll-queues" if options.poll_queues else ""
    cores = len(driver_cpus or os.sched_getaffinity(0))
    if options.rate_iops and polls and options.numjobs > cores:
        text = f"polling on {cores} cpus: at most {cores} jobs can keep to their times"
        raise UsageError(f"--rate-iops with --numjobs {options.numjobs} {text}; leave out {polls}")


@contextmanager
def known_storage(name: str) -> Iterator[Storage | None]:
    """What the device is going to serve, open for a look; None of a disk that only its connection tells of.

    Raises UsageError and OpenError.
    """
    parsed = parse_name(name)
    if parsed.scheme in ("vhost-user", "nbd"):
        yield None
        return
    storage = open_storage(parsed)
    try:
        yield storage
    finally:
        storage.close()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C takes effect after the body: a process that is only half known could not be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda signo, frame: pending.append(signo))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pending:
        signal.raise_signal(signal.SIGINT)


class Session:
    """An open disk for a bench run, of which `compile_jobs` compiles the jobs' part while a child device does its own.

    Raises UsageError and OpenError; leaves nothing behind.
    """

    def __init__(self, name: str, options: JobOptions, compile_jobs: Callable[[], None] = compile_jobs) -> None:
        self.name = name
        self.options = options
        self._compile_jobs = compile_jobs
        self.child: ChildDevice | None = None
        self.local: LocalDevice | None = None
        self.device: VirtioBlk | None = None
        self._affinity = os.sched_getaffinity(0)
        self.device_pid: int | None = None
        parsed = parse_name(name)
        foreign = parsed.scheme == "vhost-user"
        check_machine(name, options)
        if options.device_pid is not None and usage_of(options.device_pid) is None:
            raise UsageError(f"--device-pid {options.device_pid}: there is no such process")
        if not foreign:
            open_storage(parsed).close()  # what the child would refuse, said by us
        self.driver_cpus, self.device_cpus, self.placement = choose_cpus(options, foreign)
        try:
            self._open(foreign)
        except BaseException:
            self.close()
            raise

    def _open(self, foreign: bool) -> None:
        options = self.options
        target = self.name
        if not foreign:
            with _interrupts_later():
                cpus = _list(self.device_cpus) if self.device_cpus else ""
                self.child = ChildDevice(self.name, cpus=cpus, queues=options.queues)
            with progress():  # while the child compiles its half
                compile_driver()
                self._compile_jobs()
            self.child.wait_ready()
            target = f"vhost-user:{self.child.path}"
        if self.driver_cpus:
            os.sched_setaffinity(0, self.driver_cpus)
        cores = len(self.driver_cpus or self._affinity)
        driver_options = DriverOptions(
            queues=options.queues,
            poll_queues=options.poll_queues,
            queue_size=options.queue_size,
            timeout=options.timeout,
            poll_us=None if options.poll else 0,
            submitters=options.numjobs,
            bios_each=options.iodepth,
            data_bytes=options.data_bytes,
            crowded=options.numjobs > cores,
            cores=cores,
        )
        try:
            self.device, self.local = connect(target, driver_options)
        except OpenError as error:  # the child's socket means nothing to the user
            raise OpenError(error.errno, str(error.strerror).replace(target, self.name)) from error
        self.device.title = self.name
        self._set_queue(self.device)
        self.device_pid = options.device_pid or self.device.peer_pid()
        if foreign and options.device_cpus and self.device_pid:
            try:
                for thread in os.listdir(f"/proc/{self.device_pid}/task"):
                    os.sched_setaffinity(int(thread), options.device_cpus)
            except OSError as error:
                raise UsageError(f"--device-cpus: cannot move process {self.device_pid}: {error.strerror}") from error

    def _set_queue(self, device: VirtioBlk) -> None:
        """`--queue KEY=VALUE`."""
        set_queue(device.sysfs, self.options.queue, self.name)

    def queue_settings(self) -> dict[str, str]:
        """What `--queue` sets, with the values that it has now; by their names below `queue/`."""
        assert self.device is not None
        sysfs = self.device.sysfs
        return {name.removeprefix("queue/"): sysfs.read(name) for name in sysfs.names() if name.startswith("queue/")}

    def describe(self) -> dict[str, Any]:
        """The `device` object of `--json`: what was measured, and on what terms."""
        assert self.device is not None
        device = self.device
        return {
            "name": self.name,
            "size": device.size,
            "block_size": device.topology.block_size,
            "serial": device.serial,
            "features": feature_names(device.features),
            "queue_size": self.options.queue_size,
            "queues": len(device.queues),
            "poll_queues": self.options.poll_queues,
            "cache_type": "write back" if device.writeback else "write through",
            "pid": self.device_pid,
            "driver_cpus": list(self.driver_cpus) if self.driver_cpus else None,
            "device_cpus": list(self.device_cpus) if self.device_cpus else None,
            "completion": self.options.completion,
            "queue": self.queue_settings(),
        }

    def close(self) -> None:
        """End the session and the child, give the CPUs back. Repeatable."""
        if self.child is not None and self.device is None:
            self.child.process.kill()  # it has nothing to lose, and may be compiling for a while yet
        if self.device is not None:
            self.device.close()
            self.device = None
        if self.local is not None:
            self.local.close()
            self.local = None
        if self.child is not None:
            self.child.close()
            self.child = None
        os.sched_setaffinity(0, self._affinity)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _list(cpus: tuple[int, ...] | None) -> str:
    return ",".join(str(cpu) for cpu in cpus or ())
