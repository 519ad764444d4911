"""A peer's file that shrinks under us: the process survives, zeroes are read, and only that mapping is marked."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from virtblk.jit import sigbus
from virtblk.jit.atomics import load_i64, store_i64
from virtblk.jit.sigbus import find_slot
from virtblk.mem.guest_memory import GuestMemory
from virtblk.mem.regions import guest_read, guest_write, memory_truncated
from virtblk.mem.shm import PAGE, Mapping

SIZE = 4 * PAGE


def file_of(byte: int) -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.write(fd, bytes([byte]) * SIZE)
    return fd


@pytest.mark.compiled
def test_a_truncated_file_is_survived_and_marked() -> None:
    one, other = GuestMemory(), GuestMemory()
    fds = [file_of(byte) for byte in (1, 2, 3)]
    one.map(0, SIZE, 0, 0, fds[0])
    one.map(SIZE, SIZE, SIZE, 0, fds[1])
    other.map(0, SIZE, 0, 0, fds[2])
    ours = np.full(SIZE, 9, np.uint8)
    os.ftruncate(fds[1], PAGE)
    assert not one.truncated()
    guest_read(one.table, ours.ctypes.data, one.user_to_host(SIZE, 1), 16)
    assert not one.truncated()  # the page that is left
    assert ours[:17].tolist() == [2] * 16 + [9]
    guest_read(one.table, ours.ctypes.data, one.user_to_host(SIZE + 2 * PAGE, 1), 16)
    assert ours[:17].tolist() == [0] * 16 + [9]
    assert one.truncated()
    assert memory_truncated(one.table)
    assert not other.truncated()
    guest_read(one.table, ours.ctypes.data, one.user_to_host(0, 1), 16)
    assert ours[:16].tolist() == [1] * 16
    guest_write(one.table, one.user_to_host(SIZE, 1), ours.ctypes.data, 16)  # its zero pages can be written
    guest_read(other.table, ours.ctypes.data, other.user_to_host(0, 1), 16)
    assert ours[:16].tolist() == [3] * 16
    assert os.pread(fds[0], SIZE, 0) == b"\1" * SIZE
    one.clear()
    other.clear()
    for fd in fds:
        os.close(fd)


@pytest.mark.compiled
def test_a_slot_that_is_used_again_is_clean() -> None:
    memory = GuestMemory()
    for _ in range(3):
        fd = file_of(7)
        memory.map(0, SIZE, 0, 0, fd)
        assert not memory.truncated()
        os.ftruncate(fd, 0)
        ours = np.zeros(8, np.uint8)
        guest_read(memory.table, ours.ctypes.data, memory.user_to_host(PAGE, 1), 8)
        assert memory.truncated()
        memory.unmap(0, SIZE, 0)
        os.close(fd)
    assert not memory.truncated()


#: Maps a file that is survived and one that is nobody's business, both truncated; touches them in this order.
SCRIPT = """
import os, sys
import numpy as np
from virtblk.mem.guest_memory import GuestMemory
from virtblk.mem.regions import guest_read
from virtblk.mem.shm import Mapping, PAGE
fd = os.memfd_create("peer")
os.ftruncate(fd, PAGE)
memory = GuestMemory()
memory.map(0, PAGE, 0, 0, fd)
other = Mapping(PAGE, fd)
if sys.argv[1] == "gone":
    memory.clear()
os.ftruncate(fd, 0)
if sys.argv[1] == "mine":
    guest_read(memory.table, np.zeros(8, np.uint8).ctypes.data, memory.user_to_host(0, 1), 8)
print("alive", memory.truncated(), flush=True)
other.array(other.address, 1)[0] = 1
print("still")
"""


@pytest.mark.once
@pytest.mark.parametrize(
    ("first", "hit", "handler"),
    [("mine", "True", False), ("none", "False", False), ("gone", "False", False), ("mine", "True", True)],
)
def test_a_fault_elsewhere_still_kills(first: str, hit: str, handler: bool) -> None:
    """The handler that was there before ours has its turn: the default one, or faulthandler."""
    options = ["-X", "faulthandler"] if handler else []
    run = subprocess.run([sys.executable, *options, "-c", SCRIPT, first], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.split()) == (-signal.SIGBUS, ["alive", hit])
    assert ("Fatal Python error: Bus error" in run.stderr) == handler


# The table.


def test_slots() -> None:
    slots = [sigbus.register(PAGE * (10 + index), PAGE * (11 + index)) for index in range(3)]
    assert len(set(slots)) == 3
    for slot in slots:
        assert not sigbus.was_hit(slot)
        assert load_i64(sigbus.hit_address(slot)) == 0
    store_i64(sigbus.hit_address(slots[1]), 1)
    assert [sigbus.was_hit(slot) for slot in slots] == [False, True, False]
    sigbus.unregister(slots[1])
    again = sigbus.register(PAGE, 2 * PAGE)
    assert again == slots[1]
    assert not sigbus.was_hit(again)
    for slot in slots:
        sigbus.unregister(slot)


def test_all_slots_taken() -> None:
    slots = []
    with pytest.raises(MemoryError, match="more than 512 peer mappings"):  # noqa: PT012
        while True:
            slots.append(sigbus.register(PAGE, 2 * PAGE))
    sigbus.unregister(slots.pop(100))
    slots.append(sigbus.register(PAGE, 2 * PAGE))
    for slot in slots:
        sigbus.unregister(slot)


@pytest.mark.compiled
def test_install_is_repeatable() -> None:
    sigbus.install()
    first = sigbus._installed
    sigbus.install()
    assert sigbus._installed is first is not None


def test_regression_a_fault_while_a_slot_changes_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot half filled, or half cleared, said [0, end): any fault below was taken for one in that mapping.

    The handler's question is asked before and after each store. (A page of zeroes would be mapped over all of that.)
    """
    asked = []

    def watched(store: Callable[[int, int], None], address: int, value: int) -> None:
        asked.append(find_slot(1 << 20))
        store(address, value)
        asked.append(find_slot(1 << 20))

    for name in ("store_i64", "store_release_i64"):
        monkeypatch.setattr(sigbus, name, partial(watched, getattr(sigbus, name)))
    for _ in range(2):
        sigbus.unregister(sigbus.register(1 << 45, (1 << 45) + PAGE))
    assert len(asked) == 2 * 2 * 6
    assert set(asked) == {-1}


def test_find_slot() -> None:
    mapping = Mapping(PAGE)
    slot = sigbus.register(mapping.address, mapping.address + PAGE)
    assert find_slot(mapping.address) == find_slot(mapping.address + PAGE - 1) == slot
    assert find_slot(mapping.address - 1) == find_slot(mapping.address + PAGE) == -1
    assert find_slot(0) == -1
    sigbus.unregister(slot)
    assert find_slot(mapping.address) == -1
    ctypes.memset(mapping.address, 0, PAGE)
    mapping.close()
