"""Checks of the requests that drivers make (virtio 1.2, 5.2.6): what they do, and what they answer."""

from __future__ import annotations

import struct

from virtblk.check.requirement import DEVICE, Failed, Level, Rejected, Severity, Skipped
from virtblk.check.runner import Tester
from virtblk.check.session import NO_STATUS, UNTOUCHED, Session
from virtblk.uapi import virtio_blk as blk

OK, IOERR, UNSUPP = blk.VIRTIO_BLK_S_OK, blk.VIRTIO_BLK_S_IOERR, blk.VIRTIO_BLK_S_UNSUPP
IN, OUT = blk.VIRTIO_BLK_T_IN, blk.VIRTIO_BLK_T_OUT
UNMAP = blk.VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP

_DISCARD = (blk.VIRTIO_BLK_F_DISCARD,)
_ZEROES = (blk.VIRTIO_BLK_F_WRITE_ZEROES,)
_SEGMENT = struct.Struct("<QII")


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    """struct virtio_blk_discard_write_zeroes."""
    return _SEGMENT.pack(sector, sectors, flags)


def pattern(sectors: int, seed: int) -> bytes:
    """Data in which no sector is like another, and no byte 0."""
    return b"".join(bytes(1 + (seed + 7 * s + i) % 255 for i in range(512)) for s in range(sectors))


def unless_read_only(t: Tester) -> None:
    if t.facts.offers(blk.VIRTIO_BLK_F_RO):
        raise Skipped("the device offers VIRTIO_BLK_F_RO")


def filled(t: Tester, session: Session, sectors: int, seed: int) -> tuple[int, bytes]:
    """So many sectors that may be written, with a pattern on them: the first, and what they hold."""
    unless_read_only(t)
    first = t.scratch_sector(sectors)
    data = pattern(sectors, seed)
    session.write(first, data)
    return first, data


# Reads and writes.


@DEVICE.must("blk.read", "5.2.6", Severity.CRITICAL)
def read(t: Tester) -> None:
    """A read fills the whole buffer, whatever that held before."""
    size = 512 * t.lines_up(8)
    session = t.session()
    first = session.send(IN, 0, room=size).ok().data
    second = session.prepare(IN, 0, room=size)
    for piece in second.data_at:
        session.memory.write(piece.addr, bytes([UNTOUCHED ^ 0xFF]) * piece.len)
    session.submit(second)
    again = second.ok().data
    for at in range(size):
        if first[at] != again[at]:
            held = f"the buffers held {UNTOUCHED:#x}, then its inverse"
            raise Failed(f"byte {at} reads {first[at]:#x}, then {again[at]:#x}; {held}")


@DEVICE.must("blk.read-after-write", "5.2.6", Severity.CRITICAL, scratch=True)
def read_after_write(t: Tester) -> None:
    """A read returns what was written last, of each sector."""
    session = t.session()
    sectors = t.lines_up(16)
    for seed in (1, 99):
        first, data = filled(t, session, sectors, seed)
        found = session.read(first, sectors)
        if found != data:
            at = next(i for i in range(len(data)) if data[i] != found[i])
            raise Failed(f"byte {at}: wrote {data[at : at + 8].hex(' ')}, read {found[at : at + 8].hex(' ')}")


@DEVICE.must("blk.write-in-place", "5.2.6", Severity.CRITICAL, scratch=True)
def write_in_place(t: Tester) -> None:
    """A write changes the sectors it names, and no others."""
    session = t.session()
    one = t.block_sectors
    first, data = filled(t, session, 3 * one, 5)
    middle = pattern(one, 77)
    session.write(first + one, middle)
    found = session.read(first, 3 * one)
    if found != data[: 512 * one] + middle + data[1024 * one :]:
        raise Failed(f"three blocks at sector {first}: the outer two changed, or the middle one did not")


@DEVICE.must("blk.segments", "5.2.6", Severity.HIGH)
def segments(t: Tester) -> str:
    """A request may have several data buffers, up to `seg_max` of them: one at the limit succeeds."""
    seg_max = t.facts.fields["seg_max"] if t.facts.offers(blk.VIRTIO_BLK_F_SEG_MAX) else 1
    count = min(seg_max, 1000, t.facts.capacity // t.block_sectors)
    session = t.session(num=1024)
    one = 512 * t.block_sectors
    request = session.send(IN, 0, room=[one] * count).ok()
    whole = session.read(0, t.block_sectors)
    if request.data[:one] != whole:
        raise Failed(f"the first of {count} segments differs from a read of its own")
    return f"{count} segments"


@DEVICE.must("blk.size-max", "5.2.6", Severity.HIGH, features=(blk.VIRTIO_BLK_F_SIZE_MAX,))
def size_max(t: Tester) -> str:
    """A data buffer of exactly `size_max` bytes is possible."""
    limit = t.facts.fields["size_max"]
    if limit == 0:
        raise Failed("size_max is 0: no data buffer is allowed")
    size = min(limit, 2 << 20, t.facts.capacity * 512) // (512 * t.block_sectors) * 512 * t.block_sectors
    if not size:
        raise Skipped(f"size_max is {limit}, less than a block")
    t.session().send(IN, 0, room=size).ok()
    return f"{size} bytes" if size == limit else f"{size} bytes of {limit}"


@DEVICE.must("blk.last-sector", "5.2.6", Severity.HIGH, same_as="B0055")
def last_sector(t: Tester) -> None:
    """The last block of the disk can be read."""
    t.session().read(t.facts.capacity - t.block_sectors, t.block_sectors)


# Status.


@DEVICE.must("blk.status-defined", "5.2.6", Severity.HIGH)
def status_defined(t: Tester) -> None:
    """Each status is one of the defined values."""
    session = t.session()
    kinds = [(IN, 0, 512 * t.block_sectors), (blk.VIRTIO_BLK_T_FLUSH, 0, 0), (blk.VIRTIO_BLK_T_GET_ID, 0, 20)]
    kinds += [(IN, t.facts.capacity, 512 * t.block_sectors), (77, 0, 512)]
    for kind, sector, room in kinds:
        session.send(kind, sector, room=room).expect(OK, IOERR, UNSUPP)


@DEVICE.must("blk.status-one-byte", "5.2.6", Severity.CRITICAL, same_as="")
def status_one_byte(t: Tester) -> None:
    """The status is exactly one byte: what follows it in memory stays as it was."""
    session = t.session()
    for kind, room in ((IN, 512 * t.block_sectors), (blk.VIRTIO_BLK_T_FLUSH, 0), (77, 0)):
        request = session.send(kind, 0, room=room)
        session.wait(request)
        session.account()


@DEVICE.must("blk.unknown-type", "5.2.6", Severity.HIGH, same_as="B0003")
def unknown_type(t: Tester) -> None:
    """A request of an unknown type gets UNSUPP."""
    session = t.session()
    for kind in (5, 7, 33, 0x7FFF_FFFF, 0x100, 0x1_0000):  # the last ones: IN, in fewer bits
        request = session.send(kind)
        session.wait(request)
        if request.status != UNSUPP:
            raise Failed(f"type {kind}: {_said(request.status)}, expected UNSUPP (2)")


@DEVICE.must("blk.legacy-barrier", "5.2.6", Severity.DEVIATION, same_as="B0089")
def legacy_barrier(t: Tester) -> None:
    """Bit 31 of the type, a barrier on devices before virtio 1.0, makes a type unknown as any other bit does."""
    request = t.session().send(1 << 31 | IN, 0, room=512 * t.block_sectors)
    request.session.wait(request)
    if request.status != UNSUPP:
        raise Failed(f"type {1 << 31 | IN:#x}: {_said(request.status)}, expected UNSUPP (2)")


@DEVICE.must("blk.unknown-type-data", "5.2.6", Severity.HIGH)
def unknown_type_data(t: Tester) -> None:
    """A request of an unknown type gets UNSUPP, data or not, and its buffers stay as they were."""
    session = t.session()
    for kind in (6, 62):
        request = session.send(kind, 0, out=bytes(512), room=512)
        session.wait(request)
        if request.status != UNSUPP or request.data != bytes([UNTOUCHED]) * 512:
            raise Failed(f"type {kind}: {_said(request.status)}, data {request.data[:8].hex(' ')} ...")


def _said(status: int) -> str:
    return "no status" if status == NO_STATUS else f"status {status}"


# Flush, identity, lifetime.


@DEVICE.must("blk.flush", "5.2.6", Severity.HIGH, features=(blk.VIRTIO_BLK_F_FLUSH,))
def flush(t: Tester) -> None:
    """With FLUSH, a flush succeeds."""
    t.session().send(blk.VIRTIO_BLK_T_FLUSH).ok()


@DEVICE.must("blk.flush-after-write", "5.2.6.2", Severity.HIGH, features=(blk.VIRTIO_BLK_F_FLUSH,), scratch=True)
def flush_after_write(t: Tester) -> None:
    """A flush after a write succeeds, and the data is there."""
    session = t.session()
    first, data = filled(t, session, t.block_sectors, 41)
    session.send(blk.VIRTIO_BLK_T_FLUSH).ok()
    if session.read(first, t.block_sectors) != data:
        raise Failed("the data changed")


DEVICE.unbuilt(
    "blk.capacity-change",
    "5.2.6.2",
    Level.SHOULD,
    "When the capacity changes, a config change is sent.",
    "not to be caused at the socket: somebody would have to resize the disk meanwhile",
)


@DEVICE.must("blk.get-id", "5.2.6", Severity.LOW)
def get_id(t: Tester) -> str:
    """GET_ID returns 20 bytes of ASCII, padded with NULs."""
    request = t.session().send(blk.VIRTIO_BLK_T_GET_ID, room=20)
    request.session.wait(request)
    if request.status == UNSUPP:
        raise Rejected("status 2: it has no identity")
    text, _, padding = request.ok().data.partition(b"\0")
    if padding.strip(b"\0") or any(c >= 0x7F or c < 0x20 for c in text) or text.endswith(b" "):
        raise Failed(f"it is {request.data.hex(' ')}")
    return repr(text.decode())


@DEVICE.must("blk.lifetime", "5.2.6.2", Severity.LOW, features=(blk.VIRTIO_BLK_F_LIFETIME,))
def lifetime(t: Tester) -> str:
    """GET_LIFETIME holds no reserved values: end of life at most 3, estimates at most 11."""
    data = t.session().send(10, room=6).ok().data
    eol, first, second = struct.unpack("<HHH", data)
    if eol > 3 or first > 11 or second > 11:
        raise Failed(f"pre_eol_info {eol}, estimates {first} and {second}")
    return f"pre_eol_info {eol}, estimates {first} and {second}"


# Discard, write zeroes, secure erase.


@DEVICE.must("blk.write-zeroes", "5.2.6.2", Severity.CRITICAL, features=_ZEROES, scratch=True)
def write_zeroes(t: Tester) -> None:
    """After write zeroes, the sectors read as zeroes; their neighbours are as before."""
    _zeroes(t, 0)


@DEVICE.must("blk.write-zeroes-unmap", "5.2.6.2", Severity.CRITICAL, features=_ZEROES, scratch=True)
def write_zeroes_unmap(t: Tester) -> None:
    """After write zeroes with `unmap`, the sectors read as zeroes; their neighbours are as before."""
    _zeroes(t, UNMAP)


def _zeroes(t: Tester, flags: int) -> None:
    session = t.session()
    one = t.block_sectors
    first, data = filled(t, session, 3 * one, 9)
    session.send(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0, segment(first + one, one, flags)).ok()
    found = session.read(first, 3 * one)
    size = 512 * one
    if found[size : 2 * size] != bytes(size):
        raise Failed(f"the sectors read {found[size : size + 16].hex(' ')} ...")
    if found[:size] != data[:size] or found[2 * size :] != data[2 * size :]:
        raise Failed("a neighbour changed")


@DEVICE.must("blk.discard", "5.2.6", Severity.HIGH, features=_DISCARD, scratch=True)
def discard(t: Tester) -> None:
    """A discard within the limits succeeds; neighbours are as before."""
    session = t.session()
    step = max(t.block_sectors, t.facts.fields.get("discard_sector_alignment", 1))
    if step > t.area // 8:
        raise Skipped(f"discard_sector_alignment is {step} sectors")
    first, data = filled(t, session, 4 * step, 13)
    begin = -(-first // step) * step
    session.send(blk.VIRTIO_BLK_T_DISCARD, 0, segment(begin, step)).ok()
    at = 512 * (begin - first)
    found = session.read(first, 4 * step)
    if found[:at] != data[:at] or found[at + 512 * step :] != data[at + 512 * step :]:
        raise Failed("a neighbour changed")


@DEVICE.must("blk.discard-unknown-flag", "5.2.6.2", Severity.HIGH, features=_DISCARD, scratch=True)
def discard_unknown_flag(t: Tester) -> None:
    """A discard with an unknown flag gets UNSUPP."""
    _unsupported(t, blk.VIRTIO_BLK_T_DISCARD, (2, 1 << 31))


@DEVICE.must("blk.discard-unmap", "5.2.6.2", Severity.HIGH, features=_DISCARD, scratch=True, same_as="B0014")
def discard_unmap(t: Tester) -> None:
    """A discard with `unmap`, which only write zeroes has, gets UNSUPP."""
    _unsupported(t, blk.VIRTIO_BLK_T_DISCARD, (UNMAP,))


@DEVICE.must("blk.write-zeroes-unknown-flag", "5.2.6.2", Severity.HIGH, features=_ZEROES, scratch=True, same_as="B0017")
def write_zeroes_unknown_flag(t: Tester) -> None:
    """Write zeroes with an unknown flag gets UNSUPP, and changes nothing."""
    _unsupported(t, blk.VIRTIO_BLK_T_WRITE_ZEROES, (2, UNMAP | 1 << 31))


@DEVICE.must(
    "blk.erase-unknown-flag", "5.2.6.2", Severity.HIGH, features=(blk.VIRTIO_BLK_F_SECURE_ERASE,), scratch=True
)
def erase_unknown_flag(t: Tester) -> None:
    """A secure erase with an unknown flag gets UNSUPP."""
    _unsupported(t, 14, (2,))


def _unsupported(t: Tester, kind: int, flags: tuple[int, ...]) -> None:
    session = t.session()
    one = t.block_sectors
    first, data = filled(t, session, one, 21)
    for value in flags:
        request = session.send(kind, 0, segment(first, one, value))
        session.wait(request)
        changed = session.read(first, one) != data
        if request.status != UNSUPP or changed:
            also = ", and the data changed" if changed else ""
            raise Failed(f"flags {value:#x}: {_said(request.status)}, expected UNSUPP (2){also}")


# Read-only.


@DEVICE.must(
    "blk.read-only-write", "5.2.6.2", Severity.CRITICAL, features=(blk.VIRTIO_BLK_F_RO,), scratch=True, same_as="B0057"
)
def read_only_write(t: Tester) -> None:
    """A write to a read-only disk gets IOERR and changes nothing."""
    _refuses_writes(t, ())


@DEVICE.must("blk.read-only-not-accepted", "5.2.6.2", Severity.CRITICAL, features=(blk.VIRTIO_BLK_F_RO,), scratch=True)
def read_only_not_accepted(t: Tester) -> None:
    """A write to a read-only disk gets IOERR and changes nothing, where the driver did not accept RO either."""
    _refuses_writes(t, (blk.VIRTIO_BLK_F_RO,))


def _refuses_writes(t: Tester, without: tuple[int, ...]) -> None:
    session = t.session(without=without)
    one = t.block_sectors
    before = session.read(0, one)
    request = session.send(OUT, 0, pattern(one, 3))
    session.wait(request)
    if session.read(0, one) != before:
        raise Failed(f"the disk changed ({_said(request.status)})")
    if request.status != IOERR:
        raise Failed(f"{_said(request.status)}, expected IOERR (1)")


# Zones.


@DEVICE.must("blk.zone-requests-unnegotiated", "5.2.6.2", Severity.LOW)
def zone_requests_unnegotiated(t: Tester) -> None:
    """Without ZONED negotiated, each zone request gets UNSUPP."""
    session = t.session()
    for kind in (15, 16, 18, 20, 22, 24, 26):
        request = session.send(kind, 0, out=bytes(512) if kind == 15 else b"", room=64 if kind == 16 else 0)
        session.wait(request)
        if request.status != UNSUPP:
            raise Failed(f"type {kind}: {_said(request.status)}, expected UNSUPP (2)")


for _id, _section, _text in (
    ("blk.zoned-refused", "5.2.5.2", "Without ZONED, a host-managed device refuses FEATURES_OK; others show no zones."),
    ("blk.zoned-config", "5.2.5.2", "With ZONED: model, zone size, limits and granularity are set and agree."),
    ("blk.zoned-reset-conventional", "5.2.6.2", "Open, close, finish and reset of a conventional zone are refused."),
    ("blk.zoned-append", "5.2.6.2", "An append goes to a zone's start, fits, spans no zones, and tells its sector."),
    ("blk.zoned-write-pointer", "5.2.6.2", "A write off the write pointer of a sequential zone is refused."),
    ("blk.zoned-limits", "5.2.6.2", "The limits of open and active zones are kept."),
    ("blk.zoned-offline", "5.2.6.2", "Zones that are read-only or offline refuse writes, offline ones reads too."),
):
    DEVICE.unbuilt(_id, _section, Level.MUST, _text, "not built yet: zoned disks", features=(blk.VIRTIO_BLK_F_ZONED,))
