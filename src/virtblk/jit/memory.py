"""Copies and fills between plain addresses, and prefetches (C: memcpy, memset, __builtin_prefetch).

The caller has checked both ranges: guest memory is reached through `mem.guest_memory` only. Called from kernels.
"""

from __future__ import annotations

import ctypes
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from virtblk.jit.lowering import LLVM_I32, LLVM_I64, LLVM_VOID, external, i64, native, pointer, void

_I1 = ir.IntType(1)


@native(void, i64, i64, i64)
def _copy(context: Any, builder: Any, args: Any) -> None:
    destination, source = pointer(builder, args[0], 8), pointer(builder, args[1], 8)
    memcpy = builder.module.declare_intrinsic("llvm.memcpy", [cgutils.voidptr_t, cgutils.voidptr_t, LLVM_I64])
    builder.call(memcpy, [destination, source, args[2], ir.Constant(_I1, 0)])


@_copy
def copy(destination: int, source: int, length: int) -> None:
    """Copy `length` bytes; the ranges do not overlap."""
    ctypes.memmove(int(destination), int(source), int(length))


@native(void, i64, i64, i64)
def _fill(context: Any, builder: Any, args: Any) -> None:
    memset = builder.module.declare_intrinsic("llvm.memset", [cgutils.voidptr_t, LLVM_I64])
    byte = builder.trunc(args[1], ir.IntType(8))
    builder.call(memset, [pointer(builder, args[0], 8), byte, args[2], ir.Constant(_I1, 0)])


@_fill
def fill(destination: int, byte: int, length: int) -> None:
    """Set `length` bytes to `byte`."""
    ctypes.memset(int(destination), int(byte), int(length))


def _prefetch(write: int) -> Any:
    def generate(context: Any, builder: Any, args: Any) -> None:
        byte = pointer(builder, args[0], 8)
        hint = external(builder, "llvm.prefetch.p0i8", LLVM_VOID, byte.type, LLVM_I32, LLVM_I32, LLVM_I32)
        near, data = ir.Constant(LLVM_I32, 3), ir.Constant(LLVM_I32, 1)
        builder.call(hint, [byte, ir.Constant(LLVM_I32, write), near, data])

    return native(void, i64)(generate)


@_prefetch(0)
def prefetch_read(address: int) -> None:
    """Fetch the cache line of `address`, to be read soon. A hint: any address is harmless. The twin does nothing."""


@_prefetch(1)
def prefetch_write(address: int) -> None:
    """Fetch the cache line of `address`, to be written soon. A hint: any address is harmless. The twin does nothing."""
