"""Counters of a process, ours or another's."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.bench import cpu
from virtblk.bench.cpu import Usage, own_usage, process_name, steal_seconds, usage_of, usage_of_thread
from waiting import PATIENCE, wait_until

SECONDS = st.floats(0, 1e6, allow_nan=False)


def work(until: float) -> None:
    """Keep this thread busy until the process has used so many seconds more of CPU time."""
    end = time.process_time() + until
    while time.process_time() < end:
        sum(range(1000))


@pytest.fixture
def busy_child() -> Iterator[int]:
    """A process that computes until it is told to end."""
    code = "import threading, sys\nthreading.Thread(target=sys.stdin.read, daemon=True).start()\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        try:
            yield child.pid
        finally:
            child.kill()


def grown(pid: int, before: Usage) -> Usage:
    """What another process used since `before`, once it used anything."""
    for _ in range(2000):
        now = usage_of(pid)
        assert now is not None
        if now.cpu_s > before.cpu_s:
            return now
        time.sleep(0.005)
    raise AssertionError("no CPU time was used")


def test_own_usage_grows_with_work() -> None:
    before = own_usage()
    work(0.05)
    spent = own_usage().since(before)
    assert spent.cpu_s >= 0.05
    assert spent.usr_s + spent.sys_s == pytest.approx(spent.cpu_s)


def test_own_usage_counts_all_threads_faults_and_switches() -> None:
    before = own_usage()
    pages = 256
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(pages):
            memory[page * mmap.PAGESIZE] = 1
    for _ in range(20):
        time.sleep(0.0001)
    spent = own_usage().since(before)
    assert spent.minf >= pages
    assert spent.ctx >= 20
    assert spent.majf >= 0


def test_another_process_grows_with_its_work(busy_child: int) -> None:
    before = usage_of(busy_child)
    assert before is not None
    spent = grown(busy_child, before).since(before)
    assert spent.cpu_s > 0
    assert spent.usr_s + spent.sys_s == pytest.approx(spent.cpu_s)


def test_the_two_ways_to_look_at_a_process_agree() -> None:
    own, told = own_usage(), usage_of(os.getpid())
    assert told is not None
    later = own_usage()
    tick = 2 / os.sysconf("SC_CLK_TCK")
    assert own.cpu_s - tick <= told.cpu_s <= later.cpu_s + tick
    assert told.usr_s <= later.usr_s + tick
    assert told.sys_s <= later.sys_s + tick


def test_a_dead_process_has_no_usage() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert usage_of(child.pid) is None
    assert process_name(child.pid) == f"pid {child.pid}"


@pytest.mark.once
def test_a_name_with_spaces_and_brackets_does_not_shift_the_fields() -> None:
    """proc(5): the second field is the command in brackets, whatever it is called."""
    code = "open('/proc/self/comm', 'w').write('a) b (c 1 2 3'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        usage = usage_of(child.pid)
        assert process_name(child.pid) == "a) b (c 1 2 3"
    assert usage is not None
    assert 0 < usage.cpu_s < 60
    assert usage.usr_s + usage.sys_s == pytest.approx(usage.cpu_s, abs=4 / os.sysconf("SC_CLK_TCK"))


@given(SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS)
def test_parts_always_add_up_to_the_total(
    usr: float, sys_: float, cpu_s: float, more_usr: float, more_sys: float, more: float
) -> None:
    before = Usage(usr, sys_, cpu_s)
    spent = Usage(usr + more_usr, sys_ + more_sys, cpu_s + more).since(before)
    assert spent.cpu_s == pytest.approx(more, abs=1e-9)
    assert spent.usr_s + spent.sys_s == pytest.approx(spent.cpu_s)
    assert min(spent.usr_s, spent.sys_s) >= 0


def test_parts_that_count_in_ticks_are_scaled() -> None:
    spent = Usage(1.03, 2.01, 3.046).since(Usage(1.0, 2.0, 3.0))
    assert (spent.usr_s, spent.sys_s) == (pytest.approx(0.0345), pytest.approx(0.0115))


def test_regression_less_than_a_tick_is_not_lost() -> None:
    """Both parts said 0 where the total had grown: a short run had CPU per I/O, and no CPU."""
    spent = Usage(3.0, 1.0, 4.004).since(Usage(3.0, 1.0, 4.0))
    assert (spent.usr_s, spent.sys_s) == (pytest.approx(0.003), pytest.approx(0.001))
    assert Usage(0.0, 0.0, 0.002).since(Usage(0.0, 0.0, 0.0)).usr_s == pytest.approx(0.002)


def test_steal_time_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steal_seconds() >= 0

    class Stat:
        def __init__(self, path: str) -> None:
            assert path == "/proc/stat"

        def read_text(self) -> str:
            return "cpu  10 20 30 40 50 60 70 800 90 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n"

    monkeypatch.setattr(cpu, "Path", Stat)
    assert steal_seconds() == 800 / os.sysconf("SC_CLK_TCK")


def test_a_thread_s_usage_is_its_own() -> None:
    """Another thread works meanwhile; one that is gone has none."""
    tids: list[int] = []

    def work() -> None:
        tids.append(threading.get_native_id())
        began = time.thread_time()
        while time.thread_time() - began < 0.05:
            pass
        busy.set()
        done.wait(PATIENCE)

    busy, done = threading.Event(), threading.Event()
    mine = usage_of_thread(threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    assert busy.wait(PATIENCE)
    other = usage_of_thread(tids[0])
    now = usage_of_thread(threading.get_native_id())
    done.set()
    thread.join()
    assert mine is not None
    assert now is not None
    assert other is not None
    assert other.cpu_s >= 0.05
    assert other.cpu_s < own_usage().cpu_s
    assert now.since(mine).ctx > 0, "it waited"
    wait_until(lambda: usage_of_thread(tids[0]) is None)
