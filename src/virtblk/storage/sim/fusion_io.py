"""`sim:fusion-io`: pages of flash on channels that work side by side, behind a buffer for what is written.

The card is a log: what is written together lies together, anywhere. So a read costs one page read for each page's worth
of bytes, on channels that its address tells by a hash; a channel does one thing after the other. A write takes whole
pages of the write buffer, and ends when it has found room there; each of its pages is programmed on the channel whose
turn it is, and then gives its room back. A flush, and a write that must be durable (FUA), ends with the last program.
Discard costs nothing, write zeroes what a write costs.

Each function says when an operation ends that comes now: nothing that comes later can change that. They are called with
the disk's lock held, by whichever worker has something to say; none reads a clock.
"""

from __future__ import annotations

from virtblk.jit.arith import mix64
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.storage.request import OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES


@kernel
def use_channel(m, channel, now, takes):
    """When something that takes so long ends on this channel."""
    ends = max(now, m.channels[channel]) + takes
    m.channels[channel] = ends
    return ends


@kernel
def channel_of(m, offset):
    """The channel of what lies at this offset: as good as any, and always the same."""
    return mix64(offset) % m.fusion[0]["channels"]


@kernel
def read_pages(m, offset, length, now):
    """When the last byte of a range has been read."""
    ends = now
    end = offset + length
    while offset < end:
        ends = max(ends, use_channel(m, channel_of(m, offset), now, m.fusion[0]["read"]))
        offset += m.fusion[0]["page"]
    return ends


@kernel
def give_room_back(m):
    """The oldest program is over: returns when it was."""
    first = m.fusion[0]["first"]
    m.fusion[0]["first"] = (first + 1) % m.fusion[0]["places"]
    m.fusion[0]["programs"] -= 1
    return m.programs[first]


@kernel
def program_page(m, now):
    """Program a page of the write buffer on the channel whose turn it is."""
    channel = m.fusion[0]["next_channel"]
    m.fusion[0]["next_channel"] = (channel + 1) % m.fusion[0]["channels"]
    place = (m.fusion[0]["first"] + m.fusion[0]["programs"]) % m.fusion[0]["places"]
    m.programs[place] = use_channel(m, channel, now, m.fusion[0]["program"])
    m.fusion[0]["programs"] += 1


@kernel
def write_pages(m, length, now):
    """When the last byte of a write, which comes after all earlier ones, has found room in the write buffer."""
    page = m.fusion[0]["page"]
    t = max(now, m.fusion[0]["accepted"])
    while m.fusion[0]["programs"] and m.programs[m.fusion[0]["first"]] <= t:
        give_room_back(m)
    for _ in range((length + page - 1) // page):
        if m.fusion[0]["programs"] == m.fusion[0]["places"]:
            t = max(t, give_room_back(m))
        program_page(m, t)
    m.fusion[0]["accepted"] = t
    return t


@kernel
def all_programmed(m, now):
    """When the write buffer is empty, if nothing more is written."""
    ends = max(now, m.fusion[0]["accepted"])
    for k in range(m.fusion[0]["programs"]):
        ends = max(ends, m.programs[(m.fusion[0]["first"] + k) % m.fusion[0]["places"]])
    return ends


@cold_kernel
def fusion_io_ends(m, op, offset, length, fua, now):
    """When an operation on this range of bytes ends that comes at `now`."""
    ends = now
    if op == OP_READ:
        ends = read_pages(m, offset, length, now)
    elif op == OP_WRITE or op == OP_WRITE_ZEROES:
        ends = write_pages(m, length, now)
        if fua:
            ends = all_programmed(m, now)
    elif op == OP_FLUSH:
        ends = all_programmed(m, now)
    return ends + m.fusion[0]["overhead"]
