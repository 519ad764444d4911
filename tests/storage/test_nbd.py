"""`nbd:` against a server that does what servers do on bad days. The real ones are in test_nbd_peers.py."""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import peers
from storage import nbd_server
from storage.nbd_server import (
    ALL,
    FLUSH,
    FUA,
    HAS_FLAGS,
    NO_HOLE,
    READ,
    READ_ONLY,
    TRIM,
    WRITE,
    ZEROES,
    NbdServer,
    Seen,
)
from storage.pending import Pending, discard, flush, pread, read, run, write, write_zeroes
from virtblk.errors import OpenError, UsageError
from virtblk.names import parse_name
from virtblk.storage import nbd
from virtblk.storage.nbd import NbdStorage, Times, open_nbd
from virtblk.storage.request import FLAG_FUA, FLAG_UNMAP, KIND_REQUESTS, OP_FLUSH, OP_WRITE
from waiting import PATIENCE, Background, wait_until

MIB = 1 << 20

#: Tests that wait for a request to be given up make it short; all others would fail if one were.
PATIENT = Times(connect=PATIENCE, retry=PATIENCE, silence=PATIENCE, first_delay=0.01, longest_delay=0.05, goodbye=0.5)
HASTY = PATIENT._replace(retry=0.1)


@pytest.fixture(autouse=True)
def library() -> None:
    peers.libnbd()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NbdServer]:
    with NbdServer(tmp_path) as running:
        yield running


@contextmanager
def disk(server: NbdServer, times: Times = PATIENT) -> Iterator[NbdStorage]:
    """The server's export as a storage that has been started."""
    storage = open_nbd(parse_name(server.name), times)
    assert isinstance(storage, NbdStorage)
    try:
        storage.start()
        yield storage
    finally:
        storage.close()


def seen(server: NbdServer, count: int) -> None:
    """Wait until the server has got `count` commands in all."""
    wait_until(lambda: len(server.ops()) >= count)


# What it is


def test_what_the_server_says_is_what_the_storage_is(server: NbdServer) -> None:
    with disk(server) as storage:
        assert (storage.name, storage.kind, storage.size) == (server.name, KIND_REQUESTS, MIB)
        assert (storage.block_size, storage.opt_io_size, storage.read_only) == (512, 0, False)
        assert (storage.can_flush, storage.can_fua) == (True, True)
        assert (storage.can_discard, storage.can_write_zeroes, storage.can_unmap) == (True, True, True)


def test_a_server_that_can_do_nothing(server: NbdServer) -> None:
    server.flags = HAS_FLAGS
    with disk(server) as storage:
        assert (storage.can_flush, storage.can_fua) == (False, False)
        assert (storage.can_discard, storage.can_write_zeroes, storage.can_unmap) == (False, False, False)
        for request in (flush(), discard((0, 512)), write_zeroes((0, 512)), write(0, bytes(512), flags=FLAG_FUA)):
            assert run(storage, request) == errno.EOPNOTSUPP
        assert run(storage, Pending(99)) == errno.EOPNOTSUPP
        assert server.ops() == []
        assert run(storage, write(0, bytes(512))) == 0


def test_a_read_only_export(server: NbdServer) -> None:
    server.flags = ALL | READ_ONLY
    with disk(server) as storage:
        assert storage.read_only
        assert (storage.can_discard, storage.can_write_zeroes, storage.can_unmap) == (False, False, False)
        for request in (write(0, bytes(512)), discard((0, 512)), write_zeroes((0, 512))):
            assert run(storage, request) == errno.EROFS
        assert server.ops() == []
        assert pread(storage, 0, 512) == bytes(512)


def test_block_sizes(server: NbdServer) -> None:
    server.blocks = (4096, 65536, MIB)
    server.resize(MIB + 5000)
    with disk(server) as storage:
        assert (storage.size, storage.block_size, storage.opt_io_size) == (MIB + 4096, 4096, 65536)


def test_the_end_that_fills_no_sector_is_left_out(server: NbdServer) -> None:
    server.resize(MIB + 100)
    with disk(server) as storage:
        assert storage.size == MIB
    server.resize(511)
    with pytest.raises(OpenError, match="the export has 511 bytes, less than one block"):
        open_nbd(parse_name(server.name))


def test_over_tcp_with_an_export_name(tmp_path: Path) -> None:
    with NbdServer(tmp_path, tcp=True) as server, disk(server) as storage:
        assert server.export == "an export"
        assert run(storage, write(0, b"t" * 4096), flush()) == 0
        assert pread(storage, 0, 4096) == b"t" * 4096


# What cannot be opened


@pytest.mark.parametrize(
    ("uri", "words"),
    [("localhost", "unknown NBD URI scheme|NULL|scheme"), ("http://localhost", "scheme"), ("nbd+unix://", "socket")],
)
def test_a_uri_that_is_none(uri: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        open_nbd(parse_name(f"nbd:{uri}"))
    assert str(caught.value).startswith(f"disk 'nbd:{uri}': ")
    assert "\n" not in str(caught.value)


def test_nobody_listens(server: NbdServer) -> None:
    server.stop()
    with pytest.raises(OpenError, match="No such file or directory") as caught:
        open_nbd(parse_name(server.name))
    assert caught.value.errno == errno.ENOENT
    assert caught.value.strerror is not None
    assert caught.value.strerror.startswith(f"disk {server.name!r}: cannot connect: ")
    server.start()


def test_a_server_that_says_nothing_is_not_waited_for(server: NbdServer) -> None:
    server.handshake = False
    with pytest.raises(OpenError) as caught:
        open_nbd(parse_name(server.name), PATIENT._replace(connect=0.05))
    assert caught.value.errno == errno.ETIMEDOUT
    assert caught.value.strerror == f"disk {server.name!r}: cannot connect: no answer within 0.05 s"


# Requests


def test_what_is_written_is_read(server: NbdServer) -> None:
    dice = random.Random(3)
    model = bytearray(MIB)
    with disk(server) as storage:
        for _ in range(30):
            batch: list[Pending] = []
            for slot in range(8):
                sectors = dice.randint(1, 64)
                offset = slot * MIB // 8 + 512 * dice.randint(0, 256 - sectors)
                data = dice.randbytes(512 * sectors)
                cuts = [dice.randint(0, len(data)) for _ in range(dice.randint(0, 3))]
                batch.append(write(offset, data, cuts))
                model[offset : offset + len(data)] = data
            assert run(storage, *batch) == 0
            wanted = [read(512 * dice.randint(0, 1024), 512 * dice.randint(1, 1024), [100, 700]) for _ in range(8)]
            assert run(storage, *wanted) == 0
            for request in wanted:
                assert request.buffer == model[request.offset : request.offset + request.length]
    assert server.data == model


def test_answers_may_come_in_any_order(server: NbdServer) -> None:
    server.data[:] = random.Random(1).randbytes(MIB)
    with disk(server) as storage:
        server.hold()
        batch = [read(512 * number, 512) for number in range(50)]
        storage.submit(batch)
        seen(server, 50)  # all of them are out at once
        assert not any(request.done for request in batch)
        server.release()
        for number, request in enumerate(batch):
            assert request.result() == 0
            assert request.buffer == server.data[512 * number :][:512]


def test_how_requests_look_on_the_wire(server: NbdServer) -> None:
    with disk(server) as storage:
        for request in (
            write(512, bytes(1024)),
            write(512, bytes(1024), flags=FLAG_FUA),
            flush(),
            discard((0, 512), (4096, 8192)),
            write_zeroes((512, 512)),
            write_zeroes((512, 512), flags=FLAG_UNMAP),
            write_zeroes((512, 512), flags=FLAG_UNMAP | FLAG_FUA),
            read(0, 512),
        ):
            assert run(storage, request) == 0
    assert server.seen[:9] == [
        Seen(WRITE, 0, 512, 1024),
        Seen(WRITE, FUA, 512, 1024),
        Seen(FLUSH, 0, 0, 0),
        Seen(TRIM, 0, 0, 512),
        Seen(TRIM, 0, 4096, 8192),
        Seen(ZEROES, NO_HOLE, 512, 512),
        Seen(ZEROES, 0, 512, 512),
        Seen(ZEROES, FUA, 512, 512),
        Seen(READ, 0, 0, 512),
    ]
    assert [command.op for command in server.seen[9:]] == [nbd_server.DISC]  # it said good-bye


def test_a_request_is_split_as_the_server_wants(server: NbdServer) -> None:
    server.blocks = (512, 4096, 65536)
    data = random.Random(2).randbytes(MIB)
    with disk(server) as storage:
        assert run(storage, write(0, data)) == 0
        assert pread(storage, 512, MIB - 512) == data[512:]
        assert run(storage, write_zeroes((0, MIB))) == 0
    assert max(command.length for command in server.seen) == 65536
    assert server.ops().count(WRITE) == server.ops().count(ZEROES) == 16
    assert server.data == bytes(MIB)


def test_more_than_the_window_goes_out_piece_by_piece(server: NbdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "WINDOW", 3)
    server.blocks = (512, 4096, 4096)
    data = random.Random(2).randbytes(65536)
    with disk(server) as storage:
        server.hold()
        batch = [write(0, data), write(65536, data), flush()]
        storage.submit(batch)
        seen(server, 3)
        assert storage.counters()["nbd_commands_in_flight"] == 3
        server.release()
        assert [request.result() for request in batch] == [0, 0, 0]
    assert server.data[: 2 * 65536] == data + data


def test_buffers_are_bounded_in_bytes(server: NbdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "WINDOW_BYTES", 8192)
    with disk(server) as storage:
        server.hold()
        batch = [read(4096 * number, 4096) for number in range(8)]
        storage.submit(batch)
        seen(server, 2)
        assert storage.counters()["nbd_commands_in_flight"] == 2
        server.release()
        assert [request.result() for request in batch] == [0] * 8


def test_less_than_a_block_is_read_patched_and_written(server: NbdServer) -> None:
    server.blocks = (4096, 4096, 65536)
    model = bytearray(random.Random(4).randbytes(MIB))
    server.data[:] = model
    dice = random.Random(5)
    with disk(server) as storage:
        for _ in range(20):
            batch: list[Pending] = []
            for sector in range(0, 64, 4):  # neighbours in the same block, all at once
                data = dice.randbytes(512 * dice.randint(1, 4))
                if dice.random() < 0.3:
                    batch.append(write_zeroes((512 * sector, len(data))))
                    data = bytes(len(data))
                else:
                    batch.append(write(512 * sector, data))
                model[512 * sector : 512 * sector + len(data)] = data
            dice.shuffle(batch)
            assert run(storage, *batch) == 0
            assert pread(storage, 512, 65536) == model[512 : 512 + 65536]
    assert server.data == model


def test_a_patch_waits_for_a_write_of_the_same_block(server: NbdServer) -> None:
    """Read before that write and written back after it, the rest of the block would be the old one."""
    server.blocks = (4096, 4096, 65536)
    server.late = True
    with disk(server) as storage:
        server.hold(WRITE)
        batch = [write(0, b"w" * 4096), write(512, b"p" * 512)]
        storage.submit(batch)
        seen(server, 1)
        server.release()
        assert [request.result() for request in batch] == [0, 0]
    assert server.data[:4096] == b"w" * 512 + b"p" * 512 + b"w" * 3072


def test_two_ranges_in_one_block_are_patched_one_after_the_other(server: NbdServer) -> None:
    server.blocks = (4096, 4096, 65536)
    server.data[:] = b"x" * MIB
    with disk(server) as storage:
        assert run(storage, write_zeroes((0, 512), (1024, 512), (2048, 512))) == 0
    assert server.data[:4096] == (bytes(512) + b"x" * 512) * 3 + b"x" * 1024


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (nbd_server.EPERM, errno.EROFS),
        (nbd_server.EIO, errno.EIO),
        (nbd_server.ENOMEM, errno.EIO),
        (nbd_server.EINVAL, errno.EIO),
        (nbd_server.ENOSPC, errno.ENOSPC),
        (nbd_server.EOVERFLOW, errno.EIO),
        (nbd_server.ENOTSUP, errno.EOPNOTSUPP),
        (12345, errno.EIO),
    ],
)
def test_errors(server: NbdServer, wire: int, code: int) -> None:
    requests: dict[int, Callable[[], Pending]] = {
        READ: lambda: read(0, 512),
        WRITE: lambda: write(0, bytes(512)),
        FLUSH: flush,
        TRIM: lambda: discard((0, 512)),
        ZEROES: lambda: write_zeroes((0, 512)),
    }
    with disk(server) as storage:
        for op, make in requests.items():
            server.errors = {op: wire}
            failing, others = make(), [make() for number, make in requests.items() if number != op]
            storage.submit([failing, *others])
            assert failing.result() == code
            assert [request.result() for request in others] == [0] * 4
            server.errors = {}
            assert run(storage, make()) == 0


def test_a_request_fails_when_one_of_its_commands_does(server: NbdServer) -> None:
    server.blocks = (512, 512, 512)
    with disk(server) as storage:
        server.errors = {WRITE: nbd_server.ENOSPC}
        assert run(storage, write(0, bytes(65536))) == errno.ENOSPC
        server.errors = {}
        assert run(storage, write(0, bytes(65536))) == 0


def test_eight_threads_submit(server: NbdServer) -> None:
    with disk(server) as storage, ThreadPoolExecutor(8) as pool:

        def work(number: int) -> bytes:
            dice = random.Random(number)
            data = bytes(16384)
            for _ in range(20):
                data = dice.randbytes(16384)
                assert run(storage, write(number * 16384, data)) == 0
                assert pread(storage, number * 16384, 16384) == data
            return data

        contents = b"".join(pool.map(work, range(8)))
    assert server.data[: len(contents)] == contents


def test_an_end_that_raises_harms_nobody_else(server: NbdServer, caplog: pytest.LogCaptureFixture) -> None:
    class Angry(Pending):
        def end(self, error: int = 0) -> None:
            super().end(error)
            raise ValueError("angry")

    with disk(server) as storage, caplog.at_level(logging.CRITICAL):
        assert run(storage, Angry(OP_WRITE, 0, bytes(512)), write(0, bytes(512))) == 0
        assert run(storage, write(0, bytes(512))) == 0


# Lost connections


def test_what_was_in_flight_when_the_server_was_killed_is_sent_again(server: NbdServer) -> None:
    data = random.Random(6).randbytes(65536)
    with disk(server) as storage:
        server.hold()
        batch = [write(4096 * number, data[4096 * number :][:4096]) for number in range(16)]
        storage.submit(batch)
        seen(server, 16)
        server.crash()
        late = read(MIB - 512, 512)
        storage.submit([late])
        server.release()
        server.start()
        assert [request.result() for request in [*batch, late]] == [0] * 17
        assert storage.counters()["nbd_reconnects"] == 1
        assert storage.counters()["nbd_commands_sent_again"] == 16
        assert pread(storage, 0, 65536) == data
        assert run(storage, flush()) == 0  # nothing had been acknowledged, so nothing is lost
    assert server.stable[:65536] == data


def test_a_patch_survives_a_lost_connection(server: NbdServer) -> None:
    server.blocks = (4096, 4096, 65536)
    server.data[:] = server.stable[:] = b"x" * MIB
    with disk(server) as storage:
        for count, op in ((1, READ), (2, WRITE)):  # the connection is lost under its read, then under its write
            server.seen.clear()
            server.hold(op)
            request = write(1024, b"%d" % count * 512)
            storage.submit([request])
            seen(server, count)
            server.crash()
            server.release()
            server.start()
            assert request.result() == 0
            assert server.data[:4096] == b"x" * 1024 + b"%d" % count * 512 + b"x" * 2560
            assert server.ops() == [READ, READ, WRITE] if op == READ else [READ, WRITE, WRITE]


def test_a_server_that_goes_away_politely(server: NbdServer) -> None:
    with disk(server) as storage:
        server.errors = {WRITE: nbd_server.ESHUTDOWN}
        request = write(0, b"y" * 512)
        storage.submit([request])
        seen(server, 2)
        server.errors = {}
        assert request.result() == 0
        assert storage.counters()["nbd_reconnects"] >= 1
    assert server.data[:512] == b"y" * 512


def test_a_server_that_is_away_for_too_long_and_comes_back(server: NbdServer) -> None:
    with disk(server, HASTY) as storage:
        server.hold()
        early = write(0, b"a" * 512)
        storage.submit([early])
        seen(server, 1)
        server.crash()
        assert early.result() == errno.EIO
        assert run(storage, read(0, 512), flush(), write(0, bytes(512))) == errno.EIO
        assert storage.counters()["nbd_requests_given_up"] == 4
        server.release()
        server.start()
        wait_until(lambda: run(storage, read(0, 512)) == 0)
        assert run(storage, write(0, b"b" * 512), flush()) == 0


def test_a_request_that_kills_the_server_each_time_is_given_up(server: NbdServer) -> None:
    with disk(server, HASTY) as storage:
        server.dies_of = ZEROES
        assert run(storage, write_zeroes((0, 512))) == errno.EIO
        server.dies_of = None
        wait_until(lambda: run(storage, write_zeroes((0, 512))) == 0)


def test_a_silent_server_counts_as_lost(server: NbdServer) -> None:
    server.forgets_replies = True
    with disk(server, PATIENT._replace(silence=0.2)) as storage:
        request = write(0, b"z" * 512)
        storage.submit([request])
        seen(server, 1)
        server.forgets_replies = False
        assert request.result() == 0
        assert storage.counters()["nbd_reconnects"] >= 1
    assert server.ops().count(WRITE) >= 2


def test_a_server_that_forgets_one_command_and_answers_the_others(server: NbdServer) -> None:
    with disk(server, PATIENT._replace(answer=0.2)) as storage:
        server.hold(WRITE)
        request = write(0, b"w" * 512)
        storage.submit([request])
        wait_until(lambda: run(storage, read(512, 512)) == 0 and storage.counters()["nbd_reconnects"])
        server.release()
        assert request.result() == 0


def test_a_server_that_stays_silent_gets_its_requests_failed(server: NbdServer) -> None:
    with disk(server, HASTY._replace(silence=0.2, connect=0.2)) as storage:
        server.handshake = False
        server.hold()
        assert run(storage, read(0, 512)) == errno.EIO
        server.handshake = True
        server.release()
        wait_until(lambda: run(storage, read(0, 512)) == 0)


@pytest.mark.parametrize("down", [False, True])
def test_a_flush_tells_once_that_acknowledged_writes_may_be_lost(server: NbdServer, down: bool) -> None:
    with disk(server) as storage:
        assert run(storage, write(0, b"1" * 512), flush(), write(512, b"2" * 512)) == 0
        server.crash()
        if down:  # it says so at once, whether the server is back or not
            wait_until(lambda: not storage.counters()["nbd_connected"])
            assert run(storage, flush()) == errno.EIO
            server.start()
        else:
            server.start()
            wait_until(lambda: storage.counters()["nbd_reconnects"] == 1)
            assert run(storage, flush()) == errno.EIO
        assert pread(storage, 0, 1024) == b"1" * 512 + bytes(512)  # it was lost indeed
        assert run(storage, flush()) == 0
        assert storage.counters()["nbd_flushes_failed_for_lost_writes"] == 1


@pytest.mark.parametrize(
    "change", [lambda: write(0, b"n" * 512), lambda: discard((0, 512)), lambda: write_zeroes((0, 512))]
)
def test_all_flushes_under_way_tell_it(server: NbdServer, change: Callable[[], Pending]) -> None:
    with disk(server) as storage:
        assert run(storage, change()) == 0
        server.hold()
        flushes = [flush(), flush(), flush()]
        storage.submit(flushes)
        seen(server, 4)
        server.crash()
        assert [request.result() for request in flushes] == [errno.EIO] * 3
        server.release()
        server.start()
        assert run(storage, flush()) == 0


def test_a_flush_submitted_while_the_first_one_fails_tells_it_too(server: NbdServer) -> None:
    with disk(server) as storage:
        second = flush()

        class First(Pending):
            def end(self, error: int = 0) -> None:
                storage.submit([second])
                super().end(error)

        assert run(storage, write(0, b"n" * 512)) == 0
        server.crash()
        server.start()
        assert run(storage, First(OP_FLUSH)) == errno.EIO
        assert second.result() == errno.EIO
        assert run(storage, flush()) == 0


def test_nothing_is_lost_of_what_was_flushed_or_fua(server: NbdServer) -> None:
    with disk(server) as storage:
        assert run(storage, write(0, b"f" * 512)) == 0
        assert run(storage, flush()) == 0
        assert run(storage, write(512, b"g" * 512, flags=FLAG_FUA), write_zeroes((1024, 512), flags=FLAG_FUA)) == 0
        assert run(storage, read(0, 512)) == 0
        server.crash()
        server.start()
        assert run(storage, flush()) == 0
        assert pread(storage, 0, 1024) == b"f" * 512 + b"g" * 512


def test_a_write_acknowledged_while_a_flush_was_under_way_is_not_covered_by_it(server: NbdServer) -> None:
    with disk(server) as storage:
        server.hold()
        first, second = flush(), write(0, b"h" * 512)
        storage.submit([first])
        seen(server, 1)
        storage.submit([second])
        seen(server, 2)
        server.release()  # the write is answered first
        assert (first.result(), second.result()) == (0, 0)
        server.crash()
        server.start()
        assert run(storage, flush()) == errno.EIO
        assert run(storage, flush()) == 0


def test_an_export_that_comes_back_smaller_is_another_disk(server: NbdServer, caplog: pytest.LogCaptureFixture) -> None:
    with disk(server) as storage:
        server.hold()
        early = write(0, bytes(512))
        storage.submit([early])
        seen(server, 1)
        server.crash()
        server.release()
        server.resize(MIB - 512)
        server.start()
        assert early.result() == errno.EIO
        assert run(storage, read(0, 512)) == errno.EIO
        assert run(storage, flush()) == errno.EIO
        assert "the export came back with size 1048064 instead of 1m: no longer the same disk" in caplog.text
        assert server.ops() == [WRITE]


def test_an_export_that_comes_back_larger_goes_on(server: NbdServer) -> None:
    with disk(server) as storage:
        server.crash()
        server.resize(2 * MIB)
        server.start()
        assert pread(storage, MIB - 512, 512) == bytes(512)
        assert storage.size == MIB


def test_an_export_that_comes_back_able_to_do_less_says_so(server: NbdServer) -> None:
    with disk(server) as storage:
        server.crash()
        server.flags = HAS_FLAGS
        server.start()
        assert pread(storage, 0, 512) == bytes(512)
        assert run(storage, flush()) == errno.EIO
        assert run(storage, write(0, bytes(512), flags=FLAG_FUA)) == errno.EIO
        assert run(storage, write(0, bytes(512))) == 0
        server.crash()
        server.flags = ALL | READ_ONLY
        server.start()
        assert pread(storage, 0, 512) == bytes(512)
        assert run(storage, write(0, bytes(512))) == errno.EROFS


def test_a_server_that_hangs_up_on_everybody_is_not_run_down(server: NbdServer) -> None:
    """After a connection that did not last, the next attempt waits, here for longer than any test."""
    with disk(server, HASTY._replace(first_delay=1000, longest_delay=1000)) as storage:
        for turn in (1, 2):
            wait_until(lambda: storage.counters()["nbd_reconnects"] == turn - 1)  # noqa: B023
            server.hang_up()
        assert run(storage, read(0, 512)) == errno.EIO
    assert server.connections == 2


# Closing


def test_closing_ends_what_a_stuck_server_holds(server: NbdServer) -> None:
    with disk(server) as storage:
        server.hold()
        batch = [read(0, 512), write(0, bytes(512)), flush()]
        storage.submit(batch)
        seen(server, 3)
        storage.close()
        assert [request.result() for request in batch] == [errno.EIO] * 3
        assert run(storage, read(0, 512)) == errno.EIO
        storage.close()


@pytest.mark.parametrize("handshake", [False, True])
def test_closing_while_the_server_is_away(server: NbdServer, handshake: bool) -> None:
    with disk(server) as storage:
        server.crash()
        if not handshake:  # it is back, and the connection stays half made
            server.handshake = False
            server.start()
        waiting = read(0, 512)
        storage.submit([waiting])
        wait_until(lambda: not storage.counters()["nbd_connected"])
        Background(storage.close).result()
        assert waiting.result() == errno.EIO


def test_closing_a_storage_that_was_never_started(server: NbdServer) -> None:
    storage = open_nbd(parse_name(server.name))
    storage.close()
    storage.close()
    assert run(storage, read(0, 512)) == errno.EIO


def test_opened_and_closed_again_and_again(server: NbdServer) -> None:
    for turn in range(20):
        with disk(server) as storage:
            assert pread(storage, 0, 512) == bytes([turn]) * 512
            assert run(storage, write(0, bytes([turn + 1]) * 512)) == 0
    assert server.connections == 20
