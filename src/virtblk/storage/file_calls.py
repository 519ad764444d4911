"""System calls on files that Python's `os` lacks: fallocate(2) with a mode, the alignment of direct I/O by statx(2).

Called by `storage.file`, on any thread.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10

_AT_EMPTY_PATH: Final = 0x1000
_STATX_DIOALIGN: Final = 0x2000
_STATX_BYTES: Final = 256
_DIO_MEM_ALIGN: Final = 152  # offsetof(struct statx, stx_dio_mem_align); stx_dio_offset_align follows

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """0 or -errno."""
    return -ctypes.get_errno() if _libc.fallocate(fd, mode, offset, length) else 0


def dio_alignment(fd: int) -> tuple[int, int]:
    """(memory, offset) alignment of direct I/O on a file; zeroes where the kernel (before 6.1) or the file system does
    not tell."""
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    statx = getattr(_libc, "statx", None)
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, answer):
        return 0, 0
    if not struct.unpack_from("I", answer)[0] & _STATX_DIOALIGN:
        return 0, 0
    memory, offset = struct.unpack_from("II", answer, _DIO_MEM_ALIGN)
    return memory, offset
