"""Checks of block requests that break a rule of the driver's (virtio 1.2, 5.2.6.1): sound chains, senseless contents.

A device answers them with an error, or refuses by stopping the ring; it never answers OK to what it did not do, and
neither memory nor disk changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from virtblk.check.blk_request import IN, OUT, UNSUPP, filled, pattern, segment, unless_read_only
from virtblk.check.requirement import DEVICE, Failed, Rejected, Severity, Skipped
from virtblk.check.runner import Tester
from virtblk.check.session import NO_STATUS, UNTOUCHED, Request, Session
from virtblk.uapi import virtio_blk as blk

OK: Final = blk.VIRTIO_BLK_S_OK
DISCARD: Final = blk.VIRTIO_BLK_T_DISCARD
ZEROES: Final = blk.VIRTIO_BLK_T_WRITE_ZEROES
FLUSH: Final = blk.VIRTIO_BLK_T_FLUSH
GET_ID: Final = blk.VIRTIO_BLK_T_GET_ID
_FLUSH: Final = (blk.VIRTIO_BLK_F_FLUSH,)
_DISCARD: Final = (blk.VIRTIO_BLK_F_DISCARD,)
_ZEROES: Final = (blk.VIRTIO_BLK_F_WRITE_ZEROES,)
#: VIRTIO_BLK_T_SECURE_ERASE and VIRTIO_BLK_T_GET_LIFETIME.
_ERASE, _LIFETIME = 14, 10


def answer(t: Tester, session: Session, request: Request, *, may_succeed: bool = False) -> str:
    """How the device took it; Rejected if it refused, Failed if it says that it did it, or forgets about it.

    A sound read goes behind it, which tells a ring that stands still from a request that was dropped.
    """
    behind = session.prepare(IN, 0, room=512 * t.block_sectors)
    session.submit(request, behind)
    session.settle(t.settle_time, request)
    request.ring.lost = False
    session.drain()
    if not request.done:
        raise Rejected("the session was closed")
    if request.status == OK and not may_succeed:
        raise Failed(f"it succeeded, with used length {request.used_len}")
    if request.status == NO_STATUS:
        return f"it came back with used length {request.used_len} and without a status"
    return f"status {request.status}"


def unchanged(t: Tester, session: Session, first: int, data: bytes) -> None:
    """Failed unless the disk holds `data` from sector `first` on. A new session asks: with `session` all is said."""
    session.account()
    session.close()
    with t.session() as after:
        found = after.read(first, len(data) // 512)
    for at in range(0, len(data), 512):
        if found[at : at + 512] != data[at : at + 512]:
            was, now = data[at : at + 8].hex(" "), found[at : at + 8].hex(" ")
            raise Failed(f"sector {first + at // 512} held {was} ..., and now {now} ...")


@contextmanager
def keeping(t: Tester, session: Session, first: int, data: bytes) -> Iterator[None]:
    """Answered or refused, the disk holds `data` from sector `first` on afterwards."""
    try:
        yield
    except Rejected:
        unchanged(t, session, first, data)
        raise
    unchanged(t, session, first, data)


def _read(t: Tester, sector: int, size: int | None = None) -> str:
    session = t.session()
    room = 512 * t.block_sectors if size is None else size
    return answer(t, session, session.prepare(IN, sector, room=room))


# The disk's end.


@DEVICE.must("blk.read-beyond-start", "5.2.6.1", Severity.CRITICAL)
def read_beyond_start(t: Tester) -> str:
    """A read that begins at the end of the disk does not succeed."""
    return _read(t, t.facts.capacity)


@DEVICE.must("blk.read-beyond-end", "5.2.6.1", Severity.CRITICAL, same_as="B0046")
def read_beyond_end(t: Tester) -> str:
    """A read that begins in the disk and ends behind it does not succeed."""
    return _read(t, t.facts.capacity - t.block_sectors, 1024 * t.block_sectors)


@DEVICE.must("blk.read-sector-2-55", "5.2.6.1", Severity.CRITICAL)
def read_sector_2_55(t: Tester) -> str:
    """A read at sector 2^55, whose offset in bytes wraps to 0, does not succeed."""
    return _read(t, 1 << 55)


@DEVICE.must("blk.read-sector-2-63", "5.2.6.1", Severity.CRITICAL)
def read_sector_2_63(t: Tester) -> str:
    """A read at sector 2^63 does not succeed."""
    return _read(t, 1 << 63)


@DEVICE.must("blk.read-sector-top", "5.2.6.1", Severity.CRITICAL, same_as="B0091")
def read_sector_top(t: Tester) -> str:
    """A read at sector 2^64 - 1, whose end wraps to 0, does not succeed."""
    return _read(t, (1 << 64) - 1)


@DEVICE.must("blk.write-beyond-end", "5.2.6.1", Severity.CRITICAL, scratch=True, same_as="B0028")
def write_beyond_end(t: Tester) -> str:
    """A write that begins in the disk and ends behind it does not succeed."""
    unless_read_only(t)
    session = t.session()
    data = pattern(2 * t.block_sectors, 31)
    return answer(t, session, session.prepare(OUT, t.facts.capacity - t.block_sectors, data))


@DEVICE.must("blk.write-wraps", "5.2.6.1", Severity.CRITICAL, scratch=True)
def write_wraps(t: Tester) -> str:
    """A write at sector 2^55, whose offset in bytes wraps to 0, does not succeed, and sector 0 keeps what it had."""
    unless_read_only(t)
    session = t.session()
    with keeping(t, session, 0, session.read(0, t.block_sectors)):
        return answer(t, session, session.prepare(OUT, 1 << 55, pattern(t.block_sectors, 33)))


# Lengths.


@DEVICE.must("blk.read-511", "5.2.6.1", Severity.HIGH)
def read_511(t: Tester) -> str:
    """A read of 511 bytes, no whole sector, does not succeed."""
    return _read(t, 0, 511)


@DEVICE.must("blk.read-513", "5.2.6.1", Severity.HIGH, same_as="B0006")
def read_513(t: Tester) -> str:
    """A read of a sector and one byte does not succeed."""
    return _read(t, 0, 513)


@DEVICE.must("blk.read-nothing", "5.2.6.1", Severity.HIGH, same_as="B0027")
def read_nothing(t: Tester) -> str:
    """A read without data does no harm."""
    session = t.session()
    return answer(t, session, session.prepare(IN), may_succeed=True)


@DEVICE.must("blk.write-511", "5.2.6.1", Severity.HIGH, scratch=True)
def write_511(t: Tester) -> str:
    """A write of 511 bytes, no whole sector, does not succeed."""
    unless_read_only(t)
    session = t.session()
    return answer(t, session, session.prepare(OUT, t.scratch_sector(), bytes(511)))


@DEVICE.must("blk.read-with-readable-data", "5.2.6.1", Severity.HIGH, same_as="B0073")
def read_with_readable_data(t: Tester) -> str:
    """A read whose data buffer is device-readable does no harm, and the buffer is not written."""
    session = t.session()
    request = session.prepare(IN, 0, out=bytes(512 * t.block_sectors))
    return answer(t, session, request, may_succeed=True)


@DEVICE.must("blk.write-with-writable-data", "5.2.6.1", Severity.HIGH, scratch=True, same_as="B0071")
def write_with_writable_data(t: Tester) -> str:
    """A write whose data buffer is device-writable does not change the disk."""
    session = t.session()
    first, data = filled(t, session, t.block_sectors, 35)
    with keeping(t, session, first, data):
        return answer(t, session, session.prepare(OUT, first, room=512 * t.block_sectors), may_succeed=True)


# Flush, identity.


@DEVICE.must("blk.flush-sector", "5.2.6.1", Severity.HIGH, features=_FLUSH, same_as="B0008")
def flush_sector(t: Tester) -> str:
    """A flush whose sector is not 0 does no harm."""
    session = t.session()
    request = session.prepare(FLUSH, t.facts.capacity + 7)
    return answer(t, session, request, may_succeed=True)


@DEVICE.must("blk.flush-data", "5.2.6.1", Severity.HIGH, features=_FLUSH, same_as="B0007")
def flush_data(t: Tester) -> str:
    """A flush with data, in either direction, does no harm."""
    session = t.session()
    request = session.prepare(FLUSH, 0, out=bytes(512), room=512)
    return answer(t, session, request, may_succeed=True)


@DEVICE.must("blk.flush-unnegotiated", "5.2.3", Severity.LOW, features=_FLUSH)
def flush_unnegotiated(t: Tester) -> str:
    """A flush where FLUSH was not negotiated does no harm."""
    session = t.session(without=_FLUSH)
    return answer(t, session, session.prepare(FLUSH), may_succeed=True)


@DEVICE.must("blk.get-id-19", "5.2.6.1", Severity.HIGH, same_as="B0009")
def get_id_19(t: Tester) -> str:
    """GET_ID into 19 bytes, one too few, writes no further."""
    return _get_id(t, 19)


@DEVICE.must("blk.get-id-nothing", "5.2.6.1", Severity.HIGH)
def get_id_nothing(t: Tester) -> str:
    """GET_ID without a buffer does no harm."""
    return _get_id(t, 0)


@DEVICE.must("blk.get-id-4096", "5.2.6.1", Severity.HIGH)
def get_id_4096(t: Tester) -> str:
    """GET_ID into 4096 bytes tells no more than its 20: nothing of the device's own memory."""
    session = t.session()
    request = session.prepare(GET_ID, room=4096)
    said = answer(t, session, request, may_succeed=True)
    beyond = request.data[20:].strip(bytes([UNTOUCHED])).strip(b"\0")
    if beyond:
        raise Failed(f"bytes 20 and on hold {beyond[:16].hex(' ')}")
    return said


def _get_id(t: Tester, room: int) -> str:
    session = t.session()
    return answer(t, session, session.prepare(GET_ID, room=room), may_succeed=True)


# Segments of discard and write zeroes.


def _ranges(t: Tester, kind: int, payload: bytes, *, may_succeed: bool = False) -> str:
    """A request with those segments; the sectors that may be written keep what they had."""
    session = t.session()
    first, data = filled(t, session, 4 * t.block_sectors, 51)
    with keeping(t, session, first, data):
        return answer(t, session, session.prepare(kind, 0, payload), may_succeed=may_succeed)


@DEVICE.must("blk.discard-beyond-end", "5.2.6.1", Severity.CRITICAL, features=_DISCARD, scratch=True)
def discard_beyond_end(t: Tester) -> str:
    """A discard that ends behind the disk does not succeed."""
    return _ranges(t, DISCARD, segment(t.facts.capacity - t.block_sectors, 2 * t.block_sectors))


@DEVICE.must("blk.discard-wraps", "5.2.6.1", Severity.CRITICAL, features=_DISCARD, scratch=True, same_as="B0066")
def discard_wraps(t: Tester) -> str:
    """A discard whose sectors pass 2^64 does not succeed."""
    return _ranges(t, DISCARD, segment((1 << 64) - 8, 16))


@DEVICE.must(
    "blk.write-zeroes-beyond-end", "5.2.6.1", Severity.CRITICAL, features=_ZEROES, scratch=True, same_as="B0069"
)
def write_zeroes_beyond_end(t: Tester) -> str:
    """Write zeroes that ends behind the disk does not succeed."""
    return _ranges(t, ZEROES, segment(t.facts.capacity - t.block_sectors, 2 * t.block_sectors))


@DEVICE.must("blk.write-zeroes-wraps", "5.2.6.1", Severity.CRITICAL, features=_ZEROES, scratch=True)
def write_zeroes_wraps(t: Tester) -> str:
    """Write zeroes at sector 2^55, whose offset in bytes wraps to 0, does not succeed."""
    return _ranges(t, ZEROES, segment(1 << 55, t.block_sectors))


@DEVICE.must("blk.write-zeroes-count-wraps", "5.2.6.1", Severity.CRITICAL, features=_ZEROES, scratch=True)
def write_zeroes_count_wraps(t: Tester) -> str:
    """Write zeroes of 2^23 sectors, whose bytes wrap to 0 in 32 bits, does not succeed on a disk that is smaller."""
    if t.facts.capacity >= 1 << 23:
        raise Skipped(f"the disk has {t.facts.capacity} sectors, it must have fewer than 2^23")
    return _ranges(t, ZEROES, segment(0, 1 << 23))


@DEVICE.must("blk.write-zeroes-odd-payload", "5.2.6.1", Severity.HIGH, features=_ZEROES, scratch=True, same_as="B0064")
def write_zeroes_odd_payload(t: Tester) -> str:
    """Write zeroes whose payload is no whole number of segments does not succeed."""
    return _ranges(t, ZEROES, segment(t.scratch_sector(), t.block_sectors)[:15])


@DEVICE.must("blk.write-zeroes-no-segment", "5.2.6.1", Severity.HIGH, features=_ZEROES, scratch=True)
def write_zeroes_no_segment(t: Tester) -> str:
    """Write zeroes without a segment does no harm."""
    return _ranges(t, ZEROES, b"", may_succeed=True)


@DEVICE.must("blk.write-zeroes-too-many", "5.2.6.1", Severity.HIGH, features=_ZEROES, scratch=True, same_as="B0016")
def write_zeroes_too_many(t: Tester) -> str:
    """Write zeroes of more segments than `max_write_zeroes_seg` does not succeed in part: all of it, or none."""
    most = t.facts.fields.get("max_write_zeroes_seg", 1)
    return _too_many(t, ZEROES, most)


@DEVICE.must("blk.discard-odd-payload", "5.2.6.1", Severity.HIGH, features=_DISCARD, scratch=True, same_as="B0063")
def discard_odd_payload(t: Tester) -> str:
    """A discard whose payload is no whole number of segments does not succeed."""
    return _ranges(t, DISCARD, segment(t.scratch_sector(), t.block_sectors) + bytes(8))


def _too_many(t: Tester, kind: int, most: int) -> str:
    """One segment more than `most`: the first of them and the last are looked at."""
    if most > 256:
        raise Skipped(f"{most} segments are allowed")
    one = t.block_sectors
    session = t.session()
    first, data = filled(t, session, 2 * one, 53)
    request = session.prepare(kind, 0, segment(first, one) * most + segment(first + one, one))
    try:
        said = answer(t, session, request, may_succeed=True)
    except Rejected:
        unchanged(t, session, first, data)
        raise
    unchanged(t, session, first, bytes(len(data)) if request.status == OK else data)
    return said


@DEVICE.must("blk.write-zeroes-segments", "5.2.6", Severity.CRITICAL, features=_ZEROES, scratch=True)
def write_zeroes_segments(t: Tester) -> str:
    """Write zeroes of as many segments as `max_write_zeroes_seg` allows does all of them."""
    one = t.block_sectors
    session = t.session()
    count = min(max(1, t.facts.fields["max_write_zeroes_seg"]), 256, (t.area - t.area // 2) // (2 * one))
    first, data = filled(t, session, 2 * count * one, 61)
    payload = b"".join(segment(first + 2 * n * one, one) for n in range(count))
    session.send(ZEROES, 0, payload).ok()
    size = 512 * one
    kept = [data[(2 * n + 1) * size : (2 * n + 2) * size] for n in range(count)]
    unchanged(t, session, first, b"".join(bytes(size) + rest for rest in kept))
    return f"{count} segments"


@DEVICE.must("blk.write-zeroes-too-long", "5.2.6.1", Severity.HIGH, features=_ZEROES, scratch=True)
def write_zeroes_too_long(t: Tester) -> str:
    """Write zeroes of a segment of more than `max_write_zeroes_sectors` does not succeed."""
    longest = t.facts.fields["max_write_zeroes_sectors"]
    first = t.scratch_sector()
    if not 0 < longest < min(t.facts.capacity - first, 0xFFFF_FFFF):
        raise Skipped(f"max_write_zeroes_sectors is {longest}, the disk has {t.facts.capacity} sectors")
    session = t.session()
    return answer(t, session, session.prepare(ZEROES, 0, segment(first, longest + 1)))


# Requests of features that were not negotiated.


@DEVICE.must("blk.discard-unnegotiated", "5.2.3", Severity.LOW, features=_DISCARD, scratch=True, same_as="B0020")
def discard_unnegotiated(t: Tester) -> str:
    """A discard where DISCARD was not negotiated does no harm."""
    return _unnegotiated(t, DISCARD, _DISCARD)


@DEVICE.must("blk.write-zeroes-unnegotiated", "5.2.3", Severity.LOW, features=_ZEROES, scratch=True, same_as="B0019")
def write_zeroes_unnegotiated(t: Tester) -> str:
    """Write zeroes where WRITE_ZEROES was not negotiated does no harm."""
    return _unnegotiated(t, ZEROES, _ZEROES)


def _unnegotiated(t: Tester, kind: int, without: tuple[int, ...]) -> str:
    session = t.session(without=without)
    first, _ = filled(t, session, t.block_sectors, 57)
    return answer(t, session, session.prepare(kind, 0, segment(first, t.block_sectors)), may_succeed=True)


@DEVICE.must("blk.erase-unoffered", "5.2.3", Severity.HIGH, scratch=True, same_as="B0021")
def erase_unoffered(t: Tester) -> str:
    """A secure erase, where that is not offered, gets UNSUPP and changes nothing."""
    if t.facts.offers(blk.VIRTIO_BLK_F_SECURE_ERASE):
        raise Skipped("the device offers VIRTIO_BLK_F_SECURE_ERASE")
    session = t.session()
    first, data = filled(t, session, t.block_sectors, 59)
    session.send(_ERASE, 0, segment(first, t.block_sectors)).expect(UNSUPP)
    unchanged(t, session, first, data)
    return "status 2"


@DEVICE.must("blk.lifetime-unoffered", "5.2.3", Severity.LOW)
def lifetime_unoffered(t: Tester) -> str:
    """GET_LIFETIME, where that is not offered, gets UNSUPP."""
    if t.facts.offers(blk.VIRTIO_BLK_F_LIFETIME):
        raise Skipped("the device offers VIRTIO_BLK_F_LIFETIME")
    request = t.session().send(_LIFETIME, room=6)
    request.expect(UNSUPP)
    return "status 2"


@DEVICE.must("blk.scsi-command", "5.2.6", Severity.HIGH, same_as="B0004")
def scsi_command(t: Tester) -> str:
    """SCSI commands of legacy devices (types 2 and 3) are not served."""
    session = t.session()
    for kind in (2, 3):
        request = session.send(kind, 0, out=bytes(16), room=[96, 16])
        session.wait(request)
        if request.status in (OK, NO_STATUS):
            raise Failed(f"type {kind}: status {request.status:#x}, expected an error")
    return "refused"
