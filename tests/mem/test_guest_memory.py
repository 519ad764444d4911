"""The region table as the control thread fills it: what it refuses, what it maps where, and what it gives back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mem.leaks import leaks
from virtblk.jit import sigbus
from virtblk.mem.guest_memory import GuestMemory
from virtblk.mem.regions import MAX_REGIONS, guest_read, translate
from virtblk.mem.shm import PAGE, Mapping

SIZE = 64 * PAGE
TOP = 1 << 63


@pytest.fixture
def fd() -> Iterator[int]:
    """A file of SIZE bytes; each page starts with its number."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    for page in range(SIZE // PAGE):
        os.pwrite(fd, page.to_bytes(4, "little"), page * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    yield memory
    memory.clear()


def read(memory: GuestMemory, guest: int, length: int) -> bytes:
    """Guest bytes by the kernels' way; empty where there is no such address."""
    mapping = Mapping(PAGE)
    host, count = map(int, translate(memory.table, guest, length))
    guest_read(memory.table, mapping.address, host, count)
    data = bytes(mapping.array(mapping.address, count)) if count else b""
    mapping.close()
    return data


@pytest.mark.parametrize(
    ("guest", "size", "user", "offset", "complaint"),
    [
        (0, 0, 0, 0, "region of 0 bytes"),
        (TOP - PAGE, 2 * PAGE, 0, 0, "guest address 0x7f"),
        (TOP, PAGE, 0, 0, "guest address 0x8000000000000000 ends past"),
        ((1 << 64) - PAGE, PAGE, 0, 0, "guest address 0xf"),
        (0, (1 << 64) - 1, 0, 0, "ends past"),
        (0, PAGE, (1 << 64) - 1, 0, "user address 0xffffffffffffffff"),
        (0, PAGE, 0, (1 << 64) - 1, "mmap offset 0xffffffffffffffff"),
        (0, PAGE, 0, SIZE, "ends at offset 0x41000 of a file of 0x40000 bytes"),
        (0, SIZE + 1, 0, 0, "ends at offset 0x40001"),
        (0, SIZE, 0, 1, "ends at offset 0x40001"),
        (0, PAGE, 0, TOP - 2 * PAGE, "ends at offset"),
    ],
)
def test_ranges_that_make_no_sense(
    memory: GuestMemory, fd: int, guest: int, size: int, user: int, offset: int, complaint: str
) -> None:
    def refused() -> None:
        with pytest.raises(ValueError, match=complaint):
            memory.map(guest, size, user, offset, fd)

    assert not leaks(refused)
    assert memory.table.head[0]["count"] == 0


def test_regression_a_region_that_ends_at_two_to_the_63(memory: GuestMemory, fd: int) -> None:
    """Its end is no int64: it was mapped, then failed with OverflowError when the table was filled, and stayed."""
    for guest, user in ((TOP - PAGE, 0), (0, TOP - PAGE)):
        with pytest.raises(ValueError, match="ends past"):
            memory.map(guest, PAGE, user, 0, fd)
    memory.map(TOP - 2 * PAGE, PAGE, TOP - 2 * PAGE, 0, fd)
    assert read(memory, TOP - 2 * PAGE, PAGE)[:4] == bytes(4)
    assert memory.user_to_host(TOP - PAGE - 1, 1)


@pytest.mark.parametrize("other", [(0, 4), (3, 1), (1, 2), (2, 3), (-1, 2), (-1, 9)])
def test_guest_ranges_may_touch_but_not_overlap(memory: GuestMemory, fd: int, other: tuple[int, int]) -> None:
    base = 100 * PAGE
    memory.map(base, 4 * PAGE, 0, 0, fd)
    with pytest.raises(ValueError, match="overlaps the one at 0x64000"):
        memory.map(base + other[0] * PAGE, other[1] * PAGE, 1 << 30, 0, fd)
    memory.map(base - PAGE, PAGE, 1 << 30, 0, fd)
    memory.map(base + 4 * PAGE, PAGE, 1 << 31, 0, fd)
    assert memory.table.head[0]["count"] == 3


def test_no_more_than_the_slots_that_we_offer(memory: GuestMemory, fd: int) -> None:
    for index in range(MAX_REGIONS):
        memory.map(2 * index * PAGE, PAGE, 2 * index * PAGE, index * PAGE, fd)
    with pytest.raises(ValueError, match="more than 32 memory regions"):
        memory.map(1 << 40, PAGE, 1 << 40, 0, fd)
    for index in range(MAX_REGIONS):
        assert read(memory, 2 * index * PAGE, 4) == index.to_bytes(4, "little")
        assert read(memory, (2 * index + 1) * PAGE, 4) == b""


@pytest.mark.parametrize("offset", [0, 1, PAGE - 1, PAGE, 5 * PAGE + 17])
@pytest.mark.parametrize("size", [1, PAGE, 3 * PAGE + 5])
def test_any_offset_and_size(memory: GuestMemory, fd: int, offset: int, size: int) -> None:
    guest, user = 0x1234_5001, 0x7777_0003
    memory.map(guest, size, user, offset, fd)
    length = min(size, PAGE)
    assert read(memory, guest, length) == os.pread(fd, length, offset)
    assert read(memory, guest + size - 1, 1) == os.pread(fd, 1, offset + size - 1)
    assert read(memory, guest + size, 1) == read(memory, guest - 1, 1) == b""
    assert memory.user_to_host(user, size) == translate(memory.table, guest, 1)[0]


def test_writes_reach_the_file_both_ways(memory: GuestMemory, fd: int) -> None:
    memory.map(0, PAGE, 0, 0, fd)
    os.pwrite(fd, b"front end", 100)
    assert read(memory, 100, 9) == b"front end"


def test_fds_that_are_no_memory(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    pipe = os.pipe()
    opened = {
        "directory": (os.open(tmp_path, os.O_RDONLY), ValueError),
        "pipe": (pipe[0], ValueError),
        "pipe's other end": (pipe[1], ValueError),
        "eventfd": (os.eventfd(0), ValueError),
        "read only": (os.open(path, os.O_RDONLY), OSError),
        "write only": (os.open(path, os.O_WRONLY), OSError),
        "path only": (os.open(path, os.O_PATH), OSError),
        "null": (os.open("/dev/null", os.O_RDWR), OSError),
    }

    def refused() -> None:
        for what, (fd, error) in opened.items():
            with pytest.raises(error):
                memory.map(0, PAGE, 0, 0, fd)
            assert memory.table.head[0]["count"] == 0, what

    assert not leaks(refused)
    for fd, _ in opened.values():
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        memory.map(0, PAGE, 0, 0, 1 << 20)


def test_the_fd_stays_the_callers(memory: GuestMemory, fd: int) -> None:
    """What is mapped stays mapped without it, and no copy of it is kept."""
    own = os.dup(fd)
    memory.map(0, PAGE, 0, 2 * PAGE, own)
    os.close(own)
    assert read(memory, 0, 4) == (2).to_bytes(4, "little")


def test_user_addresses(memory: GuestMemory, fd: int) -> None:
    memory.map(0, 2 * PAGE, 0x10_0000, 0, fd)
    memory.map(
        1 << 30, PAGE, 0x10_0000 + 2 * PAGE, 0, fd
    )  # next to the first for the front end, far away for the guest
    start = memory.user_to_host(0x10_0000, 2 * PAGE)
    assert memory.user_to_host(0x10_0000 + 5, 1) == start + 5
    for user, length in (
        (0x10_0000, 2 * PAGE + 1),
        (0x10_0000 - 1, 2),
        (0, 1),
        (0x10_0000 + 3 * PAGE, 1),
        (TOP - 1, 1),
    ):
        with pytest.raises(ValueError, match=f"{length} bytes at user address {user:#x} are in no memory region"):
            memory.user_to_host(user, length)


def test_unmap_wants_all_three_right(memory: GuestMemory, fd: int) -> None:
    memory.map(0, PAGE, 0x5000, 0, fd)
    memory.map(PAGE, PAGE, 0x6000, PAGE, fd)
    memory.map(2 * PAGE, PAGE, 0x7000, 2 * PAGE, fd)
    for wrong in ((0, PAGE, 0x6000), (0, 2 * PAGE, 0x5000), (1, PAGE, 0x5000)):
        with pytest.raises(ValueError, match="no memory region of"):
            memory.unmap(*wrong)
    memory.unmap(PAGE, PAGE, 0x6000)
    assert [read(memory, page * PAGE, 1) for page in range(3)] == [b"\0", b"", b"\2"]
    with pytest.raises(ValueError, match="no memory region of"):
        memory.unmap(PAGE, PAGE, 0x6000)
    memory.map(PAGE, PAGE, 0x6000, 9 * PAGE, fd)
    assert read(memory, PAGE, 1) == b"\x09"


def test_all_is_given_back(fd: int) -> None:
    memory = GuestMemory()

    def map_and_unmap() -> None:
        for index in range(3):
            memory.map(index * PAGE, PAGE, index * PAGE, index * PAGE + 1, fd)
        memory.unmap(PAGE, PAGE, PAGE)
        memory.clear()
        memory.clear()

    assert not leaks(map_and_unmap)
    assert memory.table.head[0]["count"] == 0
    assert not memory.truncated()
    assert memory.violations == 0


def test_regression_no_slot_left_gives_the_mapping_back(
    memory: GuestMemory, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One table per process holds the mappings that survive SIGBUS; when it was full, the new mapping leaked."""

    def full(start: int, end: int) -> int:
        raise MemoryError("more than 512 peer mappings")

    monkeypatch.setattr(sigbus, "register", full)

    def refused() -> None:
        with pytest.raises(MemoryError, match="512 peer mappings"):
            memory.map(0, PAGE, 0, 0, fd)

    assert not leaks(refused)
    assert memory.table.head[0]["count"] == 0


def test_a_region_larger_than_the_address_space(memory: GuestMemory) -> None:
    """A sparse file may be that long; mapping it fails and leaves nothing."""
    fd = os.memfd_create("huge", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, min(sys.maxsize, TOP - PAGE))
        with pytest.raises(OSError, match="mmap of"):
            memory.map(0, 1 << 50, 0, 0, fd)
        assert memory.table.head[0]["count"] == 0
    finally:
        os.close(fd)
