"""System calls from compiled code: futex, eventfd, poll, clock. Failures come back as -errno.

Found by name in the process when the code is linked, so they cache across processes. Each has a Python twin.
Called from kernels, on any thread; the ones that block say so.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import time
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils

from virtblk.jit.lowering import LLVM_I32, LLVM_I64, external, i64, native

_SYS_FUTEX: Final = {"x86_64": 202, "aarch64": 98}[platform.machine()]
_FUTEX_WAIT_PRIVATE: Final = 128
_FUTEX_WAKE_PRIVATE: Final = 129
_CLOCK_MONOTONIC: Final = 1
_POLLIN: Final = 1
_POLLOUT: Final = 4
_RWF_NOWAIT: Final = 8
_NS: Final = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)
_VOIDP = cgutils.voidptr_t


def _const(value: int, kind: Any = LLVM_I64) -> Any:
    return ir.Constant(kind, value)


def _result(builder: Any, value: Any) -> Any:
    """`value`, or -errno where it is negative, as an i64."""
    wide = value if value.type == LLVM_I64 else builder.sext(value, LLVM_I64)
    slot = cgutils.alloca_once_value(builder, wide)
    with builder.if_then(builder.icmp_signed("<", wide, _const(0)), likely=False):
        location = builder.call(external(builder, "__errno_location", LLVM_I32.as_pointer()), [])
        builder.store(builder.neg(builder.sext(builder.load(location), LLVM_I64)), slot)
    return builder.load(slot)


def _timespec(builder: Any, nanoseconds: Any) -> Any:
    spec = cgutils.alloca_once(builder, ir.ArrayType(LLVM_I64, 2))
    builder.store(builder.sdiv(nanoseconds, _const(_NS)), builder.gep(spec, [_const(0), _const(0)], inbounds=True))
    builder.store(builder.srem(nanoseconds, _const(_NS)), builder.gep(spec, [_const(0), _const(1)], inbounds=True))
    return builder.bitcast(spec, _VOIDP)


def _syscall(builder: Any, *arguments: Any) -> Any:
    """syscall(2) with integer arguments, in the fixed-arity form that both supported ABIs pass alike."""
    function = external(builder, "syscall", LLVM_I64, *[LLVM_I64] * 7)
    padded = list(arguments) + [_const(0)] * (7 - len(arguments))
    return _result(builder, builder.call(function, padded))


@native(i64)
def _clock_ns(context: Any, builder: Any, args: Any) -> Any:
    spec = cgutils.alloca_once(builder, ir.ArrayType(LLVM_I64, 2))
    clock_gettime = external(builder, "clock_gettime", LLVM_I32, LLVM_I32, _VOIDP)
    builder.call(clock_gettime, [_const(_CLOCK_MONOTONIC, LLVM_I32), builder.bitcast(spec, _VOIDP)])
    seconds = builder.load(builder.gep(spec, [_const(0), _const(0)], inbounds=True))
    nanoseconds = builder.load(builder.gep(spec, [_const(0), _const(1)], inbounds=True))
    return builder.add(builder.mul(seconds, _const(_NS)), nanoseconds)


@_clock_ns
def clock_ns() -> int:
    """CLOCK_MONOTONIC in nanoseconds; about 23 ns a call."""
    return time.monotonic_ns()


@native(i64, i64, i64, i64)
def _futex_wait(context: Any, builder: Any, args: Any) -> Any:
    spec = builder.ptrtoint(_timespec(builder, args[2]), LLVM_I64)
    return _syscall(builder, _const(_SYS_FUTEX), args[0], _const(_FUTEX_WAIT_PRIVATE), args[1], spec)


@_futex_wait
def futex_wait(address: int, expected: int, timeout_ns: int) -> int:
    """Block while the u32 at `address` is `expected`, for `timeout_ns` at most. 0, -EAGAIN, -ETIMEDOUT or -EINTR."""
    spec = (ctypes.c_long * 2)(int(timeout_ns) // _NS, int(timeout_ns) % _NS)
    word = ctypes.c_uint32(int(expected) & 0xFFFFFFFF)
    rc = _libc.syscall(_SYS_FUTEX, ctypes.c_void_p(int(address)), _FUTEX_WAIT_PRIVATE, word, ctypes.byref(spec))
    return -ctypes.get_errno() if rc < 0 else 0


@native(i64, i64, i64)
def _futex_wake(context: Any, builder: Any, args: Any) -> Any:
    return _syscall(builder, _const(_SYS_FUTEX), args[0], _const(_FUTEX_WAKE_PRIVATE), args[1])


@_futex_wake
def futex_wake(address: int, count: int) -> int:
    """Wake at most `count` threads that block on the u32 at `address`; returns how many."""
    rc: int = _libc.syscall(_SYS_FUTEX, ctypes.c_void_p(int(address)), _FUTEX_WAKE_PRIVATE, int(count))
    return -ctypes.get_errno() if rc < 0 else rc


@native(i64)
def _sched_yield(context: Any, builder: Any, args: Any) -> Any:
    return _result(builder, builder.call(external(builder, "sched_yield", LLVM_I32), []))


@_sched_yield
def sched_yield() -> int:
    """Let another thread have this core."""
    os.sched_yield()
    return 0


@native(i64, i64)
def _eventfd_signal(context: Any, builder: Any, args: Any) -> Any:
    one = cgutils.alloca_once_value(builder, _const(1))
    write = external(builder, "write", LLVM_I64, LLVM_I32, _VOIDP, LLVM_I64)
    fd = builder.trunc(args[0], LLVM_I32)
    return _result(builder, builder.call(write, [fd, builder.bitcast(one, _VOIDP), _const(8)]))


@_eventfd_signal
def eventfd_signal(fd: int) -> int:
    """Write the u64 1 to an eventfd or a pipe: 8 or -errno. -EAGAIN means that a signal is pending already."""
    try:
        return os.write(int(fd), (1).to_bytes(8, "little"))
    except OSError as error:
        return -(error.errno or errno.EIO)


@native(i64, i64)
def _eventfd_drain(context: Any, builder: Any, args: Any) -> Any:
    buffer = cgutils.alloca_once(builder, ir.ArrayType(LLVM_I64, 64))
    iovec = cgutils.alloca_once(builder, ir.ArrayType(LLVM_I64, 2))
    builder.store(builder.ptrtoint(buffer, LLVM_I64), builder.gep(iovec, [_const(0), _const(0)], inbounds=True))
    builder.store(_const(512), builder.gep(iovec, [_const(0), _const(1)], inbounds=True))
    preadv2 = external(builder, "preadv2", LLVM_I64, LLVM_I32, _VOIDP, LLVM_I32, LLVM_I64, LLVM_I32)
    fd, one, nowait = builder.trunc(args[0], LLVM_I32), _const(1, LLVM_I32), _const(_RWF_NOWAIT, LLVM_I32)
    return _result(builder, builder.call(preadv2, [fd, builder.bitcast(iovec, _VOIDP), one, _const(-1), nowait]))


@_eventfd_drain
def eventfd_drain(fd: int) -> int:
    """Take what is pending on an eventfd or pipe: bytes read, 0 at the end of a pipe, or -errno. Never blocks.

    Not even when the peer, who shares the file description, took O_NONBLOCK off it: the call itself says RWF_NOWAIT.
    """
    try:
        return os.preadv(int(fd), [bytearray(512)], -1, _RWF_NOWAIT)
    except OSError as error:
        return -(error.errno or errno.EIO)


def _pollfds(builder: Any, fds: Any, events: int) -> Any:
    """Emit the pollfds of `fds`; returns a pointer to them as i64: fd in the low half, revents on top."""
    entries = cgutils.alloca_once(builder, ir.ArrayType(LLVM_I64, len(fds)))
    for index, fd in enumerate(fds):
        low = builder.and_(fd, _const(0xFFFFFFFF))
        builder.store(
            builder.or_(low, _const(events << 32)), builder.gep(entries, [_const(0), _const(index)], inbounds=True)
        )
    return entries


def _fired(builder: Any, entries: Any, count: int) -> Any:
    """Emit a mask of the pollfds that have revents."""
    mask = _const(0)
    for index in range(count):
        entry = builder.load(builder.gep(entries, [_const(0), _const(index)], inbounds=True))
        fired = builder.icmp_unsigned("!=", builder.lshr(entry, _const(48)), _const(0))
        mask = builder.or_(mask, builder.select(fired, _const(1 << index), _const(0)))
    return mask


def _poll_call(builder: Any, fds: Any, events: int, timeout_ms: Any) -> tuple[Any, Any]:
    """Emit poll() over `fds`; returns (result, what `_pollfds` does)."""
    entries = _pollfds(builder, fds, events)
    poll = external(builder, "poll", LLVM_I32, _VOIDP, LLVM_I64, LLVM_I32)
    arguments = [builder.bitcast(entries, _VOIDP), _const(len(fds)), builder.trunc(timeout_ms, LLVM_I32)]
    return _result(builder, builder.call(poll, arguments)), entries


@native(i64, i64, i64, i64)
def _poll_in2(context: Any, builder: Any, args: Any) -> Any:
    result, entries = _poll_call(builder, args[:2], _POLLIN, args[2])
    return builder.select(builder.icmp_signed("<", result, _const(0)), result, _fired(builder, entries, 2))


@_poll_in2
def poll_in2(first: int, second: int, timeout_ms: int) -> int:
    """Block until one of two fds is readable or hung up: bit 0 for the first, bit 1 for the second, 0 on time-out.

    A negative fd is ignored. Fails with -errno (-EINTR).
    """
    poller = select.poll()
    for fd in {int(first), int(second)}:
        if fd >= 0:
            poller.register(fd, select.POLLIN)
    try:
        fired = {fd for fd, _ in poller.poll(int(timeout_ms))}
    except OSError as error:
        return -(error.errno or errno.EIO)
    return (1 if int(first) in fired else 0) | (2 if int(second) in fired else 0)


@native(i64, i64, i64, i64)
def _ppoll_in2(context: Any, builder: Any, args: Any) -> Any:
    entries = _pollfds(builder, args[:2], _POLLIN)
    ppoll = external(builder, "ppoll", LLVM_I32, _VOIDP, LLVM_I64, _VOIDP, _VOIDP)
    nothing = ir.Constant(_VOIDP, None)
    fds = builder.bitcast(entries, _VOIDP)
    result = _result(builder, builder.call(ppoll, [fds, _const(2), _timespec(builder, args[2]), nothing]))
    return builder.select(builder.icmp_signed("<", result, _const(0)), result, _fired(builder, entries, 2))


@_ppoll_in2
def ppoll_in2(first: int, second: int, timeout_ns: int) -> int:
    """As `poll_in2`, for a time in nanoseconds, 0 or more: as exact as the thread's timer slack."""
    entries = (ctypes.c_int64 * 2)(*((fd & 0xFFFFFFFF) | _POLLIN << 32 for fd in (int(first), int(second))))
    spec = (ctypes.c_long * 2)(int(timeout_ns) // _NS, int(timeout_ns) % _NS)
    if _libc.ppoll(entries, ctypes.c_ulong(2), spec, None) < 0:
        return -ctypes.get_errno()
    return sum(1 << bit for bit in (0, 1) if (entries[bit] >> 48) & 0xFFFF)


@native(i64, i64, i64, i64, i64)
def _poll_in3(context: Any, builder: Any, args: Any) -> Any:
    result, entries = _poll_call(builder, args[:3], _POLLIN, args[3])
    return builder.select(builder.icmp_signed("<", result, _const(0)), result, _fired(builder, entries, 3))


@_poll_in3
def poll_in3(first: int, second: int, third: int, timeout_ms: int) -> int:
    """As `poll_in2`, of three fds: bit 2 is the third's."""
    poller = select.poll()
    for fd in {int(first), int(second), int(third)}:
        if fd >= 0:
            poller.register(fd, select.POLLIN)
    try:
        fired = {fd for fd, _ in poller.poll(int(timeout_ms))}
    except OSError as error:
        return -(error.errno or errno.EIO)
    return sum(1 << bit for bit, fd in enumerate((first, second, third)) if int(fd) in fired)


def _vectored(name: str) -> Any:
    """Emit preadv or pwritev: (fd, iovecs, count, offset)."""

    def generate(context: Any, builder: Any, args: Any) -> Any:
        call = external(builder, name, LLVM_I64, LLVM_I32, LLVM_I64, LLVM_I32, LLVM_I64)
        fd, count = builder.trunc(args[0], LLVM_I32), builder.trunc(args[2], LLVM_I32)
        return _result(builder, builder.call(call, [fd, args[1], count, args[3]]))

    return native(i64, i64, i64, i64, i64)(generate)


for _name in ("preadv", "pwritev"):
    getattr(_libc, _name).restype = ctypes.c_ssize_t
    getattr(_libc, _name).argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64]


@_vectored("preadv")
def preadv(fd: int, iovecs: int, count: int, offset: int) -> int:
    """Read into the `count` struct iovec at address `iovecs`: bytes, or -errno. Blocks for the disk."""
    rc: int = _libc.preadv(int(fd), int(iovecs), int(count), int(offset))
    return -ctypes.get_errno() if rc < 0 else rc


@_vectored("pwritev")
def pwritev(fd: int, iovecs: int, count: int, offset: int) -> int:
    """Write from the `count` struct iovec at address `iovecs`: bytes, or -errno. Blocks for the disk."""
    rc: int = _libc.pwritev(int(fd), int(iovecs), int(count), int(offset))
    return -ctypes.get_errno() if rc < 0 else rc


@native(i64, i64)
def _poll_out(context: Any, builder: Any, args: Any) -> Any:
    result, _ = _poll_call(builder, args[:1], _POLLOUT, _const(0))
    return result


@_poll_out
def poll_out(fd: int) -> int:
    """1 when a write to `fd` would not block now, else 0 or -errno. Never blocks; a negative fd is ignored."""
    if fd < 0:
        return 0
    poller = select.poll()
    poller.register(int(fd), select.POLLOUT)
    return len(poller.poll(0))


__all__ = [
    "clock_ns",
    "eventfd_drain",
    "eventfd_signal",
    "futex_wait",
    "futex_wake",
    "poll_in2",
    "poll_in3",
    "poll_out",
    "ppoll_in2",
    "preadv",
    "pwritev",
    "sched_yield",
]
