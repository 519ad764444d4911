"""GET /metrics, and clients that ask for something else, too much, too slowly, or not at all."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from virtblk import exporter as exporter_module
from virtblk.errors import OpenError
from virtblk.exporter import MAX_CLIENTS, MAX_REQUEST, Exporter
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.once, pytest.mark.covers]


class Collect:
    """Makes the text; tests set what it is."""

    text = "x 1\n"
    error: Exception | None = None

    def __call__(self) -> str:
        if self.error is not None:
            raise self.error
        return self.text


@pytest.fixture
def collect() -> Collect:
    return Collect()


@pytest.fixture
def running(collect: Collect, monkeypatch: pytest.MonkeyPatch) -> Iterator[Exporter]:
    monkeypatch.setattr(exporter_module, "DEADLINE", 3 * PATIENCE)  # a busy machine has time
    with Exporter("127.0.0.1", 0, collect) as made:
        yield made.start()


def connect(running: Exporter) -> socket.socket:
    host, port = running.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), PATIENCE)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(1 << 16):
        data += piece
    return data


def ask(running: Exporter, request: bytes) -> tuple[str, str]:
    """Status line and body."""
    with connect(running) as sock:
        sock.sendall(request)
        head, _, body = read_all(sock).decode().partition("\r\n\r\n")
    if body:
        assert f"Content-Length: {len(body)}\r\n" in head + "\r\n"
    return head.splitlines()[0], body


@pytest.mark.parametrize("path", ["/metrics", "/metrics?name=x"])
@pytest.mark.parametrize("rest", ["HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.0\n\n"])
def test_metrics_are_got(running: Exporter, path: str, rest: str) -> None:
    assert ask(running, f"GET {path} {rest}".encode()) == ("HTTP/1.1 200 OK", "x 1\n")


def test_a_request_in_single_bytes(running: Exporter) -> None:
    with connect(running) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /metrics HTTP/1.1\r\n\r\n":
            sock.sendall(bytes([byte]))
        assert read_all(sock).endswith(b"\r\n\r\nx 1\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK"),
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"GET /metrics\r\n\r\n", "400 Bad Request"),
        (b"\x16\x03\x01 TLS\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (MAX_REQUEST - 24), "400 Bad Request"),
    ],
)
def test_other_requests_are_refused(running: Exporter, request_bytes: bytes, status: str) -> None:
    first, body = ask(running, request_bytes)
    assert first == f"HTTP/1.1 {status}"
    assert "x 1" not in body


def test_a_client_that_stops_sending_is_answered(running: Exporter) -> None:
    with connect(running) as sock:
        sock.sendall(b"GET /met")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).startswith(b"HTTP/1.1 400")


def test_a_failure_is_logged_and_the_next_is_answered(
    running: Exporter, collect: Collect, caplog: pytest.LogCaptureFixture
) -> None:
    collect.error = RuntimeError("broken")
    assert ask(running, b"GET /metrics HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 500 Internal Server Error"
    assert "broken" in caplog.text
    collect.error = None
    assert ask(running, b"GET /metrics HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 200 OK"


def test_a_long_answer_is_sent_in_pieces(running: Exporter, collect: Collect) -> None:
    collect.text = "x 1\n" * (4 << 20)
    assert ask(running, b"GET /metrics HTTP/1.1\r\n\r\n")[1] == collect.text


def test_slow_clients_lose_their_turn(running: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "DEADLINE", 0.1)
    with connect(running) as silent, connect(running) as slow:
        with suppress(ConnectionError):
            slow.sendall(b"GET /metrics HTTP/1.1\r\n")
        for sock in (silent, slow):
            with suppress(ConnectionError):
                assert sock.recv(1) == b""


def test_a_client_that_stops_reading_loses_its_turn(
    running: Exporter, collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect.text = "x 1\n" * (8 << 20)  # more than the kernel keeps for a client
    monkeypatch.setattr(exporter_module, "DEADLINE", 0.5)
    with connect(running) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        if sock.recv(1):  # or its time was over before the answer began
            wait_until(lambda: not running._clients)
            assert len(read_all(sock)) < len(collect.text)


def test_a_crowd_keeps_nobody_out(running: Exporter) -> None:
    with ExitStack() as stack:
        for _ in range(2 * MAX_CLIENTS):
            stack.enter_context(connect(running))
        assert ask(running, b"GET /metrics HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 200 OK"
        assert len(running._clients) <= MAX_CLIENTS


def test_close_hangs_up(collect: Callable[[], str]) -> None:
    made = Exporter("127.0.0.1", 0, collect).start()
    with connect(made) as sock:
        wait_until(lambda: made._clients)
        made.close()
        assert sock.recv(1) == b""


def test_an_address_that_is_taken_or_is_not_ours(running: Exporter, collect: Collect) -> None:
    host, port = running.address.rsplit(":", 1)
    with pytest.raises(OpenError, match=f"metrics on {host}:{port}: Address already in use"):
        Exporter(host, int(port), collect)
    with pytest.raises(OpenError, match=r"metrics on 203\.0\.113\.7:1"):
        Exporter("203.0.113.7", 1, collect)
    with pytest.raises(OpenError, match=r"metrics on no\.such\.host\.invalid:1"):
        Exporter("no.such.host.invalid", 1, collect)


def test_ipv6(collect: Collect) -> None:
    try:
        made = Exporter("::1", 0, collect)
    except OpenError:
        pytest.skip("this machine has no IPv6")
    with made:
        assert made.address.startswith("[::1]:")
