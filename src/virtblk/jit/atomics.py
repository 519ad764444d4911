"""Single loads and stores, ordered accesses and fences on addresses (Linux: READ_ONCE, smp_load_acquire, smp_mb, ...).

A word that another thread or process writes is read here and nowhere else: exactly once, into an int64 scalar. A u64 of
2**63 and more comes back negative, which every bounds check refuses. Addresses are plain int64. Each function is a
Python twin (ctypes, used with the JIT off) with a native body. Called from kernels, on any thread.

=====================  ==============================================  ==============================================
ordering               used for                                        partner
=====================  ==============================================  ==============================================
`load_*`               one read of a word that may change              none: its value is checked before it is used
`load_acquire_*`       an index or flag that publishes other words     the peer's `store_release_*` of the same word
`store_release_*`      publishing: what was written before is visible  the peer's `load_acquire_*` of the same word
`fence_seq_cst`        store here, then load there (notification)      the peer's fence between its store and its load
`cmpxchg`, `fetch_*`   locks and counters shared by our threads        each other; sequentially consistent
=====================  ==============================================  ==============================================
"""

from __future__ import annotations

import ctypes
import platform
import threading
import time
from typing import Any

from llvmlite import ir

from virtblk.jit.lowering import LLVM_I32, LLVM_I64, LLVM_VOID, external, i64, native, pointer, void

_rmw_lock = threading.Lock()  # makes the twins' read-modify-writes atomic among our own threads


def _load(bits: int, ordering: str) -> Any:
    def generate(context: Any, builder: Any, args: Any) -> Any:
        value = builder.load_atomic(pointer(builder, args[0], bits), ordering, bits // 8)
        return value if bits == 64 else builder.zext(value, LLVM_I64)

    return native(i64, i64)(generate)


def _store(bits: int, ordering: str) -> Any:
    def generate(context: Any, builder: Any, args: Any) -> Any:
        value = args[1] if bits == 64 else builder.trunc(args[1], ir.IntType(bits))
        builder.store_atomic(value, pointer(builder, args[0], bits), ordering, bits // 8)

    return native(void, i64, i64)(generate)


def _fetch(operation: str, bits: int) -> Any:
    def generate(context: Any, builder: Any, args: Any) -> Any:
        operand = args[1] if bits == 64 else builder.trunc(args[1], ir.IntType(bits))
        old = builder.atomic_rmw(operation, pointer(builder, args[0], bits), operand, "seq_cst")
        return old if bits == 64 else builder.zext(old, LLVM_I64)

    return native(i64, i64, i64)(generate)


@_load(8, "monotonic")
def load_u8(address: int) -> int:
    return ctypes.c_uint8.from_address(int(address)).value


@_load(16, "monotonic")
def load_u16(address: int) -> int:
    return ctypes.c_uint16.from_address(int(address)).value


@_load(32, "monotonic")
def load_u32(address: int) -> int:
    return ctypes.c_uint32.from_address(int(address)).value


@_load(64, "monotonic")
def load_i64(address: int) -> int:
    """One read of 64 bits; a u64 of 2**63 and more is negative."""
    return ctypes.c_int64.from_address(int(address)).value


@_load(16, "acquire")
def load_acquire_u16(address: int) -> int:
    return ctypes.c_uint16.from_address(int(address)).value


@_load(32, "acquire")
def load_acquire_u32(address: int) -> int:
    return ctypes.c_uint32.from_address(int(address)).value


@_load(64, "acquire")
def load_acquire_i64(address: int) -> int:
    return ctypes.c_int64.from_address(int(address)).value


@_store(8, "monotonic")
def store_u8(address: int, value: int) -> None:
    ctypes.c_uint8.from_address(int(address)).value = int(value) & 0xFF


@_store(16, "monotonic")
def store_u16(address: int, value: int) -> None:
    ctypes.c_uint16.from_address(int(address)).value = int(value) & 0xFFFF


@_store(32, "monotonic")
def store_u32(address: int, value: int) -> None:
    ctypes.c_uint32.from_address(int(address)).value = int(value) & 0xFFFFFFFF


@_store(64, "monotonic")
def store_i64(address: int, value: int) -> None:
    ctypes.c_int64.from_address(int(address)).value = int(value)


@_store(16, "release")
def store_release_u16(address: int, value: int) -> None:
    ctypes.c_uint16.from_address(int(address)).value = int(value) & 0xFFFF


@_store(32, "release")
def store_release_u32(address: int, value: int) -> None:
    ctypes.c_uint32.from_address(int(address)).value = int(value) & 0xFFFFFFFF


@_store(64, "release")
def store_release_i64(address: int, value: int) -> None:
    ctypes.c_int64.from_address(int(address)).value = int(value)


@_fetch("add", 64)
def fetch_add_i64(address: int, amount: int) -> int:
    """Add to an int64; returns the value before."""
    with _rmw_lock:
        word = ctypes.c_int64.from_address(int(address))
        old = word.value
        word.value = old + int(amount)
        return old


@_fetch("add", 32)
def fetch_add_u32(address: int, amount: int) -> int:
    """Add to a u32, modulo 2**32; returns the value before."""
    with _rmw_lock:
        word = ctypes.c_uint32.from_address(int(address))
        old = word.value
        word.value = (old + int(amount)) & 0xFFFFFFFF
        return old


@_fetch("xchg", 32)
def exchange_u32(address: int, value: int) -> int:
    """Store a u32; returns the value before."""
    with _rmw_lock:
        word = ctypes.c_uint32.from_address(int(address))
        old = word.value
        word.value = int(value) & 0xFFFFFFFF
        return old


@native(i64, i64, i64, i64)
def _cmpxchg_u32(context: Any, builder: Any, args: Any) -> Any:
    expected, new = (builder.trunc(a, LLVM_I32) for a in args[1:])
    pair = builder.cmpxchg(pointer(builder, args[0], 32), expected, new, "seq_cst", "seq_cst")
    return builder.zext(builder.extract_value(pair, 0), LLVM_I64)


@_cmpxchg_u32
def cmpxchg_u32(address: int, expected: int, new: int) -> int:
    """Store `new` where the u32 is `expected`; returns the value before, which is `expected` iff it stored."""
    with _rmw_lock:
        word = ctypes.c_uint32.from_address(int(address))
        old = word.value
        if old == int(expected) & 0xFFFFFFFF:
            word.value = int(new) & 0xFFFFFFFF
        return old


@native(i64, i64, i64, i64)
def _cmpxchg_i64(context: Any, builder: Any, args: Any) -> Any:
    pair = builder.cmpxchg(pointer(builder, args[0], 64), args[1], args[2], "seq_cst", "seq_cst")
    return builder.extract_value(pair, 0)


@_cmpxchg_i64
def cmpxchg_i64(address: int, expected: int, new: int) -> int:
    """Store `new` where the int64 is `expected`; returns the value before."""
    with _rmw_lock:
        word = ctypes.c_int64.from_address(int(address))
        old = word.value
        if old == expected:
            word.value = int(new)
        return old


@native(void)
def _fence_seq_cst(context: Any, builder: Any, args: Any) -> None:
    builder.fence("seq_cst")


@_fence_seq_cst
def fence_seq_cst() -> None:
    """Full barrier: a store before it is visible before a load after it is done. Kernel: virtio_mb."""
    with _rmw_lock:  # taking a lock is a locked instruction, hence a full barrier
        pass


@native(void)
def _cpu_pause(context: Any, builder: Any, args: Any) -> None:
    machine = platform.machine()
    if machine in ("x86_64", "AMD64"):
        builder.call(external(builder, "llvm.x86.sse2.pause", LLVM_VOID), [])
    elif machine in ("aarch64", "arm64"):
        builder.call(external(builder, "llvm.aarch64.hint", LLVM_VOID, LLVM_I32), [ir.Constant(LLVM_I32, 1)])


@_cpu_pause
def cpu_pause() -> None:
    """Tell the core that this is a spin loop. The twin gives up the GIL, else the peer starves."""
    time.sleep(0)
