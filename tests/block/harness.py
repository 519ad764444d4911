"""The block layer without a driver: a queue whose submitters and driver are a test, one call at a time."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from naive.block_layer import NaiveBlockLayer, Rq
from virtblk.block.bio import BIO_DTYPE, bio_init
from virtblk.block.blk_mq import (
    PLUG_MERGED,
    blk_mq_attempt_plug_merge,
    blk_mq_plug_bio,
    blk_mq_plug_rq,
    blk_mq_sched_insert,
)
from virtblk.block.elevator import (
    blk_peek_request,
    blk_start_request,
    elevator_switch,
    elv_add_request,
    elv_merge,
)
from virtblk.block.plug import BLK_MAX_REQUEST_COUNT, attempt_plug_merge, blk_plug_add, blk_plug_sort
from virtblk.block.request import (
    LIST_PLUG,
    RequestQueue,
    blk_put_request,
    get_request,
    init_request_from_bio,
    list_del,
    list_first,
    list_head,
)
from virtblk.block.request_queue import blk_init_queue
from virtblk.jit.table import Table

CAPACITY = 64
BIOS = 256

#: What a step may be; those from SET on need not be in every test.
SUBMIT, FLUSH, START, END, SET, SWITCH = range(6)
Step = tuple[int, int, int, int, int, int]


def queue(**given: Any) -> RequestQueue:
    """A queue with room for BIOS bios and CAPACITY requests."""
    limits = {"submitters": 2, "max_segs": 128, "max_seg_len": 1 << 20, "max_bytes": 1 << 20, "can_flush": True}
    q = blk_init_queue(Table(BIOS, BIO_DTYPE), Table(BIOS), Table(BIOS), **({"capacity": CAPACITY} | limits | given))
    q.state[0]["nr_requests"] = q.state[0]["capacity"]
    return q


def fresh(q: RequestQueue, op: int, sector: int, size: int, *, bio: int = 0, flags: int = 0, now: int = 0) -> int:
    """A request of one bio, out of the pool and on no list."""
    bio_init(q.bios, bio, op, flags, sector, bio, 1 if size else 0, size, 0)
    rq = int(get_request(q))
    assert rq >= 0
    init_request_from_bio(q, rq, bio, 1 if size else 0, now)
    return rq


def bios_of(q: RequestQueue, rq: int) -> list[int]:
    """The bios of a request, from its first to its last."""
    numbers = [int(q.rq[rq]["bio"])]
    while numbers[-1] != q.rq[rq]["bio_tail"]:
        numbers.append(int(q.bios[numbers[-1]]["next"]))
        assert len(numbers) <= BIOS
    return numbers


def listed(q: RequestQueue, which: int) -> list[int]:
    """The requests on a list; it is sound in both directions."""
    head = int(list_head(q, which))
    there: list[int] = []
    rq = int(q.rq[head]["next"])
    while rq != head:
        there.append(rq)
        rq = int(q.rq[rq]["next"])
    back: list[int] = []
    rq = int(q.rq[head]["prev"])
    while rq != head:
        back.append(rq)
        rq = int(q.rq[rq]["prev"])
    assert back == there[::-1]
    return there


class Block:
    """What driver.request_path does with a queue, without its lock, ring and waits."""

    def __init__(self, **given: Any) -> None:
        self.q = queue(**given)

    def submit(self, sub: int, bio: int, op: int, sector: int, sectors: int, segs: int, now: int, plain: bool) -> str:
        """What became of the bio: plug, elevator, new, or full."""
        q = self.q
        bio_init(q.bios, bio, op, 0, sector, bio, 1, sectors * 512, sub)
        if plain and attempt_plug_merge(q, sub, bio, segs):
            return "plug"
        if plain and elv_merge(q, bio, segs):
            return "elevator"
        rq = int(get_request(q))
        if rq < 0:
            return "full"
        init_request_from_bio(q, rq, bio, segs, now)
        q.rq[rq]["partial"] = 0 if plain else 1
        if q.plugged[sub] == BLK_MAX_REQUEST_COUNT:
            self.flush_plug(sub)
        blk_plug_add(q, sub, rq)
        return "new"

    def flush_plug(self, sub: int) -> None:
        q = self.q
        if q.plugged[sub] > 1:
            blk_plug_sort(q, sub)
        while (rq := int(list_first(q, list_head(q, LIST_PLUG + sub)))) >= 0:
            list_del(q, rq)
            elv_add_request(q, rq)
        q.plugged[sub] = 0

    def start(self, now: int) -> int:
        """The driver takes the next request, or -1."""
        rq = int(blk_peek_request(self.q, now))
        if rq >= 0:
            blk_start_request(self.q, rq)
        return rq

    def end(self, rq: int) -> None:
        blk_put_request(self.q, rq)

    def switch(self, deadline: bool, now: int) -> None:
        elevator_switch(self.q, int(deadline), now)


class BlockMq(Block):
    """What driver.mq_path does with a queue, without its lock, ring, tags and waits."""

    def submit(self, sub: int, bio: int, op: int, sector: int, sectors: int, segs: int, now: int, plain: bool) -> str:
        """What became of the bio: plug, new, or full where the plug has to be emptied first."""
        q = self.q
        bio_init(q.bios, bio, op, 0, sector, bio, 1, sectors * 512, sub)
        if plain and blk_mq_attempt_plug_merge(q, sub, bio, segs) == PLUG_MERGED:
            return "plug"
        if q.plugged[sub] == q.state[0]["plug_size"]:
            return "full"
        rq = blk_mq_plug_bio(q, sub, bio, segs, now)
        q.rq[rq]["partial"] = 0 if plain else 1
        return "new"

    def plugged(self, sub: int) -> list[int]:
        """The records of a plug that are filled."""
        return [int(blk_mq_plug_rq(self.q, sub, k)) for k in range(int(self.q.plugged[sub]))]

    def insert(self, sub: int, first: int) -> int:
        """Put the plug into the scheduler from request `first` on, as far as the pool goes: how many are in then."""
        plugged = self.plugged(sub)
        while first < len(plugged) and blk_mq_sched_insert(self.q, plugged[first]):
            first += 1
        return first


def steps_of(*more: int) -> st.SearchStrategy[list[Step]]:
    """Steps of the first four kinds, and seldom one of `more`: (kind, submitter, op, sector, sectors, segments)."""
    kinds = st.sampled_from([SUBMIT] * 10 + [FLUSH] * 3 + [START] * 3 + [END] * 2 + list(more))
    sectors = st.one_of(st.integers(0, 24), st.integers(0, 1 << 30))
    step = st.tuples(kinds, st.integers(0, 1), st.integers(0, 1), sectors, st.integers(1, 4), st.integers(1, 3))
    return st.lists(step, max_size=120)


class WithTwin:
    """The kernels and their twin, told the same; whatever they answer must be the same."""

    #: What step SET sets, by its sector.
    settings: list[tuple[str, int]]

    def __init__(self, real: Block, twin: NaiveBlockLayer) -> None:
        self.real = real
        self.twin = twin
        self.started: list[tuple[int, Rq]] = []
        self.ended: list[int] = []
        self.submitted = 0
        self.now = 0

    def set(self, name: str, value: int) -> None:
        self.real.q.state[0][name] = value
        setattr(self.twin, name, value)

    def submit(self, sub: int, op: int, sector: int, sectors: int, segs: int, plain: bool) -> None:
        raise NotImplementedError

    def flush(self, sub: int) -> None:
        raise NotImplementedError

    def same(self, rq: int, expected: Rq) -> None:
        """Both have the same request, which is one of bios side by side within the limits."""
        record = self.real.q.rq[rq]
        assert bios_of(self.real.q, rq) == expected.numbers
        assert (record["sector"], record["bytes"]) == (expected.sector, expected.sectors * 512)
        assert (record["op"], record["segs"], record["start_ns"]) == (expected.op, expected.segs, expected.start)
        at = expected.sector
        for bio in expected.bios:
            assert bio.sector == at
            at = bio.end
        assert record["segs"] <= self.twin.max_segs
        assert record["bytes"] <= self.twin.max_bytes

    def start(self) -> None:
        rq, expected = self.real.start(self.now), self.twin.start(self.now)
        if expected is None:
            assert rq == -1
            return
        self.same(rq, expected)
        self.started.append((rq, expected))

    def end(self, which: int) -> None:
        rq, expected = self.started.pop(which % len(self.started))
        self.real.end(rq)
        self.twin.end(expected)
        self.ended += expected.numbers

    def step(self, kind: int, a: int, b: int, sector: int, c: int, d: int) -> None:
        self.now += 1
        if kind == SUBMIT and self.submitted < BIOS:
            self.submit(a, b, sector, c, d, plain=sector % 7 != 6)
        elif kind == FLUSH:
            self.flush(a)
        elif kind == START:
            self.start()
        elif kind == END and self.started:
            self.end(sector)
        elif kind == SET:
            self.set(*self.settings[sector % len(self.settings)])
        elif kind == SWITCH:
            self.real.switch(bool(a), self.now)
            self.twin.switch(bool(a), self.now)
        assert self.real.q.state[0]["in_use"] == self.twin.in_use
        assert self.real.q.state[0]["sorted"] == len(self.twin.fifo)

    def drain(self) -> None:
        """Serve all that is left: every bio ended once, and nothing of it is kept anywhere."""
        for sub in range(2):
            self.empty_plug(sub)
        while self.twin.in_use:
            self.serve_one()
        self.step(START, 0, 0, 0, 1, 1)
        assert sorted(self.ended) == list(range(self.submitted))
        assert (self.real.q.hash == -1).all()
        assert (self.real.q.sort == -1).all()

    def empty_plug(self, sub: int) -> None:
        self.step(FLUSH, sub, 0, 0, 1, 1)

    def serve_one(self) -> None:
        self.step(START, 0, 0, 0, 1, 1)
        self.step(END, 0, 0, 0, 1, 1)
