"""One io_uring: set up from Python, used from kernels by one thread (io_uring(7), liburing's queue.c and setup.c).

`IoUring` makes the ring and maps it; its `table` goes to the kernels below. A submission entry is filled in place, at
the address that `uring_get_sqe` gives; `uring_submit` shows what was filled to the system and enters it once. The ring
fd polls readable while completions wait. Both indices of either queue run through 2**32; the system writes the
submission queue's head and the completion queue's tail, we write the two others.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any, Final

import numpy as np

from virtblk.jit.atomics import load_acquire_u32, load_i64, load_u32, store_release_u32, store_u32
from virtblk.jit.kernel import kernel
from virtblk.jit.libc import _const, _libc, _syscall
from virtblk.jit.lowering import i64, native
from virtblk.jit.memory import fill
from virtblk.jit.table import Table

_SYS_SETUP: Final = 425  # the same on all 64-bit Linux that we run on
_SYS_ENTER: Final = 426
_SYS_REGISTER: Final = 427

IORING_OP_READV: Final = 1
IORING_OP_WRITEV: Final = 2
IORING_OP_FSYNC: Final = 3
IORING_OP_FALLOCATE: Final = 17
IORING_OP_READ: Final = 22
IORING_OP_WRITE: Final = 23
IORING_FSYNC_DATASYNC: Final = 1
RWF_DSYNC: Final = 2

#: struct io_uring_sqe.
SQE_BYTES: Final = 64
SQE_OPCODE: Final = 0
SQE_FD: Final = 4
SQE_OFF: Final = 8
SQE_ADDR: Final = 16
SQE_LEN: Final = 24
SQE_RW_FLAGS: Final = 28  # also fsync_flags
SQE_USER_DATA: Final = 32
#: struct io_uring_cqe.
CQE_BYTES: Final = 16
CQE_USER_DATA: Final = 0
CQE_RES: Final = 8

_SETUP_CLAMP: Final = 1 << 4
_FEATURES: Final = 1 | 2 | 4  # SINGLE_MMAP, NODROP, SUBMIT_STABLE: Linux 5.5
_REGISTER_PROBE: Final = 8
_OFF_SQES: Final = 0x10000000
_PROT_RW, _MAP_SHARED, _MAP_POPULATE = 3, 0x01, 0x8000
_PARAMS: Final = struct.Struct("=7I3I" + "8IQ" + "8IQ")  # struct io_uring_params
_OPS: Final = (
    IORING_OP_READV,
    IORING_OP_WRITEV,
    IORING_OP_FSYNC,
    IORING_OP_FALLOCATE,
    IORING_OP_READ,
    IORING_OP_WRITE,
)

URING_DTYPE = np.dtype(
    [
        ("fd", "i8"),
        ("sq_head", "i8"),  # addresses
        ("sq_tail", "i8"),
        ("sqes", "i8"),
        ("cq_head", "i8"),
        ("cq_tail", "i8"),
        ("cqes", "i8"),
        ("sq_entries", "i8"),  # powers of two
        ("cq_entries", "i8"),
        ("tail", "i8"),  # next entry to fill; *sq_tail lags until uring_submit
        ("head", "i8"),  # next completion to look at
    ]
)

_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_munmap = ctypes.CDLL(None, use_errno=True).munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@native(i64, i64, i64, i64, i64)
def _io_uring_enter(context: Any, builder: Any, args: Any) -> Any:
    return _syscall(builder, _const(_SYS_ENTER), *args)


@_io_uring_enter
def io_uring_enter(fd: int, to_submit: int, min_complete: int, flags: int) -> int:
    """io_uring_enter(2) without a signal mask: entries taken, or -errno. Waits for min_complete completions."""
    rc: int = _libc.syscall(_SYS_ENTER, int(fd), int(to_submit), int(min_complete), int(flags), None, 0)
    return -ctypes.get_errno() if rc < 0 else rc


@kernel
def uring_get_sqe(ring):
    """Address of the next submission entry, all zeroes; 0 when all are taken. It goes out with uring_submit."""
    head = load_acquire_u32(ring[0]["sq_head"])  # partner: the system's release, once it has read an entry
    tail = ring[0]["tail"]
    if (tail - head) & 0xFFFFFFFF >= ring[0]["sq_entries"]:
        return 0
    at = ring[0]["sqes"] + SQE_BYTES * (tail & (ring[0]["sq_entries"] - 1))
    fill(at, 0, SQE_BYTES)
    ring[0]["tail"] = (tail + 1) & 0xFFFFFFFF
    return at


@kernel
def uring_pending(ring):
    """Entries that were filled and that the system has not taken."""
    return (ring[0]["tail"] - load_acquire_u32(ring[0]["sq_head"])) & 0xFFFFFFFF


@kernel
def uring_submit(ring):
    """Hand over what was filled: how many the system took, or -errno (-EAGAIN, -EBUSY, -EINTR: try again later)."""
    store_release_u32(ring[0]["sq_tail"], ring[0]["tail"])  # partner: the system's acquire, when entered
    pending = uring_pending(ring)
    if pending == 0:
        return 0
    return io_uring_enter(ring[0]["fd"], pending, 0, 0)


@kernel
def uring_take_back(ring):
    """User data of the entry that was filled last and that the system will not take; -1 where there is none.

    For the case that `uring_submit` fails for good. The system reads the tail only when entered.
    """
    if uring_pending(ring) == 0:
        return -1
    tail = (ring[0]["tail"] - 1) & 0xFFFFFFFF
    ring[0]["tail"] = tail
    store_release_u32(ring[0]["sq_tail"], tail)
    return load_i64(ring[0]["sqes"] + SQE_BYTES * (tail & (ring[0]["sq_entries"] - 1)) + SQE_USER_DATA)


@kernel
def uring_peek_cqe(ring):
    """Address of the next completion, or 0. It is ours until uring_cqe_seen."""
    head = ring[0]["head"]
    if load_acquire_u32(ring[0]["cq_tail"]) == head:  # partner: the system's release, once the entry is filled
        return 0
    return ring[0]["cqes"] + CQE_BYTES * (head & (ring[0]["cq_entries"] - 1))


@kernel
def uring_cqe_seen(ring):
    """Give the completion back."""
    head = (ring[0]["head"] + 1) & 0xFFFFFFFF
    ring[0]["head"] = head
    store_release_u32(ring[0]["cq_head"], head)  # partner: the system's acquire, before it fills the entry again


@kernel
def cqe_result(cqe):
    """How it went: bytes, 0, or -errno."""
    return (load_u32(cqe + CQE_RES) ^ 0x80000000) - 0x80000000


@kernel
def prepare(sqe, opcode, fd, address, length, offset, flags, user_data):
    """Fill a submission entry. For FALLOCATE `address` is the length, and `length` the mode."""
    store_u32(sqe + SQE_OPCODE, opcode)
    store_u32(sqe + SQE_FD, fd)
    store_u32(sqe + SQE_LEN, length)
    store_u32(sqe + SQE_RW_FLAGS, flags)
    store_u32(sqe + SQE_OFF, offset)
    store_u32(sqe + SQE_OFF + 4, offset >> 32)
    store_u32(sqe + SQE_ADDR, address)
    store_u32(sqe + SQE_ADDR + 4, address >> 32)
    store_u32(sqe + SQE_USER_DATA, user_data)
    store_u32(sqe + SQE_USER_DATA + 4, user_data >> 32)


class IoUring:
    """A ring with room for `entries` submissions. Raises OSError where there is none to be had."""

    def __init__(self, entries: int) -> None:
        params = ctypes.create_string_buffer(_PARAMS.size)
        struct.pack_into("=3I", params, 0, 0, 0, _SETUP_CLAMP)
        fd = _libc.syscall(_SYS_SETUP, entries, params)
        if fd < 0:
            raise _error("io_uring_setup")
        self.fd = fd
        self._maps: list[tuple[int, int]] = []
        try:
            self.table = self._map(_PARAMS.unpack(params))
            if self.table[0]["sq_entries"] < entries:
                raise OSError(errno.ENOSPC, f"io_uring of {entries} entries is too large")
            self._probe()
        except BaseException:
            self.close()
            raise

    def _map(self, params: tuple[int, ...]) -> Table:
        sq_entries, cq_entries, _flags, _cpu, _idle, features = params[:6]
        sq_head, sq_tail, _mask, _entries, _sq_flags, _dropped, array = params[10:17]
        cq_head, cq_tail, _mask, _entries, _overflow, cqes = params[19:25]
        if features & _FEATURES != _FEATURES:
            raise OSError(errno.ENOSYS, "io_uring is too old (Linux 5.6 has what it takes)")
        base = self._mmap(max(array + 4 * sq_entries, cqes + CQE_BYTES * cq_entries), 0)
        sqes = self._mmap(SQE_BYTES * sq_entries, _OFF_SQES)
        for index in range(sq_entries):
            store_u32(base + array + 4 * index, index)
        table = Table(1, URING_DTYPE)
        table[0] = (
            self.fd,
            base + sq_head,
            base + sq_tail,
            sqes,
            base + cq_head,
            base + cq_tail,
            base + cqes,
            sq_entries,
            cq_entries,
            load_acquire_u32(base + sq_tail),
            load_acquire_u32(base + cq_head),
        )
        return table

    def _mmap(self, length: int, offset: int) -> int:
        address = _mmap(None, length, _PROT_RW, _MAP_SHARED | _MAP_POPULATE, self.fd, offset)
        if address in (None, ctypes.c_void_p(-1).value):
            raise _error("mmap of an io_uring")
        self._maps.append((address, length))
        return int(address)

    def _probe(self) -> None:
        """Raises OSError unless the system knows all operations that we use."""
        entries = 256
        probe = ctypes.create_string_buffer(16 + 8 * entries)  # struct io_uring_probe
        if _libc.syscall(_SYS_REGISTER, self.fd, _REGISTER_PROBE, probe, entries) < 0:
            raise _error("io_uring_register")
        known = probe.raw[1]  # ops_len
        for op in _OPS:
            if op >= known or not struct.unpack_from("=H", probe, 16 + 8 * op + 2)[0] & 1:  # IO_URING_OP_SUPPORTED
                raise OSError(errno.EOPNOTSUPP, f"io_uring without operation {op}")

    def close(self) -> None:
        """Nothing is in flight any more."""
        for address, length in self._maps:
            _munmap(address, length)
        self._maps = []
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


def unavailable() -> str:
    """Why there is no io_uring here; empty where there is one."""
    if os.environ.get("VIRTBLK_NO_IO_URING", "0") not in ("", "0"):
        return "VIRTBLK_NO_IO_URING is set"
    try:
        IoUring(8).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
