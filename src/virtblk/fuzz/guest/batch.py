"""Offer a batch of requests, wait for the answers, judge them: one loop that stays compiled for thousands of batches.

While the thread waits it changes the words that requests have armed (double fetches): the device's own thread is the
one that reads them meanwhile. Called by `fuzz.guest_attack` on a thread of its own; every wait has a bound.
"""

from __future__ import annotations

from virtblk.fuzz.guest.generate import MAX_SECTORS, make_read, make_request, make_write
from virtblk.fuzz.guest.request import slot_address
from virtblk.fuzz.guest.state import (
    BAD_STATUS,
    CANARY,
    DATA_AT,
    DESC_CHANGED,
    DISK_CHANGED,
    DONE,
    EXPECT_ANY,
    EXPECT_OK,
    EXPECT_REFUSAL,
    FOUND,
    MEMORY_CHANGED,
    RANGES,
    RECREATE,
    SLOT_BYTES,
    SLOT_DESCS,
    STALLED,
    STATUS_AT,
    USED_AHEAD,
    USED_ID,
    USED_LEN,
)
from virtblk.jit.arith import mix64, vring_need_event
from virtblk.jit.atomics import (
    cpu_pause,
    fence_seq_cst,
    load_acquire_i64,
    load_acquire_u16,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    store_i64,
    store_release_u16,
    store_u16,
    store_u32,
)
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.libc import clock_ns, eventfd_signal, poll_in2, sched_yield
from virtblk.jit.memory import copy
from virtblk.uapi.virtio_blk import SECTOR_SIZE, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP
from virtblk.uapi.virtio_ring import (
    AVAIL_FLAGS,
    AVAIL_IDX,
    AVAIL_RING,
    DESC_SIZE,
    USED_ELEM_ID,
    USED_ELEM_LEN,
    USED_ELEM_SIZE,
    USED_FLAGS,
    USED_IDX,
    USED_RING,
    VRING_USED_F_NO_NOTIFY,
)

#: Looks at the used index between two looks at the clock.
SPINS_PER_CLOCK = 64
#: Spinning after which the core is given away.
SPIN_NS = 100_000
#: What `drive` does.
SEEDS = 0
MAKE = 1
OFFER = 2
GUARD_WRITE = 3
GUARD_CHECK = 4
LOOP = 5
JUDGE = 6
WORDS_PER_SECTOR = SECTOR_SIZE // 8


@kernel
def report(g, finding, slot, at, value):
    """Keep the first finding; returns FOUND."""
    if g.state[0]["finding"] == 0:
        g.state[0]["finding"] = finding
        g.state[0]["finding_slot"] = slot
        g.state[0]["finding_at"] = at
        g.state[0]["finding_value"] = value
    return FOUND


@kernel
def guard_word(sector, word):
    """What a guarded sector holds at its 64-bit word `word`."""
    return mix64(sector * WORDS_PER_SECTOR + word)


@cold_kernel
def batch_seeds(g, batch):
    """The seeds of batch number `batch`; returns how many requests it has."""
    first = mix64(g.state[0]["seed"] + batch)
    count = 1 + first % g.state[0]["slots"]
    for i in range(count):
        g.seeds[i] = mix64((first >> 2) + i) >> 1
    return count


@kernel
def make_batch(g, count):
    """Make the requests of `seeds`, one per slot."""
    g.state[0]["count"] = count
    g.state[0]["breaking"] = 0
    g.state[0]["mutated"] = 0
    g.state[0]["wild"] = 0
    g.state[0]["jump"] = 0
    g.state[0]["flips"] = 0
    for s in range(count):
        make_request(g, s, g.seeds[s])
    # What a batch before this one left in the other slots' descriptors is part of it: chains may lead there.
    copy(g.state[0]["descs_at"], g.state[0]["desc"], g.state[0]["num"] * DESC_SIZE)


@cold_kernel
def guard_writes(g, sector, count):
    """Make sound writes of guarded sectors of a batch of sound requests."""
    for s in range(count):
        for word in range(WORDS_PER_SECTOR):
            store_i64(slot_address(g, s) + DATA_AT + 8 * word, guard_word(sector + s, word))
        make_write(g, s, sector + s)
    copy(g.state[0]["descs_at"], g.state[0]["desc"], g.state[0]["num"] * DESC_SIZE)


@cold_kernel
def guard_reads(g, sector, count):
    """Make sound reads of guarded sectors of a batch of sound requests."""
    for s in range(count):
        make_read(g, s, sector + s * MAX_SECTORS)
    copy(g.state[0]["descs_at"], g.state[0]["desc"], g.state[0]["num"] * DESC_SIZE)


@kernel
def publish(g):
    """Offer the batch; returns how many answers are due. Kicks if the device wants it, now and then without."""
    avail = g.state[0]["avail"]
    num = g.state[0]["num"]
    old = g.state[0]["idx"]
    idx = old
    for s in range(g.state[0]["count"]):
        head = g.slots[s]["head"]
        for _ in range(g.slots[s]["pushes"]):
            store_u16(avail + AVAIL_RING + 2 * (idx & (num - 1)), head)
            idx = (idx + 1) & 0xFFFF
        if head < num:
            g.out[head] += g.slots[s]["pushes"]
    due = (idx - old) & 0xFFFF
    idx = (idx + g.state[0]["jump"]) & 0xFFFF
    # Any value means something, and none may cost an answer.
    event = mix64(g.seeds[0])
    if g.state[0]["mutate"]:
        store_u16(avail + AVAIL_RING + 2 * num, event & 0xFFFF)
        store_u16(avail + AVAIL_FLAGS, event >> 16 & 1)
        g.hits[43] += 1
    store_release_u16(avail + AVAIL_IDX, idx)
    g.state[0]["idx"] = idx
    fence_seq_cst()  # partner: the device's, between asking for a kick and its last look at the index
    used = g.state[0]["used"]
    if g.state[0]["event_idx"]:
        wanted = vring_need_event(load_u16(used + USED_RING + USED_ELEM_SIZE * num), idx, old)
    else:
        wanted = load_u16(used + USED_FLAGS) & VRING_USED_F_NO_NOTIFY == 0
    if wanted or event >> 20 & 7 == 0 or g.state[0]["breaking"]:
        eventfd_signal(g.state[0]["kick_fd"])
    return due


@kernel
def flip(g, round_number):
    """Give each armed word its other value."""
    for n in range(g.state[0]["flips"]):
        value = g.flips[n]["second"] if round_number & 1 == 0 else g.flips[n]["first"]
        if g.flips[n]["width"] == 8:
            store_i64(g.flips[n]["addr"], value)
        elif g.flips[n]["width"] == 4:
            store_u32(g.flips[n]["addr"], value)
        else:
            store_u16(g.flips[n]["addr"], value)


@kernel
def take_used(g, count):
    """Look at `count` new elements of the used ring: DONE or FOUND."""
    num = g.state[0]["num"]
    ring = g.state[0]["used"] + USED_RING
    for _ in range(count):
        at = g.state[0]["used_idx"]
        head = load_u32(ring + USED_ELEM_SIZE * (at & (num - 1)) + USED_ELEM_ID)
        length = load_u32(ring + USED_ELEM_SIZE * (at & (num - 1)) + USED_ELEM_LEN)
        g.state[0]["used_idx"] = (at + 1) & 0xFFFF
        g.state[0]["answered"] += 1
        if head >= num or g.out[head] <= 0:
            return report(g, USED_ID, head // SLOT_DESCS, 0, head)
        g.out[head] -= 1
        s = head // SLOT_DESCS
        if s < g.state[0]["count"] and g.slots[s]["head"] == head and g.slots[s]["writable"] >= 0:
            if length > g.slots[s]["writable"]:
                return report(g, USED_LEN, s, 0, length)
    return DONE


@kernel
def await_answers(g, due):
    """Wait until `due` answers came: DONE, FOUND, RECREATE, STALLED."""
    at = g.state[0]["used"] + USED_IDX
    unreliable = g.state[0]["wild"] != 0 or g.state[0]["jump"] != 0
    breaking = g.state[0]["breaking"] != 0
    outstanding = due
    patience = g.state[0]["timeout_ns"]
    if breaking:
        patience = g.state[0]["stall_ns"]
    elif g.state[0]["mutated"]:
        patience = min(patience, g.state[0]["mutated_ns"])
    spins = 0
    began = clock_ns()
    last = began
    while outstanding > 0 or unreliable:
        if g.state[0]["flips"]:
            flip(g, spins)
        new = (load_acquire_u16(at) - g.state[0]["used_idx"]) & 0xFFFF  # partner: the device's release of used->idx
        if new and not unreliable:
            if new > outstanding:
                return report(g, USED_AHEAD, 0, 0, new - outstanding)
            if take_used(g, new) == FOUND:
                return FOUND
            outstanding -= new
            last = clock_ns()
            continue
        spins += 1
        if spins % SPINS_PER_CLOCK:
            cpu_pause()
            continue
        now = clock_ns()
        if breaking and poll_in2(g.state[0]["err_fd"], -1, 0) == 1:
            break
        if now - last > patience:
            break
        if load_acquire_i64(g.state[0]["stop"]) and now - last > g.state[0]["stall_ns"]:
            break
        if now - last > SPIN_NS:
            sched_yield()
    g.state[0]["outstanding"] = outstanding
    if unreliable:
        return RECREATE
    if outstanding == 0:
        return DONE
    return RECREATE if breaking else STALLED


@cold_kernel
def may_write(g, s, address):
    """Whether the device may write this byte: for the request of slot `s`, or for any other of the batch."""
    for n in range(g.slots[s]["ranges"]):
        if g.ranges[s * RANGES + n]["start"] <= address < g.ranges[s * RANGES + n]["end"]:
            return True
    for other in range(g.state[0]["count"]):
        for n in range(g.slots[other]["ranges"]):
            if g.ranges[other * RANGES + n]["start"] <= address < g.ranges[other * RANGES + n]["end"]:
                return True
    for n in range(g.state[0]["flips"]):
        if g.flips[n]["addr"] <= address < g.flips[n]["addr"] + g.flips[n]["width"]:
            return True
    return False


@cold_kernel
def changed_word(g, s, now, then, address):
    """Whether a word that is not what it was holds a byte that nobody may have written."""
    for byte in range(8):
        if (now >> 8 * byte & 0xFF) != (then >> 8 * byte & 0xFF) and not may_write(g, s, address + byte):
            return True
    return False


@kernel
def check_memory(g):
    """Nothing of the slots and the descriptor table has changed but what may: DONE or FOUND."""
    if g.state[0]["wild"]:
        return DONE
    for s in range(g.state[0]["count"]):
        base = slot_address(g, s)
        first = s * SLOT_BYTES // 8
        for word in range(SLOT_BYTES // 8):
            now = load_i64(base + 8 * word)
            then = g.shadow[first + word]
            if now != then and changed_word(g, s, now, then, base + 8 * word):
                return report(g, MEMORY_CHANGED, s, 8 * word, now)
    desc = g.state[0]["desc"]
    for word in range(2 * g.state[0]["num"]):
        now = load_i64(desc + 8 * word)
        then = g.descs[word]
        if now != then and changed_word(g, 0, now, then, desc + 8 * word):
            return report(g, DESC_CHANGED, word // 2 // SLOT_DESCS, 8 * word, now)
    return DONE


@kernel
def check_data(g, s):
    """What a read of guarded sectors brought: DONE or FOUND."""
    at = slot_address(g, s) + DATA_AT
    sector = g.slots[s]["sector"]
    for k in range(g.slots[s]["sectors"] * WORDS_PER_SECTOR):
        if load_i64(at + 8 * k) != guard_word(sector + k // WORDS_PER_SECTOR, k % WORDS_PER_SECTOR):
            return report(g, DISK_CHANGED, s, 8 * k, sector)
    return DONE


@kernel
def check_answers(g):
    """Statuses and guarded data of a batch that was answered: DONE or FOUND."""
    for s in range(g.state[0]["count"]):
        expected = g.slots[s]["expect"]
        if expected == EXPECT_ANY:
            continue
        status = load_u8(slot_address(g, s) + STATUS_AT)
        refused = VIRTIO_BLK_S_OK < status <= VIRTIO_BLK_S_UNSUPP
        if (expected == EXPECT_OK and status != VIRTIO_BLK_S_OK) or (expected == EXPECT_REFUSAL and not refused):
            return report(g, BAD_STATUS, s, 0, status)
        if g.slots[s]["guard"] and check_data(g, s) == FOUND:
            return FOUND
    return DONE


@kernel
def offer_batch(g):
    """The batch that was made, from the offer to the verdict."""
    due = publish(g)
    code = await_answers(g, due)
    g.state[0]["requests"] += due
    g.state[0]["mutations"] += g.state[0]["mutated"]
    g.state[0]["batches"] += 1
    if code != DONE:
        return code  # the ring is still the device's: nothing can be judged before it is stopped
    if check_memory(g) == FOUND:
        return FOUND
    return check_answers(g)


@cold_kernel
def drive(g, what, first, second):
    """The one way in, since each would be compiled with all that it reaches.

    SEEDS: fill `seeds` with those of batch number `first`; returns how many. MAKE: make, and do not offer, the requests
    of the first `second` seeds. OFFER: offer them too. GUARD_WRITE, GUARD_CHECK: write `second` guarded sectors from
    sector `first` on; read and check MAX_SECTORS times as many. LOOP: batch after batch until the time `first`
    (clock_ns), until `second` more requests were sent, or until something happens. JUDGE: look at the memory of a batch
    whose ring the device has given back. All but SEEDS return DONE, RECREATE, STALLED or FOUND.
    """
    if what == SEEDS:
        return batch_seeds(g, first)
    if what == JUDGE:
        return check_memory(g)
    end = g.state[0]["requests"] + second
    count = second
    code = DONE
    while code == DONE:
        if what == LOOP:
            if clock_ns() >= first or g.state[0]["requests"] >= end or load_acquire_i64(g.state[0]["stop"]):
                break
            g.state[0]["batch"] += 1
            count = batch_seeds(g, g.state[0]["batch"])
        make_batch(g, count)
        if what == MAKE:
            break
        if what == GUARD_WRITE:
            guard_writes(g, first, count)
        elif what == GUARD_CHECK:
            guard_reads(g, first, count)
        code = offer_batch(g)
        if what != LOOP:
            break
    return code


assert CANARY > VIRTIO_BLK_S_UNSUPP
