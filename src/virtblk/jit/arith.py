"""Index arithmetic of the rings, in int64 with explicit masks (virtio 1.2, 2.7.7 and 2.7.10; Linux virtio_ring.h).

Called from kernels, on any thread.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import overload
from numpy import int64, uint64

from virtblk.jit.kernel import kernel
from virtblk.jit.lowering import LLVM_I64, i64, native


@kernel
def u16(value):
    """`value` modulo 2**16, as ring indices count."""
    return value & 0xFFFF


@kernel
def vring_need_event(event, new, old):
    """True when an index that moved from `old` to `new` (each modulo 2**16) passed `event`: notify."""
    return ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)


@native(i64, i64)
def _msb(context: Any, builder: Any, args: Any) -> Any:
    zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))
    return builder.sub(ir.Constant(LLVM_I64, 63), zeros)


@_msb
def msb(value: int) -> int:
    """Index of the highest bit set of a positive `value` (undefined for 0)."""
    return int(value).bit_length() - 1


_GAMMA = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB
_MASK64 = (1 << 64) - 1


def mix64(value: int) -> int:
    """splitmix64's output for state `value`, cut to 63 bits: a stateless generator of numbers in [0, 2**63)."""
    z = (int(value) + _GAMMA) & _MASK64
    z = ((z ^ (z >> 30)) * _M1) & _MASK64
    z = ((z ^ (z >> 27)) * _M2) & _MASK64
    return (z ^ (z >> 31)) >> 1


@overload(mix64)
def _mix64(value):
    gamma, m1, m2 = uint64(_GAMMA), uint64(_M1), uint64(_M2)
    s30, s27, s31, one = uint64(30), uint64(27), uint64(31), uint64(1)

    def native(value):
        z = uint64(value) + gamma
        z = (z ^ (z >> s30)) * m1
        z = (z ^ (z >> s27)) * m2
        return int64((z ^ (z >> s31)) >> one)

    return native

