"""The split virtqueue in memory (virtio 1.2, section 2.7): dtypes, flags, alignments.

Numbers only. The kernels never lay these dtypes over shared memory (a record is a view, and reading a view twice sees
a peer's change): they take the offsets from here and read each word once. Tests and naive twins use the dtypes.
"""

from __future__ import annotations

from typing import Final

import numpy as np

VRING_DESC_F_NEXT: Final = 1
VRING_DESC_F_WRITE: Final = 2
VRING_DESC_F_INDIRECT: Final = 4
VRING_USED_F_NO_NOTIFY: Final = 1
VRING_AVAIL_F_NO_INTERRUPT: Final = 1

VRING_DESC_ALIGN_SIZE: Final = 16
VRING_AVAIL_ALIGN_SIZE: Final = 2
VRING_USED_ALIGN_SIZE: Final = 4
#: Section 2.7: "Queue Size value is always a power of 2. The maximum Queue Size value is 32768."
VRING_MAX_NUM: Final = 32768

VRING_DESC: Final = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")], align=True)
VRING_USED_ELEM: Final = np.dtype([("id", "<u4"), ("len", "<u4")], align=True)

DESC_SIZE: Final = 16
DESC_ADDR: Final = 0
DESC_LEN: Final = 8
DESC_FLAGS: Final = 12
DESC_NEXT: Final = 14
USED_ELEM_SIZE: Final = 8
USED_ELEM_ID: Final = 0
USED_ELEM_LEN: Final = 4

#: avail: le16 flags, le16 idx, le16 ring[num], le16 used_event
AVAIL_FLAGS: Final = 0
AVAIL_IDX: Final = 2
AVAIL_RING: Final = 4
#: used: le16 flags, le16 idx, struct used_elem ring[num], le16 avail_event
USED_FLAGS: Final = 0
USED_IDX: Final = 2
USED_RING: Final = 4

assert VRING_DESC.itemsize == DESC_SIZE
assert VRING_USED_ELEM.itemsize == USED_ELEM_SIZE
assert [VRING_DESC.fields[n][1] for n in ("addr", "len", "flags", "next")] == [  # type: ignore[index]
    DESC_ADDR,
    DESC_LEN,
    DESC_FLAGS,
    DESC_NEXT,
]
assert [VRING_USED_ELEM.fields[n][1] for n in ("id", "len")] == [USED_ELEM_ID, USED_ELEM_LEN]  # type: ignore[index]


def desc_table_size(num: int) -> int:
    """Bytes of a descriptor table of `num` entries."""
    return DESC_SIZE * num


def avail_size(num: int) -> int:
    """Bytes of an available ring of `num` entries, used_event included."""
    return AVAIL_RING + 2 * num + 2


def used_size(num: int) -> int:
    """Bytes of a used ring of `num` entries, avail_event included."""
    return USED_RING + USED_ELEM_SIZE * num + 2
