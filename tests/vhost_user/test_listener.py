"""Who may connect: the socket's file, one client at a time, and a device that survives its clients."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhost_user.fakes import FakeDevice, FakeMemory, memfd, open_fds
from virtblk.vhost_user import listener as listener_module
from virtblk.vhost_user.backend import Backend
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.frontend import Frontend, Region
from virtblk.vhost_user.listener import Listener, Session, inherited_socket
from waiting import PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "sock")


class Server:
    """A listener that serves, on a thread of its own."""

    def __init__(self, listener: Listener, make_session: Callable[[Connection], Session] | None = None) -> None:
        self.devices: list[FakeDevice] = []
        self.stop_fd = os.eventfd(0)
        self.thread = threading.Thread(target=listener.serve, args=(make_session or self.make_session, self.stop_fd))
        self.thread.start()

    def make_session(self, conn: Connection) -> Session:
        device = FakeDevice()
        self.devices.append(device)
        return Backend(conn, device, FakeMemory(device))

    def stop(self) -> None:
        os.eventfd_write(self.stop_fd, 1)
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        os.close(self.stop_fd)


@contextmanager
def serving(path: str, make_session: Callable[[Connection], Session] | None = None) -> Iterator[Server]:
    with Listener(path) as listener:
        server = Server(listener, make_session)
        try:
            yield server
        finally:
            server.stop()


def test_the_file_is_private_and_goes_with_the_listener(path: str) -> None:
    umask = os.umask(0)
    try:
        listener = Listener(path)
    finally:
        os.umask(umask)
    with listener:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert listener.fileno() >= 0
    assert not os.path.exists(path)
    assert listener.fileno() == -1
    listener.close()


@pytest.mark.parametrize("mode", [0o660, 0o666, 0o400])
def test_the_file_has_the_mode_that_was_asked_for_whatever_the_umask(path: str, mode: int) -> None:
    umask = os.umask(0o077)
    try:
        with Listener(path, mode) as listener:
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
            assert listener.path == path
    finally:
        os.umask(umask)


@pytest.mark.parametrize("bait", ["file", "link"])
def test_a_mode_is_given_to_a_socket_and_to_nothing_else(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bait: str
) -> None:
    """In a directory where others may write, something else may take the place of the file that was just made."""
    precious = tmp_path / "precious"
    precious.write_text("secret")
    precious.chmod(0o600)
    really_open = os.open

    def swap(name: str, flags: int) -> int:
        os.unlink(name)
        if bait == "link":
            os.symlink(precious, name)
        else:
            os.link(precious, name)
        return really_open(name, flags)

    monkeypatch.setattr(listener_module.os, "open", swap)
    with pytest.raises(OSError, match="not a socket"):
        Listener(path, 0o666)
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600


def test_the_file_is_found_again_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Listener("sock"):
        monkeypatch.chdir("/")
    assert not (tmp_path / "sock").exists()


def test_a_file_that_is_no_longer_ours_stays(path: str) -> None:
    listener = Listener(path)
    os.unlink(path)
    with Listener(path) as other:
        listener.close()
        assert os.path.exists(path)
        assert other.fileno() >= 0
    with Listener(path):
        os.unlink(path)


def test_a_live_server_is_not_robbed(path: str) -> None:
    with Listener(path):
        with pytest.raises(OSError, match="another server answers there") as caught:
            Listener(path)
        assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, path)
        assert os.path.exists(path)


def test_a_live_server_with_a_full_backlog_is_not_robbed(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen(0)
        client.connect(path)
        with pytest.raises(OSError, match="another server answers there"):
            Listener(path)


def test_a_stale_file_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert os.path.exists(path)
    with Listener(path), Connection.connect(path, PATIENCE):
        pass


@pytest.mark.parametrize("make", [lambda p: p.write_text("data"), lambda p: p.mkdir(), lambda p: p.symlink_to("x")])
def test_what_is_not_a_socket_is_never_removed(path: str, make: Callable[[Path], object]) -> None:
    make(Path(path))
    with pytest.raises(FileExistsError, match="exists and is not a socket") as caught:
        Listener(path)
    assert caught.value.filename == path
    assert os.path.lexists(path)


def test_a_socket_of_another_type_is_never_removed(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        with pytest.raises(OSError, match="sock"):
            Listener(path)
        assert os.path.exists(path)


def test_impossible_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="socket path of 108 bytes"):
        Listener("x" * 108)
    with pytest.raises(FileNotFoundError) as caught:
        Listener(str(tmp_path / "none" / "sock"))
    assert caught.value.filename == str(tmp_path / "none" / "sock")


def test_an_inherited_socket_is_served_and_its_file_stays(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen(1)
        inherited, listening = inherited_socket(os.dup(sock.fileno()))
        assert listening
        assert not inherited.get_inheritable()
        with Listener.on(inherited) as listener:
            assert listener.path is None
            server = Server(listener)
            with Connection.connect(path, PATIENCE) as conn:
                assert Frontend(conn, PATIENCE).get_queue_num() == 2
            server.stop()
    assert os.path.exists(path)


def test_an_inherited_connection_is_told_from_a_listening_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inherited, listening = inherited_socket(os.dup(theirs.fileno()))
        assert not listening
        with inherited:
            inherited.send(b"x")
        assert ours.recv(2) == b"x"


def test_what_cannot_be_an_inherited_socket_is_refused_and_left_open() -> None:
    reader, writer = os.pipe()
    with (
        socket.socket(socket.AF_UNIX) as unbound,
        socket.socket(socket.AF_INET) as inet,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
    ):
        inet.listen()
        for fd in (reader, unbound.fileno(), inet.fileno(), datagram.fileno(), 10**6, -1):
            with pytest.raises(ValueError, match=rf"file descriptor {fd} is (not a|neither a)"):
                inherited_socket(fd)
        for fd in (reader, unbound.fileno(), inet.fileno(), datagram.fileno()):
            os.fstat(fd)
    os.close(reader)
    os.close(writer)


def test_clients_one_after_the_other(path: str) -> None:
    """A client that connects as soon as the last one has hung up is never refused."""
    with serving(path) as server, memfd() as fd:
        before = 0
        for count in range(300):
            with Connection.connect(path, PATIENCE) as conn:
                frontend = Frontend(conn, PATIENCE)
                frontend.set_features(frontend.get_features())
                frontend.set_mem_table([Region(0, 1 << 20, 0x7000_0000, 0, fd)])
                frontend.start_vring(0, 64, 0, 0x7000_0000, 0x7000_1000, 0x7000_2000, None, None)
                assert frontend.get_queue_num() == 2
                if count == 0:
                    before = open_fds()
                assert open_fds() <= before + 1
        assert len(server.devices) == 300


def test_a_second_client_is_refused_and_the_first_not_disturbed(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with serving(path) as server, Connection.connect(path, PATIENCE) as first:
        frontend = Frontend(first, PATIENCE)
        assert frontend.get_queue_num() == 2
        for _ in range(5):
            with (
                Connection.connect(path, PATIENCE) as second,
                pytest.raises(ConnectionClosed, match="the peer closed the connection"),
            ):
                second.recv(PATIENCE)
            assert frontend.get_queue_num() == 2
        assert len(server.devices) == 1
        assert caplog.messages.count(f"a second client (pid {os.getpid()}) is refused: another is being served") == 5


def test_a_session_that_ends_by_itself_makes_room(path: str) -> None:
    with serving(path) as server:
        for _ in range(50):
            with Connection.connect(path, PATIENCE) as conn:
                conn.send(99, 1)  # unknown, and not to be acknowledged
                with pytest.raises(ConnectionClosed):
                    conn.recv(PATIENCE)
                with Connection.connect(path, PATIENCE) as after:  # while this one is still open on our side
                    assert Frontend(after, PATIENCE).get_queue_num() == 2
        assert len(server.devices) == 100


def test_a_new_client_waits_while_the_old_session_clears_up(path: str) -> None:
    clearing, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, conn: Connection) -> None:
            self.conn = conn

        def run(self, stop_fd: int) -> str:
            with pytest.raises(ConnectionClosed):
                self.conn.recv(PATIENCE)
            clearing.set()
            assert go_on.wait(PATIENCE)
            self.conn.close()
            return "done"

    sessions: list[Connection] = []

    def make_session(conn: Connection) -> Session:
        sessions.append(conn)
        if len(sessions) == 1:
            return Slow(conn)
        device = FakeDevice()
        return Backend(conn, device, FakeMemory(device))

    with serving(path, make_session):
        Connection.connect(path, PATIENCE).close()
        assert clearing.wait(PATIENCE)
        with Connection.connect(path, PATIENCE) as conn:
            frontend = Frontend(conn, PATIENCE)
            waiting = threading.Timer(0.1, go_on.set)
            waiting.start()
            begin = time.process_time()
            assert frontend.get_queue_num() == 2
            assert time.process_time() - begin < 0.08, "the listener spins while it waits"
            waiting.join()


def test_stopping_ends_the_session_too(path: str) -> None:
    with serving(path) as server, Connection.connect(path, PATIENCE) as conn:
        assert Frontend(conn, PATIENCE).get_queue_num() == 2
        os.eventfd_write(server.stop_fd, 1)
        with pytest.raises(ConnectionClosed):
            conn.recv(PATIENCE)


def test_a_session_that_fails_is_logged_and_the_next_is_served(path: str, caplog: pytest.LogCaptureFixture) -> None:
    attempts: list[Connection] = []

    class Failing:
        def run(self, stop_fd: int) -> str:
            raise ZeroDivisionError("in run")

    def make_session(conn: Connection) -> Session:
        attempts.append(conn)
        if len(attempts) == 1:
            raise ZeroDivisionError("in make_session")
        if len(attempts) == 2:
            return Failing()
        device = FakeDevice()
        return Backend(conn, device, FakeMemory(device))

    with serving(path, make_session):
        for _ in range(2):
            with Connection.connect(path, PATIENCE) as conn, pytest.raises(ConnectionClosed):
                conn.recv(PATIENCE)
        with Connection.connect(path, PATIENCE) as conn:
            assert Frontend(conn, PATIENCE).get_queue_num() == 2
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        f"no session for a client (pid {os.getpid()})",
        "session failed",
    ]


def test_an_interrupt_of_serve_ends_the_session(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives in serve() while nobody writes to stop_fd: it must not wait for the client to leave."""
    accept = Listener._accept
    accepted: list[Connection | None] = []

    def interrupted(self: Listener, stop_fd: int) -> Connection | None:
        if accepted:
            raise KeyboardInterrupt
        accepted.append(accept(self, stop_fd))
        return accepted[0]

    monkeypatch.setattr(Listener, "_accept", interrupted)
    stop_fd = os.eventfd(0)
    device = FakeDevice()
    with (
        Listener(path) as listener,
        Connection.connect(path, PATIENCE),
        Connection.connect(path, PATIENCE),
        pytest.raises(KeyboardInterrupt),
    ):
        listener.serve(lambda conn: Backend(conn, device, FakeMemory(device)), stop_fd)
    os.close(stop_fd)


def test_out_of_descriptors_is_survived(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accept() fails, the client stays in the backlog, and it must be neither lost nor spun on."""
    accept = socket.socket.accept
    failures = iter([errno.EMFILE, errno.ENFILE, errno.ECONNABORTED])

    def failing(self: socket.socket) -> object:
        code = next(failures, 0)
        if code:
            raise OSError(code, os.strerror(code))
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", failing)
    monkeypatch.setattr(listener_module, "ACCEPT_RETRY", 0.05)
    begin = time.monotonic()
    with serving(path), Connection.connect(path, PATIENCE) as conn:
        assert Frontend(conn, PATIENCE).get_queue_num() == 2
        assert time.monotonic() - begin > 0.09
    assert [message for message in caplog.messages if "cannot accept" in message] == [
        "cannot accept a client: [Errno 24] Too many open files",
        "cannot accept a client: [Errno 23] Too many open files in system",
    ]
