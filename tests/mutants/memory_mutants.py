"""Defects of the memory table: what a front end shares, replaces, adds and takes back."""

from __future__ import annotations

from typing import Final

from .mutant import Edit, Mutant, mutant

BACKEND: Final = "vhost_user/backend.py"
MESSAGE: Final = "vhost_user/message.py"
VRING: Final = "vhost_user/vring.py"
GUEST_MEMORY: Final = "mem/guest_memory.py"

_SET_TABLE: Final = "        with self._rings.paused():\n            self._clear_memory()\n            try:\n"
_EACH: Final = "                for region, fd in zip(regions, msg.fds, strict=True):\n"
_MAP: Final = '        with refusing(f"{region}"):\n            self._memory.map(*region, fd)\n'
_OVERLAP: Final = (
    "if region.guest_addr < other.guest_addr + other.size and other.guest_addr < region.guest_addr + region.size:"
)

MUTANTS: Final[tuple[Mutant, ...]] = (
    # The table.
    mutant(
        "table_cut",
        "vhost.memory-table-8",
        "Of a memory table, the first four regions are mapped.",
        BACKEND,
        _EACH,
        "                for region, fd in zip(regions[:4], msg.fds[:4], strict=True):\n",
    ),
    mutant(
        "mmap_offset_ignored",
        "vhost.memory-offset vhost.memory-table-8",
        "The mmap offset of a memory region is taken for 0.",
        GUEST_MEMORY,
        "        inner = mmap_offset % granule\n",
        "        mmap_offset = 0\n        inner = mmap_offset % granule\n",
    ),
    mutant(
        "memory_change_ends_rings",
        "vhost.memory-replaced",
        "A change of memory leaves the rings stopped.",
        VRING,
        "            if self._may_run(ring):\n                try:\n                    self._start(ring)",
        "            if False:\n                try:\n                    self._start(ring)",
    ),
    mutant(
        "memory_change_ignored",
        "vhost.memory-replaced",
        "A second memory table is acknowledged, and ignored.",
        BACKEND,
        _SET_TABLE,
        f"        if self._regions:\n            return\n{_SET_TABLE}",
    ),
    mutant(
        "old_table_stays",
        "vhost.memory-replaced-unused",
        "A new memory table adds its regions to those that are there.",
        BACKEND,
        f"            self._clear_memory()\n            try:\n{_EACH}",
        f"            try:\n{_EACH}                    if region in self._regions:\n                        continue\n",
    ),
    # Regions one by one.
    mutant(
        "slots_overstated",
        "vhost.memory-slots",
        "GET_MAX_MEM_SLOTS answers one more than there are.",
        BACKEND,
        "return message.encode_u64(MAX_MEM_SLOTS)",
        "return message.encode_u64(MAX_MEM_SLOTS + 1)",
    ),
    mutant(
        "added_region_ignored",
        "vhost.memory-added",
        "ADD_MEM_REG is acknowledged, and ignored while rings run.",
        BACKEND,
        "        _check_region(region, self._regions)\n",
        "        _check_region(region, self._regions)\n        if any(ring.running for ring in self._rings):\n"
        "            return\n",
    ),
    mutant(
        "removed_region_counts",
        "vhost.memory-removed",
        "A region that was removed still is in the way of others.",
        BACKEND,
        "            self._regions.remove(region)\n",
        "",
    ),
    mutant(
        "removal_wants_mmap_offset",
        "vhost.memory-removed-any-offset",
        "REM_MEM_REG finds no region unless the mmap offset is given as well.",
        BACKEND,
        "if region[:3] == wanted[:3]:",
        "if region == wanted:",
    ),
    mutant(
        "removal_with_fd_ignored",
        "vhost.memory-removed-with-fd",
        "REM_MEM_REG with a descriptor is acknowledged, and ignored.",
        BACKEND,
        "        wanted = message.decode_mem_reg(msg.payload)\n",
        "        wanted = message.decode_mem_reg(msg.payload)\n        if msg.fds:\n            return\n",
    ),
    mutant(
        "removed_region_stays",
        "vhost.memory-removed-unused",
        "A removed memory region stays mapped, and is used.",
        BACKEND,
        "            self._memory.unmap(region.guest_addr, region.size, region.user_addr)\n",
        "",
    ),
    # What makes no sense.
    mutant(
        "table_fds_uncounted",
        "vhost.memory-table-fds",
        "Regions of a memory table that have no descriptor are left out.",
        BACKEND,
        "        if len(msg.fds) != len(regions):\n",
        "        if False:\n",
        Edit(BACKEND, _EACH, _EACH.replace("strict=True", "strict=False")),
    ),
    mutant(
        "table_count_cut",
        "vhost.memory-table-count",
        "A memory table is read as far as it goes, and to the eighth region.",
        MESSAGE,
        "    if not 1 <= count <= uapi.VHOST_MEMORY_BASELINE_NREGIONS:\n",
        "    count = min(count, 8, (len(payload) - 8) // 32)\n    payload = payload[:264]\n"
        "    if not 1 <= count <= uapi.VHOST_MEMORY_BASELINE_NREGIONS:\n",
    ),
    mutant(
        "overlap_unchecked",
        "vhost.memory-table-overlap vhost.memory-added-overlap",
        "Regions may overlap.",
        BACKEND,
        _OVERLAP,
        "if False:",
        Edit(GUEST_MEMORY, "if guest_addr < other.guest + other.size and", "if False and"),
    ),
    mutant(
        "empty_region_taken",
        "vhost.memory-empty",
        "A region of no bytes is acknowledged.",
        BACKEND,
        "    if region.size == 0:\n",
        "    if False:\n",
        Edit(BACKEND, _MAP, f"        if not region.size:\n            return\n{_MAP}"),
    ),
    mutant(
        "wrapping_region_taken",
        "vhost.memory-wraps",
        "A region that wraps at 2^64 is acknowledged, and left out.",
        BACKEND,
        "        if start + region.size > 1 << 64:\n",
        "        if False:\n",
        Edit(
            BACKEND, _MAP, f"        if max(region[0], region[2]) + region.size > 1 << 64:\n            return\n{_MAP}"
        ),
    ),
    mutant(
        "short_file_faults",
        "vhost.memory-past-file",
        "The size of a region's file is not looked at, and an access past its end is fatal.",
        GUEST_MEMORY,
        "if stat.S_ISREG(info.st_mode) and mmap_offset + size > info.st_size:",
        "if False:",
        Edit(GUEST_MEMORY, "        sigbus.install()\n", ""),
    ),
    mutant(
        "unmappable_region_taken",
        "vhost.memory-unmappable vhost.ack-failure",
        "A region that cannot be mapped is acknowledged, and left out.",
        BACKEND,
        _MAP,
        "        with suppress(ValueError, OSError):\n            self._memory.map(*region, fd)\n",
        Edit(BACKEND, "from contextlib import ExitStack\n", "from contextlib import ExitStack, suppress\n"),
    ),
    mutant(
        "region_without_fd",
        "vhost.memory-added-fds",
        "ADD_MEM_REG without a descriptor is acknowledged, and ignored.",
        BACKEND,
        "        if len(msg.fds) != 1:\n"
        '            raise Refused(f"{len(msg.fds)} file descriptors, expected exactly 1")\n'
        "        if len(self._regions)",
        "        if len(msg.fds) != 1:\n            return\n        if len(self._regions)",
    ),
    mutant(
        "slots_unchecked",
        "vhost.memory-slots-exceeded",
        "A region for which there is no slot is acknowledged, and left out.",
        BACKEND,
        '            raise Refused(f"{region}: all {MAX_MEM_SLOTS} memory slots are taken")\n',
        "            return\n",
    ),
    mutant(
        "unknown_removal_ok",
        "vhost.memory-removed-unknown",
        "REM_MEM_REG of a region that is not there is acknowledged.",
        BACKEND,
        '            raise Refused(f"{wanted}: no such region")\n',
        "            return\n",
    ),
)
