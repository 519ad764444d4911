"""The numbers of virtio-blk and the bytes of its configuration space, typed in once more."""

from __future__ import annotations

import struct
from typing import Final

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2

VERSION_1, INDIRECT, EVENT_IDX, VHOST_PROTOCOL = 1 << 32, 1 << 28, 1 << 29, 1 << 30
F_SIZE_MAX, F_SEG_MAX, F_RO, F_BLK_SIZE = 1 << 1, 1 << 2, 1 << 5, 1 << 6
F_FLUSH, F_TOPOLOGY, F_WCE, F_MQ = 1 << 9, 1 << 10, 1 << 11, 1 << 12
F_DISCARD, F_WRITE_ZEROES = 1 << 13, 1 << 14
FEATURES: Final = (
    VERSION_1 | INDIRECT | EVENT_IDX | VHOST_PROTOCOL | F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_MQ
)
P_MQ, P_REPLY_ACK, P_CONFIG, P_SLOTS = (1 << n for n in (0, 3, 9, 15))
PROTOCOL_FEATURES: Final = P_MQ | P_REPLY_ACK | P_CONFIG | P_SLOTS


def blk_config(
    capacity: int = 2048,
    size_max: int = 1 << 20,
    seg_max: int = 126,
    blk_size: int = 512,
    physical_block_exp: int = 0,
    alignment_offset: int = 0,
    min_io_size: int = 0,
    opt_io_size: int = 0,
    writeback: int = 0,
    num_queues: int = 1,
    discard: tuple[int, int, int] = (0, 0, 0),
    write_zeroes: tuple[int, int, int] = (0, 0, 0),
) -> bytes:
    """The configuration space, 60 bytes of it.

    `discard`: max_discard_sectors, max_discard_seg, discard_sector_alignment; `write_zeroes`: max_write_zeroes_sectors,
    max_write_zeroes_seg, write_zeroes_may_unmap.
    """
    topology = (physical_block_exp, alignment_offset, min_io_size, opt_io_size)
    fields = (capacity, size_max, seg_max, 0, 0, 0, blk_size, *topology, writeback, 0, num_queues)
    return struct.pack("<QIIHBBIBBHIBBHIIIIIB", *fields, *discard, *write_zeroes).ljust(60, b"\0")
