"""A queue on a file: through a whole device against plain bytes, and step by step with answers made up by the test."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.guest import FEATURES, GUEST, Guest, header
from jit.test_ir import check, ir_of
from naive.ring import Buffer
from naive.virtio_blk import DISCARD, F_FLUSH, FLUSH, GET_ID, IN, IOERR, OK, OUT, UNSUPP, WRITE_ZEROES
from virtblk.device.file_queue import FileResources
from virtblk.device.file_request import (
    CHUNK,
    DOING_PUNCH,
    DOING_ZERO,
    RETRIES,
    SLOT_IOVECS,
    FileQueue,
    file_completed,
    file_start,
)
from virtblk.device.file_worker import fail_submissions, file_worker_loop
from virtblk.device.slots import SLOT_PIECES
from virtblk.jit.atomics import load_i64, load_u32
from virtblk.jit.io_uring import (
    IORING_OP_FALLOCATE,
    IORING_OP_FSYNC,
    IORING_OP_READ,
    IORING_OP_READV,
    IORING_OP_WRITE,
    IORING_OP_WRITEV,
    RWF_DSYNC,
    SQE_ADDR,
    SQE_LEN,
    SQE_OFF,
    SQE_RW_FLAGS,
    unavailable,
    uring_pending,
    uring_take_back,
)
from virtblk.jit.kernel import kernel
from virtblk.jit.table import Table
from virtblk.mem.guest_memory import GuestMemory
from virtblk.mem.shm import Mapping
from virtblk.names import parse_name
from virtblk.storage.file import CACHES, FileStorage, open_file
from virtblk.storage.request import (
    FLAG_FUA,
    FLAG_UNMAP,
    KIND_FILE,
    OP_DISCARD,
    OP_FLUSH,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
    REQUEST_DTYPE,
    give_scratch,
)
from virtblk.virtio.vringh_split import BAD_MEMORY, VRINGH_DTYPE, Vringh

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no io_uring here: {unavailable()}")

SECTORS = 192
SIZE = SECTORS * 512


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.randbytes(SIZE))
    return path


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, sectors, flags)


def file_queue(guest: Guest) -> FileQueue:
    file = guest.device.queues[0]._file
    assert file is not None
    return file.queue


# Through a whole device.

#: Type, sector within a third of the disk, sizes of the data's buffers (the last makes a multiple of 512), alignment
#: of their addresses, unmap.
REQUEST = st.tuples(
    st.sampled_from([IN, IN, OUT, OUT, OUT, FLUSH, DISCARD, WRITE_ZEROES]),
    st.integers(0, SECTORS // 3 - 1),
    st.lists(st.sampled_from([1, 511, 512, 1000, 4096, 8192]), min_size=1, max_size=4),
    st.sampled_from([1, 512, 4096]),
    st.booleans(),
)
#: Up to three requests at once, each on a third of its own.
ROUNDS = st.lists(st.lists(REQUEST, min_size=1, max_size=3), max_size=5)

Req = tuple[int, int, list[int], int, bool]


class Twin:
    """A guest's disk and the bytes that it should hold."""

    def __init__(self, guest: Guest, path: Path) -> None:
        self.guest, self.path = guest, path
        self.bytes = bytearray(path.read_bytes())

    def round(self, requests: list[Req]) -> None:
        guest, queue = self.guest, self.guest.queue
        mark = guest.mark()
        sent = [self.send(request, third) for third, request in enumerate(requests)]
        for token, (kind, _, sizes, _, _), start, writable in sent:
            used = queue.wait(token)
            status = writable[-1]
            assert guest.load(status.address, 1) == b"\0"
            data = writable[:-1]
            got = b"".join(guest.load(b.address, b.length) for b in data)
            guest.check_canaries(writable)
            if kind == IN:
                assert used == sum(sizes) + 1
                assert got == self.bytes[start : start + sum(sizes)]
            else:
                assert used == 1
            if kind == DISCARD:
                self.bytes[start : start + sum(sizes)] = self.on_disk(start, sum(sizes))
        guest.release(mark)

    def send(self, request: Req, third: int) -> tuple[int, Req, int, list[Buffer]]:
        kind, sector, sizes, alignment, unmap = request
        guest = self.guest
        sizes = [*sizes, -sum(sizes) % 512]
        while sector * 512 + sum(sizes) > SIZE // 3:
            sizes = [*sizes[:-2], -sum(sizes[:-2]) % 512]
        sector += third * (SECTORS // 3)
        start, length = sector * 512, sum(sizes)
        if kind in (DISCARD, WRITE_ZEROES) and length == 0:
            kind = FLUSH
        data: list[Buffer] = []
        head = header(kind, sector)
        if kind == OUT:
            for size in sizes:
                data.append(guest.buffer(random.randbytes(size), alignment))
            self.bytes[start : start + length] = b"".join(guest.load(b.address, b.length) for b in data)
        elif kind == IN:
            data = [guest.room(size, alignment) for size in sizes]
        elif kind in (DISCARD, WRITE_ZEROES):
            flags = int(unmap and kind == WRITE_ZEROES)
            data = [guest.buffer(segment(sector, length // 512, flags))]
            if kind == WRITE_ZEROES:
                self.bytes[start : start + length] = bytes(length)
        buffers = [guest.buffer(head), *(b for b in data if b.length), guest.room(1)]
        token = guest.queue.add(buffers)
        return token, (kind, sector, sizes, alignment, unmap), start, [b for b in buffers if b.writable]

    def on_disk(self, start: int, length: int) -> bytes:
        return self.path.read_bytes()[start : start + length]


def against_bytes(twin: Twin) -> None:
    @given(ROUNDS)
    def run(rounds: list[list[Req]]) -> None:
        for requests in rounds:
            twin.round(requests)
        assert twin.path.read_bytes() == twin.bytes

    run()


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
@pytest.mark.parametrize("cache", CACHES)
def test_any_requests_against_plain_bytes(
    image: Path, cache: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "threads":
        monkeypatch.setenv("VIRTBLK_NO_IO_URING", "1")
    with Guest(f"file:{image}?cache={cache}") as guest:
        assert (guest.storage.kind == KIND_FILE) == (engine == "io_uring")
        against_bytes(Twin(guest, image))


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_any_requests_where_no_hole_can_be_made(image: Path, cache: str) -> None:
    with Guest(f"file:{image}?cache={cache}") as guest:
        state = file_queue(guest).state[0]
        state["punch"] = state["zero"] = 0
        against_bytes(Twin(guest, image))


def test_more_buffers_than_one_submission_takes(image: Path) -> None:
    """The others follow, one submission after the other."""
    count = 3 * SLOT_IOVECS + 128
    with Guest(f"file:{image}", num=1024) as guest:
        data = random.randbytes(count * 128)
        head, status = guest.buffer(header(OUT, 8)), guest.room(1)
        token = guest.queue.add([head, *(guest.buffer(data[at : at + 128]) for at in range(0, len(data), 128)), status])
        assert guest.queue.wait(token) == 1
        assert guest.load(status.address, 1) == b"\0"
        assert image.read_bytes()[4096 : 4096 + len(data)] == data
        rooms = [guest.room(128) for _ in range(count)]
        token = guest.queue.add([guest.buffer(header(IN, 8)), *rooms, status])
        assert guest.queue.wait(token) == len(data) + 1
        assert b"".join(guest.load(b.address, b.length) for b in rooms) == data


def test_a_ring_full_of_requests(image: Path) -> None:
    """More than slots, and than one turn of the worker takes."""
    before = image.read_bytes()
    with Guest(f"file:{image}?cache=none", num=1024, size=8 << 20) as guest:
        rooms = [guest.room(512) for _ in range(340)]
        tokens = [
            guest.queue.add([guest.buffer(header(IN, n % SECTORS)), room, guest.room(1)])
            for n, room in enumerate(rooms)
        ]
        assert [guest.queue.wait(token) for token in tokens] == [513] * 340
        assert [guest.load(room.address, 512) for room in rooms] == [
            before[n % SECTORS * 512 : n % SECTORS * 512 + 512] for n in range(340)
        ]
        assert file_queue(guest).state[0]["free"] == 256


def test_other_requests(image: Path) -> None:
    with Guest(f"file:{image}", serial="file under test") as guest:
        queue = guest.queue
        assert queue.request(header(GET_ID), 21).data == b"file under test".ljust(20, b"\0")
        assert queue.request(header(77), 1).status == UNSUPP
        assert queue.request(header(IN, SECTORS), 513).status == IOERR
        assert queue.request(header(IN, 0), 1).status == OK
        assert queue.request(b"short", 1).status == IOERR
        assert queue.request(header(FLUSH), 1).status == OK


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_a_file_that_was_truncated_fails_reads_only_there(
    image: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "threads":
        monkeypatch.setenv("VIRTBLK_NO_IO_URING", "1")
    before = image.read_bytes()
    with Guest(f"file:{image}") as guest:
        os.truncate(image, 5000)
        assert guest.queue.request(header(IN, 8), 4097).status == IOERR
        assert guest.queue.request(header(IN, 64), 513).status == IOERR
        assert guest.queue.read(0, 4096) == before[:4096]


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_guest_memory_that_is_truncated_breaks_the_ring(image: Path, cache: str) -> None:
    """The system cannot copy (EFAULT), and nothing is acknowledged."""
    with Guest(f"file:{image}?cache={cache}") as guest:
        head, status = guest.buffer(header(OUT, 0)), guest.room(1)
        last = guest.alloc(1 << 20, 1 << 20)
        os.ftruncate(guest.fd, last - GUEST)
        guest.queue.add([head, Buffer(last, 4096, False), status])
        assert guest.queue.broke()
        assert guest.queue.reap() == 0
        assert guest.device.queues[0]._vring.state[0]["bad"] == BAD_MEMORY
        guest.queue.stop()


def test_a_broken_ring_leaves_other_queues_alone(image: Path) -> None:
    with Guest(f"file:{image}", queues=2) as guest:
        one, two = guest.queues
        assert one.write(0, b"a" * 512) == OK
        one.ring.set_avail_idx(one.driver.idx + 1000)
        one.kick()
        assert one.broke()
        assert two.read(0, 512) == b"a" * 512


def test_after_a_failed_flush_all_fail_in_every_queue(image: Path) -> None:
    with Guest(f"file:{image}", queues=2) as guest:
        one, two = guest.queues
        assert [queue.request(header(FLUSH), 1).status for queue in (one, two)] == [OK, OK]
        state = file_queue(guest).state[0]
        flush_fd, ends = int(state["flush_fd"]), os.pipe()
        state["flush_fd"] = ends[0]  # on a pipe fdatasync fails
        assert one.request(header(FLUSH), 1).status == IOERR
        state["flush_fd"] = flush_fd
        assert [queue.request(header(FLUSH), 1).status for queue in (one, two, one)] == [IOERR] * 3
        assert one.write(0, b"a" * 512) == OK
        assert two.read(0, 512) == b"a" * 512
        for fd in ends:
            os.close(fd)


def test_without_flush_writes_are_durable_by_themselves(image: Path) -> None:
    """5.2.6.2: a driver that did not accept FLUSH; nothing is written in place then."""
    with Guest(f"file:{image}", features=FEATURES & ~F_FLUSH) as guest:
        assert guest.queue.write(0, b"a" * 4096) == OK
        assert file_queue(guest).state[0]["inlined"] == 0
    with Guest(f"file:{image}") as guest:
        assert guest.queue.write(0, b"b" * 4096) == OK
        assert file_queue(guest).state[0]["inlined"] == 1
    assert image.read_bytes()[:4096] == b"b" * 4096


@pytest.mark.parametrize("cache", ["writethrough", "none"])
def test_stopping_ends_what_was_taken(image: Path, cache: str) -> None:
    """All chains before the index that GET_VRING_BASE tells are answered, and none behind it."""
    with Guest(f"file:{image}?cache={cache}", num=1024) as guest:
        queue = guest.queue
        data, status = guest.buffer(random.randbytes(512), 512), guest.room(1)
        for turn in range(3):
            tokens = [queue.add([guest.buffer(header(OUT, n % SECTORS)), data, status]) for n in range(100)]
            base = queue.stop()
            queue.reap()
            assert sorted(queue.done) == tokens[: base - 100 * turn]
            queue.start()
            for token in tokens:
                assert queue.wait(token) == 1


def test_a_queue_stops_and_goes_on(image: Path) -> None:
    with Guest(f"file:{image}", poll_us=0) as guest:
        for turn in range(5):
            assert guest.queue.write(turn, bytes([turn]) * 512) == OK
            assert guest.queue.stop() == turn + 1
            guest.queue.start()
        assert guest.queue.read(4, 512) == b"\4" * 512


# Step by step: what a request submits, and what it makes of the answer.


@kernel
def start(vr, mem, requests, q, slot):
    file_start(vr, mem, requests, q, slot)


@kernel
def completed(vr, mem, requests, q, user_data, result):
    file_completed(vr, mem, requests, q, user_data, result)


@kernel
def take_back(ring):
    return uring_take_back(ring)


@kernel
def give_up(vr, mem, requests, q):
    fail_submissions(vr, mem, requests, q)


class Sqe:
    """A submission that was taken back, so that the system never sees it."""

    def __init__(self, q: FileQueue) -> None:
        self.user_data = int(take_back(q.ring))
        ring = q.ring[0]
        at = int(ring["sqes"]) + 64 * (int(ring["tail"]) & (int(ring["sq_entries"]) - 1))
        self.opcode = load_u32(at) & 0xFF
        self.offset, self.address = load_i64(at + SQE_OFF), load_i64(at + SQE_ADDR)
        self.length, self.flags = load_u32(at + SQE_LEN), load_u32(at + SQE_RW_FLAGS)


class Bench:
    """Slots without a ring or a worker, on 8 KiB of memory."""

    def __init__(self, storage: FileStorage) -> None:
        self.storage = storage
        self.resources = FileResources(storage, 4)
        self.q = self.resources.queue
        self.q.state[0]["inline_after"] = 1 << 62
        self.memory = Mapping(8192)
        self.requests = Table(4, REQUEST_DTYPE)
        self.scratch = give_scratch(self.requests)
        self.vring = Vringh(Table(1, VRINGH_DTYPE), Table(4 * SLOT_PIECES), Table(4 * SLOT_PIECES))
        self.mem = GuestMemory().table
        self.mem.regions[0] = (0, 8192, self.memory.address, self.scratch.address)
        self.mem.head[0]["count"] = 1

    def start(
        self, slot: int, op: int, pieces: int = 1, length: int = 1024, flags: int = 0, offset: int = 4096
    ) -> None:
        request = self.requests[slot]
        first = slot * SLOT_PIECES
        for key, value in (("op", op), ("flags", flags), ("offset", offset), ("length", pieces * length)):
            request[key] = value
        request["first"], request["count"], request["used_len"], request["result"] = first, pieces, 0, 77
        for n in range(pieces):
            self.vring.piece_addr[first + n], self.vring.piece_len[first + n] = self.address(n * length), length
        start(self.vring, self.mem, self.requests, self.q, slot)

    def start_ranges(self, slot: int, op: int, ranges: list[tuple[int, int]], flags: int = 0) -> None:
        raw = b"".join(segment(*one) for one in ranges)
        self.scratch.view("u1")[slot * (len(self.scratch.view("u1")) // 4) + 16 :][: len(raw)] = list(raw)
        self.requests[slot]["ranges"] = len(ranges)
        self.start(slot, op, 0, flags=flags)

    def address(self, offset: int) -> int:
        return self.memory.address + offset

    def sqe(self) -> Sqe:
        assert uring_pending(self.q.ring) == 1
        return Sqe(self.q)

    def complete(self, user_data: int, result: int) -> None:
        completed(self.vring, self.mem, self.requests, self.q, user_data, result)

    def ended(self) -> list[tuple[int, int]]:
        """(slot, result) of what ended since the last call."""
        slots = self.q.ended[: self.q.state[0]["ended"]]
        self.q.state[0]["ended"] = 0
        return [(int(slot), int(self.requests[slot]["result"])) for slot in slots]

    def close(self) -> None:
        assert uring_pending(self.q.ring) == 0
        self.resources.close()
        self.resources.close()
        self.storage.close()
        self.memory.close()


def bench_on(image: Path, keys: str = "") -> Bench:
    return Bench(open_file(parse_name(f"file:{image}{keys}")))


@pytest.fixture
def bench(image: Path) -> Iterator[Bench]:
    bench = bench_on(image)
    yield bench
    bench.close()


@pytest.fixture
def direct(image: Path) -> Iterator[Bench]:
    bench = bench_on(image, "?cache=none")
    bench.q.state[0]["memory_align"] = 512  # on every file system
    yield bench
    bench.close()


def test_a_short_read_goes_on(bench: Bench) -> None:
    bench.start(1, OP_READ)
    sqe = bench.sqe()
    assert (sqe.opcode, sqe.user_data, sqe.offset, sqe.address, sqe.length) == (
        IORING_OP_READ,
        1,
        4096,
        bench.address(0),
        1024,
    )
    bench.complete(1, 100)
    sqe = bench.sqe()
    assert (sqe.offset, sqe.address, sqe.length) == (4196, bench.address(100), 924)
    assert bench.ended() == []
    bench.complete(1, 924)
    assert bench.ended() == [(1, 0)]
    assert bench.requests[1]["used_len"] == 1024


def test_a_short_write_of_many_pieces_goes_on(bench: Bench) -> None:
    bench.start(0, OP_WRITE, 3, 512)
    sqe = bench.sqe()
    assert (sqe.opcode, sqe.length, sqe.flags) == (IORING_OP_WRITEV, 3, 0)
    bench.complete(0, 700)
    sqe = bench.sqe()
    assert (sqe.opcode, sqe.offset, sqe.length) == (IORING_OP_WRITEV, 4796, 2)
    assert [load_i64(sqe.address + at) for at in (0, 8, 16, 24)] == [bench.address(700), 324, bench.address(1024), 512]
    bench.complete(0, 400)
    sqe = bench.sqe()
    assert (sqe.opcode, sqe.address, sqe.length) == (IORING_OP_WRITE, bench.address(1100), 436)
    bench.complete(0, 436)
    assert bench.ended() == [(0, 0)]
    bench.start(0, OP_READ, 2, 512)
    assert bench.sqe().opcode == IORING_OP_READV
    bench.complete(0, 1024)
    assert bench.ended() == [(0, 0)]


@pytest.mark.parametrize("op", [OP_READ, OP_WRITE])
@pytest.mark.parametrize(("result", "error"), [(-errno.EIO, errno.EIO), (-errno.ENOSPC, errno.ENOSPC), (0, errno.EIO)])
def test_an_error_ends_it(bench: Bench, op: int, result: int, error: int) -> None:
    bench.start(0, op)
    bench.sqe()
    bench.complete(0, 512)
    bench.sqe()
    bench.complete(0, result)
    assert bench.ended() == [(0, error)]
    assert bench.requests[0]["used_len"] == 0


@pytest.mark.parametrize("code", [errno.EINTR, errno.EAGAIN])
def test_interrupted_it_is_tried_again_but_not_for_ever(bench: Bench, code: int) -> None:
    bench.start(0, OP_READ)
    for _ in range(RETRIES):
        bench.sqe()
        bench.complete(0, -code)
    bench.sqe()
    bench.complete(0, 512)  # progress: it counts from the start
    for _ in range(RETRIES + 1):
        assert bench.sqe().offset == 4608
        assert bench.ended() == []
        bench.complete(0, -code)
    assert bench.ended() == [(0, errno.EINTR if code == errno.EINTR else errno.EIO)]


def test_memory_that_is_gone_breaks_the_ring(bench: Bench) -> None:
    bench.start(0, OP_READ)
    bench.sqe()
    bench.complete(0, -errno.EFAULT)
    assert bench.vring.state[0]["bad"] == BAD_MEMORY
    assert [slot for slot, _ in bench.ended()] == [0]


def test_fua_is_dsync_or_a_flush_behind_it(bench: Bench) -> None:
    bench.start(0, OP_WRITE, flags=FLAG_FUA)
    assert bench.sqe().flags == RWF_DSYNC
    bench.complete(0, 512)
    assert bench.sqe().flags == RWF_DSYNC
    bench.complete(0, -errno.EOPNOTSUPP)
    assert bench.sqe().flags == 0
    bench.complete(0, 512)
    assert bench.ended() == []
    sqe = bench.sqe()
    assert (sqe.opcode, sqe.user_data) == (IORING_OP_FSYNC, 4)
    bench.complete(4, -errno.EIO)
    assert bench.ended() == [(0, errno.EIO)]


def test_flushes_that_come_meanwhile_share_the_next_one(bench: Bench) -> None:
    bench.start(0, OP_FLUSH)
    assert bench.sqe().opcode == IORING_OP_FSYNC
    bench.start(1, OP_FLUSH)
    bench.start(2, OP_FLUSH)
    assert uring_pending(bench.q.ring) == 0
    bench.complete(4, 0)
    assert bench.ended() == [(0, 0)]
    sqe = bench.sqe()
    assert (sqe.opcode, sqe.flags) == (IORING_OP_FSYNC, 1)
    bench.start(3, OP_FLUSH)
    bench.complete(4, -errno.EIO)
    assert bench.ended() == [(1, errno.EIO), (2, errno.EIO), (3, errno.EIO)]
    bench.start(0, OP_FLUSH)
    assert bench.ended() == [(0, errno.EIO)]


def test_unsafe_flushes_nothing(image: Path) -> None:
    bench = bench_on(image, "?cache=unsafe")
    bench.q.state[0]["inline_after"] = 1 << 62
    bench.start(0, OP_FLUSH)
    bench.start(1, OP_WRITE, flags=FLAG_FUA)
    assert bench.ended() == [(0, 0)]
    assert bench.sqe().flags == 0
    bench.complete(1, 1024)
    assert bench.ended() == [(1, 0)]
    bench.close()


def test_ranges_go_one_after_the_other(bench: Bench) -> None:
    bench.q.state[0]["punch"] = 1
    bench.start_ranges(0, OP_DISCARD, [(8, 2), (16, 1)])
    sqe = bench.sqe()
    assert (sqe.opcode, sqe.offset, sqe.address, sqe.length) == (IORING_OP_FALLOCATE, 4096, 1024, 3)
    bench.complete(0, 0)
    sqe = bench.sqe()
    assert (sqe.offset, sqe.address, sqe.length) == (8192, 512, 3)
    bench.complete(0, 0)
    assert bench.ended() == [(0, 0)]


def test_a_way_that_does_not_work_gives_way_to_the_next(bench: Bench) -> None:
    bench.q.state[0]["punch"] = 1
    sectors = CHUNK // 512 + 2
    bench.start_ranges(2, OP_WRITE_ZEROES, [(8, sectors), (0, 1)], FLAG_UNMAP | FLAG_FUA)
    assert bench.sqe().length == 3
    bench.complete(2, -errno.EOPNOTSUPP)
    assert bench.q.slot[2]["cannot"] == 1 << DOING_PUNCH
    sqe = bench.sqe()
    assert (sqe.opcode, sqe.length, sqe.address) == (IORING_OP_FALLOCATE, 0x11, sectors * 512)
    bench.complete(2, -errno.EINTR)
    assert bench.sqe().length == 0x11
    bench.complete(2, -errno.EINVAL)
    assert bench.q.slot[2]["cannot"] == 1 << DOING_PUNCH | 1 << DOING_ZERO
    zeroes = int(bench.q.state[0]["zeroes"])
    for offset, length, result in ((0, CHUNK, CHUNK - 100), (CHUNK - 512, 1536, 1536)):
        sqe = bench.sqe()
        assert (sqe.opcode, sqe.address, sqe.offset, sqe.length) == (IORING_OP_WRITE, zeroes, 4096 + offset, length)
        bench.complete(2, result)
    assert bench.sqe().offset == 0
    bench.complete(2, 512)
    assert bench.ended() == []
    assert bench.sqe().opcode == IORING_OP_FSYNC
    bench.complete(4, 0)
    assert bench.ended() == [(2, 0)]


@pytest.mark.parametrize(("result", "error"), [(-errno.EIO, errno.EIO), (-errno.ENOSPC, errno.ENOSPC)])
def test_an_error_ends_ranges(bench: Bench, result: int, error: int) -> None:
    bench.q.state[0]["punch"] = 1
    bench.start_ranges(0, OP_WRITE_ZEROES, [(8, 2), (16, 1)], FLAG_FUA)
    bench.sqe()
    bench.complete(0, result)
    assert bench.ended() == [(0, error)]
    bench.q.state[0]["zero"] = 0
    bench.start_ranges(0, OP_WRITE_ZEROES, [(8, 2)])
    bench.sqe()
    bench.complete(0, 0)
    assert bench.ended() == [(0, errno.EIO)]


def test_a_discard_where_there_are_no_holes_is_no_work(bench: Bench) -> None:
    bench.q.state[0]["punch"] = 0
    bench.start_ranges(0, OP_DISCARD, [(8, 2), (16, 1)])
    assert bench.ended() == [(0, 0)]


def test_direct_io_uses_what_is_aligned_and_copies_the_rest(direct: Bench, image: Path) -> None:
    before = image.read_bytes()
    direct.start(0, OP_READ, 2, 512)
    assert direct.sqe().opcode == IORING_OP_READV
    direct.complete(0, 700)  # part of a sector does not count
    sqe = direct.sqe()
    assert (sqe.opcode, sqe.offset, sqe.address, sqe.length) == (IORING_OP_READ, 4608, direct.address(512), 512)
    direct.complete(0, 511)
    assert direct.ended() == [(0, errno.EIO)]
    direct.start(0, OP_READ, 64, 8)  # copied, at once
    assert direct.ended() == [(0, 0)]
    assert direct.memory.array(direct.address(0), 512).tobytes() == before[4096:4608]
    assert direct.q.state[0]["bounced"] == 1
    direct.q.state[0]["memory_align"] = 4  # of addresses; lengths are whole sectors yet
    direct.start(0, OP_READ, 64, 8)
    assert direct.ended() == [(0, 0)]
    direct.q.state[0]["memory_align"] = 512
    assert direct.q.state[0]["bounced"] == 2
    direct.memory.array(direct.address(0), 512)[:] = 7
    direct.start(1, OP_WRITE, 64, 8, FLAG_FUA)
    assert image.read_bytes()[4096:4608] == b"\7" * 512
    assert direct.ended() == []
    assert direct.sqe().opcode == IORING_OP_FSYNC  # its durability
    direct.complete(4, 0)
    assert direct.ended() == [(1, 0)]
    direct.start(2, OP_READ, 1, 512)
    direct.sqe()
    direct.complete(2, -errno.EINVAL)  # it asks for more than it told
    assert direct.ended() == [(2, 0)]
    os.truncate(image, 4096 + 700)
    direct.start(3, OP_READ, 128, 8)
    assert direct.ended() == [(3, errno.EIO)]
    direct.start(3, OP_READ, 64, 8, offset=8192)
    assert direct.ended() == [(3, errno.EIO)]


def test_a_write_in_place_that_blocked_makes_the_next_ones_wait_elsewhere(bench: Bench, image: Path) -> None:
    data = bench.memory.array(bench.address(0), 4096)
    data[:] = 5
    bench.q.state[0]["inline_after"] = 0
    bench.start(0, OP_WRITE, 8, 512)
    assert bench.ended() == [(0, 0)]
    assert image.read_bytes()[4096:8192] == b"\5" * 4096
    for pieces, length in ((4, 512), (2, 4095)):  # not whole pages
        bench.start(0, OP_WRITE, pieces, length)
        assert bench.sqe().opcode == IORING_OP_WRITEV
        bench.complete(0, pieces * length)
        assert bench.ended() == [(0, 0)]
    bench.q.state[0]["inline_after"] = 1 << 62
    bench.start(0, OP_WRITE, 8, 512)
    assert bench.sqe().opcode == IORING_OP_WRITEV
    bench.complete(0, 4096)
    assert bench.ended() == [(0, 0)]


def test_a_system_that_takes_no_submissions(bench: Bench) -> None:
    bench.start(0, OP_READ)
    bench.start(1, OP_FLUSH)
    bench.start_ranges(2, OP_WRITE_ZEROES, [(8, 2)])
    give_up(bench.vring, bench.mem, bench.requests, bench.q)
    assert sorted(bench.ended()) == [(0, errno.EIO), (1, errno.EIO), (2, errno.EIO)]
    assert uring_pending(bench.q.ring) == 0


@pytest.mark.compiled
def test_the_loop_counts_no_references(image: Path) -> None:
    with Guest(f"file:{image}") as guest:
        assert guest.queue.write(0, bytes(512)) == OK
    assert file_worker_loop.signatures
    for types in file_worker_loop.signatures:
        check(ir_of(file_worker_loop, *types))
