"""The bytes of vhost-user messages, against the layouts written out by hand and against anything a peer can send."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.uapi import vhost_user as uapi
from virtblk.vhost_user import message
from virtblk.vhost_user.message import Config, MemoryRegion, Message, ProtocolError, VringAddr, VringState

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
STATES = st.builds(VringState, U32, U32)
ADDRS = st.builds(VringAddr, U32, U32, U64, U64, U64, U64)
REGIONS = st.builds(MemoryRegion, U64, U64, U64, U64)
CONFIGS = st.builds(Config, U32, U32, st.binary(min_size=1, max_size=256))

DECODERS: list[Callable[[bytes], object]] = [
    message.decode_header,
    message.decode_u64,
    message.decode_empty,
    message.decode_vring_state,
    message.decode_vring_addr,
    message.decode_memory,
    message.decode_mem_reg,
    message.decode_config,
]


def test_request_ids_are_dense_and_named() -> None:
    assert sorted(uapi.REQUEST_NAMES) == list(range(1, 46))
    assert sorted(uapi.BACKEND_REQUEST_NAMES) == list(range(1, 11))
    assert uapi.REQUEST_NAMES[5] == "VHOST_USER_SET_MEM_TABLE"
    assert uapi.REQUEST_NAMES[24] == "VHOST_USER_GET_CONFIG"
    assert uapi.REQUEST_NAMES[37] == "VHOST_USER_ADD_MEM_REG"
    assert uapi.PROTOCOL_FEATURE_NAMES[15] == "VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS"
    assert message.request_name(99) == "request 99"


def test_layouts_byte_for_byte() -> None:
    assert message.encode_header(8, 9, 8) == bytes.fromhex("08000000 09000000 08000000")
    assert message.encode_vring_state(VringState(1, 128)) == bytes.fromhex("01000000 80000000")
    # struct vhost_vring_addr: index, flags, desc, used, avail, log: "used" comes before "avail".
    addr = VringAddr(index=1, flags=2, desc=0x30, used=0x40, avail=0x50, log=0x60)
    assert message.encode_vring_addr(addr) == struct.pack("<2I4Q", 1, 2, 0x30, 0x40, 0x50, 0x60)
    region = MemoryRegion(guest_addr=1, size=2, user_addr=3, mmap_offset=4)
    assert message.encode_memory([region]) == struct.pack("<2I4Q", 1, 0, 1, 2, 3, 4)
    assert message.encode_mem_reg(region) == struct.pack("<5Q", 0, 1, 2, 3, 4)
    assert message.encode_config(Config(offset=32, flags=1, data=b"x")) == struct.pack("<3I", 32, 1, 1) + b"x"


@given(U32, U32, st.integers(0, message.MAX_PAYLOAD))
def test_header_round_trip(request: int, flags: int, size: int) -> None:
    flags = flags & ~3 | 1
    assert message.decode_header(message.encode_header(request, flags, size)) == (request, flags, size)


@given(U64, STATES, ADDRS, REGIONS, CONFIGS, st.lists(REGIONS, min_size=1, max_size=8))
def test_payload_round_trips(
    value: int, state: VringState, addr: VringAddr, region: MemoryRegion, config: Config, table: list[MemoryRegion]
) -> None:
    assert message.decode_u64(message.encode_u64(value)) == value
    assert message.decode_vring_state(message.encode_vring_state(state)) == state
    assert message.decode_vring_addr(message.encode_vring_addr(addr)) == addr
    assert message.decode_mem_reg(message.encode_mem_reg(region)) == region
    assert message.decode_config(message.encode_config(config)) == config
    assert message.decode_memory(message.encode_memory(table)) == table


@pytest.mark.parametrize("decode", DECODERS)
@given(data=st.binary(max_size=400))
def test_arbitrary_bytes_are_decoded_or_refused(decode: Callable[[bytes], object], data: bytes) -> None:
    with suppress(ProtocolError):
        decode(data)


@given(U32, st.binary(max_size=300))
def test_arbitrary_counts_are_decoded_or_refused(count: int, rest: bytes) -> None:
    """Mostly random bytes never get past the first check: here the counts are small, or nearly right."""
    for decode, head in (
        (message.decode_memory, struct.pack("<2I", count % 10, 0)),
        (message.decode_memory, struct.pack("<2I", count, 0)),
        (message.decode_config, struct.pack("<3I", count, count % 300, 0)),
        (message.decode_config, struct.pack("<3I", count, len(rest), 0)),
    ):
        with suppress(ProtocolError):
            decode(head + rest)


@pytest.mark.parametrize(
    ("decode", "data", "text"),
    [
        (message.decode_header, struct.pack("<3I", 1, 2, 0), "GET_FEATURES has protocol version 2, expected 1"),
        (message.decode_header, struct.pack("<3I", 1, 4, 0), "version 0"),
        (message.decode_header, struct.pack("<3I", 5, 1, 4097), "announces 4097 bytes"),
        (message.decode_header, struct.pack("<3I", 77, 1, 2**32 - 1), "request 77 announces 4294967295 bytes"),
        (message.decode_u64, bytes(7), "u64 payload has 7 bytes, expected 8"),
        (message.decode_u64, bytes(9), "u64 payload has 9 bytes, expected 8"),
        (message.decode_empty, b"x", "empty payload has 1 bytes, expected 0"),
        (message.decode_vring_state, bytes(12), "vring state payload has 12 bytes, expected 8"),
        (message.decode_vring_addr, bytes(32), "vring address payload has 32 bytes, expected 40"),
        (message.decode_mem_reg, bytes(32), "memory region payload has 32 bytes, expected 40"),
        (message.decode_memory, bytes(7), "memory table payload has 7 bytes"),
        (message.decode_memory, bytes(8), "memory table of 0 regions"),
        (message.decode_memory, struct.pack("<2I", 9, 0) + bytes(288), "memory table of 9 regions"),
        (message.decode_memory, struct.pack("<2I", 2**32 - 1, 0), "memory table of 4294967295 regions"),
        (message.decode_memory, struct.pack("<2I", 2, 0) + bytes(32), "payload has 40 bytes, expected 72"),
        (message.decode_memory, struct.pack("<2I", 1, 0) + bytes(257), "payload has 265 bytes, expected 40"),
        (message.decode_config, bytes(11), "config payload has 11 bytes"),
        (message.decode_config, struct.pack("<3I", 7, 0, 0), "config access of 0 bytes at offset 7"),
        (message.decode_config, struct.pack("<3I", 0, 257, 0) + bytes(257), "config access of 257 bytes"),
        (message.decode_config, struct.pack("<3I", 0, 4, 0) + bytes(3), "payload has 15 bytes, expected 16"),
    ],
)
def test_refusals_name_the_value(decode: Callable[[bytes], object], data: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        decode(data)


def test_regression_a_memory_table_may_have_room_for_more_regions_than_it_has() -> None:
    """User-Mode Linux sends a structure of two, whatever it uses."""
    region = MemoryRegion(0, 0x1000, 2, 0)
    payload = message.encode_memory([region])
    for rest in (b"\xff" * 32, bytes(224), bytes(5)):
        assert message.decode_memory(payload + rest) == [region]


@pytest.mark.parametrize("count", [0, 9])
def test_a_memory_table_is_not_encoded_with_a_wrong_number_of_regions(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} memory regions"):
        message.encode_memory([MemoryRegion(0, 1, 0, 0)] * count)


@pytest.mark.parametrize("size", [0, 257])
def test_a_config_is_not_encoded_with_a_wrong_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes"):
        message.encode_config(Config(0, 0, bytes(size)))


def test_a_message_closes_what_nobody_took() -> None:
    first, second = os.pipe()
    with Message(1, 1, b"", [first, second]) as msg:
        taken = msg.take_fd(0)
    assert taken == first
    os.fstat(taken)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second)
    os.close(taken)
    msg.close_fds()
    with pytest.raises(IndexError):
        msg.take_fd(0)
