"""The device behind its back end: what it offers, what it refuses, and clients that come and go."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from device.guest import FEATURES, GUEST, RING_NAMES, RINGS, Guest, header
from naive.ring import Buffer
from naive.virtio_blk import (
    EVENT_IDX,
    F_BLK_SIZE,
    F_FLUSH,
    F_MQ,
    F_RO,
    F_SEG_MAX,
    F_SIZE_MAX,
    INDIRECT,
    VERSION_1,
    VHOST_PROTOCOL,
    blk_config,
)
from virtblk.device.virtio_blk import VirtioBlkDevice
from virtblk.errors import UsageError
from virtblk.mem.guest_memory import GuestMemory
from virtblk.names import parse_name
from virtblk.storage.storage import open_storage
from virtblk.vhost_user.backend import Backend
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.frontend import Frontend, RequestRefused
from virtblk.vhost_user.listener import Listener
from waiting import PATIENCE

# Features and configuration.


def test_what_is_offered() -> None:
    always = VERSION_1 | INDIRECT | EVENT_IDX | VHOST_PROTOCOL | F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_MQ
    with Guest() as guest:
        assert guest.offered == always | F_FLUSH
    storage = open_storage(parse_name("null:1m"))
    storage.read_only, storage.can_flush = True, False
    with Guest(storage) as guest:
        assert guest.offered == always | F_RO


@pytest.mark.parametrize(("disk", "queues", "fields"), [("ram:1m", 1, {}), ("null:3m?block_size=4k", 4, {})])
def test_the_configuration_space(disk: str, queues: int, fields: dict[str, int]) -> None:
    storage = open_storage(parse_name(disk))
    expected = blk_config(storage.size // 512, 1 << 20, 126, storage.block_size, num_queues=queues)
    with Guest(storage, queues=queues) as guest:
        assert guest.front.get_config(60) == expected
        assert guest.front.get_config(8) == expected[:8]
        assert guest.front.get_queue_num() == queues


def test_the_configuration_space_is_read_only() -> None:
    with Guest() as guest:
        before = guest.front.get_config(60)
        for offset in (0, 20, 32, 59):
            with pytest.raises(RequestRefused):
                guest.front.set_config(offset, b"\xff")
        assert guest.front.get_config(60) == before


@pytest.mark.parametrize("features", RINGS, ids=RING_NAMES)
def test_any_subset_of_features_works(features: int) -> None:
    for less in (0, F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE, F_FLUSH | F_MQ):
        with Guest(features=features & ~less) as guest:
            assert guest.queue.write(1, b"f" * 512) == 0
            assert guest.queue.read(1, 512) == b"f" * 512


def test_a_driver_without_version_1_is_refused() -> None:
    with pytest.raises(RequestRefused), Guest(features=FEATURES & ~VERSION_1):
        pass


@pytest.mark.parametrize(("queues", "serial"), [(0, ""), (257, ""), (1, "x" * 21)])
def test_options_that_cannot_be(queues: int, serial: str) -> None:
    storage = open_storage(parse_name("null:1m"))
    with pytest.raises(UsageError, match=r"0 queues|257 queues|longer than 20"):
        VirtioBlkDevice(storage, GuestMemory(), queues=queues, serial=serial)


# Clients.


@pytest.mark.compiled
def test_memory_that_is_truncated_breaks_its_own_client_only(caplog: pytest.LogCaptureFixture) -> None:
    with Guest() as victim, Guest() as other:
        assert victim.queue.write(0, b"v" * 512) == 0
        head, status = victim.buffer(header(1, 0)), victim.room(1)
        last = victim.alloc(1 << 20, 1 << 20)
        os.ftruncate(victim.fd, last - GUEST)
        victim.queue.add([head, Buffer(last, 512, False), status])
        assert victim.queue.broke()
        assert "truncated" in caplog.text
        assert victim.queue.is_quiet()
        assert other.queue.write(0, b"o" * 512) == 0
        assert other.queue.read(0, 512) == b"o" * 512
        victim.queue.stop()


@contextmanager
def served(path: Path, disk: str = "ram:1m") -> Iterator[str]:
    """A listening device, as in a process of its own."""
    storage = open_storage(parse_name(disk))
    stop_fd = os.eventfd(0)

    def session(connection: Connection) -> Backend:
        memory = GuestMemory()
        return Backend(connection, VirtioBlkDevice(storage, memory), memory)

    with Listener(str(path)) as listener:
        thread = threading.Thread(target=listener.serve, args=(session, stop_fd))
        thread.start()
        try:
            yield str(path)
        finally:
            os.eventfd_write(stop_fd, 1)
            thread.join(PATIENCE)
            assert not thread.is_alive()
    os.close(stop_fd)
    storage.close()


def test_a_second_client_is_refused_and_the_next_one_is_served(tmp_path: Path) -> None:
    with served(tmp_path / "s") as path:
        with Connection.connect(path, 5) as first:
            assert Frontend(first, 5).get_features() & VERSION_1
            with Connection.connect(path, 5) as second, pytest.raises(ConnectionClosed):
                Frontend(second, 5).get_features()
            assert Frontend(first, 5).get_queue_num() == 1
        for _ in range(3):
            with Connection.connect(path, 5) as conn:
                assert Frontend(conn, 5).get_features() & VERSION_1


@pytest.mark.parametrize("sent", [b"", b"\1\0\0\0", struct.pack("<III", 5, 1, 40) + bytes(8), b"GET / HTTP/1.1\r\n"])
def test_clients_that_die_in_the_middle_of_a_message_leave_it_ready(tmp_path: Path, sent: bytes) -> None:
    with served(tmp_path / "s") as path:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                sock.sendall(sent)
        with Connection.connect(path, 5) as conn:
            assert Frontend(conn, 5).get_features() & VERSION_1
