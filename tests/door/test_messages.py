"""Messages that make no sense, through a real socket to a whole device: refused, or the session ends; then the next.

The numbers are those of the catalogue of bad inputs, group Messages.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator

import pytest

from device.guest import GUEST, USER
from door.harness import Client, Door, Visitor
from vhost_user.fakes import eventfds, memfd
from virtblk.uapi.vhost_user import HEADER, MEM_REG, MEMORY_HEADER, MEMORY_REGION, U64, VRING_ADDR, VRING_STATE
from virtblk.uapi.vhost_user import FrontendRequest as R
from virtblk.vhost_user.message import encode_header

MIB = 1 << 20
TOP = 1 << 64


@pytest.fixture
def client(door: Door) -> Iterator[Client]:
    with Client(door.path) as made:
        yield made


@pytest.fixture
def visitor(door: Door) -> Iterator[Visitor]:
    with Visitor(door.path) as made:
        yield made


# 51: bytes that are no message.

GET_FEATURES = encode_header(R.VHOST_USER_GET_FEATURES, 1, 0)


@pytest.mark.parametrize("cut", range(1, 12))
def test_51_a_header_that_ends_early(client: Client, cut: int) -> None:
    client.send_raw(GET_FEATURES[:cut])


def test_51_a_header_and_nothing_more(client: Client) -> None:
    client.send_raw(encode_header(R.VHOST_USER_SET_FEATURES, 1, 8))


def test_51_byte_by_byte(client: Client) -> None:
    for byte in GET_FEATURES:
        client.send_raw(bytes([byte]))
    assert len(client.conn.recv(20).payload) == 8


def test_51_two_messages_in_one_write(client: Client) -> None:
    client.send_raw(GET_FEATURES + encode_header(R.VHOST_USER_GET_QUEUE_NUM, 1, 0))
    assert client.conn.recv(20).request == R.VHOST_USER_GET_FEATURES
    assert client.conn.recv(20).request == R.VHOST_USER_GET_QUEUE_NUM


@pytest.mark.parametrize("size", [0, 1, 7, 9, 4096])
def test_51_a_payload_of_another_size_is_refused(client: Client, size: int) -> None:
    """Short or long, of every message that has an acknowledgement."""
    replies = {R.VHOST_USER_GET_VRING_BASE, R.VHOST_USER_GET_CONFIG}
    empty = {R.VHOST_USER_SET_OWNER, R.VHOST_USER_RESET_OWNER}
    for request in R:
        if (
            not request.name.startswith("VHOST_USER_GET")
            and request not in replies
            and not (size == 0 and request in empty)
        ):
            assert client.ack(request, bytes(size)) == 1, request.name


@pytest.mark.parametrize("size", [4097, 1 << 31, (1 << 32) - 1])
def test_51_a_payload_too_long_to_be_read_ends_the_session(client: Client, size: int) -> None:
    client.send_raw(HEADER.pack(R.VHOST_USER_SET_FEATURES, 9, size) + bytes(100))
    assert client.hangs_up()


# 52: headers.


@pytest.mark.parametrize("flags", [0, 2, 3, 5, 13, (1 << 32) - 1])
def test_52_wrong_versions_and_replies_end_the_session(client: Client, flags: int) -> None:
    client.send_raw(HEADER.pack(R.VHOST_USER_GET_FEATURES, flags, 0))
    assert client.hangs_up()


@pytest.mark.parametrize("request_id", [0, 46, 99, 1 << 31, (1 << 32) - 1])
def test_52_unknown_messages_are_refused(client: Client, request_id: int) -> None:
    assert client.ack(request_id, bytes(8)) == 1
    assert not client.is_closed()


@pytest.mark.parametrize("request_id", [0, 99])
def test_52_an_unknown_message_without_acknowledgement_ends_the_session(client: Client, request_id: int) -> None:
    assert client.ask(request_id, flags=1) is None


# 53: any order.

STEPS: dict[str, Callable[[Visitor, int], object]] = {
    "memory": lambda v, kick: v.front.set_mem_table(v.regions),
    "num": lambda v, kick: v.front.set_vring_num(0, 64),
    "base": lambda v, kick: v.front.set_vring_base(0, 0),
    "addr": lambda v, kick: v.front.set_vring_addr(0, v.queue.ring.desc, v.queue.ring.avail, v.queue.ring.used),
    "kick": lambda v, kick: v.front.set_vring_kick(0, v.queue.kick_fd),
    "call": lambda v, kick: v.front.set_vring_call(0, v.queue.call_fd),
    "enable": lambda v, kick: v.front.set_vring_enable(0, True),
}
ORDERS = [
    "kick addr num base memory call enable",
    "enable kick call base addr num memory",
    "addr memory enable num call base kick",
    "call enable memory kick base num addr",
    "kick kick enable enable addr addr num num memory memory call call",
]


@pytest.mark.parametrize("order", ORDERS)
def test_53_the_ring_runs_once_all_is_there_in_whatever_order(door: Door, order: str) -> None:
    with Visitor(door.path, start=False) as visitor:
        for step in order.split():
            STEPS[step](visitor, 0)
        assert visitor.queue.write(3, b"order" + bytes(507)) == 0
        assert visitor.queue.read(3, 512) == b"order" + bytes(507)


@pytest.mark.parametrize("missing", ["memory", "num", "addr", "kick", "enable"])
def test_53_without_one_of_them_it_does_not_run(door: Door, missing: str) -> None:
    with Visitor(door.path, start=False) as visitor:
        for step in ("memory", "num", "base", "addr", "kick", "call", "enable"):
            if step != missing:
                STEPS[step](visitor, 0)
        visitor.queue.add([visitor.buffer(bytes(16)), visitor.room(513)])
        visitor.front.get_features()
        assert visitor.queue.is_quiet()
        STEPS[missing](visitor, 0)
        assert visitor.queue.wait(1)


# 54: rings that are not there.


@pytest.mark.parametrize("index", [2, 255, 256, 65535, (1 << 32) - 1])
def test_54_a_ring_that_does_not_exist(client: Client, index: int) -> None:
    for request in (R.VHOST_USER_SET_VRING_NUM, R.VHOST_USER_SET_VRING_BASE, R.VHOST_USER_SET_VRING_ENABLE):
        assert client.ack(request, VRING_STATE.pack(index, 1)) == 1
    assert client.ack(R.VHOST_USER_SET_VRING_ADDR, VRING_ADDR.pack(index, 0, USER, USER, USER, 0)) == 1
    if index != 256:  # which is ring 0, without a descriptor
        for request in (R.VHOST_USER_SET_VRING_KICK, R.VHOST_USER_SET_VRING_CALL, R.VHOST_USER_SET_VRING_ERR):
            assert client.ack(request, U64.pack(index)) == 1
            assert client.ack(request, U64.pack(index | 0x100)) == 1
    assert client.ask(R.VHOST_USER_GET_VRING_BASE, VRING_STATE.pack(index, 0)) is None, "it has no way to say no"


# 55, 56: sizes and bases.


@pytest.mark.parametrize("num", [0, 3, 32769, 65535, 65536, (1 << 32) - 1])
def test_55_sizes_that_no_ring_has(client: Client, num: int) -> None:
    assert client.ack(R.VHOST_USER_SET_VRING_NUM, VRING_STATE.pack(0, num)) == 1


def test_55_the_size_of_a_running_ring_stays(visitor: Visitor) -> None:
    for num in (1, 32, 32768):
        assert visitor.client.ack(R.VHOST_USER_SET_VRING_NUM, VRING_STATE.pack(0, num)) == 1
    assert visitor.queue.read(0, 512) is not None


def test_56_bases(client: Client) -> None:
    for base, refused in ((0, 0), (65535, 0), (65536, 1), ((1 << 32) - 1, 1)):
        assert client.ack(R.VHOST_USER_SET_VRING_BASE, VRING_STATE.pack(0, base)) == refused
    reply = client.ask(R.VHOST_USER_GET_VRING_BASE, VRING_STATE.pack(0, 0))
    assert reply is not None
    assert VRING_STATE.unpack(reply.payload) == (0, 65535)


@pytest.mark.parametrize("base", [5, 64, 32768])
def test_56_a_base_that_the_ring_was_never_at_breaks_that_ring(door: Door, base: int) -> None:
    """As far as available indices go, the driver is 65536 - base requests ahead: more than the ring has."""
    with Visitor(door.path, start=False) as visitor:
        visitor.front.set_mem_table(visitor.regions)
        visitor.queues[0].base = base
        visitor.queues[0].start()
        visitor.queues[1].start()
        assert visitor.queues[0].broke()
        assert visitor.queues[1].read(0, 512) is not None, "the other goes on"


# 57: addresses of rings.


@pytest.mark.parametrize(
    ("desc", "avail", "used"),
    [
        (USER + 8, USER + 0x1000, USER + 0x2000),
        (USER, USER + 0x1001, USER + 0x2000),
        (USER, USER + 0x1000, USER + 0x2002),
        (USER + MIB, USER + 0x1000, USER + 0x2000),  # outside
        (USER + MIB - 512, USER + 0x1000, USER + 0x2000),  # half outside
        (USER, USER - 4096, USER + 0x2000),
        (USER, USER + 0x1000, TOP - 8),
        (TOP - 16, TOP - 4096, TOP - 8192),
        (0, 0, 0),
        (GUEST, GUEST + 0x1000, GUEST + 0x2000),  # guest addresses, not user addresses
    ],
)
def test_57_rings_where_no_memory_is(door: Door, desc: int, avail: int, used: int) -> None:
    with Visitor(door.path) as visitor:
        visitor.queue.stop()
        payload = VRING_ADDR.pack(0, 0, desc, used, avail, 0)
        refused = visitor.client.ack(R.VHOST_USER_SET_VRING_ADDR, payload)
        if refused == 0:  # it is found wrong when the ring starts
            kick = visitor.queue.kick_fd
            assert visitor.client.ack(R.VHOST_USER_SET_VRING_KICK, U64.pack(0), [kick]) == 1
        assert visitor.queues[1].read(0, 512) is not None, "the other goes on"


def test_57_rings_on_top_of_each_other_are_the_guests_own_harm(visitor: Visitor) -> None:
    ring = visitor.queue.ring
    visitor.queue.stop()
    for addresses in ((ring.desc, ring.desc, ring.desc), (ring.desc, ring.desc + 64, ring.desc + 128)):
        desc, avail, used = addresses
        assert visitor.client.ack(R.VHOST_USER_SET_VRING_ADDR, VRING_ADDR.pack(0, 0, desc, used, avail, 0)) == 0
        visitor.client.ack(R.VHOST_USER_SET_VRING_KICK, U64.pack(0), [visitor.queue.kick_fd])
        os.eventfd_write(visitor.queue.kick_fd, 1)
    assert visitor.queues[1].read(0, 512) is not None


# 58: memory tables.


def table(*regions: tuple[int, int, int, int], count: int | None = None) -> bytes:
    parts = [MEMORY_HEADER.pack(len(regions) if count is None else count, 0)]
    return b"".join(parts + [MEMORY_REGION.pack(*region) for region in regions])


GOOD = (0, 0x10000, USER, 0)
BAD_REGIONS = {
    "empty": (0, 0, USER, 0),
    "longer than the file": (0, 2 * MIB, USER, 0),
    "past the end of the file": (0, 0x10000, USER, MIB - 0x1000),
    "offset near 2^64": (0, 0x10000, USER, TOP - 0x10000),
    "offset + size wraps": (0, 0x10000, USER, TOP - 0x1000),
    "guest address wraps": (TOP - 0x1000, 0x10000, USER, 0),
    "user address wraps": (0, 0x10000, TOP - 0x1000, 0),
    "size 2^64 - 1": (0, TOP - 1, USER, 0),
    "above 2^63": (1 << 63, 0x10000, USER, 0),
}


@pytest.mark.parametrize("name", BAD_REGIONS)
def test_58_regions_that_cannot_be(client: Client, name: str) -> None:
    with memfd(MIB) as fd:
        assert client.ack(R.VHOST_USER_SET_MEM_TABLE, table(BAD_REGIONS[name]), [fd]) == 1
        assert client.ack(R.VHOST_USER_ADD_MEM_REG, MEM_REG.pack(0, *BAD_REGIONS[name]), [fd]) == 1
        assert client.ack(R.VHOST_USER_SET_MEM_TABLE, table(GOOD), [fd]) == 0, "and a good one is taken after it"


def test_58_an_offset_that_is_no_multiple_of_a_page(client: Client) -> None:
    """mmap() cannot do it; the specification does not forbid it; so it works."""
    with memfd(MIB) as fd:
        assert client.ack(R.VHOST_USER_SET_MEM_TABLE, table((0, 0x8000, USER, 0x1234)), [fd]) == 0


@pytest.mark.parametrize("count", [0, 9, 33, (1 << 32) - 1])
def test_58_numbers_of_regions_that_cannot_be(client: Client, count: int) -> None:
    regions = [(at << 20, 0x10000, USER + (at << 20), 0) for at in range(min(count, 33))]
    with memfd(MIB) as fd:
        fds = [fd] * min(count, 8)
        assert client.ack(R.VHOST_USER_SET_MEM_TABLE, table(*regions, count=count), fds) == 1


def test_58_regions_that_overlap_or_come_twice(client: Client) -> None:
    overlapping = (0x8000, 0x10000, USER + MIB, 0)
    with memfd(MIB) as fd:
        assert client.ack(R.VHOST_USER_SET_MEM_TABLE, table(GOOD, overlapping), [fd, fd]) == 1
        assert client.ack(R.VHOST_USER_ADD_MEM_REG, MEM_REG.pack(0, *GOOD), [fd]) == 0
        assert client.ack(R.VHOST_USER_ADD_MEM_REG, MEM_REG.pack(0, *GOOD), [fd]) == 1
        assert client.ack(R.VHOST_USER_ADD_MEM_REG, MEM_REG.pack(0, *overlapping), [fd]) == 1
        assert client.ack(R.VHOST_USER_REM_MEM_REG, MEM_REG.pack(0, 0, 0x8000, USER, 0)) == 1
        assert client.ack(R.VHOST_USER_REM_MEM_REG, MEM_REG.pack(0, *GOOD)) == 0
        assert client.ack(R.VHOST_USER_REM_MEM_REG, MEM_REG.pack(0, *GOOD)) == 1


def test_58_more_slots_than_there_are(client: Client) -> None:
    with memfd(MIB) as fd:
        for slot in range(40):
            region = MEM_REG.pack(0, slot << 20, 0x10000, USER + (slot << 20), 0)
            assert client.ack(R.VHOST_USER_ADD_MEM_REG, region, [fd]) == int(slot >= 32)


# 59: configuration.


@pytest.mark.parametrize(
    ("offset", "size"),
    [((1 << 32) - 1, 1), ((1 << 32) - 1, 256), (0, 0), (0, 257), (1 << 31, 4), (256, 1), (0, 256), (200, 200)],
)
def test_59_configuration_that_is_not_there(client: Client, offset: int, size: int) -> None:
    for length in {size, min(size, 256)}:
        payload = struct.pack("<III", offset, size, 0) + bytes(length)
        reply = client.ask(R.VHOST_USER_GET_CONFIG, payload)
        assert reply is not None
        assert reply.payload == b""
        assert client.ack(R.VHOST_USER_SET_CONFIG, payload) == 1


@pytest.mark.parametrize("flags", [0, 1, 2, (1 << 32) - 1])
def test_59_read_only_configuration_is_not_written(client: Client, flags: int) -> None:
    before = client.front.get_config(60)
    client.ack(R.VHOST_USER_SET_CONFIG, struct.pack("<III", 0, 8, flags) + b"\xff" * 8)
    assert client.front.get_config(60) == before


# 60: features.


def test_60_features_that_were_not_offered_twice_and_while_rings_run(visitor: Visitor) -> None:
    offered = visitor.front.get_features()
    assert visitor.client.ack(R.VHOST_USER_SET_FEATURES, U64.pack(TOP - 1)) == 1
    assert visitor.client.ack(R.VHOST_USER_SET_FEATURES, U64.pack(offered | 1 << 63)) == 1
    assert visitor.client.ack(R.VHOST_USER_SET_FEATURES, U64.pack(0)) == 1, "not without VERSION_1"
    for _ in range(2):
        assert visitor.client.ack(R.VHOST_USER_SET_FEATURES, U64.pack(visitor.features & offered)) == 0
    assert visitor.client.ack(R.VHOST_USER_SET_PROTOCOL_FEATURES, U64.pack(TOP - 1)) == 1
    assert visitor.queue.read(0, 512) is not None


def test_events_are_not_needed(door: Door) -> None:
    """Without any file descriptor the ring is polled, and the device does not interrupt."""
    with Visitor(door.path, start=False) as visitor, eventfds(0):
        ring = visitor.queue.ring
        visitor.front.set_mem_table(visitor.regions)
        visitor.front.start_vring(0, ring.num, 0, ring.desc, ring.avail, ring.used, None, None)
        assert visitor.queue.read(0, 512) is not None
