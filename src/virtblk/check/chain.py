"""Checks with broken chains (virtio 1.2, 2.7.5): what a hostile or wrong guest makes available in ring memory.

No rule says what a device answers. It must stay sound: answer, or refuse by stopping the ring or closing the session,
write nowhere but where it may, and serve the next front end. All requests here are reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from virtblk.check.memory import DEFAULT_SIZE, GUEST, USER, Memory
from virtblk.check.requirement import DEVICE, Failed, Severity
from virtblk.check.ring import INDIRECT, NEXT, WRITE, Buffer, Desc
from virtblk.check.runner import Tester
from virtblk.check.session import HEADER, NO_STATUS, Session
from virtblk.uapi import virtio_blk as blk
from virtblk.uapi.virtio_config import VIRTIO_RING_F_INDIRECT_DESC
from virtblk.vhost_user.message import MemoryRegion

IN: Final = blk.VIRTIO_BLK_T_IN
OK: Final = blk.VIRTIO_BLK_S_OK
_INDIRECT: Final = (VIRTIO_RING_F_INDIRECT_DESC,)
_TOP: Final = (1 << 64) - 1


class Parts:
    """A session, and the parts of a sound read in it: header, data, status."""

    def __init__(self, t: Tester, **options: object) -> None:
        self.session = t.session(**options)
        self.t = t
        self.size = 512 * t.block_sectors
        self.header = self.session.buffer(HEADER.pack(IN, 0, 0))
        self.data = self.session.room(self.size)
        self.status = self.session.room(1, NO_STATUS)
        for room in (self.data, self.status):
            self.session.memory.allow(room.addr, room.len)

    def descs(self) -> list[Desc]:
        """The sound chain, in slots 0 to 2."""
        return [
            Desc(self.header.addr, 16, NEXT, 1),
            Desc(self.data.addr, self.size, NEXT | WRITE, 2),
            Desc(self.status.addr, 1, WRITE),
        ]

    def offer(self, descs: Sequence[Desc], head: int = 0) -> str:
        """Let the device have it; how it answered, Rejected if it refused."""
        ring = self.session.rings[0]
        ring.offer(descs, head)
        self.session.kick()
        answer = self.session.settle(self.t.settle_time)
        status = self.session.memory.read(self.status.addr, 1)[0]
        return f"{answer}, " + ("status not written" if status == NO_STATUS else f"status {status}")

    def offer_table(self, descs: Sequence[Desc], length: int | None = None, flags: int = 0) -> str:
        """The same through an indirect table of `length` bytes."""
        table = self.session.rings[0].table(descs)
        return self.offer([Desc(table, 16 * len(descs) if length is None else length, INDIRECT | flags)])

    def must_not_succeed(self, answer: str) -> str:
        """For what no device can have understood as it was meant."""
        if answer.endswith("status 0"):
            raise Failed(f"it succeeded: {answer}")
        return answer


def _changed(descs: list[Desc], slot: int, **fields: int) -> list[Desc]:
    descs[slot] = descs[slot]._replace(**fields)
    return descs


# Links.


@DEVICE.must("chain.self-loop", "2.7.5", Severity.CRITICAL, same_as="T0001")
def self_loop(t: Tester) -> str:
    """A descriptor whose `next` is itself does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer(_changed(parts.descs(), 1, next=1)))


@DEVICE.must("chain.two-loop", "2.7.5", Severity.CRITICAL)
def two_loop(t: Tester) -> str:
    """Two descriptors that name each other do no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer(_changed(parts.descs(), 2, flags=WRITE | NEXT, next=1)))


@DEVICE.must("chain.empty-loop", "2.7.5", Severity.CRITICAL)
def empty_loop(t: Tester) -> str:
    """A loop of descriptors of length 0 does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(
        parts.offer([Desc(parts.header.addr, 0, NEXT, 1), Desc(parts.header.addr, 0, NEXT, 0)])
    )


@DEVICE.must("chain.indirect-loop", "2.7.5.3", Severity.CRITICAL, features=_INDIRECT, same_as="T0021")
def indirect_loop(t: Tester) -> str:
    """A loop inside an indirect table does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer_table(_changed(parts.descs(), 1, next=1)))


@DEVICE.must("chain.next-outside", "2.7.5", Severity.CRITICAL, same_as="T0003")
def next_outside(t: Tester) -> str:
    """A `next` that is the queue size, or more, does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer(_changed(parts.descs(), 1, next=64)))


@DEVICE.must("chain.next-65535", "2.7.5", Severity.CRITICAL)
def next_65535(t: Tester) -> str:
    """A `next` of 65535 does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer(_changed(parts.descs(), 1, next=65535)))


@DEVICE.must("chain.indirect-next-outside", "2.7.5.3", Severity.CRITICAL, features=_INDIRECT)
def indirect_next_outside(t: Tester) -> str:
    """A `next` outside its indirect table does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer_table(_changed(parts.descs(), 1, next=3)))


# The available ring.


@DEVICE.must("chain.head-outside", "2.7.6", Severity.CRITICAL, same_as="T0025")
def head_outside(t: Tester) -> str:
    """An available head that is the queue size does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer(parts.descs(), head=64))


@DEVICE.must("chain.head-65535", "2.7.6", Severity.CRITICAL)
def head_65535(t: Tester) -> str:
    """An available head of 65535 does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer(parts.descs(), head=65535))


@DEVICE.must("chain.idx-jump", "2.7.6", Severity.CRITICAL, same_as="T0023")
def idx_jump(t: Tester) -> str:
    """An available index that moves by more than the queue size does no harm."""
    parts = Parts(t)
    return _jump(parts, 65)


@DEVICE.must("chain.idx-back", "2.7.6", Severity.CRITICAL, same_as="T0024")
def idx_back(t: Tester) -> str:
    """An available index that moves backwards does no harm."""
    parts = Parts(t)
    parts.session.read(0, t.block_sectors)
    return _jump(parts, -1)


def _jump(parts: Parts, by: int) -> str:
    ring = parts.session.rings[0]
    ring.lost = True
    for slot, desc in enumerate(parts.descs()):
        ring.describe(slot, desc)
    ring.avail_idx = (ring.avail_idx + by) & 0xFFFF
    ring.publish()
    parts.session.kick()
    return parts.session.settle(parts.t.settle_time)


@DEVICE.must("chain.same-head-twice", "2.7.6", Severity.CRITICAL, same_as="T0022")
def same_head_twice(t: Tester) -> str:
    """A head that is available twice at once does no harm: the device may serve it twice."""
    parts = Parts(t)
    ring = parts.session.rings[0]
    for slot, desc in enumerate(parts.descs()):
        ring.describe(slot, desc)
    ring.put(0)
    ring.put(0)
    ring.publish()
    parts.session.kick()
    return parts.session.settle(t.settle_time)


# Shapes.


@DEVICE.must("chain.header-only", "5.2.6", Severity.CRITICAL, same_as="T0014")
def header_only(t: Tester) -> str:
    """A chain that is a header and nothing more does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer([Desc(parts.header.addr, 16)]))


@DEVICE.must("chain.no-readable", "5.2.6", Severity.CRITICAL)
def no_readable(t: Tester) -> str:
    """A chain without a header does no harm."""
    parts = Parts(t)
    descs = [Desc(parts.data.addr, parts.size, NEXT | WRITE, 1), Desc(parts.status.addr, 1, WRITE)]
    return parts.must_not_succeed(parts.offer(descs))


@DEVICE.must("chain.status-readable", "5.2.6", Severity.CRITICAL, same_as="T0012")
def status_readable(t: Tester) -> str:
    """A chain whose last buffer is device-readable does no harm, and nothing is written to that."""
    parts = Parts(t)
    parts.session.memory.settle(parts.status.addr, 1)
    return parts.must_not_succeed(parts.offer(_changed(parts.descs(), 2, flags=0)))


@DEVICE.must("chain.status-empty", "5.2.6", Severity.CRITICAL, same_as="B0097")
def status_empty(t: Tester) -> str:
    """A last buffer of length 0 does no harm, and nothing is written at its address."""
    parts = Parts(t)
    parts.session.memory.settle(parts.status.addr, 1)
    return parts.offer(_changed(parts.descs(), 2, len=0))


@DEVICE.must("chain.header-writable", "5.2.6", Severity.CRITICAL, same_as="B0070")
def header_writable(t: Tester) -> str:
    """A header in a device-writable buffer does no harm."""
    parts = Parts(t)
    parts.session.memory.allow(parts.header.addr, 16)
    return parts.must_not_succeed(parts.offer(_changed(parts.descs(), 0, flags=NEXT | WRITE)))


@DEVICE.must("chain.header-short", "5.2.6", Severity.CRITICAL, same_as="B0011")
def header_short(t: Tester) -> str:
    """A header of 15 bytes does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer(_changed(parts.descs(), 0, len=15)))


@DEVICE.must("chain.header-long", "5.2.6", Severity.CRITICAL, same_as="B0096")
def header_long(t: Tester) -> str:
    """A header of 17 bytes, before a read, does no harm."""
    parts = Parts(t)
    return parts.offer(_changed(parts.descs(), 0, len=17))


@DEVICE.must("chain.writable-first", "2.7.4.2", Severity.CRITICAL, same_as="T0053")
def writable_first(t: Tester) -> str:
    """Device-writable buffers before device-readable ones do no harm."""
    parts = Parts(t)
    descs = [
        Desc(parts.data.addr, parts.size, NEXT | WRITE, 1),
        Desc(parts.header.addr, 16, NEXT, 2),
        Desc(parts.status.addr, 1, WRITE),
    ]
    return parts.offer(descs)


@DEVICE.must("chain.whole-ring", "2.7.5", Severity.HIGH)
def whole_ring(t: Tester) -> str:
    """A chain as long as the ring does no harm; where the device takes so many, it is served."""
    session = t.session(num=16)
    size = 512 * t.block_sectors
    rooms = [size // 16] * 13 + [size - size // 16 * 13]
    request = session.prepare(IN, 0, room=rooms)
    session.submit(request)
    return session.settle(t.settle_time, request)


@DEVICE.must("chain.zero-length", "2.7.5", Severity.CRITICAL, same_as="T0006")
def zero_length(t: Tester) -> str:
    """A buffer of length 0 among the others does no harm."""
    parts = Parts(t)
    header, data, status = parts.descs()
    return parts.offer([header._replace(next=3), data, status, Desc(parts.data.addr, 0, NEXT | WRITE, 1)])


@DEVICE.must("chain.total-over-4g", "2.7.5.2", Severity.CRITICAL, same_as="T0077")
def total_over_4g(t: Tester) -> str:
    """A chain of more than 2^32 bytes does no harm."""
    parts = Parts(t)
    header, data, status = parts.descs()
    return parts.must_not_succeed(
        parts.offer([header, data._replace(len=(1 << 32) - 1, next=3), status, data._replace(next=2)])
    )


# Indirect tables.


@DEVICE.must("chain.indirect-and-next", "2.7.5.3.1", Severity.CRITICAL, features=_INDIRECT, same_as="T0017")
def indirect_and_next(t: Tester) -> str:
    """A descriptor with both INDIRECT and NEXT does no harm."""
    parts = Parts(t)
    table = parts.session.rings[0].table(parts.descs())
    return parts.offer([Desc(table, 48, INDIRECT | NEXT, 1), Desc(parts.status.addr, 1, WRITE)])


@DEVICE.must("chain.indirect-nested", "2.7.5.3.1", Severity.CRITICAL, features=_INDIRECT, same_as="T0016")
def indirect_nested(t: Tester) -> str:
    """An indirect table inside an indirect table does no harm."""
    parts = Parts(t)
    inner = parts.session.rings[0].table(parts.descs())
    return parts.must_not_succeed(parts.offer_table([Desc(inner, 48, INDIRECT)]))


@DEVICE.must("chain.indirect-length-0", "2.7.5.3", Severity.CRITICAL, features=_INDIRECT, same_as="T0019")
def indirect_length_0(t: Tester) -> str:
    """An indirect table of 0 bytes does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer_table(parts.descs(), 0))


@DEVICE.must("chain.indirect-length-odd", "2.7.5.3", Severity.CRITICAL, features=_INDIRECT, same_as="T0018")
def indirect_length_odd(t: Tester) -> str:
    """An indirect table whose length is no multiple of 16 does no harm."""
    parts = Parts(t)
    return parts.offer_table(parts.descs(), 49)


@DEVICE.must("chain.indirect-length-8", "2.7.5.3", Severity.CRITICAL, features=_INDIRECT)
def indirect_length_8(t: Tester) -> str:
    """An indirect table shorter than a descriptor does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer_table(parts.descs(), 8))


@DEVICE.must("chain.indirect-length-huge", "2.7.5.3", Severity.CRITICAL, features=_INDIRECT, same_as="T0099")
def indirect_length_huge(t: Tester) -> str:
    """An indirect table of 2^32 - 16 bytes does no harm."""
    parts = Parts(t)
    return parts.offer_table(parts.descs(), (1 << 32) - 16)


@DEVICE.must("chain.indirect-past-end", "2.7.5.3", Severity.CRITICAL, features=_INDIRECT)
def indirect_past_end(t: Tester) -> str:
    """An indirect table that reaches past the end of guest memory does no harm."""
    parts = Parts(t)
    end = GUEST + parts.session.memory.size
    parts.session.memory.write(end - 32, b"".join(_pack(desc) for desc in parts.descs()[:2]))
    return parts.must_not_succeed(parts.offer([Desc(end - 32, 48, INDIRECT)]))


@DEVICE.must("chain.indirect-unnegotiated", "2.7.5.3", Severity.HIGH, features=_INDIRECT, same_as="T0015")
def indirect_unnegotiated(t: Tester) -> str:
    """An indirect descriptor where INDIRECT_DESC was not negotiated does no harm."""
    parts = Parts(t, without=_INDIRECT)
    return parts.offer_table(parts.descs())


def _pack(desc: Desc) -> bytes:
    return (
        desc.addr.to_bytes(8, "little")
        + desc.len.to_bytes(4, "little")
        + desc.flags.to_bytes(2, "little")
        + desc.next.to_bytes(2, "little")
    )


# Addresses.


@DEVICE.must("chain.address-0", "2.7.5", Severity.CRITICAL, same_as="T0004")
def address_0(t: Tester) -> str:
    """A data buffer at guest address 0, where no memory is, does no harm."""
    return _data_at(t, 0)


@DEVICE.must("chain.address-top", "2.7.5", Severity.CRITICAL, same_as="T0008")
def address_top(t: Tester) -> str:
    """A data buffer whose address and length pass 2^64 does no harm."""
    return _data_at(t, _TOP - 255)


@DEVICE.must("chain.address-past-end", "2.7.5", Severity.CRITICAL, same_as="T0073")
def address_past_end(t: Tester) -> str:
    """A data buffer that begins in guest memory and ends behind it does no harm."""
    return _data_at(t, GUEST + DEFAULT_SIZE - 256)


@DEVICE.must("chain.address-user", "2.7.5", Severity.CRITICAL)
def address_user(t: Tester) -> str:
    """A data buffer at a front end's user address, which no descriptor may hold, does no harm."""
    parts = Parts(t)
    address = parts.data.addr - GUEST + USER
    return parts.must_not_succeed(parts.offer(_changed(parts.descs(), 1, addr=address)))


@DEVICE.must("chain.header-address", "2.7.5", Severity.CRITICAL)
def header_address(t: Tester) -> str:
    """A header at an address where no memory is does no harm."""
    parts = Parts(t)
    return parts.must_not_succeed(parts.offer(_changed(parts.descs(), 0, addr=0x1000)))


def _data_at(t: Tester, address: int) -> str:
    parts = Parts(t)
    end = GUEST + parts.session.memory.size
    if GUEST <= address < end:
        parts.session.memory.allow(address, end - address)
    return parts.must_not_succeed(parts.offer(_changed(parts.descs(), 1, addr=address)))


@DEVICE.must("chain.across-regions", "2.7.5", Severity.HIGH)
def across_regions(t: Tester) -> str:
    """A buffer that crosses from one memory region into the next, whose guest addresses go on, is served or refused."""
    half = 2 << 20
    regions = [
        MemoryRegion(GUEST, half, USER, 0),
        MemoryRegion(GUEST + half, half, USER + (1 << 32), half),
    ]
    session = t.session(memory=Memory(2 * half, regions))
    plain = session.read(0, t.block_sectors)
    size = 512 * t.block_sectors
    room = Buffer(GUEST + half - 100, size, True)
    session.memory.write(room.addr, b"\xb6" * size)
    request = session.add([session.buffer(HEADER.pack(IN, 0, 0))], [room, session.room(1, NO_STATUS)])
    session.submit(request)
    answer = session.settle(t.settle_time, request)
    if request.done and request.status == OK and request.data != plain:
        raise Failed(f"it succeeded, with other data than in one region: {request.data[:8].hex(' ')} ...")
    return answer


@DEVICE.must("chain.hole-between-regions", "2.7.5", Severity.CRITICAL, same_as="T0090")
def hole_between_regions(t: Tester) -> str:
    """A buffer that reaches into a hole between two regions does no harm."""
    half = 2 << 20
    regions = [
        MemoryRegion(GUEST, half, USER, 0),
        MemoryRegion(GUEST + 2 * half, half, USER + 2 * half, half),
    ]
    parts = Parts(t, memory=Memory(2 * half, regions))
    address = GUEST + half - 100
    parts.session.memory.allow(address, 100)
    return parts.must_not_succeed(parts.offer(_changed(parts.descs(), 1, addr=address)))


@DEVICE.must("chain.buffer-in-ring", "2.7.5", Severity.CRITICAL, same_as="T0070")
def buffer_in_ring(t: Tester) -> str:
    """A data buffer that lies in the descriptor table does no harm to the device."""
    parts = Parts(t)
    ring = parts.session.rings[0]
    parts.session.memory.allow(ring.desc, max(parts.size, 1024))
    return parts.offer(_changed(parts.descs(), 1, addr=ring.desc, len=512 * t.block_sectors))


# After all that.


@DEVICE.must("chain.no-leaked-heads", "2.7.8", Severity.HIGH)
def no_leaked_heads(t: Tester) -> str:
    """A device that answers broken chains returns their heads: a good request behind them is not all that comes back,
    and as many good ones work after it."""
    parts = Parts(t, num=16)
    session: Session = parts.session
    ring = session.rings[0]
    short = session.buffer(bytes(4))
    bad = [ring.add([short, session.room(1, NO_STATUS)]) for _ in range(6)]
    last = session.prepare(IN, 0, room=parts.size)
    session.submit(last)
    answer = session.settle(t.settle_time)
    ring.lost = False
    session.drain()
    if any(chain.used_len is None for chain in bad):
        raise Failed(f"{sum(chain.used_len is None for chain in bad)} of {len(bad)} heads never came back")
    good = [session.prepare(IN, 0, room=parts.size) for _ in range(5)]
    session.submit(*good)
    for request in good:
        request.ok()
    return answer
