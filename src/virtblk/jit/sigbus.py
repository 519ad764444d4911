"""SIGBUS from a peer's file that shrank under us: put zero pages there, mark the mapping, go on.

A peer that hands over a memory file can truncate it while we copy. The kernel then sends SIGBUS to the thread that
touched the page. The handler (compiled, so that it runs no interpreter) looks the address up in a table of registered
mappings: ours to survive, it maps anonymous zero pages over the whole range and notes the hit, and the interrupted
instruction runs again; not ours, it puts the previous handler back, and the fault comes again, to that one.

Control code registers mappings (`mem.guest_memory`) and asks `was_hit`; the handler runs on the faulting worker.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from typing import Any, Final

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config

from virtblk.jit.atomics import load_acquire_i64, load_i64, store_i64, store_release_i64
from virtblk.jit.kernel import INTERPRETED, cache_directory, kernel
from virtblk.jit.lowering import LLVM_I32, LLVM_I64, external, i64, native

_SLOTS: Final = 512
_START, _END, _HIT = 0, 8, 16
_SLOT_BYTES: Final = 24
_SI_ADDR: Final = 16  # offsetof(siginfo_t, si_addr) on 64-bit Linux
_SA_SIGINFO: Final = 4
_SA_ONSTACK: Final = 0x08000000


class SigAction(ctypes.Structure):
    """glibc's struct sigaction on 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_previous = SigAction()
#: Never freed: the handler may run at any time. The last word is the address of the previous handler's sigaction.
_table: Final = np.zeros(_SLOTS * 3 + 1, np.int64)
_table[-1] = ctypes.addressof(_previous)
_base: Final = int(_table.ctypes.data)
_lock = threading.Lock()
_installed: Any = None

# The address changes with every process, and compiled code is cached: so it is found by name when the code is linked.
llvmlite.binding.add_symbol("virtblk_sigbus_table", _base)


@native(i64)
def _table_address(context: Any, builder: Any, args: Any) -> Any:
    name = "virtblk_sigbus_table"
    variable = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, LLVM_I64, name)
    variable.linkage = "external"
    return builder.ptrtoint(variable, LLVM_I64)


@_table_address
def table_address() -> int:
    return _base


@native(i64, i64, i64)
def _map_zero(context: Any, builder: Any, args: Any) -> Any:
    mmap = external(builder, "mmap", LLVM_I64, LLVM_I64, LLVM_I64, LLVM_I32, LLVM_I32, LLVM_I32, LLVM_I64)
    read_write, fixed_anonymous = ir.Constant(LLVM_I32, 3), ir.Constant(LLVM_I32, 0x02 | 0x10 | 0x20 | 0x4000)
    nowhere, zero = ir.Constant(LLVM_I32, -1), ir.Constant(LLVM_I64, 0)
    return builder.call(mmap, [args[0], args[1], read_write, fixed_anonymous, nowhere, zero])


@_map_zero
def map_zero(start: int, length: int) -> int:
    """Anonymous zero pages over [start, start + length). Returns `start`, or -1."""
    raise NotImplementedError("runs in the compiled signal handler only")


@native(i64, i64)
def _restore(context: Any, builder: Any, args: Any) -> Any:
    function = external(builder, "sigaction", LLVM_I32, LLVM_I32, LLVM_I64, LLVM_I64)
    signo, nothing = ir.Constant(LLVM_I32, int(signal.SIGBUS)), ir.Constant(LLVM_I64, 0)
    return builder.sext(builder.call(function, [signo, args[0], nothing]), LLVM_I64)


@_restore
def restore(previous: int) -> int:
    """sigaction(SIGBUS, previous, NULL)."""
    raise NotImplementedError("runs in the compiled signal handler only")


@kernel
def find_slot(address):
    """The slot of the mapping that holds `address`, or -1.

    Control may fill or clear a slot meanwhile: its start is there before its end comes and until its end is gone, and
    is read once more, so that start and end belong together.
    """
    table = table_address()
    for slot in range(_SLOTS):
        entry = table + slot * _SLOT_BYTES
        start = load_acquire_i64(entry + _START)
        end = load_acquire_i64(entry + _END)
        if 0 < start <= address < end and load_i64(entry + _START) == start:
            return slot
    return -1


def _handle(signo, info, context):
    table = table_address()
    slot = find_slot(load_i64(info + _SI_ADDR))
    if slot >= 0:
        entry = table + slot * _SLOT_BYTES
        start = load_i64(entry + _START)
        # Marked first: who reads the zeroes must find the mark. Partner: the acquire in mem.regions.memory_truncated.
        store_release_i64(entry + _HIT, 1)
        if map_zero(start, load_i64(entry + _END) - start) == start:
            return
    restore(load_i64(table + _SLOTS * _SLOT_BYTES))


def install() -> None:
    """Install the handler once in this process. Interpreted runs keep the default: the process dies, as it should."""
    global _installed
    with _lock:
        if _installed is not None or INTERPRETED:
            return
        previous_dir = config.CACHE_DIR
        cached = cache_directory is not None
        if cached:
            config.CACHE_DIR = str(cache_directory)
        try:
            handler = numba.cfunc(types.void(types.int64, types.int64, types.int64), cache=cached)(_handle)
        finally:
            config.CACHE_DIR = previous_dir
        action = SigAction(handler.address, flags=_SA_SIGINFO | _SA_ONSTACK)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.sigaction(int(signal.SIGBUS), ctypes.byref(action), ctypes.byref(_previous)):
            raise OSError(ctypes.get_errno(), "sigaction(SIGBUS)")
        _installed = handler


def register(start: int, end: int) -> int:
    """Survive faults in [start, end), page-aligned. Returns the slot. Raises MemoryError when all are taken."""
    with _lock:
        for slot in range(_SLOTS):
            if _table[slot * 3] == 0:
                entry = _base + slot * _SLOT_BYTES
                store_i64(entry + _HIT, 0)
                store_release_i64(entry + _START, start)
                store_release_i64(entry + _END, end)  # last: partner find_slot
                return slot
    raise MemoryError(f"more than {_SLOTS} peer mappings")


def unregister(slot: int) -> None:
    """The mapping of `slot` is about to go."""
    entry = _base + slot * _SLOT_BYTES
    with _lock:
        store_release_i64(entry + _END, 0)  # first: partner find_slot
        store_release_i64(entry + _START, 0)
        store_i64(entry + _HIT, 0)


def hit_address(slot: int) -> int:
    """Address of the word that turns non-zero when a page of the mapping of `slot` is found missing."""
    return _base + slot * _SLOT_BYTES + _HIT


def was_hit(slot: int) -> bool:
    """True when a page of the mapping of `slot` was found missing."""
    return bool(_table[slot * 3 + 2])
