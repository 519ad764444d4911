"""`--metrics HOST:PORT`: answers GET /metrics with what `metrics` renders, and nothing else (Prometheus: an exporter).

One thread and one poll() for all clients. A client has DEADLINE seconds and MAX_REQUEST bytes for its request and the
answer together, and there are MAX_CLIENTS of them at most: who is slow, or too many, cannot keep others out for long,
and costs no thread. `server` and `cli.serve` start it; it holds no lock that a worker or a session could want.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from virtblk.errors import OpenError
from virtblk.jit.threads import start_thread

log = logging.getLogger("virtblk.metrics")

#: The version of the text format that we speak.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Seconds for a client, from its connecting to the last byte of its answer.
DEADLINE: Final = 5.0
#: Bytes of a request line and headers.
MAX_REQUEST: Final = 8192
MAX_CLIENTS: Final = 16

_REQUEST_LINE: Final = re.compile(rb"([A-Z]+) ([^ ]+) HTTP/1\.[01]\r?\n")


@dataclass
class _Client:
    sock: socket.socket
    deadline: float
    request: bytes = b""
    answer: bytes = b""


class Exporter:
    """Listens from construction on, and answers from `start` to `close`."""

    def __init__(self, host: str, port: int, collect: Callable[[], str]) -> None:
        """`collect` makes the text, on the exporter's thread. Raises OpenError for an address that cannot be had."""
        self._collect = collect
        self._clients: dict[int, _Client] = {}
        try:
            (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self._sock = socket.socket(family, kind, protocol)
        except OSError as error:
            raise OpenError(errno.EADDRNOTAVAIL, f"metrics on {host}:{port}: {error.strerror}") from None
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.bind(address)
            self._sock.listen(MAX_CLIENTS)
        except OSError as error:
            self._sock.close()
            raise OpenError(error.errno or errno.EIO, f"metrics on {host}:{port}: {error.strerror}") from None
        self._sock.setblocking(False)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)

    @property
    def address(self) -> str:
        """HOST:PORT, with the port that the system chose where 0 was asked for."""
        host, port = self._sock.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> Exporter:
        """Answer, on a thread of its own. Raises OSError where there is no thread to be had."""
        self._thread = start_thread(self._run, name="virtblk-metrics")
        return self

    def close(self) -> None:
        """Hang up, on everybody. Call it once."""
        os.eventfd_write(self._stop_fd, 1)
        if hasattr(self, "_thread"):
            self._thread.join()
        for client in self._clients.values():
            client.sock.close()
        self._sock.close()
        os.close(self._stop_fd)

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._stop_fd, selectors.EVENT_READ)
            selector.register(self._sock, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select(self._seconds_left())}
                if self._stop_fd in ready:
                    return
                for fd in ready & self._clients.keys():
                    self._serve(selector, self._clients[fd])
                now = time.monotonic()
                for client in [client for client in self._clients.values() if client.deadline <= now]:
                    self._drop(selector, client)
                if self._sock.fileno() in ready:
                    self._accept(selector)

    def _seconds_left(self) -> float | None:
        """Until the first client's time is over; None without clients."""
        if not self._clients:
            return None
        return max(0.0, min(client.deadline for client in self._clients.values()) - time.monotonic())

    def _accept(self, selector: selectors.BaseSelector) -> None:
        """One more client; the one that has been here longest makes room for it, if need be."""
        try:
            sock, _ = self._sock.accept()
        except OSError:  # it is gone again, or there are no descriptors left: those here will end, and make some free
            return
        if len(self._clients) == MAX_CLIENTS:
            self._drop(selector, min(self._clients.values(), key=lambda client: client.deadline))
        sock.setblocking(False)
        self._clients[sock.fileno()] = _Client(sock, time.monotonic() + DEADLINE)
        selector.register(sock, selectors.EVENT_READ)

    def _drop(self, selector: selectors.BaseSelector, client: _Client) -> None:
        del self._clients[client.sock.fileno()]
        selector.unregister(client.sock)
        client.sock.close()

    def _serve(self, selector: selectors.BaseSelector, client: _Client) -> None:
        try:
            if not client.answer:
                client.request += client.sock.recv(MAX_REQUEST + 1 - len(client.request)) or b"\n\n"
                if not re.search(rb"\r?\n\r?\n", client.request) and len(client.request) <= MAX_REQUEST:
                    return
                client.answer = self._answer(client.request)
                selector.modify(client.sock, selectors.EVENT_WRITE)
            client.answer = client.answer[client.sock.send(client.answer, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return
        except OSError:
            client.answer = b""
        if not client.answer:
            with suppress(OSError):
                client.sock.shutdown(socket.SHUT_WR)
            self._drop(selector, client)

    def _answer(self, request: bytes) -> bytes:
        """What is answered to a request's lines, complete or cut off."""
        line = _REQUEST_LINE.match(request)
        if line is None or len(request) > MAX_REQUEST:
            return _response("400 Bad Request", "this is an exporter: GET /metrics\n")
        if line[1] not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "only GET\n")
        if line[2].partition(b"?")[0] != b"/metrics":
            return _response("404 Not Found", "only /metrics\n")
        try:
            text = self._collect()
        except Exception:
            log.exception("metrics cannot be collected", extra={"event": "metrics_failed"})
            return _response("500 Internal Server Error", "see the log\n")
        return _response("200 OK", text, head=line[1] == b"HEAD")


def _response(status: str, text: str, *, head: bool = False) -> bytes:
    body = text.encode()
    lines = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return lines.encode() + b"\r\n" + (b"" if head else body)
