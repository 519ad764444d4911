"""The block device (virtio 1.2, section 5.2): feature bits, config space, requests, status.

Numbers only. Named as in Linux's include/uapi/linux/virtio_blk.h.
"""

from __future__ import annotations

from typing import Final

import numpy as np

VIRTIO_BLK_F_SIZE_MAX: Final = 1
VIRTIO_BLK_F_SEG_MAX: Final = 2
VIRTIO_BLK_F_GEOMETRY: Final = 4
VIRTIO_BLK_F_RO: Final = 5
VIRTIO_BLK_F_BLK_SIZE: Final = 6
VIRTIO_BLK_F_FLUSH: Final = 9
VIRTIO_BLK_F_TOPOLOGY: Final = 10
VIRTIO_BLK_F_CONFIG_WCE: Final = 11
VIRTIO_BLK_F_MQ: Final = 12
VIRTIO_BLK_F_DISCARD: Final = 13
VIRTIO_BLK_F_WRITE_ZEROES: Final = 14
VIRTIO_BLK_F_LIFETIME: Final = 15
VIRTIO_BLK_F_SECURE_ERASE: Final = 16
VIRTIO_BLK_F_ZONED: Final = 17

#: Ours, experimental, of no specification (docs/auto.md): the device asks its driver to merge and to sort, since
#: nothing behind it does. It changes nothing in what a request means, so drivers that do not know it ignore it.
VIRTBLK_F_SORT: Final = 23

BLK_FEATURE_NAMES: Final[dict[int, str]] = {
    0: "VIRTIO_BLK_F_BARRIER",
    VIRTIO_BLK_F_SIZE_MAX: "VIRTIO_BLK_F_SIZE_MAX",
    VIRTIO_BLK_F_SEG_MAX: "VIRTIO_BLK_F_SEG_MAX",
    VIRTIO_BLK_F_GEOMETRY: "VIRTIO_BLK_F_GEOMETRY",
    VIRTIO_BLK_F_RO: "VIRTIO_BLK_F_RO",
    VIRTIO_BLK_F_BLK_SIZE: "VIRTIO_BLK_F_BLK_SIZE",
    7: "VIRTIO_BLK_F_SCSI",
    VIRTIO_BLK_F_FLUSH: "VIRTIO_BLK_F_FLUSH",
    VIRTIO_BLK_F_TOPOLOGY: "VIRTIO_BLK_F_TOPOLOGY",
    VIRTIO_BLK_F_CONFIG_WCE: "VIRTIO_BLK_F_CONFIG_WCE",
    VIRTIO_BLK_F_MQ: "VIRTIO_BLK_F_MQ",
    VIRTIO_BLK_F_DISCARD: "VIRTIO_BLK_F_DISCARD",
    VIRTIO_BLK_F_WRITE_ZEROES: "VIRTIO_BLK_F_WRITE_ZEROES",
    VIRTIO_BLK_F_LIFETIME: "VIRTIO_BLK_F_LIFETIME",
    VIRTIO_BLK_F_SECURE_ERASE: "VIRTIO_BLK_F_SECURE_ERASE",
    VIRTIO_BLK_F_ZONED: "VIRTIO_BLK_F_ZONED",
    VIRTBLK_F_SORT: "VIRTBLK_F_SORT",
}

VIRTIO_BLK_T_IN: Final = 0
VIRTIO_BLK_T_OUT: Final = 1
VIRTIO_BLK_T_SCSI_CMD: Final = 2
VIRTIO_BLK_T_FLUSH: Final = 4
VIRTIO_BLK_T_GET_ID: Final = 8
VIRTIO_BLK_T_DISCARD: Final = 11
VIRTIO_BLK_T_WRITE_ZEROES: Final = 13

VIRTIO_BLK_S_OK: Final = 0
VIRTIO_BLK_S_IOERR: Final = 1
VIRTIO_BLK_S_UNSUPP: Final = 2

VIRTIO_BLK_ID_BYTES: Final = 20
SECTOR_SHIFT: Final = 9
SECTOR_SIZE: Final = 512

#: struct virtio_blk_outhdr: le32 type, le32 ioprio, le64 sector
OUTHDR: Final = np.dtype([("type", "<u4"), ("ioprio", "<u4"), ("sector", "<u8")], align=True)
OUTHDR_SIZE: Final = 16
OUTHDR_TYPE: Final = 0
OUTHDR_IOPRIO: Final = 4
OUTHDR_SECTOR: Final = 8

#: struct virtio_blk_discard_write_zeroes: one segment of the payload of T_DISCARD and T_WRITE_ZEROES.
DISCARD_WRITE_ZEROES: Final = np.dtype([("sector", "<u8"), ("num_sectors", "<u4"), ("flags", "<u4")], align=True)
VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP: Final = 1

#: struct virtio_blk_config, as far as features of this version of virtblk reach (up to num_queues).
BLK_CONFIG: Final = np.dtype(
    [
        ("capacity", "<u8"),  # in 512-byte sectors
        ("size_max", "<u4"),
        ("seg_max", "<u4"),
        ("cylinders", "<u2"),
        ("heads", "u1"),
        ("sectors", "u1"),
        ("blk_size", "<u4"),
        ("physical_block_exp", "u1"),
        ("alignment_offset", "u1"),
        ("min_io_size", "<u2"),
        ("opt_io_size", "<u4"),
        ("writeback", "u1"),
        ("unused0", "u1"),
        ("num_queues", "<u2"),
    ]
)
#: The same up to write zeroes (virtio 1.1), which is what back ends of today answer.
BLK_CONFIG_1_1: Final = np.dtype(
    [
        *((name, BLK_CONFIG[name]) for name in BLK_CONFIG.names or ()),
        ("max_discard_sectors", "<u4"),  # of one segment
        ("max_discard_seg", "<u4"),
        ("discard_sector_alignment", "<u4"),  # in 512-byte sectors, as all of these
        ("max_write_zeroes_sectors", "<u4"),
        ("max_write_zeroes_seg", "<u4"),
        ("write_zeroes_may_unmap", "u1"),
        ("unused1", "u1", 3),
    ]
)
BLK_CONFIG_SIZE_1_1: Final = 60
#: Where `writeback` lies: the one field that a driver may write (5.2.6.1).
BLK_CONFIG_WRITEBACK: Final = 32

assert OUTHDR.itemsize == OUTHDR_SIZE
assert DISCARD_WRITE_ZEROES.itemsize == 16
assert BLK_CONFIG.itemsize == 36
assert BLK_CONFIG.fields["blk_size"][1] == 20  # type: ignore[index]
assert BLK_CONFIG.fields["writeback"][1] == BLK_CONFIG_WRITEBACK  # type: ignore[index]
assert BLK_CONFIG.fields["num_queues"][1] == 34  # type: ignore[index]
assert BLK_CONFIG_1_1.itemsize == BLK_CONFIG_SIZE_1_1
assert BLK_CONFIG_1_1.fields["max_discard_sectors"][1] == 36  # type: ignore[index]
assert BLK_CONFIG_1_1.fields["write_zeroes_may_unmap"][1] == 56  # type: ignore[index]
