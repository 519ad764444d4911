"""The region table in compiled form: translate a guest address, then touch guest bytes.

Kernel: vhost's translate_desc. Filled by `mem.guest_memory` while no worker runs; called from the device's workers.
With VIRTBLK_CHECKING=1 every access is verified against the table once more, counted if it is outside, and not made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.jit.atomics import load_acquire_i64, store_u8
from virtblk.jit.kernel import CHECKING, kernel
from virtblk.jit.memory import copy, fill
from virtblk.jit.table import Table

#: Slots that a front end may fill (VHOST_USER_GET_MAX_MEM_SLOTS).
MAX_REGIONS = 32

# host address = guest address + delta; hit = address of the word that a truncated file sets (jit.sigbus)
REGION_DTYPE = np.dtype([("start", "i8"), ("end", "i8"), ("delta", "i8"), ("hit", "i8")])
TABLE_DTYPE = np.dtype([("count", "i8"), ("violations", "i8")])


class GuestRegions(NamedTuple):
    regions: Table  # [MAX_REGIONS] REGION_DTYPE
    head: Table  # [1] TABLE_DTYPE


@kernel
def find_region(mem, address):
    """Index of the region that holds guest address `address`, or -1."""
    for index in range(mem.head[0]["count"]):
        if mem.regions[index]["start"] <= address < mem.regions[index]["end"]:
            return index
    return -1


@kernel
def translate(mem, address, length):
    """(host address, bytes that lie there in one piece), at most `length`; (0, 0) where `address` is in no region.

    A negative address (2**63 and more) is in no region. A buffer may cross into the next region: ask again for the
    rest.
    """
    index = find_region(mem, address)
    if index < 0:
        return 0, 0
    room = mem.regions[index]["end"] - address
    return address + mem.regions[index]["delta"], min(room, length)


@kernel
def memory_truncated(mem):
    """True when a page of a region was found missing: what was copied from there were zeroes."""
    for index in range(mem.head[0]["count"]):
        if load_acquire_i64(mem.regions[index]["hit"]):
            return True
    return False


@kernel
def inside(mem, host, length):
    """Checking build: True when [host, host + length) lies in a region; counts it as a violation otherwise."""
    for index in range(mem.head[0]["count"]):
        start = mem.regions[index]["start"] + mem.regions[index]["delta"]
        end = mem.regions[index]["end"] + mem.regions[index]["delta"]
        if start <= host and host + length <= end and length >= 0:
            return True
    mem.head[0]["violations"] += 1
    return False


@kernel
def guest_read(mem, destination, host, length):
    """Copy guest bytes (at a translated address) to our own memory, once."""
    if not CHECKING or inside(mem, host, length):
        copy(destination, host, length)


@kernel
def guest_write(mem, host, source, length):
    """Copy our own bytes into the guest."""
    if not CHECKING or inside(mem, host, length):
        copy(host, source, length)


@kernel
def guest_fill(mem, host, byte, length):
    """Set guest bytes."""
    if not CHECKING or inside(mem, host, length):
        fill(host, byte, length)


@kernel
def guest_store_u8(mem, host, value):
    """Write one guest byte, and no more (cloud-hypervisor PR #6586: a status written as u32 zeroed three others)."""
    if not CHECKING or inside(mem, host, 1):
        store_u8(host, value)
