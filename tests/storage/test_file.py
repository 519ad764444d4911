"""`file:`: what can be opened and how, and each operation on threads against plain bytes, in all cache modes."""

from __future__ import annotations

import errno
import logging
import os
import random
import termios
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.errors import OpenError, UsageError
from virtblk.names import parse_name
from virtblk.storage import file as file_module
from virtblk.storage.file import CACHES, CHUNK, FileStorage, RangeLock, open_file
from virtblk.storage.io_request import Request
from virtblk.storage.request import (
    FLAG_FUA,
    FLAG_UNMAP,
    KIND_FILE,
    KIND_REQUESTS,
    OP_DISCARD,
    OP_FLUSH,
    OP_IDENTIFY,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
)
from waiting import PATIENCE, Background, wait_until

SIZE = 64 << 10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture(autouse=True)
def io_uring_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is or not: nothing here uses it."""
    monkeypatch.setattr(file_module.io_uring, "unavailable", lambda: "")


def opened(path: Path, keys: str = "") -> FileStorage:
    return open_file(parse_name(f"file:{path}{keys}"))


def perform(disk: FileStorage, op: int, **fields: object) -> int:
    """The errno that a request ends with."""
    results: list[int] = []
    ended = threading.Event()

    def on_end(_: Request, error: int) -> None:
        results.append(error)
        ended.set()

    disk.submit([Request(op, on_end=on_end, **fields)])  # type: ignore[arg-type]
    assert ended.wait(PATIENCE)
    return results[0]


# Opening.


def test_an_image(image: Path) -> None:
    with closing(opened(image)) as disk:
        assert (disk.name, disk.size, disk.block_size, disk.kind) == (f"file:{image}", SIZE, 512, KIND_FILE)
        assert (disk.read_only, disk.writeback, disk.writeback_settable) == (False, True, True)
        assert disk.can_flush
        assert disk.can_fua
        assert disk.can_write_zeroes
        disk.close()


def test_keys(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(opened(image, "?cache=writethrough&block_size=4k&read_only=on")) as disk:
        assert (disk.writeback, disk.block_size, disk.read_only, disk.can_discard) == (False, 4096, True, False)
    assert not caplog.messages
    opened(image, "?cache=unsafe").close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cache=unsafe: a flush does nothing" in caplog.text


def test_a_size_that_is_no_multiple_is_rounded_down_and_said(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(image, 10_000)
    with closing(opened(image)) as disk:
        assert disk.size == 9728
    with closing(opened(image, "?block_size=4k")) as disk:
        assert disk.size == 8192
    assert "the last 272 bytes are no whole block: left out" in caplog.messages[0]
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("?cache=writback", "cache 'writback': give one of writeback, writethrough, none, unsafe"),
        ("?read_only=maybe", "read_only 'maybe': give on or off"),
        ("?block_size=768", "block_size 768: give a power of two"),
        ("?size=1g", "unknown key 'size' (known: cache, block_size, read_only)"),
        ("\0", "a path holds no NUL"),
    ],
)
def test_keys_that_cannot_work(image: Path, keys: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        opened(image, keys)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(bytes(511))
    os.mkfifo(tmp_path / "fifo")
    cases = [
        ("missing", errno.ENOENT, "No such file or directory; make it first"),
        (".", errno.EISDIR, "directory"),
        (".?read_only=on", errno.EISDIR, "is a directory; give a file or a block device"),
        ("empty", errno.EINVAL, "0 bytes; a disk has one block of 512 at least"),
        ("short", errno.EINVAL, "511 bytes; a disk has one block of 512 at least"),
        ("fifo", errno.EINVAL, "is neither a regular file nor a block device"),
        ("fifo?read_only=on&cache=none", errno.EINVAL, "is neither a regular file nor a block device"),
    ]
    for name, code, words in cases:
        with pytest.raises(OpenError) as caught:
            opened(tmp_path / name if name != "." else tmp_path)
        assert (caught.value.errno, words in str(caught.value)) == (code, True), str(caught.value)
        assert f"disk 'file:{tmp_path}" in str(caught.value)
    real = os.open

    def denied(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *rest)

    monkeypatch.setattr(file_module.os, "open", denied)
    with pytest.raises(OpenError, match=r"Permission denied; to only read it, add \?read_only=on"):
        opened(tmp_path / "short")


def test_without_io_uring_it_says_so_and_uses_threads(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_module.io_uring, "unavailable", lambda: "it is forbidden")
    with closing(opened(image)) as disk:
        assert disk.kind == KIND_REQUESTS
    assert len(caplog.messages) == 1
    assert "no io_uring (it is forbidden): threads instead" in caplog.text


def test_where_direct_io_is_refused_the_page_cache_serves(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.open

    def refusing(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(file_module.os, "open", refusing)
    with closing(opened(image, "?cache=none")) as disk:
        assert perform(disk, OP_WRITE, offset=512, length=512, pieces=[memoryview(b"x" * 512)]) == 0
    assert "no direct I/O on this file system" in caplog.text
    assert image.read_bytes()[512:1024] == b"x" * 512


def test_what_a_block_device_tells(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that says it is one, with the answers of a disk of 4 KiB physical blocks."""
    answers = {
        file_module._BLKGETSIZE64: SIZE - 100,
        file_module._BLKSSZGET: 512,
        file_module._BLKPBSZGET: 4096,
        file_module._BLKIOMIN: 4096,
        file_module._BLKIOOPT: 65536,
        file_module._BLKALIGNOFF: -1,
        file_module._BLKROGET: 0,
    }
    limits = {"discard_max_bytes": 0}
    monkeypatch.setattr(file_module, "_ioctl", lambda fd, request, kind: answers[request])
    monkeypatch.setattr(file_module, "_queue_limit", lambda device, limit: limits[limit])
    monkeypatch.setattr(file_module.stat, "S_ISBLK", lambda mode: True)
    with closing(opened(image)) as disk:
        assert (disk.size, disk.block_size, disk.physical_block_size) == (SIZE - 512, 512, 4096)
        assert (disk.min_io_size, disk.opt_io_size, disk.alignment_offset) == (4096, 65536, 0)
        assert (disk.can_discard, disk.can_unmap) == (False, False)
    limits["discard_max_bytes"] = 1 << 20
    answers[file_module._BLKSSZGET], answers[file_module._BLKALIGNOFF] = 4096, 1024
    with closing(opened(image)) as disk:
        assert (disk.block_size, disk.size, disk.alignment_offset) == (4096, SIZE - 4096, 1024)
        assert (disk.can_discard, disk.can_unmap) == (True, True)
    answers[file_module._BLKROGET] = 1
    with pytest.raises(OpenError, match="read-only block device") as caught:
        opened(image)
    assert caught.value.errno == errno.EROFS
    opened(image, "?read_only=on").close()


def test_what_the_block_layer_tells_of_its_disks() -> None:
    """Each disk that this machine has, and a number that is none."""
    limit = "logical_block_size"
    for directory in Path("/sys/dev/block").iterdir():
        known = [path for path in (directory / "queue" / limit, directory / ".." / "queue" / limit) if path.exists()]
        if known:
            device = os.makedev(*map(int, directory.name.split(":")))
            assert file_module._queue_limit(device, limit) == int(known[0].read_text())
    assert file_module._queue_limit(os.makedev(4095, 0), limit) == 0


def test_what_a_driver_does_not_know_is_0(image: Path) -> None:
    """FIONREAD stands for a question that has an answer: how much there is to read."""
    reader, writer = os.pipe()
    os.write(writer, b"12345")
    assert file_module._ioctl(reader, termios.FIONREAD, "i") == 5
    os.close(reader)
    os.close(writer)
    with image.open("rb") as file:
        assert file_module._ioctl(file.fileno(), file_module._BLKIOMIN, "I") == 0


@pytest.mark.parametrize(
    ("told", "least", "logical", "expected"),
    [
        ((4, 512), 512, 512, (4, 512)),
        ((0, 0), 512, 512, (512, 512)),
        ((0, 0), 512, 4096, (4096, 4096)),
        ((0, 0), 4096, 512, (4096, 4096)),
        ((4, 0), 8192, 512, (4096, 4096)),  # nothing works: a page is as good as anything
    ],
)
def test_alignment_is_what_the_system_tells_or_what_works(
    told: tuple[int, int],
    least: int,
    logical: int,
    expected: tuple[int, int],
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = os.preadv

    def strict(fd: int, pieces: Sequence[memoryview], offset: int) -> int:
        if len(pieces[0]) % least:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, pieces, offset)

    monkeypatch.setattr(file_module, "dio_alignment", lambda fd: told)
    monkeypatch.setattr(file_module.os, "preadv", strict)
    with image.open("rb") as file:
        assert file_module._alignment(file.fileno(), logical) == expected


def test_a_file_that_cannot_be_read_has_no_alignment(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "dio_alignment", lambda fd: (0, 0))
    with image.open("ab") as file, pytest.raises(OSError, match="Bad file descriptor"):
        file_module._alignment(file.fileno(), 512)


def test_without_proc_a_description_is_a_duplicate(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not where it has to differ: the page cache beside direct I/O."""
    with closing(opened(image)) as disk:

        def refuse(path: str, flags: int) -> int:
            raise OSError(errno.ENOENT, "No such file or directory")

        monkeypatch.setattr(file_module.os, "open", refuse)
        fd = disk.description()
        assert os.path.sameopenfile(fd, disk._fd)
        os.close(fd)
        with pytest.raises(FileNotFoundError):
            disk.description(direct=False)
        monkeypatch.undo()


def test_a_disk_without_a_second_description_is_not_opened_by_half(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stays open (the suite looks), and the error names the disk."""

    def fail(disk: FileStorage, *, direct: bool = True) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(FileStorage, "description", fail)
    with pytest.raises(OpenError, match="Too many open files") as caught:
        opened(image)
    assert caught.value.errno == errno.EMFILE
    assert str(image) in str(caught.value)


# Operations.


def test_the_threads_come_with_the_first_request_and_go(image: Path) -> None:
    disk = opened(image)
    disk.start()
    assert disk._threads == []
    assert perform(disk, OP_FLUSH) == 0
    threads = list(disk._threads)
    assert [thread.is_alive() for thread in threads] == [True] * disk.THREADS
    disk.close()
    assert [thread.is_alive() for thread in threads] == [False] * disk.THREADS


def unaligned(length: int, shift: int) -> memoryview:
    """Memory that starts `shift` bytes after a page does."""
    raw = np.zeros(length + 8192, np.uint8)
    at = -raw.ctypes.data % 4096 + shift
    return memoryview(raw)[at : at + length]


#: op, first sector, sizes of the pieces in bytes (made a multiple of 512 by the last), shift of their addresses.
STEP = st.tuples(
    st.sampled_from([OP_READ, OP_WRITE, OP_WRITE, OP_FLUSH, OP_DISCARD, OP_WRITE_ZEROES]),
    st.integers(0, SIZE // 512 - 1),
    st.lists(st.sampled_from([0, 1, 511, 512, 700, 4096, 5000]), max_size=5),
    st.sampled_from([0, 0, 1, 512]),
    st.sampled_from([0, FLAG_FUA, FLAG_UNMAP, FLAG_FUA | FLAG_UNMAP]),
)


class Twin:
    """The disk, and the bytes that it should hold."""

    def __init__(self, disk: FileStorage, path: Path) -> None:
        self.disk, self.path = disk, path
        self.bytes = bytearray(path.read_bytes())

    def step(self, op: int, sector: int, sizes: Sequence[int], shift: int, flags: int) -> None:
        start = sector * 512
        sizes = [*sizes, -sum(sizes) % 512]
        while start + sum(sizes) > SIZE:
            sizes = [*sizes[:-2], -sum(sizes[:-2]) % 512]
        length = sum(sizes)
        pieces = [unaligned(size, shift) for size in sizes]
        if op == OP_WRITE:
            for piece in pieces:
                piece[:] = random.randbytes(len(piece))
            assert perform(self.disk, op, offset=start, length=length, pieces=pieces, flags=flags) == 0
            self.bytes[start : start + length] = b"".join(pieces)
        elif op == OP_READ:
            assert perform(self.disk, op, offset=start, length=length, pieces=pieces) == 0
            assert b"".join(pieces) == self.bytes[start : start + length]
        elif op == OP_FLUSH:
            assert perform(self.disk, op) == 0
        elif length:
            other = (start + SIZE // 2) % SIZE  # a second range, far away
            assert perform(self.disk, op, ranges=[(start, length), (other, 512)], flags=flags) == 0
            for at, size in ((start, length), (other, 512)):
                if op == OP_WRITE_ZEROES:
                    self.bytes[at : at + size] = bytes(size)
                else:  # whatever it reads as now
                    piece = bytearray(size)
                    assert perform(self.disk, OP_READ, offset=at, length=size, pieces=[memoryview(piece)]) == 0
                    self.bytes[at : at + size] = piece

    def check(self) -> None:
        assert self.path.read_bytes() == self.bytes


def against_bytes(twin: Twin) -> None:
    @given(st.lists(STEP, max_size=8))
    def run(steps: list[tuple[int, int, list[int], int, int]]) -> None:
        for step in steps:
            twin.step(*step)
        twin.check()

    run()


@pytest.mark.parametrize("way", ["holes", "no holes"])
@pytest.mark.parametrize("cache", CACHES)
def test_any_requests_against_plain_bytes(image: Path, cache: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "no holes":  # neither PUNCH_HOLE nor ZERO_RANGE: zeroes are written
        monkeypatch.setattr(file_module, "fallocate", lambda *_: -errno.EOPNOTSUPP)
    with closing(opened(image, f"?cache={cache}")) as disk:
        against_bytes(Twin(disk, image))


def coarse(image: Path) -> FileStorage:
    """Direct I/O in units of 4 KiB (page cache where there is none)."""
    try:
        fd = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    return FileStorage("coarse", fd, SIZE, cache="none", read_only=False, memory_align=512, offset_align=4096)


def test_direct_io_in_units_larger_than_a_sector(image: Path) -> None:
    with closing(coarse(image)) as disk:
        against_bytes(Twin(disk, image))


def test_writes_to_sectors_of_one_page_at_once_lose_nothing(image: Path) -> None:
    """By several threads over and over; each keeps what its own last write put there."""
    with closing(coarse(image)) as disk:

        def write(sector: int) -> bytes:
            data = b""
            for turn in range(20):
                data = bytes([turn, sector]) * 256
                assert perform(disk, OP_WRITE, offset=512 * sector, length=512, pieces=[memoryview(data)]) == 0
            return data

        threads = [Background(write, sector) for sector in range(6)]
        expected = b"".join(thread.result() for thread in threads)
    assert image.read_bytes()[: len(expected)] == expected


def test_discard_and_unmap_give_space_back(image: Path) -> None:
    image.write_bytes(random.randbytes(SIZE))
    with closing(opened(image)) as disk:
        if not disk.can_discard:
            pytest.skip("this file system makes no holes")

        def blocks() -> int:
            assert perform(disk, OP_FLUSH) == 0
            return os.stat(image).st_blocks

        full = blocks()
        assert perform(disk, OP_DISCARD, ranges=[(0, 16384)]) == 0
        less = blocks()
        assert less < full
        assert perform(disk, OP_WRITE_ZEROES, ranges=[(16384, 16384)], flags=FLAG_UNMAP) == 0
        assert blocks() < less
        assert os.stat(image).st_size == SIZE


def test_zeroes_are_written_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large"
    size = 2 * CHUNK + 1024
    path.write_bytes(b"x" * (size + 512))
    monkeypatch.setattr(file_module, "fallocate", lambda *_: -errno.EOPNOTSUPP)
    with closing(opened(path)) as disk:
        assert perform(disk, OP_WRITE_ZEROES, ranges=[(512, size - 512)]) == 0
    assert path.read_bytes() == b"x" * 512 + bytes(size - 512) + b"x" * 512


# Errors.


def test_a_file_that_was_truncated(image: Path) -> None:
    with closing(opened(image)) as disk:
        os.truncate(image, 5000)
        buffer = bytearray(4096)
        assert perform(disk, OP_READ, offset=0, length=4096, pieces=[memoryview(buffer)]) == 0
        assert perform(disk, OP_READ, offset=4096, length=4096, pieces=[memoryview(buffer)]) == errno.EIO
        assert perform(disk, OP_READ, offset=32768, length=4096, pieces=[memoryview(buffer)]) == errno.EIO


def test_a_write_to_a_read_only_disk(image: Path) -> None:
    with closing(opened(image, "?read_only=on")) as disk:
        assert perform(disk, OP_WRITE, offset=0, length=512, pieces=[memoryview(bytes(512))]) == errno.EBADF
        assert perform(disk, OP_FLUSH) == 0


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([-errno.EINTR, -errno.EAGAIN, 0], 0),
        ([-errno.EOPNOTSUPP], errno.EOPNOTSUPP),
        ([-errno.EINTR] * 1000, errno.EINTR),
    ],
)
def test_an_interrupted_fallocate_is_tried_again_but_not_for_ever(
    answers: list[int], outcome: int, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(image)) as disk:
        given = iter(answers)
        monkeypatch.setattr(file_module, "fallocate", lambda *arguments: next(given))
        assert disk._fallocate(0, 0, 512) == outcome


def test_a_defect_of_ours_leaves_no_guest_waiting(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[Exception] = [ZeroDivisionError("ours"), MemoryError()]

    def broken(disk: FileStorage, pieces: Sequence[memoryview], offset: int) -> None:
        raise errors.pop()

    monkeypatch.setattr(FileStorage, "pread", broken)
    with closing(opened(image)) as disk:
        disk.start()
        for expected in (errno.ENOMEM, errno.EIO):
            assert perform(disk, OP_READ, offset=0, length=512, pieces=[memoryview(bytearray(512))]) == expected
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [f"{disk.name}: a request failed"]


def test_an_operation_that_is_none(image: Path) -> None:
    with closing(opened(image)) as disk:
        assert perform(disk, OP_IDENTIFY) == errno.EOPNOTSUPP


def test_after_a_failed_flush_all_fail(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a lost write-back once; a second fdatasync would say that all is well."""
    calls: list[int] = []

    def failing(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(opened(image)) as disk:
        assert perform(disk, OP_FLUSH) == 0
        monkeypatch.setattr(file_module.os, "fdatasync", failing)
        assert perform(disk, OP_FLUSH) == errno.ENOSPC
        monkeypatch.undo()
        assert perform(disk, OP_FLUSH) == errno.EIO
        assert perform(disk, OP_WRITE, offset=0, length=512, pieces=[memoryview(bytes(512))]) == 0
        assert perform(disk, OP_WRITE_ZEROES, ranges=[(0, 512)], flags=FLAG_FUA) == errno.EIO
        assert len(calls) == 1


def test_unsafe_flushes_nothing(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    monkeypatch.setattr(file_module.os, "fdatasync", lambda fd: pytest.fail("flushed"))
    real = os.pwritev

    def seen(fd: int, pieces: Sequence[memoryview], offset: int, how: int) -> int:
        flags.append(how)
        return real(fd, pieces, offset, how)

    monkeypatch.setattr(file_module.os, "pwritev", seen)
    for cache in ("unsafe", "writeback"):
        with closing(opened(image, f"?cache={cache}")) as disk:
            if cache == "unsafe":
                assert perform(disk, OP_FLUSH) == 0
            data = [memoryview(bytes(512))]
            assert perform(disk, OP_WRITE, offset=0, length=512, pieces=data, flags=FLAG_FUA) == 0
    assert flags == [0, os.RWF_DSYNC]


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([300, 212], 0),
        ([InterruptedError(), 512], 0),
        ([BlockingIOError(), InterruptedError(), 1, 511], 0),
        ([100, 0], errno.EIO),
        ([100, OSError(errno.ENOSPC, "full")], errno.ENOSPC),
        ([InterruptedError()] * 200, errno.EIO),
    ],
)
def test_transfers_go_on(answers: list[object], outcome: int) -> None:
    """Short ones from where they ended; what did nothing again, but not for ever."""
    asked: list[tuple[int, list[int]]] = []
    queue = iter(answers)

    def call(fd: int, pieces: Sequence[memoryview], offset: int) -> int:
        asked.append((offset, [len(piece) for piece in pieces]))
        answer = next(queue)
        if isinstance(answer, OSError):
            raise answer
        assert isinstance(answer, int)
        return answer

    pieces = [memoryview(bytes(200)), memoryview(b""), memoryview(bytes(312))]
    transfer: Callable[..., None] = file_module._transfer
    if outcome:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            transfer(call, 0, pieces, 1000)
        assert caught.value.errno == outcome
    else:
        transfer(call, 0, pieces, 1000)
    assert asked[0] == (1000, [200, 312])
    if answers == [300, 212]:
        assert asked[1:] == [(1300, [212])]


def test_more_pieces_than_one_call_takes(image: Path) -> None:
    data = random.randbytes(2000 * 8 + 384)
    with closing(opened(image)) as disk:
        pieces = [memoryview(data)[at : at + 8] for at in range(0, len(data), 8)]
        assert perform(disk, OP_WRITE, offset=512, length=len(data), pieces=pieces) == 0
        back = bytearray(len(data))
        views = [memoryview(back)[at : at + 8] for at in range(0, len(data), 8)]
        assert perform(disk, OP_READ, offset=512, length=len(data), pieces=views) == 0
        assert back == data


# Ranges that are held.


def test_sharers_go_together_and_an_exclusive_holder_alone() -> None:
    lock = RangeLock()
    entered: list[str] = []

    def enter(name: str, start: int, stop: int, exclusive: bool) -> None:
        with lock.hold(start, stop, exclusive=exclusive):
            entered.append(name)

    with lock.hold(0, 10, exclusive=False):
        enter("sharer", 5, 15, False)
        enter("beside", 10, 20, True)
        waits = Background(enter, "alone", 9, 12, True)
        wait_until(lambda: len(lock._changed._waiters) == 1)  # type: ignore[attr-defined]
        assert entered == ["sharer", "beside"]
    waits.result()
    assert entered == ["sharer", "beside", "alone"]
    with lock.hold(0, 10, exclusive=True):
        waits = Background(enter, "later", 0, 1, False)
        wait_until(lambda: len(lock._changed._waiters) == 1)  # type: ignore[attr-defined]
    waits.result()
    assert entered[-1] == "later"
