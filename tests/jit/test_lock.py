"""The mutex excludes, the wait queue wakes one at a time, and no wake-up gets lost."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

import pytest

from conftest import INTERPRETED
from virtblk.jit.atomics import (
    fetch_add_i64,
    load_acquire_i64,
    load_acquire_u32,
    load_i64,
    store_i64,
    store_release_i64,
    store_u32,
)
from virtblk.jit.kernel import kernel
from virtblk.jit.libc import futex_wait, sched_yield
from virtblk.jit.lock import (
    WAIT_SEQUENCE,
    WAIT_SLEEPERS,
    mutex_lock,
    mutex_trylock,
    mutex_unlock,
    wait_finish,
    wait_prepare,
    wait_sleep,
    wake_up,
)
from virtblk.mem.shm import Words
from waiting import PATIENCE, sleeps_on

NS = 1_000_000_000
ETIMEDOUT = -errno.ETIMEDOUT


def start(count: int, body: Callable[..., object], *arguments: object) -> list[threading.Thread]:
    threads = [threading.Thread(target=body, args=arguments) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# The mutex.


@kernel
def count_under_lock(lock, counter, times, dally):
    """Increment without atomics, which only exclusion makes right."""
    for _ in range(times):
        mutex_lock(lock)
        value = load_i64(counter)
        if dally:
            sched_yield()
        store_i64(counter, value + 1)
        mutex_unlock(lock)


@kernel
def count_without_lock(lock, counter, times, dally):
    for _ in range(times):
        value = load_i64(counter)
        if dally:
            sched_yield()
        store_i64(counter, value + 1)


@pytest.mark.parametrize(
    ("threads", "times", "dally"), [(2, 100_000, False), (2, 3_000, True), (16, 500, True), (64, 50, True)]
)
def test_the_mutex_excludes(threads: int, times: int, dally: bool) -> None:
    times = times // 50 if INTERPRETED else times
    words = Words(2)
    lock, counter = words.address(0), words.address(1)
    count_under_lock(lock, counter, 0, dally)
    for thread in start(threads, count_under_lock, lock, counter, times, dally):
        thread.join()
    assert load_i64(counter) == threads * times
    assert load_acquire_u32(lock) == 0


def test_without_the_mutex_increments_are_lost() -> None:
    """That is what makes the test above one."""
    words = Words(2)
    count_without_lock(0, words.address(1), 0, True)
    for _ in range(100):
        store_i64(words.address(1), 0)
        for thread in start(4, count_without_lock, 0, words.address(1), 500, True):
            thread.join()
        if load_i64(words.address(1)) < 2000:
            return
    pytest.skip("one thread after the other, every time")


def test_trylock_takes_what_is_free() -> None:
    words = Words(1)
    lock = words.address(0)
    assert mutex_trylock(lock)
    assert load_acquire_u32(lock) == 1
    assert not mutex_trylock(lock)
    store_u32(lock, 2)
    assert not mutex_trylock(lock)
    assert load_acquire_u32(lock) == 2  # the sleeper is not forgotten
    mutex_unlock(lock)
    mutex_lock(lock)
    assert load_acquire_u32(lock) == 1
    mutex_unlock(lock)
    assert load_acquire_u32(lock) == 0


def test_who_finds_it_held_sleeps_and_is_woken() -> None:
    words = Words(2)
    lock, counter = words.address(0), words.address(1)
    count_under_lock(lock, counter, 0, False)
    mutex_lock(lock)
    threads = start(3, count_under_lock, lock, counter, 1, False)
    until(lambda: load_acquire_u32(lock) == 2)
    assert load_i64(counter) == 0
    mutex_unlock(lock)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert load_i64(counter) == 3


def test_unlock_wakes_who_sleeps() -> None:
    """It need not wait until it looks again by itself."""
    words = Words(1)
    lock = words.address(0)
    results: list[int] = []
    store_u32(lock, 2)
    threads = start(1, lambda: results.append(futex_wait(lock, 2, 60 * NS)))
    until(lambda: sleeps_on(threads[0], lock))
    mutex_unlock(lock)
    threads[0].join(PATIENCE)
    assert results == [0]


# The wait queue.


@kernel
def wait_once(queue, ready, woken, timeout_ns):
    """Sleep until somebody wakes us, whatever for; count it."""
    sequence = wait_prepare(queue)
    fetch_add_i64(ready, 1)
    code = wait_sleep(queue, sequence, timeout_ns)
    wait_finish(queue)
    fetch_add_i64(woken, 1)
    return code


def test_one_waiter_is_woken_at_a_time() -> None:
    words = Words(3)
    queue, ready, woken = (words.address(index) for index in range(3))
    wait_once(queue, ready, woken, 0)
    wake_up(queue, 1)  # nobody there: nothing to do, and nothing stored up
    assert load_acquire_u32(queue + WAIT_SEQUENCE) == 0
    store_i64(ready, 0)
    store_i64(woken, 0)
    threads = start(5, wait_once, queue, ready, woken, 60 * NS)
    until(lambda: load_i64(ready) == 5 and all(sleeps_on(thread, queue + WAIT_SEQUENCE) for thread in threads))
    assert load_acquire_u32(queue + WAIT_SLEEPERS) == 5
    for expected in (1, 2):
        wake_up(queue, 1)
        until(lambda expected=expected: load_i64(woken) >= expected)
        time.sleep(0.02)
        assert load_i64(woken) == expected
        assert load_acquire_u32(queue + WAIT_SLEEPERS) == 5 - expected
    wake_up(queue, 1 << 30)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert load_acquire_u32(queue + WAIT_SLEEPERS) == 0


def test_a_wake_up_between_prepare_and_sleep_is_not_lost() -> None:
    words = Words(1)
    queue = words.address(0)
    sequence = wait_prepare(queue)
    wake_up(queue, 1)
    assert wait_sleep(queue, sequence, 60 * NS) == -errno.EAGAIN
    assert wait_sleep(queue, wait_prepare(queue), 1) == ETIMEDOUT
    wait_finish(queue)
    wait_finish(queue)
    assert load_acquire_u32(queue + WAIT_SLEEPERS) == 0


@kernel
def produce(lock, queue, items, times):
    """Put one item at a time, as a reaper ends bios: the store, an unlock, the wake-up."""
    for _ in range(times):
        mutex_lock(lock)
        store_release_i64(items, load_i64(items) + 1)
        mutex_unlock(lock)
        wake_up(queue, 1)


@kernel
def take_items(lock, queue, items, times, timed_out):
    """Take items until `times` were taken; count the sleeps that nobody ended."""
    taken = 0
    while taken < times:
        sequence = wait_prepare(queue)
        if load_acquire_i64(items) == 0 and wait_sleep(queue, sequence, 30 * NS) == ETIMEDOUT:
            fetch_add_i64(timed_out, 1)
        wait_finish(queue)
        mutex_lock(lock)
        left = load_i64(items)
        if left > 0:
            store_i64(items, left - 1)
            taken += 1
        mutex_unlock(lock)
        if left > 1:
            wake_up(queue, 1)  # a waiter that leaves something wakes the next


@pytest.mark.parametrize(("producers", "consumers", "times"), [(1, 1, 20_000), (1, 3, 3_000), (4, 4, 2_000)])
def test_no_wake_up_is_lost(producers: int, consumers: int, times: int) -> None:
    """Sleeps of 30 s that somebody must end: a single one that ran out fails."""
    total = (times // 20 if INTERPRETED else times) // consumers * consumers * producers
    words = Words(4)
    lock, queue, items, timed_out = (words.address(index) for index in range(4))
    produce(lock, queue, items, 0)
    take_items(lock, queue, items, 0, timed_out)
    takers = start(consumers, take_items, lock, queue, items, total // consumers, timed_out)
    makers = start(producers, produce, lock, queue, items, total // producers)
    for thread in (*makers, *takers):
        thread.join(2 * PATIENCE)
        assert not thread.is_alive()
    assert load_i64(timed_out) == 0
    assert load_i64(items) == 0
    assert load_acquire_u32(queue + WAIT_SLEEPERS) == 0
