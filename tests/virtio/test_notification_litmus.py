"""No notification is lost between two threads, one that sleeps and one that publishes (2.7.13.4.1, and its mirrors).

One thread asks to be notified, looks at the ring once more, and sleeps; the other publishes, then looks whether it is
to notify. Each stores, then loads what the other stores; without a full fence on both sides both loads may come too
early, and both threads wait for ever. Here whoever sleeps finds out: the other has published, has decided, and no
notification came. Random delays bring the two together; without the fences thousands are lost in the same time.
"""

from __future__ import annotations

import os
import threading
import time

import pytest

from conftest import INTERPRETED
from virtblk.jit.arith import mix64, vring_need_event
from virtblk.jit.atomics import (
    cpu_pause,
    fetch_add_i64,
    load_acquire_i64,
    load_i64,
    load_u16,
    store_release_i64,
    store_u16,
)
from virtblk.jit.kernel import kernel
from virtblk.jit.libc import sched_yield
from virtblk.mem.shm import Words
from virtblk.uapi.virtio_ring import AVAIL_FLAGS, AVAIL_RING, USED_ELEM_SIZE, USED_FLAGS, USED_RING
from virtblk.virtio.virtio_ring_split import (
    virtqueue_add_direct,
    virtqueue_disable_cb,
    virtqueue_enable_cb,
    virtqueue_get_buf,
    virtqueue_kick_prepare,
    virtqueue_more_used,
)
from virtblk.virtio.vringh_split import (
    vringh_add_used,
    vringh_available,
    vringh_getdesc,
    vringh_need_notify,
    vringh_notify_disable,
    vringh_notify_enable,
    vringh_publish_used,
)
from virtio.halves import CompiledDevice, CompiledDriver, World, numbers
from waiting import PATIENCE

# Words, one on each cache line.
NOTIFIED = 0  # notifications sent: the eventfd
DECIDED = 64  # requests published for which the publisher has decided whether to notify
LOST = 128  # the sleeper slept, and nobody would ever have woken it
SLEPT = 192  # how often it slept


@kernel
def kick_prepare_unfenced(vq):
    """virtqueue_kick_prepare without its fence."""
    new = vq.state[0]["avail_idx"]
    old = vq.state[0]["kicked_idx"]
    vq.state[0]["kicked_idx"] = new
    used = vq.state[0]["used"]
    if vq.state[0]["event_idx"]:
        return vring_need_event(load_u16(used + USED_RING + USED_ELEM_SIZE * vq.state[0]["num"]), new, old)
    return (load_u16(used + USED_FLAGS) & 1) == 0


@kernel
def notify_enable_unfenced(vr):
    """vringh_notify_enable without its fence."""
    used = vr.state[0]["used"]
    if vr.state[0]["event_idx"]:
        store_u16(used + USED_RING + USED_ELEM_SIZE * vr.state[0]["num"], vr.state[0]["last_avail"])
    else:
        store_u16(used + USED_FLAGS, 0)
    return vringh_available(vr) == 0


@kernel
def enable_cb_unfenced(vq):
    """virtqueue_enable_cb without its fence."""
    avail = vq.state[0]["avail"]
    if vq.state[0]["event_idx"]:
        store_u16(avail + AVAIL_RING + 2 * vq.state[0]["num"], vq.state[0]["last_used"])
    else:
        store_u16(avail + AVAIL_FLAGS, 0)
    return not virtqueue_more_used(vq)


@kernel
def need_notify_unfenced(vr):
    """vringh_need_notify without its fence."""
    new = vr.state[0]["used_idx"]
    old = vr.state[0]["signalled"]
    vr.state[0]["signalled"] = new
    avail = vr.state[0]["avail"]
    if vr.state[0]["event_idx"]:
        return vring_need_event(load_u16(avail + AVAIL_RING + 2 * vr.state[0]["num"]), new, old)
    return new != old and (load_u16(avail + AVAIL_FLAGS) & 1) == 0


@kernel
def relax(turn):
    """While spinning: give the core away now and then, for there may be only one."""
    if turn & 1023 == 1023:
        sched_yield()
    else:
        cpu_pause()
    return turn + 1


@kernel
def dally(seed):
    """Up to 15 pauses, so that the two threads meet in every possible way."""
    for _ in range(mix64(seed) & 15):
        cpu_pause()


@kernel
def sleep(words, seen, finished):
    """Block until NOTIFIED moves on from `seen`; returns where it is. `finished` requests are behind us.

    Nobody would ever wake us if the publisher has decided about a later one and NOTIFIED stands still: count that as
    lost, and go on.
    """
    fetch_add_i64(words + SLEPT, 1)
    turn = 0
    while load_acquire_i64(words + NOTIFIED) == seen:
        if load_acquire_i64(words + DECIDED) > finished and load_acquire_i64(words + NOTIFIED) == seen:
            fetch_add_i64(words + LOST, 1)
            break
        turn = relax(turn)
    return load_i64(words + NOTIFIED)


@kernel
def kicking_driver(vq, sg_addr, sg_len, words, rounds, seed, fenced):
    """One request at a time: add, kick if wanted, poll for its end."""
    for n in range(1, rounds + 1):
        dally(seed + n)
        virtqueue_add_direct(vq, sg_addr, sg_len, 0, 0, 1, n, 8)
        if virtqueue_kick_prepare(vq) if fenced else kick_prepare_unfenced(vq):
            fetch_add_i64(words + NOTIFIED, 1)
        store_release_i64(words + DECIDED, n)
        turn = 0
        while True:
            token, _ = virtqueue_get_buf(vq)
            if token == n:
                break
            turn = relax(turn)


@kernel
def sleeping_device(vr, mem, words, rounds, seed, fenced):
    """Sleep until kicked, then finish what is there; a spurious kick finds nothing."""
    finished = 0
    seen = 0
    while finished < rounds:
        dally(-seed - finished)
        if vringh_notify_enable(vr) if fenced else notify_enable_unfenced(vr):
            seen = sleep(words, seen, finished)
        vringh_notify_disable(vr)
        while True:
            head = vringh_getdesc(vr, mem, 0)
            if head < 0:
                break
            vringh_add_used(vr, head, 1)
            finished += 1
        vringh_publish_used(vr)


@kernel
def interrupting_device(vr, mem, words, rounds, seed, fenced):
    """Poll for a request, finish it, interrupt if wanted."""
    for n in range(1, rounds + 1):
        turn = 0
        while True:
            head = vringh_getdesc(vr, mem, 0)
            if head >= 0:
                break
            turn = relax(turn)
        dally(seed + n)
        vringh_add_used(vr, head, 1)
        vringh_publish_used(vr)
        if vringh_need_notify(vr) if fenced else need_notify_unfenced(vr):
            fetch_add_i64(words + NOTIFIED, 1)
        store_release_i64(words + DECIDED, n)


@kernel
def sleeping_driver(vq, sg_addr, sg_len, words, rounds, seed, fenced):
    """One request at a time: add, sleep until interrupted, reap; a spurious interrupt finds nothing."""
    seen = 0
    for n in range(1, rounds + 1):
        virtqueue_add_direct(vq, sg_addr, sg_len, 0, 0, 1, n, 8)
        dally(-seed - n)
        while True:
            if virtqueue_enable_cb(vq) if fenced else enable_cb_unfenced(vq):
                seen = sleep(words, seen, n - 1)
            virtqueue_disable_cb(vq)
            token, _ = virtqueue_get_buf(vq)
            if token == n:
                break


def lost(what: str, event_idx: bool, rounds: int, seed: int, fenced: bool) -> tuple[int, int]:
    """Run both threads on a fresh ring: (notifications lost, sleeps)."""
    with World(4, [(0, 2 << 20)], event_idx=event_idx, base=65500) as world:
        driver, device = CompiledDriver(world), CompiledDevice(world, event_idx=event_idx, base=65500)
        words = Words(4)
        address = words.address(0)
        addr, length = numbers(world.data), numbers(8)
        driver_loop, device_loop = {
            "kick": (kicking_driver, sleeping_device),
            "interrupt": (sleeping_driver, interrupting_device),
        }[what]

        def drive(rounds: int) -> None:
            driver_loop(driver.vq, addr, length, address, rounds, seed, fenced)

        def serve(rounds: int) -> None:
            device_loop(device.vr, device.mem, address, rounds, seed, fenced)

        drive(0)  # compiled before threads start
        serve(0)
        thread = threading.Thread(target=serve, args=(rounds,))
        thread.start()
        drive(rounds)
        thread.join()
        return load_i64(address + LOST), load_i64(address + SLEPT)


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("what", ["kick", "interrupt"])
def test_no_notification_is_lost(what: str, event_idx: bool) -> None:
    end = time.monotonic() + 0.7
    slept = seed = 0
    while time.monotonic() < end or (slept == 0 and time.monotonic() < end + PATIENCE):
        seed += 1_000_000
        missed, more = lost(what, event_idx, 10 if INTERPRETED else 3_000, seed, True)
        assert missed == 0
        slept += more
    assert slept > 0


@pytest.mark.compiled
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two cores")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("what", ["kick", "interrupt"])
def test_without_the_fences_one_is_lost(what: str, event_idx: bool) -> None:
    """So the test above can fail."""
    end = time.monotonic() + 5
    seed = 0
    while time.monotonic() < end:
        seed += 1_000_000
        if lost(what, event_idx, 3_000, seed, False)[0]:
            return
    pytest.skip("this machine did not let a load overtake a store: two idle cores would")
