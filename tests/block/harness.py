"""The block layer without a driver: a queue whose submitters and driver are a test, one call at a time."""

from __future__ import annotations

from typing import Any

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
