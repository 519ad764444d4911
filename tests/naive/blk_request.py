"""What a virtio-blk device answers (virtio 1.2, 5.2.6), told without rings, batches and pieces."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from naive.virtio_blk import DISCARD, FLUSH, GET_ID, IN, IOERR, OK, OUT, UNSUPP, WRITE_ZEROES


@dataclass
class NaiveDisk:
    """A disk of `content`; `serve` takes all bytes that the driver sent, and how many the device may write."""

    content: bytearray
    serial: bytes = b""
    read_only: bool = False
    flush: bool = True
    ranges: tuple[int, ...] = (DISCARD, WRITE_ZEROES)  # which of the two it knows
    max_range: int = 16384  # sectors of one segment
    log: list[int] = field(default_factory=list)

    def serve(self, sent: bytes, room: int) -> tuple[int | None, bytes]:
        """(status, data). `room` counts data and status; a status of None says that there was no byte for it."""
        if room < 1:
            return None, b""
        if len(sent) < 16:
            return IOERR, b""
        kind, _, sector = struct.unpack_from("<IIQ", sent)
        self.log.append(kind)
        if kind == IN:
            return self._read(sector, room - 1)
        if kind == OUT:
            return self._write(sector, sent[16:]), b""
        if kind == FLUSH:
            return OK if self.flush else UNSUPP, b""
        if kind == GET_ID:
            return OK, self.serial.ljust(20, b"\0")[: room - 1]
        if kind in (DISCARD, WRITE_ZEROES):
            return self._zero(kind, sent[16:]), b""
        return UNSUPP, b""

    def _read(self, sector: int, length: int) -> tuple[int, bytes]:
        if length % 512 or sector * 512 + length > len(self.content):
            return IOERR, b""
        return OK, bytes(self.content[sector * 512 : sector * 512 + length])

    def _write(self, sector: int, data: bytes) -> int:
        if self.read_only or len(data) % 512 or sector * 512 + len(data) > len(self.content):
            return IOERR
        self.content[sector * 512 : sector * 512 + len(data)] = data
        return OK

    def _zero(self, kind: int, payload: bytes) -> int:
        if self.read_only:
            return IOERR
        if kind not in self.ranges:
            return UNSUPP
        if len(payload) % 16 or not 1 <= len(payload) // 16 <= 32:
            return IOERR
        segments = list(struct.iter_unpack("<QII", payload))
        if any(flags > (1 if kind == WRITE_ZEROES else 0) for _, _, flags in segments):
            return UNSUPP
        if any(
            sectors > self.max_range or (start + sectors) * 512 > len(self.content) for start, sectors, _ in segments
        ):
            return IOERR
        for start, sectors, _ in segments:
            self.content[start * 512 : (start + sectors) * 512] = bytes(sectors * 512)
        return OK
