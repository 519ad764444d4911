"""`sim:sata`: one arm over spinning platters, a track cache in front of it, and the host's queue before both.

An operation goes through the host's queue, which is sorted if `reorder` says so (FSCAN: what comes during a sweep waits
for the next; neighbours become one command). Then it goes into the drive, which knows `depth` commands and begins the
one whose data comes first (SPTF). The drive does one thing at a time:

=============  =====================================================================================================
hit            a read of what the track cache, or the write cache, holds: the time of the link
stream         a read that goes on where the head is reading ahead: until the head has passed its end
mechanical     seek (a + b sqrt(x) + c x over the part x of all tracks), settling before a write, rotation, transfer
cached         a write with room in the write cache: the time of the link. It is written when nothing else can be done
=============  =====================================================================================================

The media is one spiral: sector s passes under the head at s times `sector_ps`, modulo a revolution, so that what
follows without a gap needs no wait. Every function here is called with the disk's lock held, by whichever worker of the
disk has something to say or to wait for; none reads a clock.
"""

from __future__ import annotations

import math

from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.storage.request import OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES
from virtblk.storage.sim.state import DESTAGING, IDLE

# How an operation can be done.
CANNOT = -1  # not now: no room in the write cache, or a flush with writes before it
NOTHING = 0
HIT = 1
STREAM = 2
MECHANICAL = 3
CACHED = 4

PS = 1000


@kernel
def passing(m, sector):
    """When `sector` passes under a head that has followed the spiral from time 0."""
    return sector * m.sata[0]["sector_ps"] // PS


@kernel
def seek_ns(m, start, end):
    """How long the arm takes from the track of one sector to that of another."""
    track = m.sata[0]["track"]
    distance = abs(start // track - end // track)
    if distance == 0:
        return 0
    part = distance / m.sata[0]["tracks"]
    return int(m.sata[0]["seek_min"] + m.sata[0]["seek_root"] * math.sqrt(part) + m.sata[0]["seek_linear"] * part)


@kernel
def read_to(m, t):
    """The sector that the head, reading ahead, is at."""
    end = m.segments[m.sata[0]["reading"]]["end"]
    return min(m.sata[0]["limit"], end + max(0, t - m.sata[0]["since"]) * PS // m.sata[0]["sector_ps"])


@kernel
def head_at(m, t):
    """The sector that the head is at, or was over last."""
    if m.sata[0]["reading"] >= 0:
        return read_to(m, t)
    return m.sata[0]["head"]


@kernel
def position(m, sector, write, t):
    """When the head is over `sector`, if the arm sets out at `t`."""
    arrives = t + seek_ns(m, head_at(m, t), sector)
    if write:
        if m.sata[0]["reading"] < 0 and m.sata[0]["head"] == sector and m.sata[0]["since"] == t:
            return t  # goes on where the last write ended
        arrives += m.sata[0]["write_settle"]
    return arrives + (passing(m, sector) - arrives) % m.sata[0]["revolution"]


@cold_kernel
def read_way(m, sector, sectors, t):
    """How a read can be done from `t` on: (way, when its data begins to come, when it ends, segment or -1)."""
    end = sector + sectors
    linked = t + sectors * m.sata[0]["link_ps"] // PS
    for r in range(m.sata[0]["dirty"]):
        if m.dirty[r]["start"] <= sector and end <= m.dirty[r]["end"]:
            return HIT, t, linked, -1
    reading = m.sata[0]["reading"]
    for s in range(m.sata[0]["segments"]):
        filled = read_to(m, t) if s == reading else m.segments[s]["end"]
        if m.segments[s]["start"] <= sector and end <= filled:
            return HIT, t, linked, s
    if reading >= 0 and m.segments[reading]["start"] <= sector and sector <= m.sata[0]["limit"]:
        if read_to(m, t) < m.sata[0]["limit"]:
            origin = m.sata[0]["since"] - passing(m, m.segments[reading]["end"])
            begins = max(t, origin + passing(m, sector))
            return STREAM, begins, max(linked, origin + passing(m, end)), reading
    begins = position(m, sector, False, t)
    return MECHANICAL, begins, begins + passing(m, end) - passing(m, sector), -1


@kernel
def way_of(m, i, t):
    """How operation `i` can be done, as `read_way` says it."""
    t = max(t, m.ops[i]["ready"])
    op = m.ops[i]["op"]
    sector = m.ops[i]["sector"]
    sectors = m.ops[i]["sectors"]
    if op == OP_FLUSH:
        for r in range(m.sata[0]["dirty"]):
            if m.dirty[r]["number"] <= m.ops[i]["through"]:
                return CANNOT, t, t, -1
    elif op == OP_READ and sectors:
        return read_way(m, sector, sectors, t)
    elif (op == OP_WRITE or op == OP_WRITE_ZEROES) and sectors:
        if sectors <= m.sata[0]["write_cache"] and not m.ops[i]["fua"]:
            room = m.sata[0]["write_cache"] - m.sata[0]["dirty_sectors"]
            if sectors > room or m.sata[0]["dirty"] == m.sata[0]["ranges"]:
                return CANNOT, t, t, -1
            return CACHED, t, t + sectors * m.sata[0]["link_ps"] // PS, -1
        begins = position(m, sector, True, t)
        return MECHANICAL, begins, begins + passing(m, sector + sectors) - passing(m, sector), -1
    return NOTHING, t, t, -1


@kernel
def stop_reading(m, t):
    """The head has something else to do: what it has read ahead stays."""
    reading = m.sata[0]["reading"]
    if reading >= 0:
        m.sata[0]["head"] = read_to(m, t)
        m.segments[reading]["end"] = m.sata[0]["head"]
        m.sata[0]["reading"] = -1
        m.sata[0]["since"] = -1


@kernel
def read_ahead(m, end):
    """Read on behind `end`, as far as that goes; a segment that is full loses its beginning."""
    reading = m.sata[0]["reading"]
    limit = min(end + m.sata[0]["read_ahead"], m.sata[0]["tracks"] * m.sata[0]["track"])
    limit = max(limit, m.sata[0]["limit"])
    m.sata[0]["limit"] = limit
    m.segments[reading]["start"] = max(m.segments[reading]["start"], limit - m.sata[0]["segment"])


@kernel
def forget(m, sector, sectors, t):
    """What the track cache holds of these sectors is old."""
    for s in range(m.sata[0]["segments"]):
        reading = s == m.sata[0]["reading"]
        end = m.sata[0]["limit"] if reading else m.segments[s]["end"]
        if m.segments[s]["start"] < sector + sectors and sector < end:
            if reading:
                stop_reading(m, t)
            m.segments[s]["start"] = 0
            m.segments[s]["end"] = 0


@kernel
def begin_read(m, way, s, sector, sectors, begins, ends):
    """The read is on its way: the track cache after it."""
    end = sector + sectors
    if way == MECHANICAL:
        s = 0
        for other in range(1, m.sata[0]["segments"]):
            if m.segments[other]["used"] < m.segments[s]["used"]:
                s = other
        m.segments[s]["start"] = sector
        m.segments[s]["end"] = end
        m.sata[0]["reading"] = s
        m.sata[0]["since"] = ends
        m.sata[0]["limit"] = end
        read_ahead(m, end)
    elif way == STREAM:
        m.sata[0]["since"] += passing(m, end) - passing(m, m.segments[s]["end"])
        m.segments[s]["end"] = end
        read_ahead(m, end)
    elif s >= 0 and s == m.sata[0]["reading"] and read_to(m, begins) < m.sata[0]["limit"]:
        read_ahead(m, end)
    if s >= 0:
        m.sata[0]["uses"] += 1
        m.segments[s]["used"] = m.sata[0]["uses"]


@kernel
def begin_write(m, sector, sectors, t, ends):
    """The head is writing: the track cache after it."""
    stop_reading(m, t)
    forget(m, sector, sectors, t)
    m.sata[0]["head"] = sector + sectors
    m.sata[0]["since"] = ends


@kernel
def add_dirty(m, sector, sectors):
    """Put a write into the write cache: into a range that has it already or ends where it begins, or as a new one."""
    n = m.sata[0]["dirty"]
    for r in range(n):
        if r != m.sata[0]["destaging"]:
            start = m.dirty[r]["start"]
            end = m.dirty[r]["end"]
            if start <= sector and sector + sectors <= end:
                return
            if end == sector and end - start + sectors <= m.sata[0]["track"]:
                m.dirty[r]["end"] = end + sectors
                m.sata[0]["dirty_sectors"] += sectors
                return
    m.sata[0]["dirty_number"] += 1
    m.dirty[n]["start"] = sector
    m.dirty[n]["end"] = sector + sectors
    m.dirty[n]["number"] = m.sata[0]["dirty_number"]
    m.sata[0]["dirty"] = n + 1
    m.sata[0]["dirty_sectors"] += sectors


@kernel
def remove(table, count, at):
    """Take element `at` out of a list of `count` numbers, whose order stays."""
    for k in range(at, count - 1):
        table[k] = table[k + 1]


@kernel
def next_of_host(m):
    """The place in the host's queue of the operation that the drive gets next."""
    if not m.sata[0]["reorder"]:
        return 0
    while True:
        best = -1
        for k in range(m.sata[0]["host"]):
            if m.ops[m.host[k]]["sweep"] <= m.sata[0]["sweep"]:
                if best < 0 or m.ops[m.host[k]]["sector"] < m.ops[m.host[best]]["sector"]:
                    best = k
        if best >= 0:
            return best
        m.sata[0]["sweep"] += 1


@kernel
def merge(m, i):
    """Put what begins where operation `i` ends behind it, again and again: the drive gets one command of them all."""
    last = i
    k = 0
    while k < m.sata[0]["host"]:
        other = m.host[k]
        if (
            m.ops[other]["sector"] == m.ops[i]["sector"] + m.ops[i]["sectors"]
            and m.ops[i]["sectors"] + m.ops[other]["sectors"] <= m.sata[0]["merge"]
            and m.ops[other]["op"] == m.ops[i]["op"]
            and m.ops[other]["fua"] == m.ops[i]["fua"]
            and m.ops[other]["sweep"] <= m.sata[0]["sweep"]
        ):
            m.ops[i]["sectors"] += m.ops[other]["sectors"]
            m.ops[last]["merged"] = other
            last = other
            remove(m.host, m.sata[0]["host"], k)
            m.sata[0]["host"] -= 1
            k = 0
        else:
            k += 1


@kernel
def feed(m, t):
    """Give the drive as many commands as it takes."""
    working = 1 if m.sata[0]["current"] >= 0 else 0
    while m.sata[0]["host"] and m.sata[0]["queued"] + working < m.sata[0]["depth"]:
        k = next_of_host(m)
        i = m.host[k]
        remove(m.host, m.sata[0]["host"], k)
        m.sata[0]["host"] -= 1
        if m.sata[0]["reorder"] and (m.ops[i]["op"] == OP_READ or m.ops[i]["op"] == OP_WRITE):
            merge(m, i)
        m.ops[i]["ready"] = t + m.sata[0]["overhead"]
        m.ops[i]["entered"] = m.sata[0]["begun"]
        m.ops[i]["through"] = m.sata[0]["dirty_number"]
        m.queued[m.sata[0]["queued"]] = i
        m.sata[0]["queued"] += 1


@kernel
def choose(m, t):
    """The place in the drive's queue of the command to begin, or -1 for none. The oldest, if too many overtook it."""
    best = -1
    best_begins = 0
    for k in range(m.sata[0]["queued"]):
        i = m.queued[k]
        way, begins, _, _ = way_of(m, i, t)
        if k == 0 and m.sata[0]["begun"] - m.ops[i]["entered"] >= m.sata[0]["max_skips"]:
            if way != CANNOT:
                return 0
            if m.sata[0]["dirty"]:
                return -1  # what it waits for comes first
        if way != CANNOT and (best < 0 or begins < best_begins):
            best = k
            best_begins = begins
    return best


@kernel
def begin_destaging(m, t):
    """Write the range of the write cache that the head reaches first."""
    best = 0
    best_begins = position(m, m.dirty[0]["start"], True, t)
    for r in range(1, m.sata[0]["dirty"]):
        begins = position(m, m.dirty[r]["start"], True, t)
        if begins < best_begins:
            best = r
            best_begins = begins
    start = m.dirty[best]["start"]
    end = m.dirty[best]["end"]
    m.sata[0]["current"] = DESTAGING
    m.sata[0]["destaging"] = best
    m.sata[0]["due"] = best_begins + passing(m, end) - passing(m, start)
    begin_write(m, start, end - start, t, m.sata[0]["due"])


@cold_kernel
def begin_next(m, t):
    """The drive has nothing at hand: begin what is best at `t`, if there is anything."""
    feed(m, t)
    k = choose(m, t)
    if k < 0:
        if m.sata[0]["dirty"]:
            begin_destaging(m, t)
        return
    i = m.queued[k]
    remove(m.queued, m.sata[0]["queued"], k)
    m.sata[0]["queued"] -= 1
    m.sata[0]["begun"] += 1
    way, begins, ends, segment = way_of(m, i, t)
    m.sata[0]["current"] = i
    m.sata[0]["due"] = ends
    sector = m.ops[i]["sector"]
    sectors = m.ops[i]["sectors"]
    t = max(t, m.ops[i]["ready"])
    if m.ops[i]["op"] == OP_READ:
        if way == MECHANICAL:
            stop_reading(m, t)
        if way != NOTHING:
            begin_read(m, way, segment, sector, sectors, begins, ends)
    elif way == CACHED:
        forget(m, sector, sectors, t)
        add_dirty(m, sector, sectors)
    elif way == MECHANICAL:
        begin_write(m, sector, sectors, t, ends)


@kernel
def sata_advance(m, now):
    """Let the drive work until `now`. What ends goes on the list of ended operations."""
    while m.sata[0]["current"] != IDLE and m.sata[0]["due"] <= now:
        if m.sata[0]["current"] == DESTAGING:
            r = m.sata[0]["destaging"]
            m.sata[0]["dirty"] -= 1
            m.sata[0]["dirty_sectors"] -= m.dirty[r]["end"] - m.dirty[r]["start"]
            m.sata[0]["destaging"] = -1
            for k in range(r, m.sata[0]["dirty"]):
                m.dirty[k]["start"] = m.dirty[k + 1]["start"]
                m.dirty[k]["end"] = m.dirty[k + 1]["end"]
                m.dirty[k]["number"] = m.dirty[k + 1]["number"]
        else:
            i = m.sata[0]["current"]
            while i >= 0:
                m.done[m.state[0]["done"]] = i
                m.state[0]["done"] += 1
                i = m.ops[i]["merged"]
        t = m.sata[0]["due"]
        m.sata[0]["current"] = IDLE
        begin_next(m, t)


@kernel
def sata_submit(m, i, now):
    """Operation `i`, whose request is filled in, comes to the host at `now`, to which the drive has been advanced."""
    m.ops[i]["sweep"] = m.sata[0]["sweep"] + 1
    m.ops[i]["merged"] = -1
    m.host[m.sata[0]["host"]] = i
    m.sata[0]["host"] += 1
    if m.sata[0]["current"] == IDLE:
        begin_next(m, now)
    else:
        feed(m, now)
