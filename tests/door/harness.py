"""A whole device behind a real socket, and clients that may send it anything.

After whatever a client did, `Door.check` demands what SECURITY.md promises: the process is alive, an honest client that
comes next is served, and no descriptor, thread or mapping of guest memory is left over.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace, TracebackType

import virtblk
from device.guest import FEATURES, GUEST, USER, Guest, Queue, Windows
from vhost_user.fakes import ACKED, open_fds
from virtblk.mem import shm
from virtblk.mem.guest_memory import GuestMemory
from virtblk.uapi.vhost_user import REQUEST_NAMES
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.frontend import Frontend, Region
from virtblk.vhost_user.message import Message, decode_u64
from waiting import PATIENCE, wait_until

QUEUES = 2
SIZE = 1 << 20


def guest_mappings() -> int:
    """Mappings of memfds in this process: guest memory, of either side."""
    return sum("memfd:" in line for line in Path("/proc/self/maps").read_text().splitlines())


class Client:
    """A connection on which anything can be said."""

    def __init__(self, path: str, *, negotiate: bool = True) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(path)
        self.conn = Connection(self.sock)
        self.front = Frontend(self.conn, PATIENCE)
        if negotiate:
            self.front.set_protocol_features(self.front.get_protocol_features())
            self.front.set_features(self.front.get_features())

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = ACKED) -> Message | None:
        """Send a message, sound or not; the answer, or None where the device hung up."""
        try:
            self.conn.send(request, flags, payload, fds, PATIENCE)
            return self.conn.recv(PATIENCE)
        except ConnectionClosed:
            return None

    def ack(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int | None:
        """As `ask`: 0 or 1 as acknowledged, or None where the device hung up."""
        reply = self.ask(request, payload, fds)
        if reply is None:
            return None
        assert (reply.request, reply.flags, reply.fds) == (request, 5, []), REQUEST_NAMES.get(request)
        return decode_u64(reply.payload)

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Any bytes; what the device no longer takes is lost."""
        self.sock.setblocking(True)
        try:
            if fds:
                socket.send_fds(self.sock, [data], list(fds), socket.MSG_NOSIGNAL)
            else:
                self.sock.sendall(data, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self.sock.setblocking(False)

    def is_closed(self) -> bool:
        """Wait for the device to answer GET_FEATURES, or to hang up: whether it did."""
        return self.ask(1, flags=1) is None

    def hangs_up(self) -> bool:
        """Wait for the device to hang up; True when it does."""
        try:
            while True:
                self.conn.recv(PATIENCE)
        except ConnectionClosed:
            return True

    def close(self) -> None:
        self.conn.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Visitor(Guest):
    """A guest, with rings and memory, that came through the socket."""

    def __init__(self, path: str, *, num: int = 64, size: int = 1 << 20, start: bool = True) -> None:
        self.features, self.size = FEATURES, size
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, size)
        self._mapping = shm.Mapping(size, self.fd)
        self.memory = Windows(self._mapping.array(self._mapping.address, size), GUEST)
        self._next = GUEST
        self.client = Client(path, negotiate=False)
        self.front = self.client.front
        self.device = SimpleNamespace(_memory=SimpleNamespace(violations=0))  # type: ignore[assignment]
        self.local = SimpleNamespace(client=self.client, close=lambda: None)  # type: ignore[assignment]
        self.regions = [Region(GUEST, size, USER, 0, self.fd)]
        self.queues = [Queue(self, index, num) for index in range(QUEUES)]
        try:
            self.offered = self.front.get_features()
            self.front.set_protocol_features(self.front.get_protocol_features())
            self.front.set_features(FEATURES & self.offered)
            if start:
                self.front.set_mem_table(self.regions)
                for queue in self.queues:
                    queue.start()
        except BaseException:
            self.close()
            raise


class Door:
    """`virtblk.serve` in this process."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "door.sock")
        self.server = virtblk.serve(f"ram:{SIZE}", self.path, queues=QUEUES, poll_us=0)
        self._memories: list[GuestMemory] = []
        device_on = self.server._device_on

        def remembered(memory: GuestMemory) -> object:
            self._memories.append(memory)
            return device_on(memory)

        self.server._device_on = remembered  # type: ignore[assignment, method-assign]
        self.check()  # what is made once is made now
        wait_until(lambda: all(thread.name != "vhost-user session" for thread in threading.enumerate()))
        self._baseline = self._usage()

    def _usage(self) -> tuple[int, int, int]:
        return open_fds(), threading.active_count(), guest_mappings()

    def check(self) -> None:
        """The next client is served, by whatever is left of the device."""
        with virtblk.open(f"vhost-user:{self.path}", timeout=PATIENCE) as disk:
            block = os.urandom(512)
            disk.pwrite(block, SIZE - 512)
            assert disk.pread(512, SIZE - 512) == block

    def settle(self) -> None:
        """All sessions are over, and nothing of them is left."""
        with suppress(AssertionError):
            wait_until(lambda: self._usage() == self._baseline)
        assert self._usage() == self._baseline, "descriptors, threads, mappings of guest memory"
        assert [memory.violations for memory in self._memories if memory.violations] == []
        self._memories.clear()

    def close(self) -> None:
        self.server.close()

    def __enter__(self) -> Door:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
