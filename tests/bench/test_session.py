"""Where the two sides of a bench run, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.harness import bench, disk, options
from fake_device import FakeDevice
from naive.virtio_blk import blk_config
from virtblk.bench import session
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session, choose_cpus
from virtblk.errors import OpenError, UsageError

#: Options of two workloads that are over in no time.
QUICK: dict[str, Any] = {"workloads": ("write", "read"), "size": 1 << 16}


@pytest.fixture
def tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary directories are made here, children's too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


@pytest.fixture
def affinity() -> Iterator[set[int]]:
    """The CPUs of this thread, which must be the same afterwards."""
    before = os.sched_getaffinity(0)
    yield before
    after = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before)
    assert after == before


# Pinning.


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    ("driver", "device", "foreign", "chosen"),
    [
        (None, None, False, ((0,), (1,))),
        (None, None, True, ((0,), None)),
        ((2,), None, False, ((2,), (0,))),
        ((0, 1), None, False, ((0, 1), (2,))),
        ((0, 1, 2, 3), None, False, ((0, 1, 2, 3), (3,))),
        (None, (2, 3), False, ((0,), (2, 3))),
        (None, (2,), True, ((0,), (2,))),
        ((1,), (1,), False, ((1,), (1,))),
    ],
)
def test_driver_and_device_get_a_cpu_each(driver: Any, device: Any, foreign: bool, chosen: Any) -> None:
    assert choose_cpus(options(driver_cpus=driver, device_cpus=device), foreign)[:2] == chosen


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(("device", "driver"), [((0,), (1,)), ((0, 1), (2,)), ((0, 1, 2, 3), (0,))])
def test_regression_the_driver_keeps_off_the_cpus_given_to_the_device(device: Any, driver: Any) -> None:
    """`--device-cpus 0` put both on CPU 0."""
    assert choose_cpus(options(device_cpus=device), False)[:2] == (driver, device)


def test_one_cpu_is_shared_unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    assert choose_cpus(options(), False) == (None, None, "driver not pinned, device not pinned")
    assert choose_cpus(options(driver_cpus=(5,)), False)[:2] == ((5,), None)


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    ("given", "foreign", "phrase"),
    [
        ({}, False, "driver on cpu 0, device on cpu 1"),
        ({}, True, "driver on cpu 0, device where it runs"),
        ({"driver_cpus": (1, 2), "device_cpus": (3,)}, True, "driver on cpu 1,2, device on cpu 3"),
    ],
)
def test_the_report_says_where(given: Any, foreign: bool, phrase: str) -> None:
    assert choose_cpus(options(**given), foreign)[2] == phrase


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="pinning needs two CPUs")
def test_threads_are_where_the_report_says(affinity: set[int]) -> None:
    first = min(affinity)
    with bench(disk()) as run:
        device_thread = run.device._thread.native_id
        assert os.sched_getaffinity(0) == {first}
        assert device_thread is not None
        assert os.sched_getaffinity(device_thread) == affinity, "a device of others is not moved"
        opened = run.session.device
        assert opened is not None
        for thread in [opened._monitor, *(thread for thread, _ in opened._completion)]:
            assert thread is not None
            assert os.sched_getaffinity(thread.native_id) == {first}


@pytest.mark.once
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="pinning needs two CPUs")
def test_the_child_is_where_the_report_says(affinity: set[int], tmp: Path) -> None:
    first, second = sorted(affinity)[:2]
    with Session("ram:1m", options(driver_cpus=(second,), **QUICK)) as opened:
        assert opened.child is not None
        assert os.sched_getaffinity(opened.child.pid) == {first}
        assert os.sched_getaffinity(0) == {second}
        assert opened.describe()["driver_cpus"] == [second]
        assert opened.describe()["device_cpus"] == [first]


@pytest.mark.once
def test_a_foreign_device_moves_when_asked(affinity: set[int]) -> None:
    code = "import threading\nthreading.Thread(target=input).start()\nprint(flush=True)"
    with (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        cpu = max(affinity)
        with bench(disk(), device_pid=child.pid, device_cpus=(cpu,)):
            threads = os.listdir(f"/proc/{child.pid}/task")
            assert [os.sched_getaffinity(int(thread)) for thread in threads] == [{cpu}] * 2


# Whose CPU is counted.


def test_the_process_that_listens_is_the_device() -> None:
    with bench(disk()) as run:
        assert run.session.device_pid == os.getpid()


def test_another_process_may_be_named_the_device() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        with bench(disk(), device_pid=child.pid) as run:
            assert run.session.describe()["pid"] == child.pid
            result = run.run_one()
        child.communicate()
    assert result.device is not None
    assert result.device.cpu_s >= 0


@pytest.mark.parametrize("pid", [(1 << 22) + 1, (1 << 31) - 1])
def test_regression_a_pid_of_nobody_is_refused(pid: int) -> None:
    """It was taken, and the device's CPU was null without a word."""
    with pytest.raises(UsageError, match=f"--device-pid {pid}: there is no such process"):
        Session("ram:1m", options(device_pid=pid))


def test_the_cpu_of_a_device_whose_pid_is_unknown_is_null() -> None:
    """As for one in another PID namespace."""
    device = disk()
    device.client.peer_pid = lambda: None  # type: ignore[method-assign]
    with bench(device) as run:
        assert run.session.describe()["pid"] is None
        assert run.run_one().as_json()["device_cpu"] is None


# What was measured.


def test_the_description_is_of_the_device() -> None:
    device = FakeDevice(config=blk_config(capacity=4096, blk_size=4096), serial=b"serial-7\0")
    with bench(device, bs=4096, queue_size=64, poll=True) as run:
        told = run.session.describe()
    assert told["name"] == "vhost-user:fake"
    assert (told["size"], told["block_size"], told["serial"]) == (2 << 20, 4096, "serial-7")
    assert (told["queue_size"], told["queues"], told["completion"]) == (64, 1, "polling")
    assert "VIRTIO_F_VERSION_1" in told["features"]
    assert told["cache_type"] == "write back"


# The end.


@pytest.mark.once
def test_a_bench_on_a_child_leaves_nothing(tmp: Path, affinity: set[int]) -> None:
    """Descriptors and children are conftest's to find."""
    with Session("ram:1m", options(**QUICK)) as opened:
        assert opened.child is not None
        assert Path(opened.child.path).parent.parent == tmp
        results = list(Runner(opened, opened.options).run())
    assert [result.errors for result in results] == [0, 0]
    assert all(result.device for result in results)
    assert list(tmp.iterdir()) == []
    opened.close()  # once more does no harm


def test_regression_ctrl_c_while_the_child_is_made_waits_until_it_can_be_ended(
    monkeypatch: pytest.MonkeyPatch, affinity: set[int]
) -> None:
    """It left a child that nobody knew, in a directory that was gone."""
    made = []

    class Child:
        def __init__(self, *arguments: Any, **given: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            made.append("made")
            self.process = SimpleNamespace(kill=lambda: made.append("killed"))

        def close(self) -> None:
            made.append("ended")

    monkeypatch.setattr(session, "ChildDevice", Child)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Session("ram:1m", options())
    assert made == ["made", "killed", "ended"]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.once
def test_a_bench_that_cannot_start_on_its_disk_leaves_nothing(tmp: Path, affinity: set[int]) -> None:
    job = options(size=2 << 20)
    with pytest.raises(UsageError, match="--size 2m is more than ram:1m has"), Session("ram:1m", job) as opened:
        Runner(opened, job)
    assert list(tmp.iterdir()) == []


@pytest.mark.once
def test_a_child_that_does_not_come_up_leaves_nothing(
    tmp: Path, affinity: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OpenError, match="the device process did not start: exit status 1"):
        Session("ram:1m", options())
    assert list(tmp.iterdir()) == []


@pytest.mark.once
def test_a_child_that_is_not_reached_leaves_nothing(
    tmp: Path, affinity: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, driver_options: Any) -> None:
        assert list(tmp.iterdir())
        raise OpenError(5, f"{name}: cannot connect: test")

    monkeypatch.setattr(session, "connect", fail)
    with pytest.raises(OpenError) as caught:
        Session("ram:1m", options())
    assert caught.value.strerror == "ram:1m: cannot connect: test", "the child's socket means nothing to a user"
    assert list(tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ram:0", "size 0"),
        ("ram:100", "size 100"),
        ("ram:1m?block_size=100", "block_size 100"),
        ("null:1m?colour=red", "unknown key 'colour'"),
        ("vhost-user:/nowhere?a=b", "unknown key 'a'"),
        ("ram", "no scheme"),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_anything_starts(
    name: str, says: str, affinity: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ChildDevice", None)
    with pytest.raises(UsageError) as caught:
        Session(name, options())
    assert str(caught.value).startswith(f"disk {name!r}")
    assert says in str(caught.value)


def test_a_socket_that_is_missing_leaves_the_cpus_alone(affinity: set[int], tmp_path: Path) -> None:
    with pytest.raises(OpenError, match="cannot connect: No such file"):
        Session(f"vhost-user:{tmp_path}/none", options())


def test_too_much_memory_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ChildDevice", None)
    with pytest.raises(UsageError, match="of buffers"):
        Session("ram:1m", options(numjobs=4096, iodepth=65536, bs=1 << 20))


# One core for both.


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(("driver", "foreign", "cpu"), [(None, False, 0), ((2,), False, 2), (None, True, 0)])
def test_driver_and_device_may_share_a_core(driver: Any, foreign: bool, cpu: int) -> None:
    chosen = choose_cpus(options(share_core=True, driver_cpus=driver), foreign)
    assert chosen == ((cpu,), (cpu,), f"driver and device share cpu {cpu}")


@pytest.mark.once
def test_a_shared_core_is_shared(affinity: set[int]) -> None:
    first = min(affinity)
    with Session("null:1m", options(share_core=True, **QUICK)) as opened:
        assert opened.child is not None
        assert os.sched_getaffinity(opened.child.pid) == os.sched_getaffinity(0) == {first}
        assert [result.errors for result in Runner(opened, opened.options).run()] == [0, 0]


# --queue.


class FakeSysfs:
    """Attributes of a queue whose elevator has some of its own."""

    def __init__(self) -> None:
        self.values = {"serial": "x", "queue/scheduler": "noop", "queue/nr_requests": "128"}
        self.written: list[tuple[str, str]] = []

    def names(self) -> list[str]:
        own = ["queue/iosched/read_expire"] if self.values["queue/scheduler"] == "deadline" else []
        return [*self.values, *own]

    def read(self, name: str) -> str:
        return self.values.get(name, "500")

    def write(self, name: str, text: str) -> None:
        if text == "bad":
            raise UsageError("bad is no number")
        self.values[name] = text
        self.written.append((name, text))


@pytest.fixture
def sysfs(monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    fake = FakeSysfs()
    monkeypatch.setattr(session.VirtioBlk, "sysfs", fake)
    return fake


def test_settings_reach_the_queue_the_scheduler_first(sysfs: FakeSysfs) -> None:
    """There is no read_expire before there is a deadline."""
    queue = (("read_expire", "250"), ("queue/nr_requests", "256"), ("scheduler", "deadline"))
    with bench(disk(), queue=queue) as run:
        told = run.session.describe()["queue"]
    assert sysfs.written == [
        ("queue/scheduler", "deadline"),
        ("queue/iosched/read_expire", "250"),
        ("queue/nr_requests", "256"),
    ]
    assert told == {"scheduler": "deadline", "nr_requests": "256", "iosched/read_expire": "250"}


@pytest.mark.parametrize("key", ["iosched/read_expire", "queue/iosched/read_expire", "read_expire"])
def test_an_elevators_own_may_be_named_in_short(key: str, sysfs: FakeSysfs) -> None:
    with bench(disk(), queue=(("scheduler", "deadline"), (key, "1"))):
        assert sysfs.values["queue/iosched/read_expire"] == "1"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("colour", "red", "vhost-user:fake has no colour; it has nr_requests, scheduler"),
        ("serial", "y", "vhost-user:fake has no serial; it has nr_requests, scheduler"),
        ("read_expire", "1", "vhost-user:fake has no read_expire; it has nr_requests, scheduler"),
        ("nr_requests", "bad", "bad is no number"),
    ],
)
def test_a_setting_that_cannot_be(key: str, value: str, says: str, sysfs: FakeSysfs) -> None:
    device = disk()
    with pytest.raises(UsageError) as caught, bench(device, queue=((key, value),)):
        pass
    assert str(caught.value) == f"--queue {key}={value}: {says}"
    assert sysfs.written == []
