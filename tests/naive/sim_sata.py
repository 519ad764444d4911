"""The drive of `sim:sata` the slow and obvious way: objects, and lists that are searched anew each time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES = 0, 1, 2, 5, 6


@dataclass(frozen=True)
class Parameters:
    """Times in ns; `sector_ps` and `link_ps` in picoseconds a sector; sizes in sectors."""

    revolution: int
    sector_ps: int
    track: int
    tracks: int
    seek: tuple[float, float, float]
    write_settle: int
    overhead: int
    link_ps: int
    read_ahead: int
    segments: int
    segment: int
    depth: int
    reorder: bool
    max_skips: int
    write_cache: int
    ranges: int
    merge: int


@dataclass(eq=False)
class Command:
    number: int
    op: int
    sector: int
    sectors: int
    fua: bool = False
    sweep: int = 0
    ready: int = 0
    skipped: int = 0
    through: int = 0
    behind: list[int] = field(default_factory=list)  # numbers of what the host merged into it

    @property
    def end(self) -> int:
        return self.sector + self.sectors

    @property
    def writes(self) -> bool:
        return self.op in (WRITE, WRITE_ZEROES)


@dataclass(eq=False)
class Segment:
    start: int = 0
    end: int = 0
    used: int = 0


@dataclass(eq=False)
class Range:
    start: int
    end: int
    number: int


@dataclass(eq=False)
class Way:
    """How a command can be done: by what, from when on its data moves, until when."""

    by: str
    begins: int
    ends: int
    segment: Segment | None = None


@dataclass
class NaiveSata:
    p: Parameters
    host: list[Command] = field(default_factory=list)
    drive: list[Command] = field(default_factory=list)
    busy: Command | Range | None = None
    due: int = 0
    sweep: int = 0
    head: int = 0
    reading: Segment | None = None
    since: int = 0
    written: tuple[int, int] | None = None  # where and when the last write ended, if the head has done nothing since
    limit: int = 0
    uses: int = 0
    dirty: list[Range] = field(default_factory=list)
    numbers: int = 0
    ended: list[tuple[int, int]] = field(default_factory=list)  # number, time

    def __post_init__(self) -> None:
        self.cache = [Segment() for _ in range(self.p.segments)]

    # The media.

    def passes(self, sector: int) -> int:
        return sector * self.p.sector_ps // 1000

    def seek(self, start: int, end: int) -> int:
        crossed = abs(start // self.p.track - end // self.p.track)
        part = crossed / self.p.tracks
        least, root, linear = self.p.seek
        return int(least + root * math.sqrt(part) + linear * part) if crossed else 0

    def where(self, t: int) -> int:
        if self.reading is None:
            return self.head
        passed = max(t - self.since, 0) * 1000 // self.p.sector_ps
        return min(self.reading.end + passed, self.limit)

    def over(self, sector: int, t: int, *, write: bool) -> int:
        """When the head is over a sector."""
        if write and self.written == (sector, t):
            return t
        t += self.seek(self.where(t), sector) + (self.p.write_settle if write else 0)
        while (t - self.passes(sector)) % self.p.revolution:
            t += self.p.revolution - (t - self.passes(sector)) % self.p.revolution
        return t

    # How commands can be done.

    def way(self, c: Command, t: int) -> Way | None:
        t = max(t, c.ready)
        linked = t + c.sectors * self.p.link_ps // 1000
        if c.op == FLUSH:
            return None if any(r.number <= c.through for r in self.dirty) else Way("nothing", t, t)
        if c.sectors == 0 or c.op not in (READ, WRITE, WRITE_ZEROES):
            return Way("nothing", t, t)
        if c.writes:
            if c.sectors <= self.p.write_cache and not c.fua:
                used = sum(r.end - r.start for r in self.dirty)
                full = used + c.sectors > self.p.write_cache or len(self.dirty) == self.p.ranges
                return None if full else Way("cached", t, linked)
            return self._mechanical(c, t)
        if any(r.start <= c.sector and c.end <= r.end for r in self.dirty):
            return Way("hit", t, linked)
        for s in self.cache:
            if s.start <= c.sector and c.end <= (self.where(t) if s is self.reading else s.end):
                return Way("hit", t, linked, s)
        s = self.reading
        if s is not None and s.start <= c.sector <= self.limit and self.where(t) < self.limit:
            begins = self.since + self.passes(c.sector) - self.passes(s.end)
            ends = self.since + self.passes(c.end) - self.passes(s.end)
            return Way("stream", max(t, begins), max(linked, ends), s)
        return self._mechanical(c, t)

    def _mechanical(self, c: Command, t: int) -> Way:
        begins = self.over(c.sector, t, write=c.writes)
        return Way("mechanical", begins, begins + self.passes(c.end) - self.passes(c.sector))

    # The caches.

    def stop_reading(self, t: int) -> None:
        if self.reading is not None:
            self.head = self.reading.end = self.where(t)
            self.reading = None

    def read_on(self, end: int) -> None:
        assert self.reading is not None
        self.limit = max(self.limit, min(end + self.p.read_ahead, self.p.tracks * self.p.track))
        self.reading.start = max(self.reading.start, self.limit - self.p.segment)

    def forget(self, sector: int, end: int, t: int) -> None:
        for s in self.cache:
            if s.start < end and sector < (self.limit if s is self.reading else s.end):
                if s is self.reading:
                    self.stop_reading(t)
                s.start = s.end = 0

    def into_cache(self, c: Command) -> None:
        for r in self.dirty:
            if r is not self.busy:
                if r.start <= c.sector and c.end <= r.end:
                    return
                if r.end == c.sector and c.end - r.start <= self.p.track:
                    r.end = c.end
                    return
        self.numbers += 1
        self.dirty.append(Range(c.sector, c.end, self.numbers))

    # Queues.

    def feed(self, t: int) -> None:
        while self.host and len(self.drive) + isinstance(self.busy, Command) < self.p.depth:
            c = self.host[0]
            if self.p.reorder:
                self.sweep = max(self.sweep, min(c.sweep for c in self.host))
                c = min((c for c in self.host if c.sweep <= self.sweep), key=lambda c: c.sector)
            self.host.remove(c)
            if self.p.reorder and c.op in (READ, WRITE):
                self._merge(c)
            c.ready, c.through = t + self.p.overhead, self.numbers
            self.drive.append(c)

    def _merge(self, c: Command) -> None:
        while True:
            next_ones = [
                o
                for o in self.host
                if o.sector == c.end
                and c.sectors + o.sectors <= self.p.merge
                and (o.op, o.fua) == (c.op, c.fua)
                and o.sweep <= self.sweep
            ]
            if not next_ones:
                return
            self.host.remove(next_ones[0])
            c.sectors += next_ones[0].sectors
            c.behind.append(next_ones[0].number)

    def choose(self, t: int) -> Command | None:
        able = [(way.begins, c) for c in self.drive if (way := self.way(c, t))]
        if self.drive and self.drive[0].skipped >= self.p.max_skips:
            if self.way(self.drive[0], t):
                return self.drive[0]
            if self.dirty:
                return None
        return min(able, key=lambda pair: pair[0])[1] if able else None

    def begin(self, t: int) -> None:
        self.feed(t)
        c = self.choose(t)
        if c is None:
            if self.dirty:
                r = min(self.dirty, key=lambda r: self.over(r.start, t, write=True))
                self.busy, begins = r, self.over(r.start, t, write=True)
                self.due = begins + self.passes(r.end) - self.passes(r.start)
                self._write(r.start, r.end, t, self.due)
            return
        way = self.way(c, t)
        assert way is not None
        self.drive.remove(c)
        for other in self.drive:
            other.skipped += 1
        self.busy, self.due = c, way.ends
        t = max(t, c.ready)
        if way.by == "cached":
            self.forget(c.sector, c.end, t)
            self.into_cache(c)
        elif c.writes and way.by == "mechanical":
            self._write(c.sector, c.end, t, way.ends)
        elif way.by != "nothing":
            self._read(c, way, t)

    def _write(self, sector: int, end: int, t: int, ends: int) -> None:
        self.stop_reading(t)
        self.forget(sector, end, t)
        self.head = end
        self.written = end, ends

    def _read(self, c: Command, way: Way, t: int) -> None:
        s = way.segment
        if way.by == "mechanical":
            self.stop_reading(t)
            self.written = None
            s = self.reading = min(self.cache, key=lambda s: s.used)
            s.start, s.end = c.sector, c.end
            self.since, self.limit = way.ends, c.end
            self.read_on(c.end)
        elif way.by == "stream":
            assert s is not None
            self.since += self.passes(c.end) - self.passes(s.end)
            s.end = c.end
            self.read_on(c.end)
        elif s is not None and s is self.reading and self.where(t) < self.limit:
            self.read_on(c.end)
        if s is not None:
            self.uses += 1
            s.used = self.uses

    # Time.

    def advance(self, now: int) -> None:
        while self.busy is not None and self.due <= now:
            if isinstance(self.busy, Command):
                self.ended += [(number, self.due) for number in (self.busy.number, *self.busy.behind)]
            else:
                self.dirty.remove(self.busy)
            self.busy = None
            self.begin(self.due)

    def submit(self, c: Command, now: int) -> None:
        c.sweep = self.sweep + 1
        self.host.append(c)
        if self.busy is None:
            self.begin(now)
        else:
            self.feed(now)
