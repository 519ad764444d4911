"""deadline: batches, directions, deadlines; head travel and expiry on a device that serves one request at a time.

Decisions one by one are in test_elevator.py, against the twin.
"""

from __future__ import annotations

import numpy as np
import pytest

from block.harness import Block, bios_of
from virtblk.block.deadline import FIFO_BATCH, READ_EXPIRE_NS, WRITES_STARVED

READ, WRITE = 0, 1
MS = 1_000_000


def waiting(*bios: tuple[int, int], **settings: int) -> Block:
    """A queue on `deadline` that holds a request of one sector for each (op, sector), inserted a nanosecond apart."""
    block = Block()
    block.switch(True, 0)
    for name, value in settings.items():
        block.q.state[0][name] = value
    for bio, (op, sector) in enumerate(bios):
        block.submit(0, bio, op, sector, 1, 1, bio, True)
        block.flush_plug(0)
    return block


def order(block: Block, now: int = 0) -> list[int]:
    """The first bio of each request, in order of dispatch at time `now`."""
    dispatched = []
    while (rq := block.start(now)) >= 0:
        dispatched += bios_of(block.q, rq)
    return dispatched


def test_a_batch_goes_up_and_the_next_begins_at_the_oldest() -> None:
    assert order(waiting((READ, 50), (READ, 90), (READ, 10), (READ, 70))) == [0, 3, 1, 2]


def test_reads_go_first_until_writes_starved() -> None:
    reads = [(READ, 100 * n) for n in range(8)]
    writes = [(WRITE, 1000 + 100 * n) for n in range(4)]
    for starved in (0, 1, 2, 5):
        dispatched = order(waiting(*reads, *writes, writes_starved=starved, fifo_batch=1))
        kinds = "".join("w" if bio >= len(reads) else "r" for bio in dispatched)
        assert kinds.startswith(("r" * starved + "w") * (len(reads) // max(starved, 1) if starved > 2 else 3))
        assert sorted(dispatched) == list(range(12))


def test_only_an_expired_request_interrupts_the_sweep() -> None:
    reads = [(READ, 500), (READ, 5), *((READ, 600 + 10 * n) for n in range(4))]
    assert order(waiting(*reads, fifo_batch=2, read_expire=1000), 100) == [0, 2, 3, 4, 5, 1]
    assert order(waiting(*reads, fifo_batch=2, read_expire=1), 100) == [0, 2, 1, 3, 4, 5]


@pytest.mark.parametrize("fifo_batch", [1, 4, FIFO_BATCH])
def test_an_expired_read_waits_for_one_batch_at_most_however_many_pass_it(fifo_batch: int) -> None:
    """Reads that always come just ahead of the head would keep one behind it waiting for ever."""
    block = Block()
    block.switch(True, 0)
    block.q.state[0]["fifo_batch"] = fifo_batch
    block.q.state[0]["read_expire"] = 50
    ahead = iter(range(1000, 100_000, 10))
    numbers = iter(range(200))
    for _ in range(3):
        block.submit(0, next(numbers), READ, next(ahead), 1, 1, 0, True)
        block.flush_plug(0)
    assert bios_of(block.q, block.start(0)) == [0]
    victim = next(numbers)
    block.submit(0, victim, READ, 3, 1, 1, 1, True)
    served = 0
    for now in range(2, 150):
        block.submit(0, next(numbers), READ, next(ahead), 1, 1, now, True)
        block.flush_plug(0)
        rq = block.start(now)
        served += now > 1 + 50
        if victim in bios_of(block.q, rq):
            break
        block.end(rq)
    assert victim in bios_of(block.q, rq)
    assert now >= 1 + 50  # not before: the sweep goes on for as long as nobody is late
    assert served <= fifo_batch


def serve(deadline: bool, count: int, **settings: int) -> tuple[int, list[tuple[int, int]]]:
    """Serve `count` random reads one after the other, 32 waiting at any time: 4 KiB of 8 GiB, 1 to 9 ms each.

    Returns the head's travel in sectors, and for each read how many others were served between its expiry and itself,
    with how many may have been: the rest of a batch, and a batch for each expired read that was older.
    """
    block = Block(max_segs=1)
    block.switch(deadline, 0)
    for name, value in settings.items():
        block.q.state[0][name] = value
    expire, batch = (int(block.q.state[0][name]) for name in ("read_expire", "fifo_batch"))
    rng = np.random.default_rng(11)
    now = head = travel = 0
    came: dict[int, int] = {}
    late: dict[int, list[int]] = {}
    ended: list[tuple[int, int]] = []
    free = list(range(32))
    for _ in range(count):
        for bio in free:
            block.submit(0, bio, READ, int(rng.integers(1 << 21)) * 8, 8, 1, now, True)
            came[bio] = now
        block.flush_plug(0)
        rq = block.start(now)
        free = bios_of(block.q, rq)
        (bio,) = free
        distance = abs(int(block.q.rq[rq]["sector"]) - head)
        head += distance if block.q.rq[rq]["sector"] > head else -distance
        travel += distance
        del came[bio]
        ended.append(tuple(late.pop(bio, (0, batch))))  # type: ignore[arg-type]
        for other, since in came.items():
            if other in late:
                late[other][0] += 1
            elif now >= since + expire:
                late[other] = [0, batch * (1 + sum(elder < since for elder in came.values()))]
        now += MS + 8 * MS * distance // (1 << 24)
        block.end(rq)
    return travel, ended


def test_deadline_travels_less_than_noop_and_no_read_is_late_by_more_than_a_batch() -> None:
    """The issue's 'Elevator correctness', with Linux's settings and with deadlines that do run out."""
    count = 600
    noop, _ = serve(False, count)
    deadline, ended = serve(True, count)
    assert deadline < noop / 2
    assert max(late for late, _ in ended) <= FIFO_BATCH
    hasty, ended = serve(True, count, read_expire=60 * MS, fifo_batch=4)
    assert deadline < hasty < noop
    assert sum(late > 0 for late, _ in ended) > 10
    assert all(late <= bound for late, bound in ended)


def test_defaults_are_linuxs() -> None:
    state = Block().q.state[0]
    assert (state["read_expire"], state["write_expire"]) == (500 * MS, 5000 * MS) == (READ_EXPIRE_NS, 5000 * MS)
    assert (state["writes_starved"], state["fifo_batch"], state["front_merges"]) == (2, 16, 1)
    assert (WRITES_STARVED, FIFO_BATCH) == (2, 16)
