"""Checks of vhost-user's memory: the table, regions that are added and removed, and regions that make no sense.

docs/interop/vhost-user.rst, "Memory access", SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from virtblk.check.memory import DEFAULT_SIZE, GUEST, USER, Memory
from virtblk.check.refusals import Refusals
from virtblk.check.requirement import DEVICE, Failed, Rejected, Severity, Skipped
from virtblk.check.ring import Buffer
from virtblk.check.runner import Tester
from virtblk.check.session import HEADER, NO_STATUS, Session
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest, ProtocolFeature
from virtblk.uapi.virtio_blk import VIRTIO_BLK_T_IN
from virtblk.vhost_user.message import MemoryRegion

SET_MEM_TABLE: Final = FrontendRequest.VHOST_USER_SET_MEM_TABLE
ADD_MEM_REG: Final = FrontendRequest.VHOST_USER_ADD_MEM_REG
REM_MEM_REG: Final = FrontendRequest.VHOST_USER_REM_MEM_REG

_SLOTS: Final = (ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,)
_TABLE: Final = "SET_MEM_TABLE"
_ADD: Final = "ADD_MEM_REG"
_REMOVE: Final = "REM_MEM_REG"
#: The regions of the checks: small ones beside each other in the file, with holes between them in guest memory.
_SIZE: Final = 1 << 20
#: The most regions that a check adds, where the device would take more.
_MANY: Final = 64
#: A device with more slots than this is not filled up.
_SLOTS_TRIED: Final = 1024


def region_at(position: int, size: int = _SIZE) -> MemoryRegion:
    """The region that shows `size` bytes of the file from `position` MiB on."""
    return MemoryRegion(GUEST + 2 * position * _SIZE, size, USER + 3 * position * _SIZE, position * _SIZE)


def memory_of(regions: int, *, shown: int | None = None) -> Memory:
    """A file of as many regions, `shown` of which (all, by default) are in the table."""
    count = regions if shown is None else shown
    return Memory(regions * _SIZE, [region_at(position) for position in range(count)])


def small_regions(count: int, size: int) -> list[MemoryRegion]:
    """The same, smaller."""
    return [MemoryRegion(GUEST + 2 * n * size, size, USER + 3 * n * size, n * size) for n in range(count)]


def table(regions: Sequence[MemoryRegion]) -> bytes:
    """The payload of SET_MEM_TABLE."""
    return uapi.MEMORY_HEADER.pack(len(regions), 0) + b"".join(uapi.MEMORY_REGION.pack(*region) for region in regions)


def one_region(region: MemoryRegion) -> bytes:
    """The payload of ADD_MEM_REG and REM_MEM_REG."""
    return uapi.MEM_REG.pack(0, *region)


def read_into(t: Tester, session: Session, region: MemoryRegion) -> None:
    """Read the first block of the disk into a buffer in this region, and look at what came."""
    length = 512 * t.block_sectors
    room = Buffer(region.guest_addr + 4096, length, True)
    session.memory.write(room.addr, b"\xd2" * length)
    request = session.add([session.buffer(HEADER.pack(VIRTIO_BLK_T_IN, 0, 0))], [room, session.room(1, NO_STATUS)])
    session.submit()
    data = request.ok().data
    if data != session.read(0, t.block_sectors):
        raise Failed(f"a read into the {region} left {data[:16].hex(' ')} there")


# The table.


@DEVICE.must("vhost.memory-table-8", _TABLE, Severity.HIGH)
def memory_table_8(t: Tester) -> None:
    """The memory table has up to eight regions, with a descriptor for each; guest memory may lie in any of them."""
    session = t.session(memory=memory_of(uapi.VHOST_MEMORY_BASELINE_NREGIONS))
    for region in session.memory.regions[1:]:
        read_into(t, session, region)


@DEVICE.must("vhost.memory-offset", "Memory region description", Severity.CRITICAL)
def memory_offset(t: Tester) -> None:
    """A region begins in its file at the mmap offset."""
    region = MemoryRegion(GUEST, 2 * _SIZE, USER, _SIZE)
    session = t.session(memory=Memory(DEFAULT_SIZE, [region]), start=False)
    session.memory.release(_SIZE)
    session.set_mem_table()
    session.start_ring(session.make_ring(0))
    read_into(t, session, region)


@DEVICE.must("vhost.memory-replaced", _TABLE, Severity.CRITICAL)
def memory_replaced(t: Tester) -> None:
    """While rings run the table may be replaced; rings go on, with the new regions."""
    memory = memory_of(2, shown=1)
    session = t.session(memory=memory)
    session.read(0, t.block_sectors)
    for shown in (2, 1, 2):
        memory.regions[:] = [region_at(position) for position in range(shown)]
        session.set_mem_table()
        session.read(0, t.block_sectors)
        read_into(t, session, memory.regions[-1])


@DEVICE.must("vhost.memory-replaced-unused", _TABLE, Severity.CRITICAL)
def memory_replaced_unused(t: Tester) -> str:
    """A region that the new table does not have is not used any more."""
    memory = memory_of(2)
    session = t.session(memory=memory)
    read_into(t, session, memory.regions[1])
    gone = memory.regions.pop()
    session.set_mem_table()
    session.read(0, t.block_sectors)
    return _is_not_used(t, session, gone)


def _is_not_used(t: Tester, session: Session, gone: MemoryRegion) -> str:
    """A read into a region that is gone: Failed if anything lands there. Rejected where the ring stops over it."""
    memory = session.memory
    memory.regions.append(gone)  # for us it is there
    memory.write(gone.guest_addr, b"\xd2" * 4096)
    room = Buffer(gone.guest_addr, 512 * t.block_sectors, True)
    request = session.add([session.buffer(HEADER.pack(VIRTIO_BLK_T_IN, 0, 0))], [room, session.room(1, NO_STATUS)])
    session.submit()
    try:
        answer = session.settle(t.settle_time, request)
    finally:
        left = memory.read(gone.guest_addr, 4096)
    if left != b"\xd2" * 4096:
        raise Failed(f"a read into the {gone}, which was taken back, left {left[:16].hex(' ')} there")
    return answer


# Regions one by one.


@DEVICE.must("vhost.memory-slots", "GET_MAX_MEM_SLOTS", Severity.HIGH, protocol=_SLOTS)
def memory_slots(t: Tester) -> str:
    """As many regions can be added as GET_MAX_MEM_SLOTS answers, and each of them can be used."""
    session = t.session(start=False)
    slots = session.peer.get_u64(FrontendRequest.VHOST_USER_GET_MAX_MEM_SLOTS)
    session.close()
    if not slots:
        raise Failed("GET_MAX_MEM_SLOTS answered 0")
    count = min(slots, _MANY)
    size = 1 << 16
    regions = small_regions(count, size)
    session = t.session(memory=Memory(count * size, regions), slots=True)
    for region in regions[1:]:
        read_into(t, session, region)
    return f"{slots} slots, {count} of them used"


@DEVICE.must("vhost.memory-added", _ADD, Severity.HIGH, protocol=_SLOTS)
def memory_added(t: Tester) -> None:
    """While rings run a region may be added; it is used from then on, and rings go on."""
    memory = memory_of(3, shown=1)
    session = t.session(memory=memory, slots=True)
    session.read(0, t.block_sectors)
    for position in (1, 2):
        memory.regions.append(region_at(position))
        session.add_region(memory.regions[-1])
        session.read(0, t.block_sectors)
        read_into(t, session, memory.regions[-1])


@DEVICE.must("vhost.memory-removed", _REMOVE, Severity.HIGH, protocol=_SLOTS)
def memory_removed(t: Tester) -> None:
    """A region is removed by its guest address, size and user address, and can be added again; rings go on."""
    memory = memory_of(2)
    session = t.session(memory=memory, slots=True)
    for _ in range(3):
        session.peer.tell(REM_MEM_REG, one_region(memory.regions[1]))
        session.read(0, t.block_sectors)
        session.add_region(memory.regions[1])
        read_into(t, session, memory.regions[1])


@DEVICE.must("vhost.memory-removed-any-offset", _REMOVE, Severity.HIGH, protocol=_SLOTS)
def memory_removed_any_offset(t: Tester) -> None:
    """The mmap offset in REM_MEM_REG means nothing."""
    memory = memory_of(2)
    session = t.session(memory=memory, slots=True)
    session.peer.tell(REM_MEM_REG, one_region(memory.regions[1]._replace(mmap_offset=0)))
    session.add_region(memory.regions[1])
    read_into(t, session, memory.regions[1])


@DEVICE.must("vhost.memory-removed-with-fd", _REMOVE, Severity.LOW, protocol=_SLOTS)
def memory_removed_with_fd(t: Tester) -> None:
    """A descriptor that comes with REM_MEM_REG is closed, or the message is refused; nothing else comes of it."""
    memory = memory_of(2)
    session = t.session(memory=memory, slots=True)
    way = session.peer.refusal(REM_MEM_REG, one_region(memory.regions[1]), [memory.fd])
    if way is not None:
        raise Rejected(way)
    session.add_region(memory.regions[1])
    read_into(t, session, memory.regions[1])


@DEVICE.must("vhost.memory-removed-unused", _REMOVE, Severity.CRITICAL, protocol=_SLOTS)
def memory_removed_unused(t: Tester) -> str:
    """A region that was removed is not used any more."""
    memory = memory_of(2)
    session = t.session(memory=memory, slots=True)
    read_into(t, session, memory.regions[1])
    gone = memory.regions.pop()
    session.peer.tell(REM_MEM_REG, one_region(gone))
    session.read(0, t.block_sectors)
    return _is_not_used(t, session, gone)


# Tables and regions that make no sense.


@DEVICE.must("vhost.memory-table-fds", _TABLE, Severity.HIGH)
def memory_table_fds(t: Tester) -> None:
    """A table with fewer or more descriptors than regions is refused."""
    unsound = Refusals(t, start=False)
    regions = [region_at(position) for position in range(3)]
    for count in (0, 2, 4):
        fd = unsound.session.memory.fd
        unsound.send(f"a table of 3 regions with {count} descriptors", SET_MEM_TABLE, table(regions), [fd] * count)
    unsound.end()


@DEVICE.must("vhost.memory-table-count", _TABLE, Severity.HIGH)
def memory_table_count(t: Tester) -> None:
    """A table of more than eight regions, or of more than it has room for, is refused."""
    unsound = Refusals(t, start=False)
    for count, there in ((9, 9), (3, 1), (1 << 31, 1), ((1 << 32) - 1, 8)):
        payload = uapi.MEMORY_HEADER.pack(count, 0) + table(small_regions(there, 1 << 16))[uapi.MEMORY_HEADER.size :]
        fds = [unsound.session.memory.fd] * min(count, uapi.VHOST_USER_MAX_FDS)
        unsound.send(f"a table that says {count} regions and has {there}", SET_MEM_TABLE, payload, fds)
    unsound.end()


@DEVICE.must("vhost.memory-table-overlap", _TABLE, Severity.LOW)
def memory_table_overlap(t: Tester) -> None:
    """A table whose regions overlap in guest memory is refused."""
    unsound = Refusals(t, start=False)
    first = region_at(0)
    for other in (first, region_at(1)._replace(guest_addr=first.guest_addr + _SIZE // 2)):
        fd = unsound.session.memory.fd
        unsound.send(f"{other} beside {first}", SET_MEM_TABLE, table([first, other]), [fd, fd])
    unsound.end()


@DEVICE.must("vhost.memory-empty", _TABLE, Severity.LOW)
def memory_empty(t: Tester) -> None:
    """A region of no bytes is refused."""
    unsound = Refusals(t, start=False)
    unsound.send("an empty region", SET_MEM_TABLE, table([region_at(0, 0)]), [unsound.session.memory.fd])
    unsound.end()


@DEVICE.must("vhost.memory-wraps", "Memory region description", Severity.CRITICAL)
def memory_wraps(t: Tester) -> None:
    """A region whose addresses or offsets wrap at 2^64 is refused."""
    unsound = Refusals(t, start=False)
    top = (1 << 64) - _SIZE // 2
    for field in ("guest_addr", "user_addr", "mmap_offset"):
        fd = unsound.session.memory.fd
        unsound.send(f"a {field} of {top:#x}", SET_MEM_TABLE, table([region_at(0)._replace(**{field: top})]), [fd])
    region = region_at(0, (1 << 64) - 4096)
    unsound.send(f"a size of {region.size:#x}", SET_MEM_TABLE, table([region]), [unsound.session.memory.fd])
    unsound.end()


@DEVICE.must("vhost.memory-past-file", "Memory region description", Severity.HIGH)
def memory_past_file(t: Tester) -> str:
    """A region that is longer than its file is refused, or harms nobody when what is not there is used."""
    session = t.session(memory=memory_of(2), start=False)
    memory = session.memory
    short = os.memfd_create("virtblk-check-short", os.MFD_CLOEXEC)
    try:
        os.ftruncate(short, _SIZE + 4096)  # one page of the second region
        way = session.peer.refusal(SET_MEM_TABLE, table(memory.regions), [memory.fd, short])
    finally:
        os.close(short)
    if way is not None:
        raise Rejected(way)
    session.start_ring(session.make_ring(0))
    room = Buffer(memory.regions[1].guest_addr + _SIZE // 2, 512 * t.block_sectors, True)
    request = session.add([session.buffer(HEADER.pack(VIRTIO_BLK_T_IN, 0, 0))], [room, session.room(1, NO_STATUS)])
    session.submit()
    return session.settle(t.settle_time, request)


@DEVICE.must("vhost.memory-unmappable", _TABLE, Severity.HIGH)
def memory_unmappable(t: Tester) -> None:
    """A table with a descriptor that cannot be mapped is refused, and a good one after it works."""
    unsound = Refusals(t, start=False)
    session = unsound.session
    regions = session.memory.regions
    unsound.send("a table with an eventfd", SET_MEM_TABLE, table(regions), [session.event_fd()])
    session = unsound.session
    session.set_mem_table()
    session.start_ring(session.make_ring(0))
    session.read(0, t.block_sectors)
    unsound.end()


@DEVICE.must("vhost.memory-added-fds", _ADD, Severity.HIGH, protocol=_SLOTS)
def memory_added_fds(t: Tester) -> None:
    """ADD_MEM_REG with no descriptor, or with two, is refused."""
    unsound = Refusals(t, start=False)
    for count in (0, 2):
        fd = unsound.session.memory.fd
        unsound.send(f"ADD_MEM_REG with {count} descriptors", ADD_MEM_REG, one_region(region_at(0)), [fd] * count)
    unsound.end()


@DEVICE.must("vhost.memory-added-overlap", _ADD, Severity.LOW, protocol=_SLOTS)
def memory_added_overlap(t: Tester) -> None:
    """A region that overlaps one that is there in guest memory is refused."""
    unsound = Refusals(t, slots=True)
    session = unsound.session
    (first,) = session.memory.regions
    for other in (first, region_at(1)._replace(guest_addr=first.guest_addr + first.size - 4096)):
        fd = unsound.session.memory.fd
        unsound.send(f"{other} beside {first}", ADD_MEM_REG, one_region(other), [fd])
    unsound.session.read(0, t.block_sectors)
    unsound.end()


@DEVICE.must("vhost.memory-slots-exceeded", _ADD, Severity.HIGH, protocol=_SLOTS)
def memory_slots_exceeded(t: Tester) -> None:
    """One region more than GET_MAX_MEM_SLOTS answers is refused."""
    unsound = Refusals(t, start=False)
    session = unsound.session
    slots = session.peer.get_u64(FrontendRequest.VHOST_USER_GET_MAX_MEM_SLOTS)
    if slots > _SLOTS_TRIED:
        raise Skipped(f"the device has {slots} slots")
    size = 4096
    for n in range(slots):
        session.add_region(MemoryRegion(GUEST + 2 * n * size, size, USER + 2 * n * size, n * size % DEFAULT_SIZE))
    extra = MemoryRegion(GUEST + 2 * slots * size, size, USER + 2 * slots * size, 0)
    unsound.send(f"region number {slots + 1}", ADD_MEM_REG, one_region(extra), [session.memory.fd])
    unsound.end()


@DEVICE.must("vhost.memory-removed-unknown", _REMOVE, Severity.LOW, protocol=_SLOTS)
def memory_removed_unknown(t: Tester) -> None:
    """REM_MEM_REG of a region that is not there is refused, and leaves the others alone."""
    unsound = Refusals(t, slots=True)
    (first,) = unsound.session.memory.regions
    for field in ("guest_addr", "user_addr", "size"):
        wrong = first._replace(**{field: getattr(first, field) + 4096})
        unsound.send(f"removing the {wrong}", REM_MEM_REG, one_region(wrong))
    unsound.session.read(0, t.block_sectors)
    unsound.end()
