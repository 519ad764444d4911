"""The device's side: our front end against it, every way to be refused, the states of a ring, and no leak on any path.

`vring` has no tests of its own: all that it does is reached by messages.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhost_user.fakes import (
    ACKED,
    CONFIG,
    FEATURES,
    PROTOCOL_FEATURES,
    UNACKED,
    VERSION_1,
    FakeDevice,
    Session,
    eventfds,
    memfd,
    open_fds,
    session,
)
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest as R
from virtblk.vhost_user import backend as backend_module
from virtblk.vhost_user.backend import MAX_MEM_SLOTS, Backend
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.frontend import Frontend, Region, RequestRefused
from virtblk.vhost_user.message import encode_header
from waiting import PATIENCE

OFFERED = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 15
U64 = struct.Struct("<Q")
STATE = struct.Struct("<2I")
ADDR = struct.Struct("<2I4Q")
TABLE = struct.Struct("<2I4Q")
MEM_REG = struct.Struct("<5Q")
CONFIG_HEADER = struct.Struct("<3I")


@pytest.fixture
def s() -> Iterator[Session]:
    """A session with everything negotiated, and nothing set up."""
    with session() as running:
        running.negotiate()
        running.device.calls.clear()
        yield running


@pytest.fixture
def fd() -> Iterator[int]:
    """A file of 1 MiB to share as guest memory."""
    with memfd() as descriptor:
        yield descriptor


def region(fd: int, slot: int = 0) -> Region:
    """Region number `slot`, 64 KiB of guest memory."""
    return Region(slot << 20, 1 << 16, 0x7000_0000 + (slot << 20), 0, fd)


def start(frontend: Frontend, kick: int | None = None, index: int = 0) -> None:
    frontend.start_vring(index, 64, 7, 0x7000_0000, 0x7000_1000, 0x7000_2000, kick, None)


STARTED = ("start", 0, 64, 7, 0x7000_0000, 0x7000_1000, 0x7000_2000)
RESTARTED = ("start", 0, 64, 12, 0x7000_0000, 0x7000_1000, 0x7000_2000)  # the fake device advances by 5


# Negotiation.


def test_handshake() -> None:
    with session() as s:
        assert s.frontend.get_features() == FEATURES | PROTOCOL_FEATURES
        assert s.frontend.get_protocol_features() == OFFERED  # both before SET_FEATURES: clause 69
        s.frontend.set_protocol_features(OFFERED)
        s.frontend.set_owner()
        s.frontend.set_features(VERSION_1 | PROTOCOL_FEATURES)
        assert s.frontend.get_queue_num() == 2
        assert s.frontend.get_max_mem_slots() == MAX_MEM_SLOTS == 32
        assert s.frontend.get_config(60) == CONFIG
        assert s.device.calls == [("set_features", VERSION_1)]
        s.conn.close()
        assert s.wait() == "the peer closed the connection"


@pytest.mark.parametrize("request_id", [R.VHOST_USER_GET_FEATURES, R.VHOST_USER_GET_QUEUE_NUM])
def test_every_reply_names_its_request_and_has_the_reply_flag(s: Session, request_id: R) -> None:
    reply = s.ask(request_id, flags=ACKED)  # need_reply changes nothing for a message with a reply: clause 70
    assert (reply.request, reply.flags, len(reply.payload)) == (request_id, 5, 8)
    assert s.is_alive()


def test_no_acknowledgement_before_it_is_negotiated_and_from_then_on() -> None:
    with session() as s:
        s.conn.send(R.VHOST_USER_SET_OWNER, ACKED)
        assert s.ask(R.VHOST_USER_GET_QUEUE_NUM).request == R.VHOST_USER_GET_QUEUE_NUM
        assert s.ack(R.VHOST_USER_SET_PROTOCOL_FEATURES, U64.pack(OFFERED)) == 0  # the message that negotiates it
        assert s.ack(R.VHOST_USER_SET_OWNER) == 0
        s.conn.send(R.VHOST_USER_SET_OWNER, UNACKED)
        assert s.is_alive()
        assert s.ack(R.VHOST_USER_SET_PROTOCOL_FEATURES, U64.pack(0)) == 0  # and the one that takes it back
        s.conn.send(R.VHOST_USER_SET_OWNER, ACKED)
        assert s.is_alive()


def test_unoffered_features_are_refused(s: Session) -> None:
    for bits in (1 << 63, FEATURES | 1 << 26, 1 << 34):
        assert s.ack(R.VHOST_USER_SET_FEATURES, U64.pack(bits)) == 1
    assert s.ack(R.VHOST_USER_SET_PROTOCOL_FEATURES, U64.pack(OFFERED | 1 << 12)) == 1
    assert s.device.calls == []
    assert s.ack(R.VHOST_USER_SET_OWNER) == 0  # REPLY_ACK is still in force


def test_features_that_the_device_rejects_are_refused(s: Session) -> None:
    assert s.ack(R.VHOST_USER_SET_FEATURES, U64.pack(1 << 9)) == 1
    assert s.ack(R.VHOST_USER_SET_FEATURES, U64.pack(VERSION_1)) == 0


# Memory.


def test_memory_table_replaces_everything(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd, slot) for slot in range(8)])
    assert sorted(s.memory.regions) == [slot << 20 for slot in range(8)]
    s.frontend.set_mem_table([region(fd, 9)])
    assert s.memory.regions == {9 << 20: (1 << 16, 0x7090_0000)}


def test_memory_slots(s: Session, fd: int) -> None:
    for slot in range(MAX_MEM_SLOTS):
        s.frontend.add_mem_reg(region(fd, slot))
    with pytest.raises(RequestRefused):
        s.frontend.add_mem_reg(region(fd, MAX_MEM_SLOTS))
    # Known by guest address, size and user address; the offset is ignored, a descriptor is closed: clause 81.
    before = open_fds()
    payload = MEM_REG.pack(0, 3 << 20, 1 << 16, 0x7030_0000, 0xBAD)
    assert s.ack(R.VHOST_USER_REM_MEM_REG, payload, (fd,)) == 0
    assert open_fds() == before
    s.frontend.rem_mem_reg(region(fd, 0))
    assert len(s.memory.regions) == 30
    s.frontend.add_mem_reg(region(fd, 3))
    assert len(s.memory.regions) == 31


@pytest.mark.parametrize(
    "wanted", [(0, 1 << 16, 0x7000_1000), (0, 1 << 15, 0x7000_0000), (4096, 1 << 16, 0x7000_0000), (1 << 20, 1, 1)]
)
def test_a_region_that_is_not_there_is_not_removed(s: Session, fd: int, wanted: tuple[int, int, int]) -> None:
    s.frontend.add_mem_reg(region(fd))
    assert s.ack(R.VHOST_USER_REM_MEM_REG, MEM_REG.pack(0, *wanted, 0)) == 1
    assert len(s.memory.regions) == 1


BAD_REGIONS = [
    (0, 0, 0x7000_0000, 0),  # empty
    (2**64 - 4096, 8192, 0x7000_0000, 0),  # wraps
    (0, 8192, 2**64 - 4096, 0),
    (0, 8192, 0x7000_0000, 2**64 - 4096),
    (0, 2**64 - 1, 0x7000_0000, 0),
    (0, 1 << 30, 0x7000_0000, 0),  # beyond the end of the file: the memory says so
]


@pytest.mark.parametrize("bad", BAD_REGIONS)
def test_bad_regions_are_refused(s: Session, fd: int, bad: tuple[int, int, int, int]) -> None:
    assert s.ack(R.VHOST_USER_ADD_MEM_REG, MEM_REG.pack(0, *bad), (fd,)) == 1
    assert s.ack(R.VHOST_USER_SET_MEM_TABLE, TABLE.pack(1, 0, *bad), (fd,)) == 1
    assert s.memory.regions == {}
    assert s.ack(R.VHOST_USER_ADD_MEM_REG, MEM_REG.pack(0, *region(fd)[:4]), (fd,)) == 0


@pytest.mark.parametrize("guest_addr", [0x1000, 0x1000 - 4096, 0x1000 + 4096, 0x1000 + (1 << 16) - 1])
def test_overlapping_regions_are_refused(s: Session, fd: int, guest_addr: int) -> None:
    first = (0x1000, 1 << 16, 0x7000_0000, 0)
    second = (guest_addr, 1 << 16, 0x9000_0000, 0)
    table = struct.pack("<2I8Q", 2, 0, *first, *second)
    assert s.ack(R.VHOST_USER_SET_MEM_TABLE, table, (fd, fd)) == 1
    assert s.ack(R.VHOST_USER_ADD_MEM_REG, MEM_REG.pack(0, *first), (fd,)) == 0
    assert s.ack(R.VHOST_USER_ADD_MEM_REG, MEM_REG.pack(0, *second), (fd,)) == 1
    assert list(s.memory.regions) == [0x1000]


def test_a_table_that_is_wrong_on_paper_leaves_the_old_one(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd)])
    assert s.ack(R.VHOST_USER_SET_MEM_TABLE, TABLE.pack(1, 0, 0, 0, 0, 0), (fd,)) == 1
    assert len(s.memory.regions) == 1


def test_a_table_of_which_one_region_cannot_be_mapped_leaves_none(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd, 0)])
    start(s.frontend)
    with pytest.raises(RequestRefused):
        s.frontend.set_mem_table([region(fd, 0), Region(1 << 30, 1 << 30, 1 << 40, 0, fd)])
    assert s.memory.regions == {}
    assert s.device.bases == {}
    s.frontend.set_mem_table([region(fd, 0)])
    assert s.device.bases == {0: 12}


# Configuration space.


@pytest.mark.parametrize(("offset", "size"), [(0, 60), (0, 1), (20, 4), (59, 1)])
def test_get_config_honours_offset_and_size(s: Session, offset: int, size: int) -> None:
    reply = s.ask(R.VHOST_USER_GET_CONFIG, CONFIG_HEADER.pack(offset, size, 0) + bytes(size), flags=UNACKED)
    assert reply.payload == CONFIG_HEADER.pack(offset, size, 0) + CONFIG[offset : offset + size]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        CONFIG_HEADER.pack(0, 0, 0),
        CONFIG_HEADER.pack(0, 61, 0) + bytes(61),
        CONFIG_HEADER.pack(60, 1, 0) + bytes(1),
        CONFIG_HEADER.pack(2**32 - 1, 4, 0) + bytes(4),
        CONFIG_HEADER.pack(0, 257, 0) + bytes(257),
        CONFIG_HEADER.pack(0, 4, 0) + bytes(3),
    ],
)
@pytest.mark.parametrize("flags", [ACKED, UNACKED])
def test_get_config_answers_an_error_with_no_payload(s: Session, payload: bytes, flags: int) -> None:
    reply = s.ask(R.VHOST_USER_GET_CONFIG, payload, flags=flags)
    assert (reply.request, reply.flags, reply.payload) == (R.VHOST_USER_GET_CONFIG, 5, b"")
    assert s.is_alive()


def test_set_config(s: Session) -> None:
    s.frontend.set_config(32, b"\1")
    s.frontend.set_config(0, b"\2\3", 1)
    assert s.device.calls == [("set_config", 32, b"\1", 0), ("set_config", 0, b"\2\3", 1)]
    for offset, data, flags in ((0, b"\1", 0), (59, b"\1\2", 1), (60, b"\1", 1), (2**32 - 1, b"\1", 1), (32, b"\1", 2)):
        with pytest.raises(RequestRefused):
            s.frontend.set_config(offset, data, flags)
    assert len(s.device.calls) == 2


# Ring states.


def test_a_ring_starts_with_its_kick_descriptor_and_stops_with_its_base(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd)])
    with eventfds(1) as (kick,):
        start(s.frontend, kick)  # nobody has kicked: clause 71, and quirk 1
    assert s.device.calls == [STARTED]
    assert s.frontend.get_vring_base(0) == 12
    assert s.device.calls == [STARTED, ("stop", 0)]
    assert s.frontend.get_vring_base(0) == 12  # a stopped ring answers, too
    s.frontend.set_vring_kick(0, None)  # from where it was, enabled as it was
    assert s.device.calls[2:] == [RESTARTED]


def test_a_ring_waits_for_enable_if_bit_30_is_negotiated(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd)])
    s.frontend.features = 0  # so that start_vring leaves it out
    start(s.frontend)
    assert s.device.calls == []
    s.frontend.set_vring_enable(0, True)
    assert s.device.calls == [STARTED]
    s.frontend.set_vring_enable(0, True)
    assert s.device.calls == [STARTED]
    s.frontend.set_vring_enable(0, False)
    assert s.device.calls == [STARTED, ("stop", 0)]
    s.frontend.set_vring_enable(0, True)
    assert s.device.calls == [STARTED, ("stop", 0), RESTARTED]
    assert s.frontend.get_vring_base(0) == 17


@pytest.mark.parametrize("with_features", [True, False])
def test_a_ring_starts_enabled_if_bit_30_is_not_negotiated(fd: int, with_features: bool) -> None:
    with session() as s:
        if with_features:
            s.frontend.set_features(FEATURES)
        s.frontend.set_mem_table([region(fd)])
        start(s.frontend)
        assert s.is_alive()
        assert STARTED in s.device.calls
        s.frontend.set_vring_enable(0, False)  # served, though it should not have been sent
        assert s.is_alive()
        assert s.device.bases == {}


def test_set_features_without_bit_30_enables_and_with_it_disables_nothing(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd)])
    s.frontend.features = 0
    start(s.frontend)
    s.frontend.set_features(FEATURES)
    assert s.device.calls == [("set_features", FEATURES), STARTED]
    s.frontend.set_features(FEATURES)
    assert len(s.device.calls) == 2  # nothing changed, nothing is disturbed
    s.frontend.set_features(FEATURES | PROTOCOL_FEATURES)
    assert s.device.bases == {0: 12}  # clause 73
    s.frontend.set_features(VERSION_1 | PROTOCOL_FEATURES)
    assert s.device.calls[-2:] == [("set_features", VERSION_1), (*STARTED[:3], 17, *STARTED[4:])]


def test_reset_owner_disables_all_rings(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd)])
    start(s.frontend, index=0)
    start(s.frontend, index=1)
    assert s.ack(R.VHOST_USER_RESET_OWNER) == 0
    assert s.device.bases == {}
    s.frontend.set_vring_enable(0, True)
    assert s.device.bases == {0: 12}


def test_any_order_of_messages_starts_a_ring_once(fd: int) -> None:
    steps: list[Callable[[Frontend], None]] = [
        lambda f: f.set_mem_table([region(fd)]),
        lambda f: f.set_vring_num(0, 64),
        lambda f: f.set_vring_addr(0, 0x7000_0000, 0x7000_1000, 0x7000_2000),
        lambda f: f.set_vring_kick(0, None),
        lambda f: f.set_vring_enable(0, True),
    ]
    for first in range(5):
        with session() as s:
            s.negotiate()
            s.frontend.set_vring_base(0, 7)
            for step in range(5):
                assert s.device.bases == {}
                steps[(first + step) % 5](s.frontend)
            assert s.device.bases == {0: 7}


def test_a_change_of_memory_pauses_rings_and_they_go_on_where_they_were(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd)])
    start(s.frontend)
    s.frontend.set_mem_table([region(fd), region(fd, 1)])
    assert s.device.calls == [STARTED, ("stop", 0), RESTARTED]
    s.frontend.add_mem_reg(region(fd, 2))
    s.frontend.rem_mem_reg(region(fd, 2))
    assert s.frontend.get_vring_base(0) == 7 + 4 * 5  # clause 76: nothing lost, nothing repeated


def test_a_refused_change_of_memory_leaves_the_ring_running(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd)])
    start(s.frontend)
    with pytest.raises(RequestRefused):
        s.frontend.add_mem_reg(Region(1 << 30, 1 << 30, 1 << 40, 0, fd))
    assert s.device.bases == {0: 12}


def test_a_ring_waits_while_its_memory_is_away(s: Session, fd: int, caplog: pytest.LogCaptureFixture) -> None:
    """A front end that makes a region larger removes it and adds it anew, with the ring in it."""
    s.frontend.set_mem_table([region(fd)])
    start(s.frontend)
    s.frontend.rem_mem_reg(region(fd))
    assert s.device.bases == {}
    s.device.lowest = 2**63
    s.frontend.add_mem_reg(region(fd, 1))  # not the one: accepted, and the ring goes on waiting
    assert s.device.bases == {}
    assert "ring 0 cannot start: descriptor table at 0x70000000 lies in no region; it waits" in caplog.text
    s.device.lowest = 0
    s.frontend.add_mem_reg(region(fd))
    assert s.device.bases == {0: 12}


@pytest.mark.parametrize("last", ["kick", "addr", "num", "enable"])
def test_a_ring_that_cannot_start_refuses_the_message_and_is_stopped(fd: int, last: str) -> None:
    steps: dict[str, Callable[[Frontend, int], None]] = {
        "kick": lambda f, kick: f.set_vring_kick(0, kick),
        "addr": lambda f, kick: f.set_vring_addr(0, 0x7000_0000, 0x7000_1000, 0x7000_2000),
        "num": lambda f, kick: f.set_vring_num(0, 64),
        "enable": lambda f, kick: f.set_vring_enable(0, True),
    }
    with session() as s, eventfds(1) as (kick,):
        s.negotiate().set_mem_table([region(fd)])
        s.device.lowest = 2**63
        for name, step in steps.items():
            if name != last:
                step(s.frontend, kick)
        with pytest.raises(RequestRefused):
            steps[last](s.frontend, kick)
        s.device.lowest = 0
        s.frontend.set_vring_enable(0, True)
        assert s.device.bases == {}
        s.frontend.set_vring_kick(0, kick)
        assert s.device.bases == {0: 0}


def test_what_must_not_change_while_a_ring_runs(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd)])
    start(s.frontend)
    assert s.ack(R.VHOST_USER_SET_VRING_NUM, STATE.pack(0, 32)) == 1
    assert s.ack(R.VHOST_USER_SET_VRING_BASE, STATE.pack(0, 0)) == 1
    assert s.device.calls == [STARTED]
    s.frontend.get_vring_base(0)
    s.frontend.set_vring_num(0, 32)
    s.frontend.set_vring_base(0, 3)
    s.frontend.set_vring_kick(0, None)
    assert s.device.calls[-1][:4] == ("start", 0, 32, 3)


def test_what_may_change_while_a_ring_runs(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd)])
    start(s.frontend)
    with eventfds(2) as (call, other):
        before = open_fds()
        s.frontend.set_vring_call(0, call)
        s.frontend.set_vring_call(0, other)
        s.frontend.set_vring_call(0, None)
        assert s.device.calls[1:] == [("set_call", 0, True), ("set_call", 0, True), ("set_call", 0, False)]
        assert open_fds() == before
    # The same addresses, with the log flag set or not, disturb nothing; other addresses move the ring.
    for flags in (0, 1):
        payload = ADDR.pack(0, flags, 0x7000_0000, 0x7000_2000, 0x7000_1000, 0x9000)
        assert s.ack(R.VHOST_USER_SET_VRING_ADDR, payload) == 0
    assert len(s.device.calls) == 4
    s.frontend.set_vring_addr(0, 0x7000_4000, 0x7000_1000, 0x7000_2000)
    assert s.device.calls[4:] == [("stop", 0), ("start", 0, 64, 12, 0x7000_4000, 0x7000_1000, 0x7000_2000)]
    with eventfds(1) as (event,):
        s.frontend.set_vring_kick(0, event)
        s.frontend.set_vring_err(0, event)
    assert s.device.bases == {0: 22}


def test_enable_storm(s: Session, fd: int) -> None:
    s.frontend.set_mem_table([region(fd)])
    start(s.frontend)
    for count in range(500):
        s.frontend.set_vring_enable(0, bool(count % 2))
    assert s.frontend.get_vring_base(0) == (7 + 251 * 5) % 65536


# Refusals that are the same for many messages.

REFUSED: list[tuple[str, R, bytes]] = [
    *((f"index {index}", request, STATE.pack(index, 1))
      for index in (2, 255, 256, 65535, 2**32 - 1)
      for request in (R.VHOST_USER_SET_VRING_NUM, R.VHOST_USER_SET_VRING_BASE, R.VHOST_USER_SET_VRING_ENABLE)),
    *((f"index {index}", R.VHOST_USER_SET_VRING_ADDR, ADDR.pack(index, 0, 0, 0, 0, 0)) for index in (2, 2**32 - 1)),
    *((f"index {index}", request, U64.pack(0x100 | index))
      for index in (2, 255)
      for request in (R.VHOST_USER_SET_VRING_KICK, R.VHOST_USER_SET_VRING_CALL, R.VHOST_USER_SET_VRING_ERR)),
    *((f"u64 {value:#x}", R.VHOST_USER_SET_VRING_KICK, U64.pack(value)) for value in (0x300, 1 << 63 | 0x100)),
    *((f"no fd, u64 {value:#x}", request, U64.pack(value))
      for value in (0, 1)
      for request in (R.VHOST_USER_SET_VRING_KICK, R.VHOST_USER_SET_VRING_CALL, R.VHOST_USER_SET_VRING_ERR)),
    *((f"size {num}", R.VHOST_USER_SET_VRING_NUM, STATE.pack(0, num))
      for num in (0, 3, 96, 32769, 65535, 65536, 2**31)),
    *((f"base {num}", R.VHOST_USER_SET_VRING_BASE, STATE.pack(0, num)) for num in (65536, 2**32 - 1)),
    *((f"enable {num}", R.VHOST_USER_SET_VRING_ENABLE, STATE.pack(0, num)) for num in (2, 2**32 - 1)),
    ("unaligned desc", R.VHOST_USER_SET_VRING_ADDR, ADDR.pack(0, 0, 8, 0, 0, 0)),
    ("unaligned used", R.VHOST_USER_SET_VRING_ADDR, ADDR.pack(0, 0, 0, 2, 0, 0)),
    ("unaligned avail", R.VHOST_USER_SET_VRING_ADDR, ADDR.pack(0, 0, 0, 0, 1, 0)),
    ("no regions", R.VHOST_USER_SET_MEM_TABLE, STATE.pack(0, 0)),
    ("nine regions", R.VHOST_USER_SET_MEM_TABLE, STATE.pack(9, 0) + bytes(9 * 32)),
    ("no fd", R.VHOST_USER_SET_MEM_TABLE, TABLE.pack(1, 0, 0, 4096, 0, 0)),
    ("no fd", R.VHOST_USER_ADD_MEM_REG, MEM_REG.pack(0, 0, 4096, 0, 0)),
    *(("short", request, b"\0") for request in R if request.name.startswith("VHOST_USER_SET")),
    *(("long", request, bytes(300)) for request in (R.VHOST_USER_SET_OWNER, R.VHOST_USER_RESET_OWNER)),
    ("empty", R.VHOST_USER_SET_CONFIG, CONFIG_HEADER.pack(0, 0, 0)),
    *(("not supported", request, b"")
      for request in (R.VHOST_USER_RESET_DEVICE, R.VHOST_USER_SET_STATUS, R.VHOST_USER_SKIP_DRAIN)),
]  # fmt: skip
REFUSED_IDS = [f"{request.name}: {why}" for why, request, _ in REFUSED]


@pytest.mark.parametrize(("why", "request_id", "payload"), REFUSED, ids=REFUSED_IDS)
def test_a_wrong_message_is_answered_with_1_and_the_session_goes_on(
    s: Session, why: str, request_id: R, payload: bytes
) -> None:
    assert s.ack(request_id, payload) == 1
    assert s.is_alive()
    assert s.device.calls == []


@pytest.mark.parametrize(("why", "request_id", "payload"), REFUSED, ids=REFUSED_IDS)
def test_a_wrong_message_that_wants_no_answer_ends_the_session(why: str, request_id: R, payload: bytes) -> None:
    with session() as s:
        s.conn.send(request_id, UNACKED, payload)
        with pytest.raises(ConnectionClosed):
            s.conn.recv(PATIENCE)
        assert s.wait().startswith(f"closed: {request_id.name}: ")
        assert s.device.calls == []


WITH_REPLY = [
    (R.VHOST_USER_GET_FEATURES, b"x"),
    (R.VHOST_USER_GET_PROTOCOL_FEATURES, b"x"),
    (R.VHOST_USER_GET_QUEUE_NUM, bytes(8)),
    (R.VHOST_USER_GET_MAX_MEM_SLOTS, bytes(8)),
    (R.VHOST_USER_GET_VRING_BASE, b""),
    (R.VHOST_USER_GET_VRING_BASE, STATE.pack(2, 0)),
    (R.VHOST_USER_GET_VRING_BASE, STATE.pack(2**32 - 1, 0)),
]


@pytest.mark.parametrize(("request_id", "payload"), WITH_REPLY)
@pytest.mark.parametrize("flags", [ACKED, UNACKED])
def test_a_wrong_question_has_no_answer_so_the_session_ends(request_id: R, payload: bytes, flags: int) -> None:
    """An acknowledgement would be taken for the reply."""
    with session() as s:
        s.negotiate()
        s.conn.send(request_id, flags, payload)
        with pytest.raises(ConnectionClosed):
            s.conn.recv(PATIENCE)
        assert s.wait().startswith(f"closed: {request_id.name}: ")


@pytest.mark.parametrize("request_id", [0, 46, 255, 2**32 - 1, R.VHOST_USER_GET_INFLIGHT_FD, R.VHOST_USER_GET_STATUS])
def test_unknown_messages(request_id: int, fd: int) -> None:
    with session() as s:
        s.negotiate()
        assert s.ack(request_id, b"abc", (fd,)) == 1
        s.conn.send(request_id, UNACKED, b"abc", (fd,))
        name = uapi.REQUEST_NAMES.get(request_id, f"request {request_id}")
        assert s.wait() == f"closed: {name}: not supported"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (encode_header(1, 2, 0), "closed: VHOST_USER_GET_FEATURES has protocol version 2, expected 1 (flags 0x2)"),
        (encode_header(1, 0, 0), "closed: VHOST_USER_GET_FEATURES has protocol version 0, expected 1 (flags 0x0)"),
        (
            encode_header(1, 5, 0),
            "closed: VHOST_USER_GET_FEATURES came with the reply flag, expected a request (flags 0x5)",
        ),
        (encode_header(1, 1, 2**32 - 1), "closed: VHOST_USER_GET_FEATURES announces 4294967295 bytes"),
        (encode_header(1, 1, 0)[:5], "the peer closed the connection after 5 of 12 bytes of a header"),
        (encode_header(2, 1, 8) + b"abc", "the peer closed the connection after 3 of 8 bytes of a payload"),
        (b"", "the peer closed the connection"),
    ],
)
def test_the_end_of_a_session_has_one_line(data: bytes, text: str) -> None:
    with session() as s:
        s.sock.sendall(data)
        s.sock.shutdown(socket.SHUT_WR)
        assert s.wait().startswith(text)


# Descriptors.


@pytest.mark.parametrize("request_id", [request for request in R if request not in (5, 12, 13, 14, 37, 38)])
def test_a_descriptor_that_no_message_wants_is_closed(s: Session, fd: int, request_id: R) -> None:
    if request_id.name.startswith("VHOST_USER_GET") and request_id in (1, 11, 15, 17, 24, 36):
        s.conn.send(request_id, UNACKED, b"", (fd,))
        if request_id == R.VHOST_USER_GET_CONFIG:
            assert s.conn.recv(PATIENCE).payload == b""
        else:
            assert "1 file descriptors, expected 0" in s.wait()
    else:
        before = open_fds()
        assert s.ack(request_id, b"", (fd,)) == 1
        assert open_fds() == before


@pytest.mark.parametrize("count", [2, 8, 9, 64, 253])
@pytest.mark.parametrize(
    ("request_id", "payload"),
    [
        (R.VHOST_USER_SET_MEM_TABLE, TABLE.pack(1, 0, 0, 4096, 0, 0)),
        (R.VHOST_USER_ADD_MEM_REG, MEM_REG.pack(0, 0, 4096, 0, 0)),
        (R.VHOST_USER_SET_VRING_KICK, U64.pack(0)),
        (R.VHOST_USER_SET_OWNER, b""),
    ],
)
def test_too_many_descriptors_are_closed_and_the_message_refused(
    s: Session, request_id: R, payload: bytes, count: int
) -> None:
    with eventfds(1) as fds:
        before = open_fds()
        data = encode_header(request_id, ACKED, len(payload)) + payload
        socket.send_fds(s.sock, [data], fds * count)
        assert s.conn.recv(PATIENCE).payload == U64.pack(1)
        assert open_fds() == before
    assert s.memory.regions == {}


def test_a_full_memory_table_with_one_descriptor_too_many_is_refused(s: Session, fd: int) -> None:
    payload = STATE.pack(8, 0) + b"".join(struct.pack("<4Q", *region(fd, slot)[:4]) for slot in range(8))
    data = encode_header(R.VHOST_USER_SET_MEM_TABLE, ACKED, len(payload)) + payload
    for count, answer in ((9, 1), (8, 0)):
        socket.send_fds(s.sock, [data], [fd] * count)
        assert s.conn.recv(PATIENCE).payload == U64.pack(answer)


def test_descriptors_are_closed_before_the_answer(s: Session, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checker looks at /proc/PID/fd as soon as it has the acknowledgement: clause 81."""
    seen: list[int] = []
    send = Connection.send

    def watched(conn: Connection, request: int, flags: int, *args: Any, **kwargs: Any) -> None:
        if flags & uapi.VHOST_USER_REPLY_MASK:
            seen.append(open_fds())
        send(conn, request, flags, *args, **kwargs)

    monkeypatch.setattr(Connection, "send", watched)
    before = open_fds()
    s.frontend.add_mem_reg(region(fd))
    assert s.ack(R.VHOST_USER_REM_MEM_REG, MEM_REG.pack(0, *region(fd)[:4]), (fd,)) == 0
    assert s.ack(R.VHOST_USER_SET_OWNER, b"", (fd,)) == 1
    assert seen == [before] * 3


def test_no_fd_flag_with_a_descriptor_is_refused(s: Session) -> None:
    with eventfds(1) as (event,):
        before = open_fds()
        for request in (R.VHOST_USER_SET_VRING_KICK, R.VHOST_USER_SET_VRING_CALL, R.VHOST_USER_SET_VRING_ERR):
            assert s.ack(request, U64.pack(0x100), (event,)) == 1
        assert open_fds() == before


def test_eventfds_and_pipes_will_do_and_nothing_else(s: Session, tmp_path: Path) -> None:
    """User-Mode Linux has pipes. Files are always ready, a wrong direction is never, an epoll fd spins the worker."""
    reader, writer = os.pipe()
    left, right = socket.socketpair()
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.mkfifo(tmp_path / "fifo")
    path = os.open(tmp_path / "fifo", os.O_PATH)
    directory = os.open(tmp_path, os.O_RDONLY)
    with left, right, select.epoll() as epoll, eventfds(1) as (event,), memfd() as memory:
        before = open_fds()
        other = (left.fileno(), epoll.fileno(), file, path, directory, memory)
        for kick, good in [
            *((fd, True) for fd in (reader, event)),
            *((fd, False) for fd in (writer, *other)),
        ]:
            assert s.ack(R.VHOST_USER_SET_VRING_KICK, U64.pack(0), (kick,)) == int(not good)
        for request in (R.VHOST_USER_SET_VRING_CALL, R.VHOST_USER_SET_VRING_ERR):
            for call, good in [
                *((fd, True) for fd in (writer, event)),
                *((fd, False) for fd in (reader, *other)),
            ]:
                assert s.ack(request, U64.pack(0), (call,)) == int(not good)
        assert open_fds() == before + 3  # the last good one of each
        s.frontend.get_vring_base(0)
        assert open_fds() == before + 2
    for fd in (reader, writer, file, path, directory):
        os.close(fd)


def test_ten_thousand_messages_leak_nothing(s: Session, fd: int) -> None:
    with eventfds(3) as (kick, call, err):
        start(s.frontend)
        before = 0
        for count in range(1000):
            s.frontend.set_mem_table([region(fd), region(fd, 1)])
            s.frontend.add_mem_reg(region(fd, 2))
            s.frontend.rem_mem_reg(region(fd, 2))
            s.frontend.start_vring(1, 64, 0, 0x7000_0000, 0x7000_1000, 0x7000_2000, kick, call, err)
            s.frontend.get_vring_base(1)
            assert s.ack(R.VHOST_USER_SET_VRING_KICK, U64.pack(77), (kick,)) == 1
            if count == 0:
                before = open_fds()
        assert open_fds() == before


# The end.


def test_stop_fd_ends_a_session_in_the_middle_of_everything(fd: int) -> None:
    with session() as s, eventfds(2) as (kick, call):
        s.negotiate().set_mem_table([region(fd)])
        s.frontend.start_vring(0, 64, 0, 0x7000_0000, 0x7000_1000, 0x7000_2000, kick, call)
        s.sock.sendall(encode_header(1, 1, 0)[:7])  # and then nothing more
        time.sleep(0.02)
        os.eventfd_write(s.stop_fd, 1)
        assert s.wait() == "stopped"
        assert s.device.calls[-1] == ("stop", 0)
        assert s.conn.peer_gone()


def test_a_peer_that_does_not_read_its_replies_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "REPLY_TIMEOUT", 0.1)
    with session() as s:
        s.sock.settimeout(PATIENCE)
        with pytest.raises(ConnectionError):
            s.sock.sendall(encode_header(R.VHOST_USER_GET_FEATURES, UNACKED, 0) * 100_000)
        assert s.wait() == "closed: VHOST_USER_GET_FEATURES: the peer left its reply unread for 0.1 s"


@pytest.mark.parametrize("steps", range(8))
def test_disconnect_after_each_step_leaves_nothing(fd: int, steps: int) -> None:
    """`session` checks that rings are stopped, memory is unmapped and every descriptor is closed."""
    with session() as s, eventfds(2) as (kick, call):
        script: list[Callable[[], object]] = [
            s.negotiate,
            lambda: s.frontend.set_mem_table([region(fd), region(fd, 1)]),
            lambda: s.frontend.set_vring_num(0, 64),
            lambda: s.frontend.set_vring_addr(0, 0x7000_0000, 0x7000_1000, 0x7000_2000),
            lambda: s.frontend.set_vring_call(0, call),
            lambda: s.frontend.set_vring_kick(0, kick),
            lambda: s.frontend.set_vring_enable(0, True),
        ]
        for step in script[:steps]:
            step()
        s.conn.close()
        assert s.wait() == "the peer closed the connection"


def test_a_failing_device_ends_the_session_and_everything_is_given_back(fd: int) -> None:
    class Broken(FakeDevice):
        def start_queue(self, index: int, vring: object) -> None:
            raise ZeroDivisionError

    with session(Broken()) as s, eventfds(2) as (kick, call):
        s.negotiate().set_mem_table([region(fd)])
        with pytest.raises(ConnectionClosed):
            s.frontend.start_vring(0, 64, 0, 0x7000_0000, 0x7000_1000, 0x7000_2000, kick, call)
        with pytest.raises(ZeroDivisionError):
            s.wait()
        s.error = None


def test_refusals_are_logged_but_not_for_ever(s: Session, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "virtblk.vhost_user"):
        for _ in range(50):
            assert s.ack(R.VHOST_USER_SET_VRING_NUM, STATE.pack(9, 64)) == 1
    assert len(caplog.records) == backend_module.MAX_WARNINGS
    assert caplog.messages[0] == "VHOST_USER_SET_VRING_NUM refused: ring 9, the device has 2"
    assert caplog.messages[-1].endswith("further ones are not logged")


@pytest.mark.parametrize("queues", [0, 257])
def test_a_number_of_queues_that_messages_cannot_name(queues: int) -> None:
    device = FakeDevice()
    device.max_queues = queues
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match=f"{queues} queues"):
        Backend(Connection(ours), device, None)  # type: ignore[arg-type]


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 46), st.sampled_from([5, 8, 9, 11, 12, 18, 37, 38])),
            st.one_of(
                st.binary(max_size=80),
                st.builds(STATE.pack, st.integers(0, 2), st.sampled_from([0, 1, 64, 65535])),
                st.builds(U64.pack, st.sampled_from([0, 1, 2, 0x100, 0x101, FEATURES, OFFERED])),
                st.builds(ADDR.pack, st.integers(0, 2), st.just(0), *[st.sampled_from([0, 4096, 2**64 - 16])] * 4),
                st.builds(MEM_REG.pack, st.just(0), *[st.sampled_from([0, 4096, 8192])] * 4),
                st.builds(TABLE.pack, st.just(1), st.just(0), *[st.sampled_from([0, 4096, 8192])] * 4),
            ),
            st.integers(0, 9),
            st.sampled_from([ACKED, ACKED, ACKED, UNACKED]),
        ),
        max_size=30,
    )
)
def test_any_messages_in_any_order(messages: list[tuple[int, bytes, int, int]]) -> None:
    """No message, however wrong, does more than end its session: `session` checks what is left, and exceptions."""
    with memfd() as memory, eventfds(1) as (event,), session() as s:
        s.negotiate()
        for request, payload, fds, flags in messages:
            fd = event if request in (12, 13, 14) else memory
            try:
                socket.send_fds(s.sock, [encode_header(request, flags, len(payload)) + payload], [fd] * fds)
            except ConnectionError:
                break
        s.sock.shutdown(socket.SHUT_WR)
        assert s.wait()
