"""Loads, stores, read-modify-writes and the fence: Python twin and native body do the same to the same bytes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import INTERPRETED
from virtblk.jit import atomics
from virtblk.jit.atomics import (
    cmpxchg_i64,
    cmpxchg_u32,
    cpu_pause,
    exchange_u32,
    fence_seq_cst,
    fetch_add_i64,
    fetch_add_u32,
    load_acquire_i64,
    load_acquire_u16,
    load_acquire_u32,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    store_i64,
    store_release_i64,
    store_release_u16,
    store_release_u32,
    store_u8,
    store_u16,
    store_u32,
)
from virtblk.jit.kernel import kernel
from virtblk.jit.libc import sched_yield
from virtblk.mem.shm import Words

TOP = 1 << 63

#: Name, bits, what it does with (old value, a, b): (result, new value).
LOADS = {
    "load_u8": 8,
    "load_u16": 16,
    "load_u32": 32,
    "load_i64": 64,
    "load_acquire_u16": 16,
    "load_acquire_u32": 32,
    "load_acquire_i64": 64,
}
STORES = {
    "store_u8": 8,
    "store_u16": 16,
    "store_u32": 32,
    "store_i64": 64,
    "store_release_u16": 16,
    "store_release_u32": 32,
    "store_release_i64": 64,
}
UPDATES = {"fetch_add_i64": 64, "fetch_add_u32": 32, "exchange_u32": 32, "cmpxchg_u32": 32, "cmpxchg_i64": 64}
BITS = LOADS | STORES | UPDATES
NAMES = list(BITS)


@kernel
def perform(op, at, a, b):
    """Operation number `op` of NAMES, natively."""
    if op == 0:
        return load_u8(at)
    if op == 1:
        return load_u16(at)
    if op == 2:
        return load_u32(at)
    if op == 3:
        return load_i64(at)
    if op == 4:
        return load_acquire_u16(at)
    if op == 5:
        return load_acquire_u32(at)
    if op == 6:
        return load_acquire_i64(at)
    if op == 7:
        store_u8(at, a)
    elif op == 8:
        store_u16(at, a)
    elif op == 9:
        store_u32(at, a)
    elif op == 10:
        store_i64(at, a)
    elif op == 11:
        store_release_u16(at, a)
    elif op == 12:
        store_release_u32(at, a)
    elif op == 13:
        store_release_i64(at, a)
    elif op == 14:
        return fetch_add_i64(at, a)
    elif op == 15:
        return fetch_add_u32(at, a)
    elif op == 16:
        return exchange_u32(at, a)
    elif op == 17:
        return cmpxchg_u32(at, a, b)
    elif op == 18:
        return cmpxchg_i64(at, a, b)
    return 0


def expected(name: str, old: int, a: int, b: int) -> tuple[int, int]:
    """(result, new value) as unsigned numbers of the word's width; stores give 0."""
    size = 1 << BITS[name]
    if name in LOADS:
        return old, old
    if name in STORES:
        return 0, a % size
    if name.startswith("fetch_add"):
        return old, (old + a) % size
    if name.startswith("exchange"):
        return old, a % size
    return old, b % size if old == a % size else old


def test_every_operation_is_here() -> None:
    public = {name for name in vars(atomics) if name.startswith(("load_", "store_", "fetch_", "exchange_", "cmpxchg_"))}
    assert public == set(NAMES)


INT64 = st.one_of(
    st.integers(-TOP, TOP - 1), st.sampled_from([0, 1, -1, 255, 256, 65535, 65536, 2**32 - 1, 2**32, TOP - 1, -TOP])
)


@pytest.mark.parametrize("native", [False, True], ids=["twin", "native"])
@pytest.mark.parametrize("name", NAMES)
@given(memory=st.binary(min_size=24, max_size=24), a=INT64, b=INT64, fits=st.booleans())
def test_the_same_bytes_and_no_others(name: str, native: bool, memory: bytes, a: int, b: int, fits: bool) -> None:
    buffer = np.zeros(24, np.uint8)
    buffer[:] = list(memory)
    size = BITS[name] // 8
    old = int.from_bytes(memory[8 : 8 + size], "little")
    if fits:  # for cmpxchg: what is there, with anything in the bits that do not count
        a = (old + (a >> BITS[name] << BITS[name]) + TOP) % (1 << 64) - TOP
    at = int(buffer.ctypes.data) + 8
    if native:
        found = perform(NAMES.index(name), at, a, b)
    else:
        count = 1 if name in LOADS else 3 if name.startswith("cmpxchg") else 2
        found = getattr(atomics, name)(*(at, a, b)[:count]) or 0
    result, new = expected(name, old, a, b)
    if BITS[name] == 64:
        result -= (result >= TOP) << 64  # u64 of 2**63 and more come back negative
    assert int(found) == result
    assert buffer.tobytes() == memory[:8] + new.to_bytes(size, "little") + memory[8 + size :]


@kernel
def relax(turn):
    """While spinning: give the core away now and then, for there may be only one."""
    if turn & 1023 == 1023:
        sched_yield()
    else:
        cpu_pause()
    return turn + 1


@kernel
def meet(gates, who, n):
    """Both threads go on from here, the `n`th time, at about the same moment."""
    store_release_i64(gates + 64 * who, n)
    turn = 0
    while load_acquire_i64(gates + 64 - 64 * who) < n:
        turn = relax(turn)


#: Increments between two meetings: long enough for both threads to be at it at once.
EACH = 500 if INTERPRETED else 5_000


@kernel
def add_many(counter, narrow, gates, who, rounds):
    for n in range(1, rounds + 1):
        meet(gates, who, n)
        for _ in range(EACH):
            fetch_add_i64(counter, 3)
            fetch_add_u32(narrow, -1)


@kernel
def add_many_by_cmpxchg(counter, narrow, gates, who, rounds):
    for n in range(1, rounds + 1):
        meet(gates, who, n)
        for _ in range(EACH):
            while True:
                old = load_i64(counter)
                if cmpxchg_i64(counter, old, old + 3) == old:
                    break
            while True:
                old = load_u32(narrow)
                if cmpxchg_u32(narrow, old, old - 1) == old:
                    break


@pytest.mark.parametrize("loop", [add_many, add_many_by_cmpxchg], ids=["fetch_add", "cmpxchg"])
def test_two_threads_lose_no_increment(loop: Callable[..., None]) -> None:
    rounds = 4 if INTERPRETED else 60
    words = Words(4)
    counter, narrow, gates = words.address(0), words.address(1), words.address(2)
    loop(counter, narrow, gates, 0, 0)  # compile before threads start
    thread = threading.Thread(target=loop, args=(counter, narrow, gates, 1, rounds))
    thread.start()
    loop(counter, narrow, gates, 0, rounds)
    thread.join()
    assert load_i64(counter) == 6 * EACH * rounds
    assert load_i64(narrow) == -2 * EACH * rounds % (1 << 32)


@kernel
def spin(word):
    """Until the word is no longer 0. A plain load would be read once, before the loop, which then never ends."""
    while load_u32(word) == 0:
        pass


@kernel
def spin_acquire(word):
    while load_acquire_u32(word) == 0:
        pass


@pytest.mark.parametrize("loop", [spin, spin_acquire], ids=["relaxed", "acquire"])
def test_a_spin_sees_another_threads_store(loop: Callable[[int], None]) -> None:
    words = Words(1)
    store_u32(words.address(0), 1)
    loop(words.address(0))
    store_u32(words.address(0), 0)
    thread = threading.Thread(target=loop, args=(words.address(0),), daemon=True)
    thread.start()
    time.sleep(0.02)
    assert thread.is_alive()
    store_release_u32(words.address(0), 1)
    thread.join(20)
    assert not thread.is_alive()


@kernel
def publish(data, flag, ack, rounds):
    """Round by round: eight words, then the flag; then wait until the reader has looked."""
    for n in range(1, rounds + 1):
        for i in range(8):
            store_i64(data + 64 * i, n)
        store_release_i64(flag, n)
        turn = 0
        while load_acquire_i64(ack) != n:
            turn = relax(turn)


@kernel
def consume(data, flag, ack, rounds):
    """How many words were not there although the flag was."""
    stale = 0
    for n in range(1, rounds + 1):
        turn = 0
        while load_acquire_i64(flag) != n:
            turn = relax(turn)
        for i in range(8):
            if load_i64(data + 64 * i) != n:
                stale += 1
        store_release_i64(ack, n)
    return stale


def for_a_while(seconds: float, chunk: Callable[[], int]) -> int:
    """Sum of chunks: where threads have to take turns on one core, few of them fit."""
    total, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        total += chunk()
    return total


def test_release_publishes_what_was_written_before() -> None:
    words = Words(10)
    arguments = (words.address(0), words.address(8), words.address(9))
    publish(*arguments, 0)
    consume(*arguments, 0)
    rounds = 20 if INTERPRETED else 500

    def chunk() -> int:
        store_i64(arguments[1], 0)
        store_i64(arguments[2], 0)
        thread = threading.Thread(target=publish, args=(*arguments, rounds))
        thread.start()
        stale = consume(*arguments, rounds)
        thread.join()
        return int(stale)

    assert for_a_while(0.3, chunk) == 0


@kernel
def store_then_load(mine, theirs, gates, seen, who, rounds, fenced):
    """Store to my word, then load the other's, both at about the same time; what was loaded goes to `seen`."""
    for n in range(1, rounds + 1):
        meet(gates, who, n)
        store_i64(mine, n)
        if fenced:
            fence_seq_cst()
        store_i64(seen + 16 * n + 8 * who, load_i64(theirs))


def both_missed(rounds: int, fenced: bool) -> int:
    """Rounds in which neither thread saw the other's store."""
    words = Words(4)
    first, second, gates = (words.address(index) for index in range(3))
    seen = np.zeros(2 * rounds + 2, np.int64)
    at = int(seen.ctypes.data)
    store_then_load(first, second, gates, at, 0, 0, fenced)
    thread = threading.Thread(target=store_then_load, args=(second, first, gates, at, 1, rounds, fenced))
    thread.start()
    store_then_load(first, second, gates, at, 0, rounds, fenced)
    thread.join()
    looked = seen.reshape(-1, 2)[1:] < np.arange(1, rounds + 1)[:, None]
    return int(looked.all(axis=1).sum())


def test_the_fence_orders_a_store_before_a_load() -> None:
    """Of two threads that store and then load, one at least sees the other's store."""
    rounds = 10 if INTERPRETED else 500
    assert for_a_while(0.3, lambda: both_missed(rounds, True)) == 0


@pytest.mark.compiled
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two cores")
def test_without_the_fence_both_may_miss() -> None:
    """That is what makes the test above one; half of all rounds on x86 with two cores."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        if both_missed(500, False):
            return
    pytest.skip("this machine did not let a load overtake a store: two idle cores would")


def test_the_fence_and_the_pause_return_nothing() -> None:
    assert fence_seq_cst() is None
    assert cpu_pause() is None
