"""The bytes of a vhost-user message: header and payloads, packed and unpacked, nothing sent.

Answers to docs/interop/vhost-user.rst, "Message Specification". `connection` reads and writes these bytes; `frontend`
and `backend` decode the payloads of the messages they understand. All on the control thread of their side.

Decoders take bytes that a peer chose. Each checks the size first and raises ProtocolError, never anything else, with
one line that holds the offending value. What a value *means* (is there a ring 7?) is judged by `backend`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NamedTuple

from virtblk.uapi import vhost_user as uapi

#: The longest payload that is read, in bytes. The longest one that we know, a full configuration space, takes 268;
#: the rest is room to answer a message we do not know with a refusal instead of losing step.
MAX_PAYLOAD: Final = 4096


class ProtocolError(Exception):
    """The peer sent bytes that the specification does not allow."""


def request_name(request: int) -> str:
    """The specification's name of a front-end request, or "request 99" for an id that it does not list."""
    return uapi.REQUEST_NAMES.get(request, f"request {request}")


@dataclass(frozen=True)
class Message:
    """A message that was received, and the owner of the descriptors that came with it.

    Every descriptor still in `fds` is closed by `close_fds`, or at the end of a `with` block; `take_fd` moves one to
    the caller. `surplus_fds` counts those beyond the protocol's maximum, which `connection` closed on arrival.
    """

    request: int
    flags: int
    payload: bytes
    fds: list[int] = field(default_factory=list)
    surplus_fds: int = 0

    @property
    def name(self) -> str:
        return request_name(self.request)

    @property
    def is_reply(self) -> bool:
        return bool(self.flags & uapi.VHOST_USER_REPLY_MASK)

    @property
    def needs_reply(self) -> bool:
        return bool(self.flags & uapi.VHOST_USER_NEED_REPLY_MASK)

    def take_fd(self, position: int) -> int:
        """Hand over one descriptor: the caller closes it from now on. IndexError if there is no such position."""
        return self.fds.pop(position)

    def close_fds(self) -> None:
        """Close what nobody took. Harmless when repeated."""
        while self.fds:
            os.close(self.fds.pop())

    def __enter__(self) -> Message:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close_fds()


class Header(NamedTuple):
    request: int
    flags: int
    size: int  # bytes of payload


@dataclass(frozen=True)
class VringState:
    """struct vhost_vring_state: a ring's index and one number (size, base, or enable)."""

    index: int
    num: int


@dataclass(frozen=True)
class VringAddr:
    """struct vhost_vring_addr: where a ring lies, in user addresses of the front end; `log` is a guest address."""

    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int = 0


class MemoryRegion(NamedTuple):
    """One stretch of guest memory, in bytes. `mmap_offset` is where it begins in the file that comes with it."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int

    def __str__(self) -> str:
        return f"region of {self.size:#x} bytes at guest {self.guest_addr:#x}, user {self.user_addr:#x}"


class Config(NamedTuple):
    """Part of the configuration space: `data` begins at `offset`; `flags` matters to SET_CONFIG only."""

    offset: int
    flags: int
    data: bytes


def encode_header(request: int, flags: int, size: int) -> bytes:
    return uapi.HEADER.pack(request, flags, size)


def decode_header(data: bytes) -> Header:
    """Raises ProtocolError for a version other than 1, and for a payload too long to be read."""
    _check_size("header", data, uapi.HEADER.size)
    request, flags, size = uapi.HEADER.unpack(data)
    version = flags & uapi.VHOST_USER_VERSION_MASK
    if version != uapi.VHOST_USER_VERSION:
        raise ProtocolError(f"{request_name(request)} has protocol version {version}, expected 1 (flags {flags:#x})")
    if size > MAX_PAYLOAD:
        raise ProtocolError(f"{request_name(request)} announces {size} bytes, expected at most {MAX_PAYLOAD}")
    return Header(request, flags, size)


def encode_u64(value: int) -> bytes:
    return uapi.U64.pack(value)


def decode_u64(payload: bytes) -> int:
    _check_size("u64", payload, uapi.U64.size)
    (value,) = uapi.U64.unpack(payload)
    return int(value)


def decode_empty(payload: bytes) -> None:
    """For messages that have no payload."""
    _check_size("empty", payload, 0)


def encode_vring_state(state: VringState) -> bytes:
    return uapi.VRING_STATE.pack(state.index, state.num)


def decode_vring_state(payload: bytes) -> VringState:
    _check_size("vring state", payload, uapi.VRING_STATE.size)
    return VringState(*uapi.VRING_STATE.unpack(payload))


def encode_vring_addr(addr: VringAddr) -> bytes:
    return uapi.VRING_ADDR.pack(addr.index, addr.flags, addr.desc, addr.used, addr.avail, addr.log)


def decode_vring_addr(payload: bytes) -> VringAddr:
    _check_size("vring address", payload, uapi.VRING_ADDR.size)
    return VringAddr(*uapi.VRING_ADDR.unpack(payload))


def encode_memory(regions: Sequence[MemoryRegion]) -> bytes:
    """The memory table: 1 to 8 regions, ValueError for another number."""
    if not 1 <= len(regions) <= uapi.VHOST_MEMORY_BASELINE_NREGIONS:
        raise ValueError(f"{len(regions)} memory regions: a memory table holds 1 to 8")
    return uapi.MEMORY_HEADER.pack(len(regions), 0) + b"".join(uapi.MEMORY_REGION.pack(*region) for region in regions)


def decode_memory(payload: bytes) -> list[MemoryRegion]:
    """User-Mode Linux sends its whole structure, with room for regions that it does not have: they are not read."""
    if len(payload) < uapi.MEMORY_HEADER.size:
        raise ProtocolError(f"memory table payload has {len(payload)} bytes, expected at least 8")
    count, _padding = uapi.MEMORY_HEADER.unpack_from(payload)
    if not 1 <= count <= uapi.VHOST_MEMORY_BASELINE_NREGIONS:
        raise ProtocolError(f"memory table of {count} regions, expected 1 to 8")
    first, step = uapi.MEMORY_HEADER.size, uapi.MEMORY_REGION.size
    end = first + count * step
    if not end <= len(payload) <= first + uapi.VHOST_MEMORY_BASELINE_NREGIONS * step:
        raise ProtocolError(f"memory table ({count} regions) payload has {len(payload)} bytes, expected {end}")
    return [MemoryRegion(*values) for values in uapi.MEMORY_REGION.iter_unpack(payload[first:end])]


def encode_mem_reg(region: MemoryRegion) -> bytes:
    return uapi.MEM_REG.pack(0, *region)


def decode_mem_reg(payload: bytes) -> MemoryRegion:
    _check_size("memory region", payload, uapi.MEM_REG.size)
    _padding, *values = uapi.MEM_REG.unpack(payload)
    return MemoryRegion(*values)


def encode_config(config: Config) -> bytes:
    """ValueError unless there are 1 to 256 bytes of data."""
    if not 1 <= len(config.data) <= uapi.VHOST_USER_MAX_CONFIG_SIZE:
        raise ValueError(f"{len(config.data)} bytes of configuration space: one message carries 1 to 256")
    return uapi.CONFIG_HEADER.pack(config.offset, len(config.data), config.flags) + config.data


def decode_config(payload: bytes) -> Config:
    if len(payload) < uapi.CONFIG_HEADER.size:
        raise ProtocolError(f"config payload has {len(payload)} bytes, expected at least 12")
    offset, size, flags = uapi.CONFIG_HEADER.unpack_from(payload)
    if not 1 <= size <= uapi.VHOST_USER_MAX_CONFIG_SIZE:
        raise ProtocolError(f"config access of {size} bytes at offset {offset}, expected 1 to 256")
    _check_size(f"config ({size} bytes)", payload, uapi.CONFIG_HEADER.size + size)
    return Config(offset, flags, payload[uapi.CONFIG_HEADER.size :])


def _check_size(what: str, payload: bytes, expected: int) -> None:
    if len(payload) != expected:
        raise ProtocolError(f"{what} payload has {len(payload)} bytes, expected {expected}")
