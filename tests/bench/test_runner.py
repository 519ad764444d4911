"""A bench from its first pass to its end: errors, --verify, Ctrl-C, and devices that are wrong in every way."""

from __future__ import annotations

import errno
import threading
from dataclasses import replace
from typing import Any

import pytest

from bench.harness import BLOCKS, BS, Bench, bench, blocks_of, disk
from driver.harness import time_out
from fake_device import HOLD, Answer, FakeDevice, Request
from naive.verify import decode
from naive.virtio_blk import F_RO, FEATURES, IN, IOERR, OK, OUT, UNSUPP
from virtblk.bench import crew as crew_module
from virtblk.bench.stat import RunResult
from virtblk.errors import DeviceError, UsageError
from virtblk.jit.atomics import load_acquire_i64, store_release_i64
from waiting import wait_until

# Failed I/O.


@pytest.mark.parametrize(
    ("status", "text"),
    [(IOERR, "the device reported an I/O error"), (UNSUPP, "the device does not support this request")],
)
def test_failed_ios_are_counted_and_the_first_is_told(status: int, text: str) -> None:
    bad = {5, 9, 40}
    device = disk(lambda request: status if request.type == IN and request.sector in bad else None)
    with bench(device, iodepth=1) as run:
        result = run.run_one()
    assert (result.ios, result.errors) == (BLOCKS, 3)
    assert result.notes == [f"first error at offset {5 * BS}: {text}"]


def test_errors_of_all_jobs_count() -> None:
    device = disk(lambda request: IOERR if request.type == IN else None)
    with bench(device, numjobs=3) as run:
        assert run.run_one().errors == 3 * BLOCKS


def test_a_read_only_disk_is_read_and_refused_for_writes() -> None:
    with bench(disk(features=FEATURES | F_RO), workloads=("read", "randread")) as run:
        assert [result.errors for result in run.run()] == [0, 0]
        assert not blocks_of(run.device, OUT)
    device = disk(features=FEATURES | F_RO)
    with pytest.raises(UsageError, match="vhost-user:fake is read-only"), bench(device, workloads=("write",)):
        pass
    assert not blocks_of(device, OUT)


# --verify.


def verified(script: Any = None, **given: Any) -> tuple[list[RunResult], FakeDevice]:
    device = disk(script)
    with bench(device, verify="crc32c", **given) as run:
        return run.run(), device


@pytest.mark.parametrize("workload", ["read", "write", "randread", "randwrite"])
def test_a_sound_disk_verifies(workload: str) -> None:
    (result,), device = verified(workloads=(workload,), numjobs=2)
    assert (result.errors, result.notes) == (0, [])
    assert result.ios == 2 * BLOCKS
    for block in range(BLOCKS):
        assert decode(bytes(device.disk[block * BS :][:BS]))[::2] == (block * BS, True)


def test_regression_verify_fills_the_disk_and_then_runs() -> None:
    """A fill without an error was taken for one that was interrupted, and nothing ran."""
    results, device = verified()
    assert [result.ios for result in results] == [BLOCKS]
    assert device.seen == [(OUT, b, BS) for b in range(BLOCKS)] + [(IN, b, BS) for b in range(BLOCKS)]


def test_a_write_workload_is_read_back() -> None:
    _, device = verified(workloads=("write",))
    kinds = [request.type for request in device.io]
    assert kinds == [OUT] * BLOCKS + [OUT] * BLOCKS + [IN] * BLOCKS


def test_generations_rise_with_every_pass_of_writes() -> None:
    _, device = verified(workloads=("write", "write"), iodepth=1)
    written = [decode(request.data) for request in device.io if request.type == OUT]
    assert [block.generation for block in written] == [1] * BLOCKS + [2] * BLOCKS + [3] * BLOCKS


def test_regression_jobs_that_write_one_block_at_once_write_the_same() -> None:
    """Each had contents of its own: on a device that may mix two writes under way, a false alarm."""
    _, device = verified(workloads=("randwrite",), numjobs=4)
    contents: dict[int, set[bytes]] = {}
    for request in device.io[BLOCKS:]:
        if request.type == OUT:
            contents.setdefault(request.sector, set()).add(request.data)
    assert len(contents) > BLOCKS // 2
    assert {len(different) for different in contents.values()} == {1}


class Spoiled:
    """A disk with one fault, in the block of sector 7: `fault` gets the device and the request."""

    def __init__(self, fault: Any) -> None:
        self.device = disk(self)
        self.fault = fault
        self.writes = 0

    def __call__(self, request: Request) -> object:
        if request.sector != 7:
            return None
        self.writes += request.type == OUT
        return self.fault(self, request)

    def run(self, workload: str, **given: Any) -> RunResult:
        with bench(self.device, verify="crc32c", workloads=(workload,), **given) as run:
            return run.run_one()

    def at(self, sector: int) -> bytes:
        return bytes(self.device.disk[sector * BS :][:BS])


def corrupt(disk: Spoiled, request: Request) -> object:
    """A read returns one bit wrong."""
    if request.type == OUT:
        return None
    data = bytearray(disk.at(7))
    data[300] ^= 0x10
    return Answer(OK, bytes(data))


def lose(disk: Spoiled, request: Request) -> object:
    """The second write is acknowledged and forgotten."""
    return Answer(OK) if request.type == OUT and disk.writes == 2 else None


def mistake(disk: Spoiled, request: Request) -> object:
    """A read returns the neighbour."""
    return Answer(OK, disk.at(8)) if request.type == IN else None


def misplace(disk: Spoiled, request: Request) -> object:
    """The second write goes to the neighbour."""
    if request.type == IN or disk.writes != 2:
        return None
    disk.device.disk[9 * BS : 10 * BS] = request.data
    return Answer(OK)


def blank(disk: Spoiled, request: Request) -> object:
    """A read returns zeroes."""
    return Answer(OK, bytes(BS)) if request.type == IN else None


def untouched(disk: Spoiled, request: Request) -> object:
    """A read leaves the buffer as it is."""
    return Answer(OK, used_len=BS + 1) if request.type == IN else None


@pytest.mark.parametrize(
    ("fault", "workload", "offset", "text"),
    [
        (corrupt, "read", 7, "checksum mismatch"),
        (corrupt, "write", 7, "checksum mismatch"),
        (lose, "write", 7, "an old generation: an acknowledged write is lost"),
        (mistake, "read", 7, "a block of another offset"),
        (misplace, "write", 7, "an old generation: an acknowledged write is lost"),
        (blank, "read", 7, "no header"),
        (untouched, "read", 7, "no header"),
    ],
)
def test_a_disk_with_one_fault_is_found_out(fault: Any, workload: str, offset: int, text: str) -> None:
    result = Spoiled(fault).run(workload, iodepth=2)
    assert result.errors == 1
    told = f"first error at offset {offset * BS}: {text}"
    assert result.notes == [told if workload == "read" else f"read back: {told}"]


@pytest.mark.parametrize("depth", [1, BLOCKS])
def test_a_disk_that_reads_nothing_does_not_pass_with_what_was_in_the_buffer(depth: int) -> None:
    """With as many buffers as blocks, each holds the very block that is read into it next."""
    device = disk(lambda request: Answer(OK, used_len=BS + 1) if request.type == IN else None)
    with bench(device, verify="crc32c", iodepth=depth, queue_size=256) as run:
        assert run.run_one().errors == BLOCKS


def test_a_write_that_failed_may_hold_the_old_or_the_new() -> None:
    """Its failure counts; what is found there afterwards does not."""
    for kept in (True, False):

        def fail(spoiled: Spoiled, request: Request, kept: bool = kept) -> object:
            if request.type == IN or spoiled.writes != 2:
                return None
            if not kept:
                spoiled.device.disk[7 * BS : 8 * BS] = request.data
            return IOERR

        result = Spoiled(fail).run("write")
        assert (result.errors, len(result.notes)) == (1, 1)
        assert "an I/O error" in result.notes[0]


def test_regression_errors_of_the_fill_are_told_with_the_first_run() -> None:
    """They were lost: a disk that fails writes passed `--rw read --verify crc32c` if it had been filled before."""
    spoiled = Spoiled(lambda disk, request: IOERR if disk.writes == 1 and request.type == OUT else None)
    with bench(spoiled.device, verify="crc32c", workloads=("write", "read")) as run:
        first, second = run.run()
    assert (first.errors, second.errors) == (1, 0)
    assert first.notes == [f"fill: first error at offset {7 * BS}: the device reported an I/O error"]


def test_errors_of_the_ramp_are_told_with_the_run() -> None:
    first: list[Request] = []
    device = disk(lambda request: IOERR if request.type == IN and not first and not first.append(request) else None)
    with bench(device, ramp_time=0.01) as run:
        result = run.run_one()
    assert (result.ios, result.errors) == (BLOCKS, 1)
    assert result.notes == ["ramp: first error at offset 0: the device reported an I/O error"]


def test_without_verify_contents_are_nobodys_business() -> None:
    with bench(disk(lambda request: Answer(OK, bytes(BS)) if request.type == IN else None)) as run:
        assert run.run_one().errors == 0


# Ctrl-C, and the end of the device.


def interrupted_at(bench: Bench, label: str) -> list[RunResult]:
    """Run, and interrupt when `label` runs."""

    def on_progress(current: str, passed: float, planned: float, ios: int, limit: int) -> None:
        if current == label:
            bench.runner.interrupt()

    bench.runner._on_progress = on_progress
    return bench.run()


def test_an_interrupted_run_is_told_and_the_last() -> None:
    with bench(disk(), runtime=30, workloads=("read", "write")) as run:
        (result,) = interrupted_at(run, "read")
        assert not blocks_of(run.device, OUT)
    assert result.ios > 0
    assert result.errors == 0


def test_an_interrupted_ramp_is_not_told() -> None:
    with bench(disk(), runtime=30, ramp_time=30) as run:
        assert interrupted_at(run, "ramp") == []


def slow(request: Request) -> None:
    threading.Event().wait(0.01)


def test_an_interrupted_fill_is_not_told() -> None:
    def wait_for_it(request: Request) -> None:
        if request.type == OUT and request.sector >= 10:
            wait_until(lambda: run.runner.interrupted)

    with bench(disk(wait_for_it), runtime=30, verify="crc32c") as run:
        assert interrupted_at(run, "verify: fill") == []
        assert len(run.device.io) < BLOCKS


def test_an_interrupted_read_back_leaves_the_run() -> None:
    slowly = disk(lambda request: slow(request) if request.type == IN else None)
    with bench(slowly, workloads=("write",), verify="crc32c") as run:
        (result,) = interrupted_at(run, "verify: read back")
    assert (result.ios, result.errors) == (BLOCKS, 0)


def test_regression_an_interrupt_between_two_runs_is_not_overwritten() -> None:
    """The stop word was cleared after the flag was looked at: the run went on to its end."""
    with bench(disk(), runtime=30) as run:

        def on_progress(*arguments: Any) -> None:
            run.runner.interrupt()
            store_release_i64(run.runner._stop, 0)

        run.runner._on_progress = on_progress
        assert len(run.run()) == 1


def test_a_second_interrupt_does_not_wait_for_the_device() -> None:
    """All in flight is held for ever, and the time-out is far away."""
    device = disk(lambda request: HOLD if request.type == IN else None)
    with bench(device, timeout=3600.0) as run:

        def on_progress(*arguments: Any) -> None:
            run.runner.interrupt()
            run.runner.interrupt()

        run.runner._on_progress = on_progress
        with pytest.raises(DeviceError) as caught:
            run.run()
    assert caught.value.errno == errno.ESHUTDOWN


def test_a_device_that_falls_silent_is_named_with_the_time_out() -> None:
    device = disk(lambda request: HOLD if request.sector == 30 and request.type == IN else None)
    with bench(device, timeout=0.3) as run, pytest.raises(DeviceError) as caught:
        run.run()
    assert caught.value.errno == errno.ETIMEDOUT
    assert caught.value.strerror == "vhost-user:fake: the device did not answer in time (0.3 s)"


@pytest.mark.parametrize("poll", [False, True])
def test_one_lost_io_among_many_is_noticed_too(poll: bool) -> None:
    """All others come back, so that the job never waits for long."""
    lost: list[Request] = []
    after = 0

    def lose_one(request: Request) -> object:
        nonlocal after
        if request.sector == 9 and not lost:
            lost.append(request)
            return HOLD
        after += bool(lost)
        if after == BLOCKS // 4:  # now the others have come back for a while
            assert run.session.device is not None
            time_out(run.session.device, 0.3)
            run.session.options = replace(run.session.options, timeout=0.3)
        return None

    with bench(disk(lose_one), runtime=600, poll=poll) as run:
        with pytest.raises(DeviceError, match="did not answer"):
            run.run()
        assert after >= BLOCKS // 4


@pytest.mark.parametrize("poll", [False, True])
def test_a_device_that_hangs_up_ends_all_jobs(poll: bool) -> None:
    device = disk(lambda request: device.hang_up() or HOLD if request.sector == 30 and request.type == IN else None)
    with bench(device, numjobs=4, poll=poll) as run, pytest.raises(DeviceError) as caught:
        run.run()
    assert caught.value.errno == errno.ENODEV
    assert caught.value.strerror == "vhost-user:fake: the device closed the connection"


def test_runs_that_were_complete_are_told_before_the_end() -> None:
    device = disk(lambda request: device.hang_up() or HOLD if request.type == OUT else None)
    with bench(device, workloads=("read", "write")) as run:
        results = run.runner.run()
        assert next(results).workload == "read"
        with pytest.raises(DeviceError):
            next(results)


# Threads.


def test_regression_a_thread_that_cannot_start_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """RuntimeError went all the way up, and those that had started waited for ever."""
    start = threading.Thread.start

    def only_two(thread: threading.Thread) -> None:
        if thread.name.startswith("job2"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with bench(disk(), numjobs=4) as run:
        monkeypatch.setattr(threading.Thread, "start", only_two)
        with pytest.raises(DeviceError, match="vhost-user:fake: only 2 of --numjobs 4 threads could be started"):
            run.run()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("job")]


def test_regression_an_exception_in_a_job_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checking build raises in kernels: the run waited for ever for the job that was gone."""

    def job_thread(d: Any, jobs: Any, crew: Any, j: int) -> None:
        if j == 1:
            wait_until(lambda: load_acquire_i64(go) != 0)
            raise IndexError("table index is out of bounds")
        return kernel(d, jobs, crew, j)

    kernel = crew_module.job_thread
    with bench(disk(), numjobs=2) as run:
        go = int(run.runner._crew._crew[0]["go"])
        monkeypatch.setattr(crew_module, "job_thread", job_thread)
        with pytest.raises(IndexError, match="out of bounds"):
            run.run()


def test_buffers_are_random_so_that_nothing_compresses() -> None:
    with bench(disk(), workloads=("write",), iodepth=BLOCKS, queue_size=256) as run:
        run.run()
        written = [request.data for request in run.device.io]
    assert len(set(written)) == BLOCKS
    assert min(len(set(data)) for data in written) > 150
