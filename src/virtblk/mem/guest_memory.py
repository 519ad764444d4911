"""Guest memory as the device sees it: the region table, translation, and the only way to touch a guest's bytes.

vhost-user: "Memory region description". `GuestMemory` is changed by the session's control thread while no worker runs;
`mem.regions` is what the workers run.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from virtblk.jit import sigbus
from virtblk.jit.table import Table
from virtblk.mem.regions import MAX_REGIONS, REGION_DTYPE, TABLE_DTYPE, GuestRegions
from virtblk.mem.shm import PAGE, Mapping

_TOP: Final = (1 << 63) - 1  # kernels count in int64; no user address of a 64-bit Linux is that high


class _Region:
    """One mapped region: what the peer said, and where it is here."""

    def __init__(self, guest: int, size: int, user: int, mapping: Mapping, host: int) -> None:
        self.guest, self.size, self.user, self.mapping, self.host = guest, size, user, mapping, host
        self.slot = sigbus.register(mapping.address, mapping.address + mapping.length)

    def close(self) -> None:
        sigbus.unregister(self.slot)
        self.mapping.close()


class GuestMemory:
    """The memory that a front end shared with us. `table` is what the kernels take."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []
        self.table = GuestRegions(Table(MAX_REGIONS, REGION_DTYPE), Table(1, TABLE_DTYPE))
        sigbus.install()

    def map(self, guest_addr: int, size: int, user_addr: int, mmap_offset: int, fd: int) -> None:
        """Map `size` bytes of `fd` at `mmap_offset` as guest and user addresses. The fd stays the caller's.

        Raises ValueError for ranges that make no sense or overlap, OSError where the file cannot be mapped, MemoryError
        where `jit.sigbus` has no slot left.
        """
        if size <= 0:
            raise ValueError(f"memory region of {size} bytes")
        for what, start in (("guest address", guest_addr), ("user address", user_addr), ("mmap offset", mmap_offset)):
            if start + size > _TOP:
                raise ValueError(f"memory region of {size:#x} bytes at {what} {start:#x} ends past {_TOP:#x}")
        for other in self._regions:
            if guest_addr < other.guest + other.size and other.guest < guest_addr + size:
                raise ValueError(f"memory region at guest address {guest_addr:#x} overlaps the one at {other.guest:#x}")
        if len(self._regions) >= MAX_REGIONS:
            raise ValueError(f"more than {MAX_REGIONS} memory regions")
        info = os.fstat(fd)
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
            raise ValueError("a memory region's fd is not a file")
        if stat.S_ISREG(info.st_mode) and mmap_offset + size > info.st_size:
            raise ValueError(
                f"memory region ends at offset {mmap_offset + size:#x} of a file of {info.st_size:#x} bytes"
            )
        # Files on hugetlbfs say their page size here, and want offset and address aligned to it.
        huge = info.st_blksize >= 1 << 20 and info.st_blksize & (info.st_blksize - 1) == 0
        granule = info.st_blksize if huge else PAGE
        inner = mmap_offset % granule
        mapping = Mapping(size + inner, fd, mmap_offset - inner, alignment=granule)
        try:
            self._regions.append(_Region(guest_addr, size, user_addr, mapping, mapping.address + inner))
        except MemoryError:
            mapping.close()
            raise
        self._publish()

    def unmap(self, guest_addr: int, size: int, user_addr: int) -> None:
        """Drop the region that has exactly these three. Raises ValueError where there is none."""
        for region in self._regions:
            if (region.guest, region.size, region.user) == (guest_addr, size, user_addr):
                self._regions.remove(region)
                self._publish()
                region.close()
                return
        raise ValueError(f"no memory region of {size:#x} bytes at guest address {guest_addr:#x}")

    def clear(self) -> None:
        """Drop all regions."""
        regions, self._regions = self._regions, []
        self._publish()
        for region in regions:
            region.close()

    def user_to_host(self, user_addr: int, length: int) -> int:
        """The address here of `length` bytes at the front end's `user_addr`. Raises ValueError if not in one region."""
        for region in self._regions:
            if region.user <= user_addr and user_addr + length <= region.user + region.size:
                return region.host + (user_addr - region.user)
        raise ValueError(f"{length} bytes at user address {user_addr:#x} are in no memory region")

    def truncated(self) -> bool:
        """True when a region's file was found shorter than its mapping (SIGBUS): the client is broken."""
        return any(sigbus.was_hit(region.slot) for region in self._regions)

    @property
    def violations(self) -> int:
        """Accesses outside all regions, as counted by a checking build; 0 in others."""
        return int(self.table.head[0]["violations"])

    def _publish(self) -> None:
        for index, region in enumerate(self._regions):
            self.table.regions[index] = (
                region.guest,
                region.guest + region.size,
                region.host - region.guest,
                sigbus.hit_address(region.slot),
            )
        self.table.head[0]["count"] = len(self._regions)
