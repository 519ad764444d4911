"""`stats`: counts and histograms against a plain recount."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.filters.harness import SECTOR, Call, LowerDisk, filtered, flush, read_call, run, write_call
from virtblk.storage.request import OP_DISCARD, OP_FLUSH, OP_NONE, OP_READ, OP_WRITE_ZEROES

WHERE = st.tuples(st.integers(0, 4095), st.integers(1, 64))


@given(st.lists(WHERE, max_size=20))
def test_histograms_against_a_recount(reads: list[tuple[int, int]]) -> None:
    disk = filtered(LowerDisk(4160 * SECTOR), "stats")
    run(disk, *[read_call(first * SECTOR, count * SECTOR) for first, count in reads])
    stats = disk._ops[OP_READ]
    assert (stats.count, stats.bytes) == (len(reads), sum(count * SECTOR for _first, count in reads))
    for size, number in stats.sizes.items():
        assert number == sum(size <= count * SECTOR < 2 * size for _first, count in reads)
    assert stats.sizes.total() == stats.alignments.total() == len(reads)
    for alignment, number in stats.alignments.items():
        at_most = alignment == 1 << 20
        assert number == sum(
            first * SECTOR % alignment == 0 and (at_most or first * SECTOR % (2 * alignment) != 0)
            for first, _count in reads
        )


def test_report_file_and_counters(tmp_path: Path) -> None:
    lower, path = LowerDisk(1 << 22), tmp_path / "stats"
    lower.fails = lambda request: errno.EIO if request.op == OP_DISCARD else 0
    path.write_text("of the run before\n")
    disk = filtered(lower, f"stats?file={path}")
    run(disk, read_call(0, 4096), read_call(4096, 4608), read_call(1536, 512), write_call(1 << 21, bytes(512)))
    run(disk, Call(OP_FLUSH), Call(OP_DISCARD, ranges=[(0, 8192), (8192, 512)]), Call(OP_WRITE_ZEROES, ranges=[]))
    run(disk, Call(OP_NONE))
    report = (
        "read count=3 bytes=9216 errors=0\n"
        "  size 512=1 4k=2\n"
        "  alignment 512=1 4k=1 1m=1\n"
        "write count=1 bytes=512 errors=0\n"
        "  size 512=1\n"
        "  alignment 1m=1\n"
        "flush count=1 bytes=0 errors=0\n"
        "discard count=1 bytes=8704 errors=1\n"
        "  size 512=1 8k=1\n"
        "  alignment 8k=1 1m=1\n"
        "zero count=1 bytes=0 errors=0\n"
    )
    assert disk.report() == report
    counters = disk.counters()
    assert (counters["stats_read_count"], counters["stats_read_bytes"]) == (3, 9216)
    assert (counters["stats_discard_errors"], counters["stats_flush_count"]) == (1, 1)
    disk.close()
    assert path.read_text() == report
    path.unlink()
    disk.close()
    assert not path.exists()


def test_a_file_that_cannot_be_written_at_the_end_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    disk = filtered(LowerDisk(), f"stats?file={folder / 'stats'}")
    (folder / "stats").unlink()
    folder.rmdir()
    flush(disk)
    disk.close()
    assert "cannot write" in caplog.text
