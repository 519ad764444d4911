"""The device behind its back end: what it offers, what it refuses, and clients that come and go."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from device.guest import FEATURES, GUEST, RING_NAMES, RINGS, Guest, header, segment
from naive.ring import Buffer
from naive.virtio_blk import (
    DISCARD,
    EVENT_IDX,
    F_BLK_SIZE,
    F_DISCARD,
    F_FLUSH,
    F_MQ,
    F_RO,
    F_SEG_MAX,
    F_SIZE_MAX,
    F_TOPOLOGY,
    F_WCE,
    F_WRITE_ZEROES,
    FLUSH,
    INDIRECT,
    OK,
    UNSUPP,
    VERSION_1,
    VHOST_PROTOCOL,
    WRITE_ZEROES,
    blk_config,
)
from virtblk.device.virtio_blk import VirtioBlkDevice
from virtblk.errors import UsageError
from virtblk.mem.guest_memory import GuestMemory
from virtblk.names import parse_name
from virtblk.storage.open import open_storage
from virtblk.storage.request import FLAG_FUA, FLAG_UNMAP
from virtblk.storage.storage import Storage
from virtblk.vhost_user.backend import Backend
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.frontend import Frontend, RequestRefused
from virtblk.vhost_user.listener import Listener
from waiting import PATIENCE

ALWAYS = VERSION_1 | INDIRECT | EVENT_IDX | VHOST_PROTOCOL | F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_MQ


def storage_with(name: str, **attributes: int) -> Storage:
    """An open storage with some attributes changed."""
    storage = open_storage(parse_name(name))
    for attribute, value in attributes.items():
        assert hasattr(storage, attribute)
        setattr(storage, attribute, value)
    return storage


# Features and configuration.


def test_what_is_offered() -> None:
    with Guest() as guest:
        assert guest.offered == ALWAYS | F_FLUSH | F_WCE | F_DISCARD | F_WRITE_ZEROES
    storage = open_storage(parse_name("null:1m"))
    storage.read_only, storage.can_flush = True, False
    with Guest(storage) as guest:
        assert guest.offered == ALWAYS | F_RO


@pytest.mark.parametrize(
    ("changes", "less"),
    [
        ({"can_discard": False}, F_DISCARD),
        ({"can_write_zeroes": False}, F_WRITE_ZEROES),
        ({"can_flush": False}, F_FLUSH | F_WCE),
        ({"writeback_settable": False}, F_WCE),
    ],
)
def test_what_the_storage_cannot_do_is_not_offered(changes: dict[str, bool], less: int) -> None:
    """5.2.5.2: no CONFIG_WCE without FLUSH. The fields of what is not offered are 0."""
    expected = {"discard": (16384, 32, 1), "write_zeroes": (16384, 32, 1), "writeback": 1}
    absent = {"discard": F_DISCARD, "write_zeroes": F_WRITE_ZEROES, "writeback": F_WCE}
    with Guest(storage_with("ram:1m", **changes)) as guest:
        assert guest.offered == (ALWAYS | F_FLUSH | F_WCE | F_DISCARD | F_WRITE_ZEROES) & ~less
        fields: dict[str, Any] = {name: value for name, value in expected.items() if not less & absent[name]}
        assert guest.front.get_config(60) == blk_config(min_io_size=1, **fields)


def test_the_hint_is_a_bit_of_ours_and_off_by_default() -> None:
    storage = open_storage(parse_name("null:1m"))
    plain, hinting = (VirtioBlkDevice(storage, GuestMemory(), hint=hint).features for hint in ("none", "sort"))
    assert hinting ^ plain == 1 << 23
    assert plain >> 18 & 0x3F == 0, "18 to 23 are bits that virtio has not given away"


def test_whoever_takes_flush_away_takes_config_wce_with_it() -> None:
    storage = open_storage(parse_name("null:1m"))
    device = VirtioBlkDevice(storage, GuestMemory(), without=frozenset({9}))
    assert device.features & (F_FLUSH | F_WCE) == 0
    assert device.get_config()[32] == 0


@pytest.mark.parametrize(
    ("disk", "queues", "fields"),
    [
        ("ram:1m", 1, {"discard": (16384, 32, 1), "write_zeroes": (16384, 32, 1)}),
        ("null:3m?block_size=4k", 4, {"discard": (1 << 19, 32, 8), "write_zeroes": (1 << 19, 32, 1)}),
    ],
)
def test_the_configuration_space(disk: str, queues: int, fields: dict[str, Any]) -> None:
    storage = open_storage(parse_name(disk))
    size, block = storage.size // 512, storage.block_size
    expected = blk_config(size, 1 << 20, 126, block, min_io_size=1, writeback=1, num_queues=queues, **fields)
    with Guest(storage, queues=queues) as guest:
        assert guest.front.get_config(60) == expected
        assert guest.front.get_config(8) == expected[:8]
        assert guest.front.get_queue_num() == queues


@pytest.mark.parametrize(
    ("sizes", "fields"),
    [
        ({}, {"min_io_size": 1}),
        ({"physical_block_size": 4096, "min_io_size": 4096}, {"physical_block_exp": 3, "min_io_size": 8}),
        (
            {"opt_io_size": 1 << 20, "alignment_offset": 3584},
            {"opt_io_size": 2048, "alignment_offset": 7, "min_io_size": 1},
        ),
        ({"min_io_size": 1 << 30, "opt_io_size": 1 << 50}, {"min_io_size": 65535, "opt_io_size": (1 << 32) - 1}),
        ({"physical_block_size": 512}, {"min_io_size": 1}),
    ],
)
def test_topology_is_told_in_blocks(sizes: dict[str, int], fields: dict[str, int]) -> None:
    """5.2.4; what does not fit its field is the field's maximum."""
    with Guest(storage_with("null:1m", **sizes)) as guest:
        assert guest.offered & F_TOPOLOGY
        assert guest.front.get_config(36) == blk_config(writeback=1, **fields)[:36]


def test_unmap_is_offered_where_the_storage_can() -> None:
    with Guest(storage_with("ram:1m", can_unmap=False)) as guest:
        assert guest.front.get_config(60)[56] == 0


@pytest.mark.parametrize("accepted", [True, False])
def test_of_the_configuration_space_writeback_alone_is_writable(accepted: bool) -> None:
    with Guest(features=FEATURES | F_WCE if accepted else FEATURES) as guest:
        before = guest.front.get_config(60)
        refused = [(offset, b"\0") for offset in (0, 20, 31, 33, 59)]
        refused += [(32, b"\2"), (32, b"\xff"), (32, b"\0\0"), (31, b"\0\0"), (0, before)]
        if not accepted:
            refused += [(32, b"\0"), (32, b"\1")]
        for offset, data in refused:
            with pytest.raises(RequestRefused):
                guest.front.set_config(offset, data)
            assert guest.front.get_config(60) == before
        assert guest.queue.write(0, bytes(512)) == OK


# The cache mode.


def through(guest: Guest) -> bool:
    """Whether writes are durable when they end: told by the flags that the storage is given."""
    queue, record = guest.queue, guest.device.queues[0]._requests[0]
    assert queue.read(3, 512) is not None
    assert record["flags"] == 0
    assert queue.write(3, b"c" * 512) == OK
    durable = bool(record["flags"] & FLAG_FUA)
    for unmap in (0, 1):
        assert queue.request(header(WRITE_ZEROES) + segment(3, 1, unmap) + segment(4, 1, 1), 1).status == OK
        assert record["flags"] == FLAG_FUA * durable + FLAG_UNMAP * unmap
    assert queue.request(header(DISCARD) + segment(3, 1), 1).status == OK
    assert record["flags"] == 0
    return durable


def test_the_driver_switches_the_cache_mode() -> None:
    """5.2.6.1, and back; features that have nothing to do with it change nothing."""
    with Guest(features=FEATURES | F_WCE) as guest:
        assert not through(guest)
        for writeback in (0, 0, 1, 0):
            guest.front.set_config(32, bytes([writeback]))
            assert guest.front.get_config(60)[32] == writeback
            assert through(guest) is not bool(writeback)
            assert guest.queue.request(header(FLUSH), 1).status == OK
        guest.front.set_features((FEATURES | F_WCE) & guest.offered & ~F_MQ)
        assert guest.front.get_config(60)[32] == 0
        assert through(guest)
        guest.front.set_features(FEATURES & guest.offered)  # as another driver: from the start
        assert guest.front.get_config(60)[32] == 1
        assert not through(guest)


@pytest.mark.parametrize(
    ("changes", "features", "writeback", "durable"),
    [
        pytest.param({}, F_FLUSH | F_WCE, 1, False, id="write-back"),
        pytest.param({}, F_FLUSH, 1, False, id="no WCE"),
        pytest.param({}, 0, 1, True, id="stable case 1: no FLUSH, no WCE"),
        pytest.param({}, F_WCE, 0, True, id="5.2.5.2: WCE without FLUSH"),
        pytest.param({"writeback": False}, F_FLUSH | F_WCE, 0, True, id="starts in write-through"),
        pytest.param({"writeback": False, "writeback_settable": False}, F_FLUSH, 0, True, id="stays in write-through"),
        pytest.param({"writeback_settable": False}, F_FLUSH, 0, False, id="stays in write-back"),
        pytest.param({"can_flush": False}, 0, 0, False, id="has no cache"),
    ],
)
def test_the_cache_mode_at_the_start(changes: dict[str, bool], features: int, writeback: int, durable: bool) -> None:
    """5.2.6.2, stable cases 1 and 2; the field is 0 where WCE is not offered."""
    with Guest(storage_with("ram:1m", **changes), features=FEATURES & ~F_FLUSH | features) as guest:
        assert guest.front.get_config(60)[32] == writeback
        assert through(guest) is durable
        assert guest.queue.request(header(FLUSH), 1).status == (OK if features & F_FLUSH else UNSUPP)


def test_without_flush_a_write_stays_durable_whatever_the_driver_asks_for() -> None:
    with Guest(features=FEATURES & ~F_FLUSH | F_WCE) as guest:
        guest.front.set_config(32, b"\1")
        assert guest.front.get_config(60)[32] == 1
        assert through(guest)


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
        with Connection.connect(path, PATIENCE) as first:
            assert Frontend(first, PATIENCE).get_features() & VERSION_1
            with Connection.connect(path, PATIENCE) as second, pytest.raises(ConnectionClosed):
                Frontend(second, PATIENCE).get_features()
            assert Frontend(first, PATIENCE).get_queue_num() == 1
        for _ in range(3):
            with Connection.connect(path, PATIENCE) as conn:
                assert Frontend(conn, PATIENCE).get_features() & VERSION_1


@pytest.mark.parametrize("sent", [b"", b"\1\0\0\0", struct.pack("<III", 5, 1, 40) + bytes(8), b"GET / HTTP/1.1\r\n"])
def test_clients_that_die_in_the_middle_of_a_message_leave_it_ready(tmp_path: Path, sent: bytes) -> None:
    with served(tmp_path / "s") as path:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                sock.sendall(sent)
        with Connection.connect(path, PATIENCE) as conn:
            assert Frontend(conn, PATIENCE).get_features() & VERSION_1
