"""Checks of the split virtqueue (virtio 1.2, 2.7) under a driver that keeps the rules: framing, used ring, wraps."""

from __future__ import annotations

from typing import Final

from virtblk.check.blk_request import filled, pattern
from virtblk.check.memory import Memory
from virtblk.check.requirement import DEVICE, Failed, Level, Rejected, Severity
from virtblk.check.ring import WRITE, Buffer
from virtblk.check.runner import Tester
from virtblk.check.session import HEADER, NO_STATUS, UNTOUCHED, Request, Session
from virtblk.uapi import vhost_user as vhost
from virtblk.uapi import virtio_blk as blk
from virtblk.uapi.vhost_user import FrontendRequest
from virtblk.uapi.virtio_config import VIRTIO_F_IN_ORDER, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from virtblk.uapi.virtio_ring import VRING_MAX_NUM

IN: Final = blk.VIRTIO_BLK_T_IN
_INDIRECT: Final = (VIRTIO_RING_F_INDIRECT_DESC,)


def pieces(session: Session, data: bytes, sizes: list[int]) -> list[Buffer]:
    """`data` as device-readable buffers of those sizes."""
    found = []
    for size in sizes:
        found.append(session.buffer(data[:size]))
        data = data[size:]
    assert not data
    return found


def header(sector: int = 0, kind: int = IN) -> bytes:
    return HEADER.pack(kind, 0, sector)


def same(session: Session, request: Request, t: Tester) -> None:
    """The request was a read of the first block: it succeeds, and reads what any framing reads."""
    session.submit(request)
    data = request.ok().data
    plain = session.read(0, t.block_sectors)
    if data != plain:
        at = next(i for i in range(len(plain)) if data[i] != plain[i])
        wrong, right = data[at : at + 8].hex(" "), plain[at : at + 8].hex(" ")
        raise Failed(f"byte {at} of the sector and on: {wrong}, in the usual framing {right}")


# Framing: most devices demand the usual one, and all drivers use it.


@DEVICE.must("split.framing-split-header", "2.7.4.1", Severity.DEVIATION, same_as="B0029")
def framing_split_header(t: Tester) -> None:
    """A device assumes nothing about framing: a header in two buffers."""
    session = t.session()
    room = session.room(512 * t.block_sectors)
    readable = pieces(session, header(), [9, 7])
    same(session, session.add(readable, [room, session.room(1, NO_STATUS)]), t)


@DEVICE.must("split.framing-bytes", "2.7.4.1", Severity.DEVIATION)
def framing_bytes(t: Tester) -> None:
    """A device assumes nothing about framing: each byte of the header in a buffer of its own."""
    session = t.session()
    room = session.room(512 * t.block_sectors)
    readable = pieces(session, header(), [1] * 16)
    same(session, session.add(readable, [room, session.room(1, NO_STATUS)]), t)


@DEVICE.must("split.framing-joined-status", "2.7.4.1", Severity.DEVIATION)
def framing_joined_status(t: Tester) -> None:
    """A device assumes nothing about framing: the status byte at the end of the data buffer."""
    session = t.session()
    size = 512 * t.block_sectors
    room = session.room(size + 1)
    session.memory.write(room.addr + size, bytes([NO_STATUS]))
    same(session, session.add([session.buffer(header())], [room]), t)


@DEVICE.must("split.framing-odd-data", "2.7.4.1", Severity.DEVIATION)
def framing_odd_data(t: Tester) -> None:
    """A device assumes nothing about framing: the data in buffers of odd sizes."""
    session = t.session()
    size = 512 * t.block_sectors
    rooms = [session.room(length) for length in (1, 13, size - 14)]
    same(session, session.add([session.buffer(header())], [*rooms, session.room(1, NO_STATUS)]), t)


@DEVICE.must("split.framing-joined-write", "2.7.4.1", Severity.DEVIATION, scratch=True)
def framing_joined_write(t: Tester) -> None:
    """A device assumes nothing about framing: header and data of a write in one buffer."""
    session = t.session()
    one = t.block_sectors
    first, _ = filled(t, session, one, 61)
    data = pattern(one, 62)
    request = session.add([session.buffer(header(first, blk.VIRTIO_BLK_T_OUT) + data)], [session.room(1, NO_STATUS)])
    session.submit(request)
    request.ok()
    if session.read(first, one) != data:
        raise Failed("the sector does not hold what was written")


# Descriptors and buffers.


@DEVICE.must("split.readable-untouched", "2.7.5.1", Severity.CRITICAL)
def readable_untouched(t: Tester) -> None:
    """Device-readable buffers are not written, nor what lies around any buffer."""
    session = t.session()
    for _ in range(4):
        requests = [session.prepare(IN, 0, room=512 * t.block_sectors) for _ in range(8)]
        requests.append(session.prepare(77, 0, out=bytes(range(256))))
        session.submit(*requests)
        session.wait(*requests)
        session.account()


@DEVICE.must("split.descriptors-untouched", "2.7.5.1", Severity.CRITICAL)
def descriptors_untouched(t: Tester) -> None:
    """The descriptor table and the available ring are not written."""
    session = t.session(num=16)
    ring = session.rings[0]
    session.submit(*(session.prepare(IN, 0, room=512 * t.block_sectors) for _ in range(5)))
    session.drain()
    for name, at, size in (("descriptor table", ring.desc, 256), ("available ring", ring.avail, 38)):
        for change in session.memory.changes():
            if at <= change.address < at + size:
                raise Failed(f"{name}: {change}")


@DEVICE.must("split.indirect", "2.7.5.3", Severity.HIGH, features=_INDIRECT)
def indirect(t: Tester) -> None:
    """A request in an indirect table is served."""
    session = t.session()
    request = session.prepare(IN, 0, room=[256, 512 * t.block_sectors - 256], indirect=0)
    same(session, request, t)


@DEVICE.must("split.indirect-write-flag", "2.7.5.3.2", Severity.HIGH, features=_INDIRECT)
def indirect_write_flag(t: Tester) -> None:
    """The WRITE flag of a descriptor that names an indirect table is ignored."""
    session = t.session()
    room = session.room(512 * t.block_sectors)
    readable = [session.buffer(header())]
    request = session.add(readable, [room, session.room(1, NO_STATUS)], indirect=0, flags=WRITE)
    same(session, request, t)


@DEVICE.must("split.indirect-after-plain", "2.7.5.3.2", Severity.HIGH, features=_INDIRECT)
def indirect_after_plain(t: Tester) -> None:
    """Plain descriptors may come before the one that names an indirect table."""
    session = t.session()
    for plain in (1, 2):
        request = session.prepare(IN, 0, room=[512, 512 * t.block_sectors - 512], indirect=plain)
        same(session, request, t)


@DEVICE.must("split.indirect-one-slot", "2.7.5.3", Severity.HIGH, features=_INDIRECT)
def indirect_one_slot(t: Tester) -> None:
    """An indirect table takes one descriptor of the ring, so a ring of 4 holds 4 requests of 3 buffers."""
    session = t.session(num=4)
    requests = [session.prepare(IN, 0, room=512 * t.block_sectors, indirect=0) for _ in range(4)]
    session.submit(*requests)
    for request in requests:
        request.ok()


@DEVICE.must("split.scattered-chain", "2.7.5", Severity.HIGH)
def scattered_chain(t: Tester) -> None:
    """A chain's descriptors may lie anywhere in the table, in any order."""
    session = t.session(num=16)
    ring = session.rings[0]
    ring.free = [3, 9, 0, 15, 1, 7, 12, 5]
    for _ in range(2):
        same(session, session.prepare(IN, 0, room=[512 * t.block_sectors]), t)


# The used ring.


@DEVICE.must("split.used-length-read", "2.7.8.1", Severity.HIGH)
def used_length_read(t: Tester) -> str:
    """The used length of a successful read is what was written: data and status."""
    size = 512 * t.block_sectors
    request = t.session().send(IN, 0, room=size).ok()
    if request.used_len != size + 1:
        raise Failed(f"used length {request.used_len} after {size} bytes of data and a status")
    return f"{request.used_len}"


@DEVICE.must("split.used-length-write", "2.7.8.1", Severity.HIGH)
def used_length_write(t: Tester) -> str:
    """The used length of a request without data for the driver is 1, for the status."""
    request = t.session().send(blk.VIRTIO_BLK_T_FLUSH)
    request.session.wait(request)
    if request.used_len > 1:
        raise Failed(f"used length {request.used_len}, one byte is writable")
    return f"{request.used_len}"


@DEVICE.must("split.used-length-error", "2.7.8.1", Severity.HIGH)
def used_length_error(t: Tester) -> str:
    """The used length counts bytes that were written from the first writable one on: a failed read does not overstate
    it."""
    size = 512 * t.block_sectors
    request = t.session().send(IN, t.facts.capacity, room=size)
    request.session.wait(request)
    if request.status == blk.VIRTIO_BLK_S_OK:
        raise Failed("a read beyond the end of the disk succeeded")
    written = len(request.data.rstrip(bytes([UNTOUCHED])))
    if request.used_len > written + (written == size):
        raise Failed(
            f"used length {request.used_len} with status {request.status}: "
            f"{written} of {size} bytes of data were written"
        )
    return f"{request.used_len}"


@DEVICE.must("split.used-once", "2.7.8", Severity.CRITICAL)
def used_once(t: Tester) -> str:
    """Each head comes back once, and no other does."""
    session = t.session(num=128)
    count = 0
    for batch in (1, 2, 40, 7, 42, 13):
        requests = [session.prepare(IN, 0, room=512 * t.block_sectors) for _ in range(batch)]
        session.submit(*requests)
        session.wait(*requests)
        count += batch
    ring = session.rings[0]
    if (ring.used_idx, len(ring.returned)) != (count, count):
        raise Failed(f"{count} requests, used index {ring.used_idx}, {len(ring.returned)} heads returned")
    return f"{count} requests"


@DEVICE.must("split.used-flags", "2.7.10.2", Severity.LOW)
def used_flags(t: Tester) -> None:
    """Without EVENT_IDX the used ring's flags are 0 or 1."""
    session = t.session()
    for _ in range(8):
        session.read(0, t.block_sectors)
        if session.rings[0].used_flags > 1:
            raise Failed(f"flags are {session.rings[0].used_flags:#x}")


@DEVICE.must("split.used-flags-event-idx", "2.7.10.2", Severity.LOW, features=(VIRTIO_RING_F_EVENT_IDX,))
def used_flags_event_idx(t: Tester) -> None:
    """With EVENT_IDX the used ring's flags are 0."""
    session = t.session(plus=(VIRTIO_RING_F_EVENT_IDX,))
    for _ in range(8):
        session.read(0, t.block_sectors)
        if session.rings[0].used_flags:
            raise Failed(f"flags are {session.rings[0].used_flags:#x}")


DEVICE.unbuilt(
    "split.in-order-batch",
    "2.7.9",
    Level.MUST,
    "With IN_ORDER one used entry may stand for many buffers; its id is that of the last.",
    "not built yet: entries that stand for many buffers",
    features=(VIRTIO_F_IN_ORDER,),
)


# Wraps and sizes.


@DEVICE.must("split.wrap-base", "2.7.13.3", Severity.CRITICAL)
def wrap_base(t: Tester) -> None:
    """Indices wrap at 65536: a ring that starts at 65530 goes on past 0."""
    _around(t, ())


@DEVICE.must("split.wrap-base-event-idx", "2.7.13.3", Severity.CRITICAL, features=(VIRTIO_RING_F_EVENT_IDX,))
def wrap_base_event_idx(t: Tester) -> None:
    """The same with EVENT_IDX."""
    _around(t, (VIRTIO_RING_F_EVENT_IDX,))


def _around(t: Tester, plus: tuple[int, ...]) -> None:
    session = t.session(base=65530, num=16, plus=plus)
    ring = session.rings[0]
    for _ in range(20):
        session.read(0, t.block_sectors)
    if ring.used_idx != 14:
        raise Failed(f"used index {ring.used_idx} after 20 requests from 65530 on")


@DEVICE.must("split.wrap-65536", "2.7.13.3", Severity.CRITICAL)
def wrap_65536(t: Tester) -> str:
    """Indices wrap at 65536: more requests than that in one session are all served."""
    session = t.session(num=256)
    ring = session.rings[0]
    request = session.prepare(blk.VIRTIO_BLK_T_GET_ID, room=20)
    buffers = request.chain.buffers
    batch, rounds = 80, 65536 // 80 + 2
    for _ in range(rounds):
        while len(ring.out) < batch:
            ring.add(buffers)  # all of them the same buffers: only the rings matter here
        session.submit()
        session.drain()
    if len(ring.returned) != batch * rounds:
        raise Failed(f"{batch * rounds} requests, {len(ring.returned)} heads returned")
    session.read(0, t.block_sectors)
    return f"{batch * rounds} requests"


@DEVICE.must("split.sizes", "2.7", Severity.HIGH)
def sizes(t: Tester) -> str:
    """Rings of 4, 8, 16 ... descriptors work, or are refused."""
    accepted = []
    num = 4
    while num <= VRING_MAX_NUM:
        if _size(t, num):
            accepted.append(num)
        num *= 2
    if not accepted:
        raise Failed("no size from 4 to 32768 is accepted")
    return f"up to {accepted[-1]}"


@DEVICE.must("split.size-tiny", "2.7", Severity.LOW, features=_INDIRECT)
def size_tiny(t: Tester) -> str:
    """Rings of 1 and 2 descriptors work with indirect tables, or are refused."""
    found = {num: _size(t, num) for num in (1, 2)}
    if not any(found.values()):
        raise Rejected("both are refused")
    return ", ".join(f"{num}: {'works' if works else 'refused'}" for num, works in found.items())


def _size(t: Tester, num: int) -> bool:
    """Whether a ring of that size is taken; it works then."""
    session = t.session(start=False, memory=Memory(8 << 20))
    session.set_mem_table()
    ring = session.make_ring(0, num)
    message = vhost.VRING_STATE.pack(0, num)
    if session.peer.refusal(FrontendRequest.VHOST_USER_SET_VRING_NUM, message) is not None:
        return False
    session.start_ring(ring)
    indirect = 0 if num < 4 else None
    for _ in range(3):
        count = num if num < 4 else min(num // 3, 64)
        requests = [session.prepare(IN, 0, room=512 * t.block_sectors, indirect=indirect) for _ in range(count)]
        session.submit(*requests)
        for request in requests:
            request.ok()
    session.account()
    session.close()
    return True
