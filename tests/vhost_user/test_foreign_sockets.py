"""Sockets that a peer hands over: kept only where they cannot be, or hold, its own end of the connection.

User-Mode Linux sends ends of socketpairs as call fds and for back-end requests, QEMU for the latter.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhost_user.fakes import ACKED, FakeDevice, FakeMemory, eventfds, open_fds
from virtblk.uapi.vhost_user import U64
from virtblk.uapi.vhost_user import FrontendRequest as R
from virtblk.vhost_user.backend import Backend
from virtblk.vhost_user.connection import Connection
from virtblk.vhost_user.frontend import Frontend
from virtblk.vhost_user.message import decode_u64
from waiting import PATIENCE

CALLS = [R.VHOST_USER_SET_VRING_CALL, R.VHOST_USER_SET_VRING_ERR]


class Named:
    """A session over a real socket, whose file the back end's end of it is named after."""

    def __init__(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen()
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(path))
            accepted, _ = listening.accept()
        self.conn = Connection(self.sock)
        self.reason = ""
        self.stop_fd = os.eventfd(0)
        device = FakeDevice()
        backend = Backend(Connection(accepted), device, FakeMemory(device))
        self.thread = threading.Thread(target=lambda: setattr(self, "reason", backend.run(self.stop_fd)))
        self.thread.start()
        frontend = Frontend(self.conn, PATIENCE)
        frontend.set_protocol_features(frontend.get_protocol_features())

    def ack(self, request: R, payload: bytes, fd: int) -> int:
        self.conn.send(request, ACKED, payload, [fd], 10)
        return decode_u64(self.conn.recv(PATIENCE).payload)

    def hang_up(self) -> str:
        """Close the peer's end; the back end's reason for going."""
        self.conn.close()
        self.thread.join(PATIENCE)
        return self.reason


@pytest.fixture
def named(tmp_path: Path) -> Iterator[Named]:
    made = Named(tmp_path / "sock")
    yield made
    made.conn.close()
    os.eventfd_write(made.stop_fd, 1)
    made.thread.join(PATIENCE)
    assert not made.thread.is_alive()
    os.close(made.stop_fd)


@pytest.mark.parametrize("request_id", CALLS)
def test_regression_a_call_fd_may_be_the_end_of_a_socketpair(named: Named, request_id: R) -> None:
    left, right = socket.socketpair()
    before = open_fds()
    with left, right:
        assert named.ack(request_id, U64.pack(0), left.fileno()) == 0
        left.close()
        assert open_fds() == before, "one is kept, one was closed here"
        assert named.hang_up() == "the peer closed the connection"
        assert right.recv(1) == b"", "and closed with the session"


@pytest.mark.parametrize("request_id", [*CALLS, R.VHOST_USER_SET_BACKEND_REQ_FD])
def test_the_peers_own_end_is_never_kept(named: Named, request_id: R) -> None:
    """Held here, it would keep the session, and every other client out, for ever."""
    payload = b"" if request_id == R.VHOST_USER_SET_BACKEND_REQ_FD else U64.pack(0)
    before = open_fds()
    refused = named.ack(request_id, payload, named.sock.fileno())
    assert refused == int(request_id != R.VHOST_USER_SET_BACKEND_REQ_FD)
    assert open_fds() == before
    assert named.hang_up() == "the peer closed the connection"


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB])
@pytest.mark.parametrize("request_id", [*CALLS, R.VHOST_USER_SET_BACKEND_REQ_FD])
def test_the_peers_own_end_does_not_hide_in_what_was_sent_to_another(named: Named, request_id: R, flags: int) -> None:
    left, right = socket.socketpair()
    with left, right:
        payload = b"" if request_id == R.VHOST_USER_SET_BACKEND_REQ_FD else U64.pack(0)
        for _ in range(5):
            socket.send_fds(right, [b"hidden"], [named.sock.fileno()], flags)
        assert named.ack(request_id, payload, left.fileno()) == 0
        with pytest.raises(BrokenPipeError):
            socket.send_fds(right, [b"later"], [named.sock.fileno()])
        left.close()
        assert named.hang_up() == "the peer closed the connection"


def test_sockets_of_other_kinds_are_refused(named: Named, tmp_path: Path) -> None:
    datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    packets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fresh, listening, inet = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX), socket.socket()
    listening.bind(str(tmp_path / "other"))
    listening.listen()
    path = os.open(tmp_path / "other", os.O_PATH)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "other"))
    accepted, _ = listening.accept()
    before = open_fds()
    every = (*datagrams, *packets, fresh, listening, inet, client, accepted)
    for fd in [*(sock.fileno() for sock in every), path]:
        assert named.ack(R.VHOST_USER_SET_VRING_CALL, U64.pack(0), fd) == 1
        assert named.ack(R.VHOST_USER_SET_VRING_KICK, U64.pack(0), fd) == 1
        assert named.ack(R.VHOST_USER_SET_BACKEND_REQ_FD, b"", fd) == 0, "nothing is said about it"
        assert open_fds() == before, "and it is not kept"
    for sock in every:
        sock.close()
    os.close(path)


def test_a_channel_for_back_end_requests_is_kept_and_replaced(named: Named) -> None:
    reader, writer = os.pipe()
    left, right = socket.socketpair()
    with left, right, eventfds(1) as (event,):
        before = open_fds()
        assert named.ack(R.VHOST_USER_SET_BACKEND_REQ_FD, b"", writer) == 0
        assert open_fds() == before + 1
        assert named.ack(R.VHOST_USER_SET_BACKEND_REQ_FD, b"", left.fileno()) == 0
        assert open_fds() == before + 1
        assert named.ack(R.VHOST_USER_SET_BACKEND_REQ_FD, b"", event) == 1
        assert named.ack(R.VHOST_USER_SET_BACKEND_REQ_FD, U64.pack(0), writer) == 1
        assert open_fds() == before + 1
        assert named.ack(R.VHOST_USER_SET_BACKEND_REQ_FD, b"", named.sock.fileno()) == 0
        assert open_fds() == before
        os.close(writer)
        assert os.read(reader, 1) == b"", "nobody else has the other end"
    os.close(reader)


def test_without_a_channel_there_is_nothing_to_set(named: Named) -> None:
    named.conn.send(R.VHOST_USER_SET_BACKEND_REQ_FD, ACKED, b"", [], 10)
    assert decode_u64(named.conn.recv(PATIENCE).payload) == 1
