"""Guest memory of the raw front end: one memfd, shown to the device in windows, with every byte of it accounted for.

All of it starts as a pattern, so what lies between two buffers is a canary. A private copy (the shadow) follows each
write of ours; whatever else changes was written by the device, and has to lie in a used ring or in a buffer that is
device-writable and out. `changes` finds the rest: overruns, written descriptor tables, read-only and returned buffers.

Guest and user addresses differ, so that a device that confuses them is found out. One thread, no locks.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from virtblk.vhost_user.message import MemoryRegion

GUEST: Final = 0x1_0000_0000
USER: Final = 0x7F00_0000_0000
FILL: Final = 0xC5
#: Untouched bytes between two allocations.
GAP: Final = 64
DEFAULT_SIZE: Final = 4 << 20


class Change(NamedTuple):
    """Bytes that the device should not have written."""

    address: int
    before: bytes
    after: bytes

    def __str__(self) -> str:
        return f"guest memory at {self.address:#x} changed from {_hex(self.before)} to {_hex(self.after)}"


def _hex(data: bytes) -> str:
    return data[:16].hex(" ") + (f" ... ({len(data)} bytes)" if len(data) > 16 else "")


class Memory:
    """`size` bytes. `regions` describe windows on them (guest address, size, user address, file offset)."""

    def __init__(self, size: int = DEFAULT_SIZE, regions: Sequence[MemoryRegion] | None = None) -> None:
        self.size = size
        self.regions = list(regions) if regions is not None else [MemoryRegion(GUEST, size, USER, 0)]
        self.fd = os.memfd_create("virtblk-check", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        self._bytes = memoryview(self._map)
        self._map[:] = bytes([FILL]) * size
        self._shadow = bytearray(self._map)
        self._next = 0
        self._writable: dict[int, int] = {}  # offset -> length, of what the device may write now

    def alloc(self, length: int, align: int = 16, *, gap: int = GAP) -> int:
        """The guest address of `length` bytes, with canaries around them. Raises MemoryError when full.

        Bytes that follow each other here do so in guest memory, as long as one window holds them.
        """
        start = (self._next + gap + align - 1) & ~(align - 1)
        if start + length + gap > self.size:
            raise MemoryError(f"{length} bytes do not fit into the {self.size} bytes of guest memory")
        self._next = start + length
        return self.guest(start)

    def mark(self) -> int:
        """Where allocation stands, for `release`."""
        return self._next

    def release(self, mark: int) -> None:
        """Forget all allocations since `mark`."""
        self._next = mark

    def guest(self, offset: int) -> int:
        """The guest address of a byte of the file. ValueError where no window shows it."""
        for region in self.regions:
            if region.mmap_offset <= offset < region.mmap_offset + region.size:
                return region.guest_addr + offset - region.mmap_offset
        raise ValueError(f"offset {offset:#x} is in no region")

    def user(self, address: int) -> int:
        """The user address of a guest address."""
        region = self._region(address)
        return region.user_addr + address - region.guest_addr

    def _region(self, address: int) -> MemoryRegion:
        for region in self.regions:
            if region.guest_addr <= address < region.guest_addr + region.size:
                return region
        raise ValueError(f"guest address {address:#x} is in no region")

    def offset(self, address: int) -> int:
        """Where in the file a guest address lies."""
        region = self._region(address)
        return region.mmap_offset + address - region.guest_addr

    def write(self, address: int, data: bytes) -> None:
        at = self.offset(address)
        self._bytes[at : at + len(data)] = data
        self._shadow[at : at + len(data)] = data

    def read(self, address: int, length: int) -> bytes:
        at = self.offset(address)
        return bytes(self._bytes[at : at + length])

    def load16(self, address: int) -> int:
        """One 16-bit load, never torn."""
        return int(ctypes.c_uint16.from_buffer(self._map, self.offset(address)).value)

    def store16(self, address: int, value: int) -> None:
        """One 16-bit store, after all that was written before (x86 and the interpreter's locks keep the order)."""
        at = self.offset(address)
        self._shadow[at : at + 2] = (value & 0xFFFF).to_bytes(2, "little")
        ctypes.c_uint16.from_buffer(self._map, at).value = value & 0xFFFF

    def allow(self, address: int, length: int) -> None:
        """The device may write there from now on."""
        if length:
            self._writable[self.offset(address)] = length

    def settle(self, address: int, length: int) -> bytes:
        """The device may write there no longer; returns what it left."""
        if not length:
            return b""
        at = self.offset(address)
        self._writable.pop(at, None)
        data = bytes(self._bytes[at : at + length])
        self._shadow[at : at + length] = data
        return data

    def changes(self) -> list[Change]:
        """What the device wrote where it may not, the first few places."""
        now = bytearray(self._map)
        for at, length in self._writable.items():
            now[at : at + length] = self._shadow[at : at + length]
        if now == self._shadow:
            return []
        found: list[Change] = []
        step = 4096
        at = 0
        while at < self.size and len(found) < 4:
            if now[at : at + step] == self._shadow[at : at + step]:
                at += step - at % step
                continue
            while now[at] == self._shadow[at]:
                at += 1
            end = at
            while end < self.size and now[end] != self._shadow[end]:
                end += 1
            found.append(Change(self._address(at), bytes(self._shadow[at:end]), bytes(now[at:end])))
            at = end
        return found

    def _address(self, offset: int) -> int:
        try:
            return self.guest(offset)
        except ValueError:
            return offset

    def close(self) -> None:
        if self.fd >= 0:
            self._bytes.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1
