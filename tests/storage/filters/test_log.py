"""`log`: what a line says, where it goes, and that a file that takes nothing holds nobody."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
from pathlib import Path

import pytest

from storage.filters.harness import SECTOR, Call, LowerDisk, filtered, flush, read_call, run, write_call
from storage.test_timer import FakeClock
from virtblk.storage.filters.log import QUEUE, LineWriter
from virtblk.storage.request import FLAG_FUA, FLAG_UNMAP, OP_DISCARD, OP_FLUSH, OP_WRITE_ZEROES
from waiting import PATIENCE, wait_until


def test_a_line_for_each_request(tmp_path: Path) -> None:
    clock, lower = FakeClock(), LowerDisk()
    path = tmp_path / "log"
    disk = filtered(lower, f"log?file={path}", clock=clock)
    disk.start()
    clock.now += 1.5
    lower.fails = lambda request: errno.ENOSPC if request.op == OP_DISCARD else 0
    lower.hold = True
    calls = [
        read_call(512, 1024),
        write_call(0, bytes(512), FLAG_FUA),
        Call(OP_FLUSH),
        Call(OP_DISCARD, ranges=[(0, 512), (1024, 4096)]),
        Call(OP_WRITE_ZEROES, ranges=[(i * 512, 512) for i in range(9)], flags=FLAG_UNMAP | FLAG_FUA),
    ]
    disk.submit([call.request for call in calls])
    clock.now += 0.00025
    lower.let_go()
    assert [call.error for call in calls] == [0, 0, 0, errno.ENOSPC, 0]
    disk.close()
    eight = "/".join(f"{i * 512}+512" for i in range(8))
    assert path.read_text().splitlines() == [
        "t=1.500000 op=read offset=512 length=1024 flags=- id=1 latency_us=250.0 errno=0",
        "t=1.500000 op=write offset=0 length=512 flags=fua id=2 latency_us=250.0 errno=0",
        "t=1.500000 op=flush offset=0 length=0 flags=- id=3 latency_us=250.0 errno=0",
        "t=1.500000 op=discard ranges=0+512/1024+4096 flags=- id=4 latency_us=250.0 errno=ENOSPC",
        f"t=1.500000 op=zero ranges={eight}/... flags=fua+unmap id=5 latency_us=250.0 errno=0",
    ]
    assert disk.counters()["log_lines"] == 5
    assert disk.counters()["log_dropped"] == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    disk = filtered(LowerDisk(), f"log?file={path}")
    disk.start()
    flush(disk)
    disk.close()
    lines = path.read_text().splitlines()
    assert (len(lines), lines[0]) == (2, "before")


def test_without_a_file_lines_go_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="virtblk.storage.log")
    disk = filtered(LowerDisk(), "log")
    disk.start()
    flush(disk)
    disk.close()
    assert [record.name for record in caplog.records] == ["virtblk.storage.log"]
    assert "op=flush" in caplog.text


def test_a_file_that_takes_nothing_holds_nobody(tmp_path: Path) -> None:
    """A FIFO that nobody empties: the pipe fills, then the queue; the rest is dropped, and close() gives up."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    disk = filtered(LowerDisk(), f"log?file={path}")
    disk.start()
    count = 3 * QUEUE
    for _ in range(count // 128):
        assert run(disk, *[Call(OP_FLUSH) for _ in range(128)]) == [0] * 128
    disk.close()
    counters = disk.counters()
    assert counters["log_dropped"] > 0
    assert counters["log_lines"] > 0
    assert counters["log_dropped"] + counters["log_lines"] == count
    got = os.read(reader, 1 << 20)
    assert got.count(b"\n") == counters["log_lines"]
    os.close(reader)


def test_a_fifo_whose_reader_has_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    disk = filtered(LowerDisk(), f"log?file={path}")
    disk.start()
    os.close(reader)
    for _ in range(2):
        flush(disk)
        before = disk.counters()["log_dropped"]
        wait_until(lambda before=before: disk.counters()["log_dropped"] >= max(1, before))
    disk.close()
    assert disk.counters()["log_lines"] == 0
    assert disk.counters()["log_dropped"] == 2
    assert caplog.text.count("lines are dropped: Broken pipe") == 1


def test_a_line_after_half_a_line_begins_a_line(tmp_path: Path) -> None:
    """The pipe takes 4096 bytes, which is no whole number of lines; then its reader is replaced."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    assert fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096) == 4096
    writer = LineWriter(fd)
    for _ in range(100):
        writer.put("x" * 98 + "\n")
    writer.start()
    waiting = select.poll()
    waiting.register(reader, select.POLLIN)
    assert waiting.poll(PATIENCE * 1000)
    os.close(reader)
    wait_until(lambda: writer.dropped)
    writer.put("lost\n")
    wait_until(lambda: writer.dropped == 60)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 4096).endswith(b"\n" + b"x" * (4096 - 41 * 99))
    writer.put("last\n")
    writer.close()
    assert os.read(reader, 4096) == b"\nlast\n"
    assert (writer.written, writer.dropped) == (42, 60)
    os.close(reader)


def test_a_disk_that_was_never_started_closes(tmp_path: Path) -> None:
    disk = filtered(LowerDisk(SECTOR), f"log?file={tmp_path / 'log'}")
    disk.close()
    disk.close()
