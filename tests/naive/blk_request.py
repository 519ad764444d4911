"""What a virtio-blk device answers (virtio 1.2, 5.2.6), told without rings, batches and pieces."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from naive.virtio_blk import FLUSH, GET_ID, IN, IOERR, OK, OUT, UNSUPP


@dataclass
class NaiveDisk:
    """A disk of `content`; `serve` takes all bytes that the driver sent, and how many the device may write."""

    content: bytearray
    serial: bytes = b""
    read_only: bool = False
    flush: bool = True
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
