"""File descriptors that a peer should not have sent: closed, every one of them, and never waited for.

The numbers are those of the catalogue of bad inputs, group fds.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from device.guest import USER
from door.harness import Client, Door, Visitor, guest_mappings
from vhost_user.fakes import eventfds, memfd, open_fds
from virtblk.uapi.vhost_user import MEM_REG, MEMORY_HEADER, MEMORY_REGION, U64, VRING_STATE
from virtblk.uapi.vhost_user import FrontendRequest as R
from virtblk.vhost_user.message import encode_header
from waiting import PATIENCE, wait_until

MIB = 1 << 20
F_ADD_SEALS, F_SEAL_WRITE, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 8, 2, 4


@pytest.fixture
def client(door: Door) -> Iterator[Client]:
    with Client(door.path) as made:
        yield made


# 61: none, too many, unwanted.


@pytest.mark.parametrize("request_id", [r for r in R if not r.name.startswith("VHOST_USER_GET")])
@pytest.mark.parametrize("count", [1, 8, 64])
def test_61_descriptors_of_every_message_are_closed(door: Door, request_id: R, count: int) -> None:
    """Whatever becomes of the message; 64 is more than the protocol has."""
    with Client(door.path) as client, eventfds(1) as (event,):
        before = open_fds()
        client.send_raw(encode_header(request_id, 9, 0), [event] * count)
        client.is_closed()
        kept = 1 if request_id == R.VHOST_USER_SET_BACKEND_REQ_FD else 0
        wait_until(lambda: open_fds() <= before + kept)


def test_61_a_flood_in_the_header_and_in_the_payload(client: Client) -> None:
    with eventfds(1) as (event,):
        header = encode_header(R.VHOST_USER_SET_VRING_KICK, 9, 8)
        before = open_fds()
        for _ in range(200):
            client.send_raw(header, [event] * 200)
            client.send_raw(U64.pack(0), [event] * 200)
            assert client.conn.recv(20).payload == U64.pack(1)
        assert open_fds() == before


def test_61_messages_that_lack_theirs(client: Client) -> None:
    region = MEMORY_REGION.pack(0, MIB, USER, 0)
    assert client.ack(R.VHOST_USER_SET_MEM_TABLE, MEMORY_HEADER.pack(1, 0) + region) == 1
    assert client.ack(R.VHOST_USER_ADD_MEM_REG, MEM_REG.pack(0, 0, MIB, USER, 0)) == 1
    assert client.ack(R.VHOST_USER_SET_BACKEND_REQ_FD) == 1
    for request in (R.VHOST_USER_SET_VRING_KICK, R.VHOST_USER_SET_VRING_CALL, R.VHOST_USER_SET_VRING_ERR):
        assert client.ack(request, U64.pack(0)) == 1


@pytest.mark.parametrize("rounds", [100, pytest.param(2500, marks=pytest.mark.slow)])
def test_61_four_messages_a_round_leak_nothing(client: Client, rounds: int) -> None:
    with memfd(MIB) as fd, eventfds(1) as (event,):
        region = MEM_REG.pack(0, 0, MIB, USER, 0)
        before = 0
        for turn in range(rounds):
            assert client.ack(R.VHOST_USER_ADD_MEM_REG, region, [fd]) == 0
            assert client.ack(R.VHOST_USER_REM_MEM_REG, region, [fd]) == 0
            assert client.ack(R.VHOST_USER_SET_VRING_CALL, U64.pack(1), [event]) == 0
            assert client.ack(R.VHOST_USER_SET_VRING_KICK, U64.pack(7), [event]) == 1
            before = before or open_fds()
            assert open_fds() == before, turn


# 62: descriptors of something else.


def test_62_what_is_no_memory(client: Client, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    (tmp_path / "file").write_bytes(bytes(MIB))
    readable = os.open(tmp_path / "file", os.O_RDONLY)
    directory, path = os.open(tmp_path, os.O_RDONLY), os.open(tmp_path / "file", os.O_PATH)
    null, zero = os.open("/dev/null", os.O_RDWR), os.open("/proc/self/maps", os.O_RDONLY)
    region = MEM_REG.pack(0, 0, MIB, USER, 0)
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(sealed, MIB)
    with socket.socket(socket.AF_UNIX) as sock, memfd(0) as empty, eventfds(1) as (event,):
        fcntl.fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)
        before, mapped = open_fds(), guest_mappings()
        every = (reader, writer, readable, directory, path, null, zero, sock.fileno(), empty, sealed, event)
        for fd in every:
            assert client.ack(R.VHOST_USER_ADD_MEM_REG, region, [fd]) == 1, os.readlink(f"/proc/self/fd/{fd}")
            assert client.ack(R.VHOST_USER_SET_MEM_TABLE, MEMORY_HEADER.pack(1, 0) + region[8:], [fd]) == 1
            assert (open_fds(), guest_mappings()) == (before, mapped)
    for fd in (reader, writer, readable, directory, path, null, zero, sealed):
        os.close(fd)


def test_62_memory_that_is_good_for_shrinking_and_growing(client: Client) -> None:
    """What QEMU shares is sealed against shrinking; what others share may not be sealed at all."""
    region = MEM_REG.pack(0, 0, MIB, USER, 0)
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, MIB)
        fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
        assert client.ack(R.VHOST_USER_ADD_MEM_REG, region, [fd]) == 0
    finally:
        os.close(fd)


def fill(fd: int) -> None:
    """Write until there is no room left; the descriptor blocks after that."""
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))
    os.set_blocking(fd, True)


# 63: kick fds.


@pytest.fixture
def visitor(door: Door) -> Iterator[Visitor]:
    with Visitor(door.path) as made:
        yield made


def rekick(visitor: Visitor, fd: int) -> None:
    """Start ring 0 anew, where it was, with another kick fd."""
    visitor.queue.stop()
    assert visitor.client.ack(R.VHOST_USER_SET_VRING_KICK, U64.pack(0), [fd]) == 0


def test_63_a_kick_eventfd_that_is_full_blocking_or_emptied_by_its_owner(visitor: Visitor) -> None:
    for flags in (0, os.EFD_NONBLOCK, os.EFD_SEMAPHORE):
        fd = os.eventfd((1 << 32) - 2, flags)
        os.eventfd_write(fd, (1 << 63) - 5)
        rekick(visitor, fd)
        os.set_blocking(fd, False)
        for _ in range(20):  # both sides read it; it may be empty when the device wants to
            with suppress(BlockingIOError):
                os.eventfd_read(fd)
            os.eventfd_write(fd, 1)
        queue_request(visitor, fd)
        os.close(fd)


def queue_request(visitor: Visitor, fd: int) -> None:
    """A read on ring 0 whose kick goes to `fd`."""
    ours, visitor.queue.kick_fd = visitor.queue.kick_fd, fd
    try:
        assert visitor.queue.read(0, 512) is not None
    finally:
        visitor.queue.kick_fd = ours


def kicks(door: Door) -> int:
    """How often the worker of ring 0 was woken, over all sessions."""
    (count,) = re.findall(r'^virtblk_queue_kicks_total\{queue="0"\} (\d+)$', door.server.metrics(), re.MULTILINE)
    return int(count)


def test_63_a_kick_pipe_that_is_hung_up(door: Door, visitor: Visitor) -> None:
    """It stays readable for ever: the device must not spin on it, and must still be able to stop."""
    reader, writer = os.pipe()
    before = kicks(door)
    rekick(visitor, reader)
    os.close(reader)
    os.close(writer)
    for _ in range(100):
        assert visitor.queues[1].read(0, 512) is not None
    visitor.queue.stop()
    assert kicks(door) <= before + 2


def test_63_a_kick_pipe_full_of_bytes(visitor: Visitor) -> None:
    reader, writer = os.pipe()
    fill(writer)
    rekick(visitor, reader)
    assert visitor.queues[1].read(0, 512) is not None
    visitor.queue.stop()
    os.close(reader)
    os.close(writer)


# 64: call fds that block.


def read_with_interrupt(visitor: Visitor) -> None:
    """A request whose end the driver wants to be told of."""
    assert visitor.queue.driver.enable()
    assert visitor.queue.read(0, 512) is not None


def test_64_a_call_fd_that_is_full(visitor: Visitor) -> None:
    """Full means that an interrupt is pending: nothing is lost by not waiting."""
    reader, writer = os.pipe()
    fill(writer)
    blocked = os.eventfd(0)
    os.eventfd_write(blocked, (1 << 64) - 2)
    for fd in (writer, blocked):
        assert visitor.client.ack(R.VHOST_USER_SET_VRING_CALL, U64.pack(0), [fd]) == 0
        for _ in range(3):
            read_with_interrupt(visitor)
        visitor.queue.stop()
        visitor.queue.start()
    for fd in (reader, writer, blocked):
        os.close(fd)


def test_64_a_call_pipe_that_nobody_reads_any_more(visitor: Visitor) -> None:
    """EPIPE, and no SIGPIPE."""
    reader, writer = os.pipe()
    assert visitor.client.ack(R.VHOST_USER_SET_VRING_CALL, U64.pack(0), [writer]) == 0
    os.close(reader)
    os.close(writer)
    for _ in range(3):
        read_with_interrupt(visitor)


def test_64_a_call_socket_that_nobody_reads(visitor: Visitor) -> None:
    """As User-Mode Linux has: it fills up, then its other end goes away."""
    left, right = socket.socketpair()
    right.settimeout(PATIENCE)
    with left, right:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        assert visitor.client.ack(R.VHOST_USER_SET_VRING_CALL, U64.pack(0), [left.fileno()]) == 0
        read_with_interrupt(visitor)
        assert len(right.recv(8)) == 8, "the interrupt of the first request"
        fill(left.fileno())
        for _ in range(3):
            read_with_interrupt(visitor)
        right.close()
        for _ in range(3):
            read_with_interrupt(visitor)


# 65, 66: what is not offered, and what is not read.


@pytest.mark.parametrize("rounds", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_65_in_flight_memory_is_not_offered(door: Door, rounds: int) -> None:
    with Client(door.path) as client:
        before = open_fds()
        for _ in range(rounds):
            assert client.ack(R.VHOST_USER_GET_INFLIGHT_FD, bytes(24)) == 1
        assert open_fds() == before


def test_66_a_channel_for_back_end_requests_that_nobody_reads(visitor: Visitor) -> None:
    left, right = socket.socketpair()
    with left, right:
        fill(left.fileno())
        assert visitor.client.ack(R.VHOST_USER_SET_BACKEND_REQ_FD, b"", [left.fileno()]) == 0
        for turn in range(3):
            assert visitor.queue.write(turn, bytes(512)) == 0
        assert visitor.client.ack(R.VHOST_USER_SET_VRING_ENABLE, VRING_STATE.pack(0, 1)) == 0


def test_66_replies_that_nobody_reads_end_the_session_at_the_next_client(door: Door) -> None:
    """The peer hangs up with the answers to many questions unread."""
    with Client(door.path, negotiate=False) as client:
        client.send_raw(encode_header(R.VHOST_USER_GET_FEATURES, 1, 0) * 200)
