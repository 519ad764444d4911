"""Plug, merging, noop and deadline the slow and obvious way: plain lists, searched and sorted anew each time."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

READ, WRITE = 0, 1
PLUG_FULL = 16


@dataclass(eq=False)
class Bio:
    number: int
    op: int
    sector: int
    sectors: int
    segs: int = 1

    @property
    def end(self) -> int:
        return self.sector + self.sectors


@dataclass(eq=False)
class Rq:
    bios: list[Bio]
    start: int
    plain: bool = True  # False: it may not merge
    deadline: int = 0
    stamp: int = 0  # when it was put into the sort order
    tagged: bool = False  # the mq path's: never in the elevator

    @property
    def op(self) -> int:
        return self.bios[0].op

    @property
    def sector(self) -> int:
        return self.bios[0].sector

    @property
    def end(self) -> int:
        return self.bios[-1].end

    @property
    def sectors(self) -> int:
        return sum(bio.sectors for bio in self.bios)

    @property
    def segs(self) -> int:
        return sum(bio.segs for bio in self.bios)

    @property
    def numbers(self) -> list[int]:
        return [bio.number for bio in self.bios]


@dataclass
class NaiveBlockLayer:
    """Requests of `max_segs` entries and `max_bytes` bytes at most. Times are whatever the caller counts in."""

    submitters: int = 1
    max_segs: int = 128
    max_bytes: int = 1 << 20
    nr_requests: int = 128
    nomerges: int = 0
    deadline: bool = False
    read_expire: int = 500_000_000
    write_expire: int = 5_000_000_000
    writes_starved: int = 2
    fifo_batch: int = 16
    front_merges: int = 1
    dispatch: list[Rq] = field(default_factory=list)
    driver: list[Rq] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plugs: list[list[Rq]] = [[] for _ in range(self.submitters)]
        self.fifo: list[Rq] = []  # noop: everything; deadline: both directions, in order of deadlines
        self.hashed: list[Rq] = []  # the latest first
        self.last_merge: Rq | None = None
        self.next: list[Rq | None] = [None, None]
        self.batching = self.starved = 0
        self.stamps = count()

    @property
    def in_use(self) -> int:
        return sum(map(len, self.plugs)) + len(self.fifo) + len(self.dispatch) + len(self.driver)

    # Merging.

    def way(self, rq: Rq, bio: Bio) -> str:
        """How the bio may join the request: back, front or not at all."""
        if not rq.plain or rq.op != bio.op:
            return ""
        if rq.segs + bio.segs > self.max_segs or (rq.sectors + bio.sectors) * 512 > self.max_bytes:
            return ""
        return "back" if rq.end == bio.sector else "front" if bio.end == rq.sector else ""

    def joins(self, rq: Rq, following: Rq) -> bool:
        """Whether `following` may be appended to the request."""
        if not rq.plain or not following.plain or rq.op != following.op or rq.end != following.sector:
            return False
        return rq.segs + following.segs <= self.max_segs and (rq.sectors + following.sectors) * 512 <= self.max_bytes

    def take(self, rq: Rq, bio: Bio, way: str) -> None:
        rq.bios.insert(len(rq.bios) if way == "back" else 0, bio)

    def rehash(self, rq: Rq) -> None:
        self.hashed.remove(rq)
        self.hashed.insert(0, rq)

    def in_order(self, direction: int) -> list[Rq]:
        """The requests of a direction by sector, those of one sector in the order in which they came."""
        return sorted((rq for rq in self.fifo if rq.op == direction), key=lambda rq: (rq.sector, rq.stamp))

    def neighbour(self, rq: Rq, step: int) -> Rq | None:
        line = self.in_order(rq.op) if self.deadline else self.fifo
        at = line.index(rq) + step
        return line[at] if 0 <= at < len(line) else None

    def merge_requests(self, rq: Rq, following: Rq) -> None:
        """Both in the elevator: the second becomes part of the first."""
        after = self.neighbour(following, 1) if self.deadline else None
        rq.start = min(rq.start, following.start)
        if self.deadline:
            if following.deadline < rq.deadline:
                rq.deadline = following.deadline
                self.fifo.remove(rq)
                self.fifo.insert(self.fifo.index(following), rq)
            if self.next[following.op] is following:
                self.next[following.op] = after
        self.fifo.remove(following)
        self.hashed.remove(following)
        rq.bios += following.bios
        self.rehash(rq)
        self.last_merge = rq

    def merged(self, rq: Rq, way: str) -> None:
        """A request of the elevator grew: look whether it now meets its neighbour."""
        if way == "front":
            rq.stamp = next(self.stamps)
            former = self.neighbour(rq, -1)
            if former and self.joins(former, rq):
                self.merge_requests(former, rq)
                return
        else:
            self.rehash(rq)
            latter = self.neighbour(rq, 1)
            if latter and self.joins(rq, latter):
                self.merge_requests(rq, latter)
                return
        self.last_merge = rq

    def front_candidates(self, bio: Bio) -> list[Rq]:
        return [rq for rq in self.fifo if rq.op == bio.op and rq.sector == bio.end]

    def elevator_takes(self, bio: Bio) -> bool:
        if not self.fifo or self.nomerges == 2:
            return False
        if self.last_merge and (way := self.way(self.last_merge, bio)):
            self.take(rq := self.last_merge, bio, way)
            self.merged(rq, way)
            return True
        if self.nomerges == 1:
            return False
        ending = [rq for rq in self.hashed if rq.end == bio.sector]
        if ending and self.way(ending[0], bio) == "back":
            self.take(ending[0], bio, "back")
            self.merged(ending[0], "back")
            return True
        if self.deadline and self.front_merges:
            for rq in self.front_candidates(bio)[:1]:
                if self.way(rq, bio) == "front":
                    self.take(rq, bio, "front")
                    self.merged(rq, "front")
                    return True
        return False

    # Submitting.

    def submit(self, sub: int, bio: Bio, now: int, *, plain: bool = True) -> str:
        """What became of the bio: plug, elevator, new, or full."""
        if plain and self.nomerges < 2:
            for rq in reversed(self.plugs[sub]):
                if way := self.way(rq, bio):
                    self.take(rq, bio, way)
                    return "plug"
        if plain and self.elevator_takes(bio):
            return "elevator"
        if self.in_use >= self.nr_requests:
            return "full"
        if len(self.plugs[sub]) == PLUG_FULL:
            self.flush_plug(sub)
        self.plugs[sub].append(Rq([bio], now, plain))
        return "new"

    def flush_plug(self, sub: int) -> None:
        for rq in sorted(self.plugs[sub], key=lambda rq: rq.sector):
            self.insert(rq)
        self.plugs[sub] = []

    def insert(self, rq: Rq) -> None:
        if self.fifo and self.nomerges < 2 and rq.plain:
            ending = [other for other in self.hashed if other.end == rq.sector]
            for into in [self.last_merge, *(ending[:1] if self.nomerges == 0 else [])]:
                if into and self.joins(into, rq):
                    into.bios += rq.bios
                    into.start = min(into.start, rq.start)
                    self.merged(into, "back")
                    return
        if rq.plain:
            self.hashed.insert(0, rq)
            self.last_merge = self.last_merge or rq
        rq.stamp = next(self.stamps)
        rq.deadline = rq.start + (self.read_expire if rq.op == READ else self.write_expire)
        self.fifo.append(rq)

    # Dispatching.

    def choose(self, now: int) -> Rq | None:
        if not self.deadline:
            return self.fifo[0] if self.fifo else None
        waiting = [[rq for rq in self.fifo if rq.op == direction] for direction in (READ, WRITE)]
        going_on = self.next[WRITE] or self.next[READ]
        if going_on and self.batching < self.fifo_batch:
            return going_on
        if not waiting[READ] and not waiting[WRITE]:
            return None
        direction = READ if waiting[READ] else WRITE
        if waiting[READ] and waiting[WRITE]:
            if self.starved >= self.writes_starved:
                direction = WRITE
            self.starved += 1
        if direction == WRITE:
            self.starved = 0
        self.batching = 0
        oldest = waiting[direction][0]
        following = self.next[direction]
        return oldest if oldest.deadline <= now or following is None else following

    def to_dispatch(self, now: int) -> bool:
        rq = self.choose(now)
        if rq is None:
            return False
        if self.deadline:
            self.batching += 1
            self.next = [None, None]
            self.next[rq.op] = self.neighbour(rq, 1)
        self.fifo.remove(rq)
        if rq in self.hashed:
            self.hashed.remove(rq)
        if self.last_merge is rq:
            self.last_merge = None
        self.dispatch.append(rq)
        return True

    def start(self, now: int) -> Rq | None:
        """The driver takes the next request."""
        if not self.dispatch and not self.to_dispatch(now):
            return None
        self.driver.append(self.dispatch.pop(0))
        return self.driver[-1]

    def end(self, rq: Rq) -> None:
        self.driver.remove(rq)

    def switch(self, deadline: bool, now: int) -> None:
        while self.to_dispatch(now):
            pass
        self.deadline = deadline
        self.last_merge = None
        self.batching = self.starved = 0
