"""Mappings and their guards, the arena, shared words."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mem.leaks import leaks
from virtblk.mem import shm
from virtblk.mem.shm import CACHE_LINE, GUARD, PAGE, Arena, Mapping, Words, align_up

F_GET_SEALS, F_SEAL_SHRINK = 1034, 0x0002


def protections(start: int, end: int) -> set[str]:
    """The permissions of all mappings in [start, end), and "hole" where there is none."""
    found, at = set(), start
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if high > at and low < end:
            found |= {"hole"} if low > at else set()
            found.add(line.split()[1])
            at = high
    return found | ({"hole"} if at < end else set())


@pytest.mark.parametrize(
    ("value", "alignment", "up"), [(0, 64, 0), (1, 64, 64), (64, 64, 64), (65, 64, 128), (7, 1, 7)]
)
def test_align_up(value: int, alignment: int, up: int) -> None:
    assert align_up(value, alignment) == up


@pytest.mark.parametrize("alignment", [PAGE, 2 << 20])
@pytest.mark.parametrize("length", [1, PAGE, PAGE + 1])
def test_a_mapping_lies_between_guards(length: int, alignment: int) -> None:
    mapping = Mapping(length, alignment=alignment)
    start, end = mapping.address, mapping.address + mapping.length
    assert start % alignment == 0
    assert mapping.length == align_up(length, alignment)
    assert protections(start, end) == {"rw-p"}
    assert protections(start - GUARD, start) == protections(end, end + GUARD) == {"---p"}
    view = mapping.array(start, mapping.length)
    view[:] = 5
    assert view.sum() == 5 * mapping.length
    mapping.close()


def test_a_mapping_of_a_file() -> None:
    fd = os.memfd_create("file", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4 * PAGE)
    os.pwrite(fd, b"second", PAGE)
    mapping = Mapping(2 * PAGE, fd, PAGE)
    assert bytes(mapping.array(mapping.address, 6)) == b"second"
    mapping.array(mapping.address + PAGE, 5)[:] = list(b"third")
    assert os.pread(fd, 5, 2 * PAGE) == b"third"
    assert protections(mapping.address, mapping.address + 2 * PAGE) == {"rw-s"}
    assert protections(mapping.address + 2 * PAGE, mapping.address + 2 * PAGE + GUARD) == {"---p"}
    mapping.close()
    os.close(fd)


@pytest.mark.once
@pytest.mark.parametrize(
    "where", ["address - 1", "address + m.length", f"address - {GUARD}", f"address + m.length + {GUARD - 1}"]
)
@pytest.mark.parametrize("access", ["ctypes.c_uint8.from_address({}).value", "ctypes.memset({}, 0, 1)"])
def test_guards_fault(where: str, access: str) -> None:
    touch = access.format(f"m.{where}")
    code = f"import ctypes; from virtblk.mem.shm import Mapping; m = Mapping(5000); {touch.replace(where, 'address')}; "
    code += f"print('alive', flush=True); {touch}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (-signal.SIGSEGV, "alive\n"), run.stderr


def test_what_the_system_refuses_leaves_nothing() -> None:
    def refused() -> None:
        for length, fd in ((0, -1), (1 << 60, -1), (PAGE, 1 << 20)):
            with pytest.raises(OSError, match="mmap of"):
                Mapping(length, fd)

    assert not leaks(refused)


def test_a_view_stays_inside() -> None:
    mapping = Mapping(PAGE)
    start = mapping.address
    assert len(mapping.array(start + PAGE - 1, 1)) == 1
    assert len(mapping.array(start + PAGE, 0)) == 0
    for address, length in ((start - 1, 2), (start, PAGE + 1), (start + PAGE, 1), (0, 1)):
        with pytest.raises(ValueError, match="outside this mapping"):
            mapping.array(address, length)
    mapping.close()


def test_populate_faults_all_pages_in() -> None:
    mapping = Mapping(64 * PAGE)
    resident = f"{mapping.address:x}-"
    mapping.array(mapping.address, 1)[0] = 9
    mapping.populate()
    smaps = Path("/proc/self/smaps").read_text().partition(resident)[2]
    assert int(smaps.partition("Rss:")[2].split()[0]) == 64 * PAGE // 1024
    assert mapping.array(mapping.address, 64 * PAGE).sum() == 9
    mapping.close()


def test_closing_twice_unmaps_once() -> None:
    """The second close must not take away what was mapped in the same place meanwhile."""
    first = Mapping(PAGE)
    first.close()
    second = Mapping(PAGE)
    first.close()
    second.array(second.address, PAGE)[:] = 1
    second.close()


def test_mappings_are_given_back() -> None:
    fd = os.memfd_create("file", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGE)
    assert not leaks(lambda: Mapping(PAGE).close())
    assert not leaks(lambda: Mapping(PAGE, fd).close())
    assert not leaks(lambda: Arena(1).close())
    kept: list[Mapping] = []
    assert leaks(lambda: kept.append(Mapping(PAGE)))
    for mapping in kept:
        mapping.close()
    os.close(fd)


# The arena.


def test_an_arena_is_zeroed_and_shares_no_line() -> None:
    arena = Arena(1)
    spans = [
        (arena.alloc(length, alignment), length, alignment)
        for length, alignment in ((1, 1), (65, 64), (8, 4096), (1, 1))
    ]
    for (start, length, alignment), (following, *_) in zip(spans, [*spans[1:], (1 << 62, 0, 0)], strict=True):
        assert start % max(alignment, CACHE_LINE) == 0
        assert start + length <= following
        assert start // CACHE_LINE != following // CACHE_LINE
        assert not arena.array(start, length).any()
    assert arena.address % (2 << 20) == 0
    arena.close()


def test_an_arena_that_is_full_says_so_and_goes_on() -> None:
    arena = Arena(1)
    assert arena.length == 2 << 20
    arena.alloc(arena.length - 4096)
    with pytest.raises(MemoryError, match="arena of 2097152 bytes has no room for 4097 more"):
        arena.alloc(4097)
    last = arena.alloc(4096)
    assert last + 4096 == arena.address + arena.length
    with pytest.raises(MemoryError, match="no room for 1 more"):
        arena.alloc(1)
    arena.array(last, 4096)[:] = 1
    arena.close()


def test_the_memfd_is_ours_and_cannot_shrink() -> None:
    arena = Arena(1)
    assert os.fstat(arena.fd).st_size == arena.length
    assert fcntl.fcntl(arena.fd, F_GET_SEALS) & F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, arena.length - PAGE)
    assert fcntl.fcntl(arena.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    arena.array(arena.address + 10, 3)[:] = list(b"abc")
    assert os.pread(arena.fd, 3, 10) == b"abc"
    arena.close()


def test_guards_round_an_arena() -> None:
    arena = Arena(1)
    end = arena.address + arena.length
    assert protections(arena.address - GUARD, arena.address) == protections(end, end + GUARD) == {"---p"}
    arena.close()


def test_closing_an_arena_twice_and_what_another_has_mapped() -> None:
    arena = Arena(1)
    arena.array(arena.address, 1)[0] = 77
    other = Mapping(PAGE, arena.fd)
    fd = arena.fd
    arena.close()
    assert arena.fd == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    taken = os.dup2(0, fd)  # now somebody else's
    arena.close()
    os.fstat(taken)
    os.close(taken)
    assert other.array(other.address, 1)[0] == 77
    other.close()


@pytest.mark.parametrize(
    ("length", "error"), [(1 << 47, OSError), ((1 << 63) - (1 << 30), OSError), (1 << 63, OverflowError)]
)
def test_regression_an_arena_that_cannot_be_leaves_nothing(length: int, error: type[Exception]) -> None:
    """The longest of these left its memfd open."""
    fds = set(os.listdir("/proc/self/fd"))

    def refused() -> None:
        with pytest.raises(error):
            Arena(length)

    assert not leaks(refused)
    assert set(os.listdir("/proc/self/fd")) == fds


def test_an_arena_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none are reserved, silently small ones; a system that has no transparent ones either is fine too."""
    create = os.memfd_create

    def refuse(name: str, flags: int = 0) -> int:
        if flags & os.MFD_HUGETLB:
            raise OSError(12, "Cannot allocate memory")
        return create(name, flags)

    monkeypatch.setattr(shm.os, "memfd_create", refuse)
    arena = Arena(1)
    arena.array(arena.address, arena.length)[:] = 1
    arena.close()


# Words.


def test_words_have_a_line_each() -> None:
    words = Words(5)
    found = [words.address(index) for index in range(5)]
    assert all(address % CACHE_LINE == 0 for address in found)
    assert np.diff(found).tolist() == [CACHE_LINE] * 4
    for index, address in enumerate(found):
        assert ctypes.c_int64.from_address(address).value == 0
        ctypes.memset(address, index + 1, CACHE_LINE)
    assert [ctypes.c_uint8.from_address(address + 63).value for address in found] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("index", [-1, 5, 1 << 40])
def test_no_word_outside(index: int) -> None:
    with pytest.raises(IndexError):
        Words(5).address(index)
