"""Mappings with PROT_NONE guards, and the driver's arena: one memfd that holds all that a device may touch.

Kernel: memfd_create(2), mmap(2). Huge pages where the system has any to give, silently small pages where not.
Control context only; the kernels get plain addresses.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
from typing import Final

import numpy as np
import numpy.typing as npt

PAGE: Final = mmap.PAGESIZE
#: Inaccessible bytes before and after each mapping: an overrun faults instead of reaching a neighbour.
GUARD: Final = 64 * 1024
CACHE_LINE: Final = 64
HUGE_PAGE: Final = 2 << 20

_PROT_NONE, _PROT_RW = 0, 3
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
_MADV_HUGEPAGE: Final = 14
_MADV_POPULATE_WRITE: Final = 23
_F_ADD_SEALS, _F_SEAL_SHRINK = 1033, 0x0002

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def align_up(value: int, alignment: int) -> int:
    """The next multiple of `alignment` (a power of two)."""
    return (value + alignment - 1) & ~(alignment - 1)


def _mmap(address: int, length: int, protection: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    result = _libc.mmap(address or None, length, protection, flags, fd, offset)
    if result in (None, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {length} bytes: {os.strerror(code)}")
    return int(result)


class Mapping:
    """`length` bytes, readable and writable, between two guards; anonymous, or of `fd` at `offset` (shared).

    Raises OSError when the system refuses. `alignment` is that of the first byte (a huge page, for files that want it).
    """

    def __init__(self, length: int, fd: int = -1, offset: int = 0, alignment: int = PAGE) -> None:
        self.length = align_up(length, alignment)
        self._reserved = self.length + 2 * GUARD + alignment
        self._reservation = _mmap(0, self._reserved, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE)
        self.address = align_up(self._reservation + GUARD, alignment)
        kind = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE if fd < 0 else _MAP_SHARED
        try:
            _mmap(self.address, self.length, _PROT_RW, kind | _MAP_FIXED, fd, offset)
        except OSError:
            _libc.munmap(self._reservation, self._reserved)
            raise

    def prefer_huge_pages(self) -> None:
        """Ask for transparent huge pages; a system without them says no, and that is fine."""
        _libc.madvise(self.address, self.length, _MADV_HUGEPAGE)

    def populate(self) -> None:
        """Fault all pages in now, so that nobody waits for it later; a system that cannot leaves it for later."""
        _libc.madvise(self.address, self.length, _MADV_POPULATE_WRITE)

    def array(self, address: int, length: int) -> npt.NDArray[np.uint8]:
        """A view of `length` bytes at `address`. Not to be used after `close`."""
        if address < self.address or address + length > self.address + self.length:
            raise ValueError(f"{length} bytes at {address:#x} are outside this mapping")
        return np.ndarray(length, np.uint8, memoryview((ctypes.c_uint8 * length).from_address(address)))

    def close(self) -> None:
        """Unmap, guards included. Nothing may use the memory any more."""
        if self._reserved:
            _libc.munmap(self._reservation, self._reserved)
            self._reserved = 0


class Arena:
    """The driver's shared memory: rings, request headers, status bytes and data, in one memfd.

    `alloc` hands out zeroed memory, which goes with the arena as a whole. The memfd cannot shrink, so a device that
    maps it never meets SIGBUS.
    """

    def __init__(self, length: int) -> None:
        self.length = align_up(max(length, PAGE), HUGE_PAGE)
        try:
            self._map(os.MFD_HUGETLB | os.MFD_HUGE_2MB)
        except OSError:  # none reserved, which is how most systems are
            self._map(0)
            self._mapping.prefer_huge_pages()
        self.address = self._mapping.address
        self._used = 0
        self._lock = threading.Lock()

    def _map(self, flags: int) -> None:
        self.fd = os.memfd_create("virtblk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
        try:
            os.ftruncate(self.fd, self.length)
            fcntl.fcntl(self.fd, _F_ADD_SEALS, _F_SEAL_SHRINK)
            self._mapping = Mapping(self.length, self.fd, alignment=HUGE_PAGE)
        except BaseException:
            os.close(self.fd)
            self.fd = -1
            raise

    def alloc(self, length: int, alignment: int = CACHE_LINE) -> int:
        """The address of `length` zeroed bytes that share no cache line with others. Raises MemoryError when full."""
        with self._lock:
            start = align_up(self._used, max(alignment, CACHE_LINE))
            if start + length > self.length:
                raise MemoryError(f"arena of {self.length} bytes has no room for {length} more")
            self._used = align_up(start + length, CACHE_LINE)
            return self.address + start

    def array(self, address: int, length: int) -> npt.NDArray[np.uint8]:
        """A view of arena memory. Not to be used after `close`."""
        return self._mapping.array(address, length)

    def close(self) -> None:
        """Unmap and close the memfd. The device keeps its own mapping until it unmaps."""
        if self.fd >= 0:
            self._mapping.close()
            os.close(self.fd)
            self.fd = -1


class Words:
    """Private 64-bit words that threads share by address, each on a cache line of its own (stop words, locks)."""

    def __init__(self, count: int) -> None:
        stride = CACHE_LINE // 8
        raw = np.zeros(count * stride + stride, np.int64)
        offset = (-raw.ctypes.data % CACHE_LINE) // 8
        self._array = raw[offset : offset + count * stride]
        self.count = count

    def address(self, index: int) -> int:
        """Address of word `index`; valid as long as this object lives."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        return int(self._array.ctypes.data) + index * CACHE_LINE
