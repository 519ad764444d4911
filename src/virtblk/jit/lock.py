"""The futex mutex and the exclusive wait queue that threads of one process share (Linux: queue_lock, wait_queue_head).

256 threads that spin on a lock collapse on two cores; these sleep. The lock is the three-state futex mutex: 0 free,
1 held, 2 held and somebody sleeps. A wait queue is a sequence word with a count of sleepers: a waiter notes the
sequence, looks at its condition once more, then sleeps while the sequence stands still. Called from kernels.
"""

from __future__ import annotations

from virtblk.jit.atomics import cmpxchg_u32, cpu_pause, exchange_u32, fetch_add_u32, load_acquire_u32
from virtblk.jit.kernel import kernel
from virtblk.jit.libc import futex_wait, futex_wake

LOCK_SPINS = 60
#: A lock is only ever held for bounded work, so this is how often a sleeper looks again, not a limit.
LOCK_SLEEP_NS = 100_000_000

#: Offsets in a wait queue of two u32 words.
WAIT_SEQUENCE = 0
WAIT_SLEEPERS = 4


@kernel
def mutex_trylock(lock):
    """True when the lock at address `lock` was free and is ours now."""
    return cmpxchg_u32(lock, 0, 1) == 0


@kernel
def mutex_lock(lock):
    """Take the lock at address `lock`; sleeps while another thread holds it. Partner: mutex_unlock."""
    if cmpxchg_u32(lock, 0, 1) == 0:
        return
    for _ in range(LOCK_SPINS):
        cpu_pause()
        if load_acquire_u32(lock) == 0 and cmpxchg_u32(lock, 0, 1) == 0:
            return
    while exchange_u32(lock, 2) != 0:
        futex_wait(lock, 2, LOCK_SLEEP_NS)


@kernel
def mutex_unlock(lock):
    """Release the lock and wake one sleeper, if any. Partner: mutex_lock's exchange."""
    if exchange_u32(lock, 0) == 2:
        futex_wake(lock, 1)


@kernel
def wait_prepare(queue):
    """Announce a sleeper; returns the sequence to sleep on. Look at the condition after this, then wait_sleep."""
    fetch_add_u32(queue + WAIT_SLEEPERS, 1)
    return load_acquire_u32(queue + WAIT_SEQUENCE)


@kernel
def wait_sleep(queue, sequence, timeout_ns):
    """Sleep until the sequence moves on, `timeout_ns` at most. Wakes without cause are possible: check again."""
    return futex_wait(queue + WAIT_SEQUENCE, sequence, timeout_ns)


@kernel
def wait_finish(queue):
    """The announced sleeper is done."""
    fetch_add_u32(queue + WAIT_SLEEPERS, -1)


@kernel
def waiters(queue):
    """How many sleepers are announced."""
    return load_acquire_u32(queue + WAIT_SLEEPERS)


@kernel
def wake_up(queue, count):
    """Wake at most `count` sleepers (they are exclusive: one at a time).

    The caller made its condition true and then executed a locked instruction (mutex_unlock, an exchange): that fence is
    the partner of the one in wait_prepare.
    """
    if waiters(queue) > 0:
        fetch_add_u32(queue + WAIT_SEQUENCE, 1)
        futex_wake(queue + WAIT_SEQUENCE, count)
