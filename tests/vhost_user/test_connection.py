"""Whole messages over a stream: framing, descriptors, time limits, and every way a peer can stop in the middle."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vhost_user.fakes import eventfds, open_fds
from virtblk.vhost_user import connection
from virtblk.vhost_user.connection import Connection, ConnectionClosed, Stopped, check_socket_path
from virtblk.vhost_user.message import ProtocolError, encode_header
from waiting import PATIENCE

MESSAGE = encode_header(8, 1, 8) + b"12345678"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def raw(ends: tuple[socket.socket, socket.socket]) -> socket.socket:
    """The peer's end, for bytes of any kind."""
    return ends[0]


@pytest.fixture
def conn(ends: tuple[socket.socket, socket.socket]) -> Connection:
    return Connection(ends[1])


def send_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_a_message_arrives_with_its_descriptors(raw: socket.socket, conn: Connection) -> None:
    sender = Connection(raw)
    with eventfds(2) as fds:
        sender.send(8, 9, b"12345678", fds)
        os.eventfd_write(fds[1], 7)
        with conn.recv(PATIENCE) as msg:
            assert (msg.request, msg.flags, msg.payload, msg.surplus_fds) == (8, 9, b"12345678", 0)
            assert msg.name == "VHOST_USER_SET_VRING_NUM"
            assert msg.needs_reply
            assert not msg.is_reply
            assert os.eventfd_read(msg.fds[1]) == 7
            assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in msg.fds)


@pytest.mark.parametrize("carrier", [0, 5, 11, 12, 19])
def test_byte_by_byte(raw: socket.socket, conn: Connection, carrier: int) -> None:
    """Descriptors come with any byte of the message, though an honest peer sends them with the first."""
    with eventfds(1) as fds:

        def dribble() -> None:
            for position in range(len(MESSAGE)):
                send_fds(raw, MESSAGE[position : position + 1], fds if position == carrier else [])
                time.sleep(0.001)

        thread = threading.Thread(target=dribble)
        thread.start()
        with conn.recv(PATIENCE) as msg:
            assert msg.payload == b"12345678"
            assert len(msg.fds) == 1
        thread.join()


def test_two_messages_in_one_write(raw: socket.socket, conn: Connection) -> None:
    with eventfds(1) as fds:
        send_fds(raw, MESSAGE + encode_header(3, 1, 0) + MESSAGE, fds)
        with conn.recv(PATIENCE) as first, conn.recv(PATIENCE) as second, conn.recv(PATIENCE) as third:
            assert [msg.request for msg in (first, second, third)] == [8, 3, 8]
            assert [len(msg.fds) for msg in (first, second, third)] == [1, 0, 0]
            assert third.payload == b"12345678"


def test_a_message_does_not_take_the_descriptors_of_the_next(raw: socket.socket, conn: Connection) -> None:
    with eventfds(2) as fds:
        send_fds(raw, MESSAGE, fds[:1])
        send_fds(raw, MESSAGE, fds)
        with conn.recv(PATIENCE) as first, conn.recv(PATIENCE) as second:
            assert [len(first.fds), len(second.fds)] == [1, 2]


@pytest.mark.parametrize("sent", range(len(MESSAGE)))
def test_end_of_file_at_every_byte(raw: socket.socket, conn: Connection, sent: int) -> None:
    with eventfds(1) as fds:
        before = open_fds()
        if sent:
            send_fds(raw, MESSAGE[:sent], fds)
        raw.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionClosed) as caught:
            conn.recv(PATIENCE)
        if sent == 0:
            assert caught.match("connection$")
        elif sent < 12:
            assert caught.match(f"after {sent} of 12 bytes of a header")
        else:
            assert caught.match(f"after {sent - 12} of 8 bytes of a payload")
        assert open_fds() == before


def test_a_reset_is_the_end_of_the_connection(raw: socket.socket, conn: Connection) -> None:
    conn.send(1, 1)
    raw.close()  # with unread data: the kernel reports a reset, once
    with pytest.raises(ConnectionClosed):
        conn.recv(PATIENCE)
    with pytest.raises(ConnectionClosed):
        conn.send(1, 1)


def test_a_silent_peer_costs_the_timeout_and_nothing_else(raw: socket.socket, conn: Connection) -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        conn.recv(0.05)
    assert time.monotonic() - begin >= 0.05
    raw.sendall(MESSAGE)
    assert conn.recv(PATIENCE).request == 8


@pytest.mark.parametrize("sent", [1, 12, 19])
def test_a_timeout_within_a_message_ends_the_connection(raw: socket.socket, conn: Connection, sent: int) -> None:
    with eventfds(1) as fds:
        before = open_fds()
        send_fds(raw, MESSAGE[:sent], fds)
        with pytest.raises(TimeoutError):
            conn.recv(0.02)
        assert open_fds() == before
    raw.sendall(MESSAGE[sent:])
    with pytest.raises(ConnectionClosed, match="TimeoutError in the middle of a message"):
        conn.recv(PATIENCE)
    with pytest.raises(ConnectionClosed, match="cannot be used any more"):
        conn.send(1, 1)


def test_stop_fd_wins_over_waiting(raw: socket.socket, conn: Connection) -> None:
    with eventfds(1) as fds:
        threading.Timer(0.02, os.eventfd_write, (fds[0], 1)).start()
        with pytest.raises(Stopped):
            conn.recv(stop_fd=fds[0])


@pytest.mark.parametrize("count", [9, 64, 253])
def test_more_than_eight_descriptors_are_counted_and_closed(raw: socket.socket, conn: Connection, count: int) -> None:
    with eventfds(1) as fds:
        before = open_fds()
        send_fds(raw, MESSAGE, fds * count)
        with conn.recv(PATIENCE) as msg:
            assert (len(msg.fds), msg.surplus_fds) == (8, count - 8)
            assert open_fds() == before + 8
        assert open_fds() == before


def test_descriptors_that_do_not_fit_in_the_process_end_the_connection(raw: socket.socket, conn: Connection) -> None:
    with eventfds(1) as fds:
        send_fds(raw, MESSAGE, fds * 200)
        before = open_fds()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 50, hard))
        try:
            with pytest.raises(ProtocolError, match="file descriptors of a message were lost"):
                conn.recv(PATIENCE)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert open_fds() == before
    with pytest.raises(ConnectionClosed, match="ProtocolError"):
        conn.recv(PATIENCE)


@pytest.mark.parametrize("header", [encode_header(8, 2, 8), encode_header(8, 1, 4097)])
def test_a_wrong_header_ends_the_connection(raw: socket.socket, conn: Connection, header: bytes) -> None:
    with eventfds(1) as fds:
        before = open_fds()
        send_fds(raw, header, fds)
        with pytest.raises(ProtocolError):
            conn.recv(PATIENCE)
        assert open_fds() == before
    with pytest.raises(ConnectionClosed):
        conn.recv(PATIENCE)


@pytest.mark.parametrize("sent", [1, 11, 12, 19])
def test_regression_half_a_message_with_the_peers_own_end(
    raw: socket.socket, conn: Connection, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    """Who holds the peer's end never hears that the peer is gone: the rest of a message has a bound of its own."""
    monkeypatch.setattr(connection, "REST_SECONDS", 0.2)
    before = open_fds()
    send_fds(raw, MESSAGE[:sent], [raw.fileno()])
    raw.close()
    with pytest.raises(ProtocolError, match=r"did not come within 0.2 s"):
        conn.recv(None)
    assert open_fds() == before - 1
    with pytest.raises(ConnectionClosed):
        conn.recv(PATIENCE)


def test_a_long_message_is_sent_in_pieces(raw: socket.socket, conn: Connection) -> None:
    payload = os.urandom(4 << 20)
    received = bytearray()
    received_fds: list[int] = []

    def read() -> None:
        while len(received) < 12 + len(payload):
            data, fds, _, _ = socket.recv_fds(raw, 1 << 16, 8)
            received.extend(data)
            received_fds.extend(fds)

    thread = threading.Thread(target=read)
    thread.start()
    with eventfds(1) as fds:
        conn.send(1, 1, payload, fds, timeout=PATIENCE)
    thread.join()
    assert received[12:] == payload
    assert len(received_fds) == 1  # with the first piece, and not again
    os.close(received_fds[0])


def test_a_peer_that_does_not_read_costs_the_timeout(raw: socket.socket, conn: Connection) -> None:
    with pytest.raises(TimeoutError):
        conn.send(1, 1, bytes(4 << 20), timeout=0.05)
    with pytest.raises(ConnectionClosed, match="sent only in part"):
        conn.send(1, 1, timeout=0.05)


def test_sending_to_a_closed_peer(raw: socket.socket, conn: Connection) -> None:
    raw.close()
    with pytest.raises(ConnectionClosed, match="the peer closed the connection"):
        conn.send(1, 1)


def test_wrong_descriptors_are_refused_before_the_first_byte(raw: socket.socket, conn: Connection) -> None:
    with eventfds(1) as fds, pytest.raises(ValueError, match="9 file descriptors"):
        conn.send(1, 1, b"", fds * 9)
    with pytest.raises(OSError, match="Bad file descriptor"):
        conn.send(1, 1, b"", [10**6])
    conn.send(3, 1)
    assert raw.recv(100) == encode_header(3, 1, 0)


def test_peer_gone(raw: socket.socket, conn: Connection) -> None:
    assert not conn.peer_gone()
    raw.sendall(MESSAGE)
    assert not conn.peer_gone()
    raw.close()
    assert conn.peer_gone()
    conn.close()
    assert conn.peer_gone()
    assert conn.fileno() == -1
    conn.close()
    with pytest.raises(ConnectionClosed, match="closed"):
        conn.recv(PATIENCE)


def test_shutdown_wakes_the_other_thread(raw: socket.socket, conn: Connection) -> None:
    threading.Timer(0.02, conn.shutdown).start()
    with pytest.raises(ConnectionClosed):
        conn.recv(PATIENCE)
    conn.close()
    conn.shutdown()


def test_peer_pid_is_ours_or_unknown(raw: socket.socket, conn: Connection) -> None:
    assert conn.peer_pid() == os.getpid()
    conn.close()
    assert conn.peer_pid() is None


def test_connect(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with pytest.raises(FileNotFoundError) as caught:
        Connection.connect(path, PATIENCE)
    assert caught.value.filename == path
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        with pytest.raises(ConnectionRefusedError, match="sock"):
            Connection.connect(path, PATIENCE)
        server.listen(0)
        with Connection.connect(path, PATIENCE) as client:
            accepted, _ = server.accept()
            accepted.close()
            with pytest.raises(ConnectionClosed):
                client.recv(PATIENCE)


def test_connect_to_a_full_backlog_is_bounded(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(0)
        with Connection.connect(path, 1), pytest.raises(TimeoutError, match=r"not accepted within 0\.05 s") as caught:
            Connection.connect(path, 0.05)
        assert caught.value.errno == errno.ETIMEDOUT


@pytest.mark.parametrize(("path", "size"), [("", 0), ("x" * 108, 108), ("é" * 54, 108)])
def test_impossible_paths_are_refused_with_their_length(path: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"socket path of {size} bytes"):
        check_socket_path(path)
    check_socket_path("x" * 107)


def test_ten_thousand_messages_leak_nothing(raw: socket.socket, conn: Connection) -> None:
    with eventfds(1) as fds:
        before = open_fds()
        for count in range(10_000):
            send_fds(raw, MESSAGE, fds * (count % 11))
            with conn.recv(PATIENCE) as msg:
                assert len(msg.fds) + msg.surplus_fds == count % 11
        assert open_fds() == before


def test_stray_control_data_is_harmless(raw: socket.socket, conn: Connection) -> None:
    """A peer may send its credentials with a byte; they are ignored."""
    conn._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ucred = struct.pack("3i", os.getpid(), os.getuid(), os.getgid())
    raw.sendmsg([MESSAGE], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ucred)])
    with conn.recv(PATIENCE) as msg:
        assert msg.fds == []
