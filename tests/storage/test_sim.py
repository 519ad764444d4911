"""`sim:` as a storage: its keys, what it refuses, and what it does under filters, by a clock of the test's own."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from storage.pending import Pending, flush, read, write
from virtblk.errors import UsageError
from virtblk.jit import threads
from virtblk.names import parse_name
from virtblk.storage.filters import apply_filters
from virtblk.storage.open import open_storage
from virtblk.storage.request import KIND_REQUESTS, KIND_SIM, OP_DISCARD, OP_WRITE_ZEROES
from virtblk.storage.sim.disk import SimStorage, extent
from virtblk.storage.sim.profiles import PROFILES, parse_profile, seek_curve

MS = 1_000_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sim:floppy", "profile 'floppy' is unknown (known: sata, fusion-io)"),
        ("sim:sata?colour=red", "unknown key 'colour'"),
        ("sim:fusion-io?rpm=7200", "unknown key 'rpm'"),
        ("sim:sata?rpm=0", "rpm '0': give a whole number from 1000 to 30000"),
        ("sim:sata?rpm=fast", "rpm 'fast': give a whole number from 1000 to 30000"),
        ("sim:sata?depth=0", "depth '0': give a whole number from 1 to 256"),
        ("sim:sata?reorder=maybe", "reorder 'maybe': give on or off"),
        ("sim:sata?seek_min=2", "seek_min '2': give a time with its unit"),
        ("sim:sata?seek_max=2m", "seek_max '2m': give a time from 0us to 1s"),
        ("sim:sata?seek_avg=1ms", "no arm seeks in"),
        ("sim:sata?seek_avg=17ms", "no arm seeks in"),
        ("sim:sata?read_ahead=1m", "read_ahead 1048576 is more than a segment"),
        ("sim:sata?read_ahead=1000", "read_ahead 1000: give a multiple of 512"),
        ("sim:sata?write_cache=2g", "write_cache '2g': give a size from 0 to 1g"),
        ("sim:sata?size=much", "size 'much': give bytes or a size such as"),
        ("sim:sata?size=17t", "size '17t': give a size from 1m to 16t"),
        ("sim:sata?size=1048577", "size 1048577: give a multiple of 512"),
        ("sim:sata?block_size=3", "block_size 3"),
        ("sim:sata?speed=0", "speed '0': give a whole number from 1 to 100"),
        ("sim:fusion-io?channels=0", "channels '0'"),
        ("sim:fusion-io?page=600", "page 600: give a multiple of 512"),
        ("sim:fusion-io?write_buffer=512", "write_buffer 512 holds no page; give 4096 or more"),
    ],
)
def test_a_wrong_parameter_is_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_storage(parse_name(name))
    text = str(caught.value)
    assert words in text
    assert text.startswith(f"disk '{name}': ")
    assert "\n" not in text


@pytest.mark.parametrize("profile", PROFILES)
def test_every_default_is_within_its_bounds_and_can_be_said(profile: str) -> None:
    keys = "&".join(f"{key}={described.default}" for key, described in PROFILES[profile].items())
    assert parse_profile(parse_name(f"sim:{profile}?{keys}")) == parse_profile(parse_name(f"sim:{profile}"))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_key_is_documented_with_its_default(profile: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sim.md").read_text()
    section = page.partition(f"## `sim:{profile}`")[2].partition("\n## ")[0]
    for key, described in PROFILES[profile].items():
        assert f"| `{key}` | {described.default} |" in section, key


def test_a_disk_is_sparse_and_has_what_a_memory_disk_has() -> None:
    disk = open_storage(parse_name("sim:sata"))
    assert isinstance(disk, SimStorage)
    assert (disk.kind, disk.size, disk.block_size) == (KIND_SIM, 500 << 30, 512)
    assert disk.can_flush
    assert disk.can_discard
    disk.populate()  # not 500 GiB
    disk.close()
    disk.close()


def test_no_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(UsageError, match="no memory for 1m"):
        open_storage(parse_name("sim:sata?size=1m"))


def test_the_seek_curve_goes_through_its_points() -> None:
    values = parse_profile(parse_name("sim:sata?seek_min=1ms&seek_avg=8ms&seek_max=16ms"))
    least, root, linear = seek_curve(values)
    assert least == MS
    assert least + root * (1 / 3) ** 0.5 + linear / 3 == pytest.approx(8 * MS)
    assert least + root + linear == pytest.approx(16 * MS)


# Under filters.


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def disk_and_clock(monkeypatch: pytest.MonkeyPatch) -> tuple[SimStorage, Clock]:
    """A disk whose thread does nothing: the test takes its turns."""
    clock = Clock()
    monkeypatch.setattr(SimStorage, "_run", lambda self: None)
    return SimStorage(parse_name("sim:sata?size=1g&depth=1&speed=2"), clock), clock


def test_requests_end_when_the_model_says(disk_and_clock: tuple[SimStorage, Clock]) -> None:
    disk, clock = disk_and_clock
    far, near, wrote = read(1 << 29, 4096), read(1 << 20, 4096), write(1 << 20, b"w" * 4096)
    disk.submit([far, near, wrote, flush()])
    ended: list[Pending] = []
    turns = 0
    while (pause := disk.turn()) is not None:
        assert turns < 100
        turns += 1
        ended += [request for request in (far, near, wrote) if request.done and request not in ended]
        clock.now += round(pause * 1e9)
    assert ended[0] is far
    assert far.done
    assert near.done
    assert bytes(near.buffer) in (bytes(4096), b"w" * 4096)  # in flight together
    again = read(1 << 20, 4096)
    disk.submit([again])
    while (pause := disk.turn()) is not None:
        clock.now += round(pause * 1e9)
    assert bytes(again.buffer) == b"w" * 4096
    assert clock.now > MS
    disk.close()


def test_more_requests_than_the_model_holds_wait_for_their_turn(disk_and_clock: tuple[SimStorage, Clock]) -> None:
    disk, clock = disk_and_clock
    requests = [read(n * 4096, 4096) for n in range(300)]
    disk.submit(requests)
    assert len(disk._backlog) == 300
    disk.turn()
    assert len(disk._backlog) == 44
    while (pause := disk.turn()) is not None:
        clock.now += round(pause * 1e9)
    assert all(request.done for request in requests)
    disk.close()


def test_ranges_are_one_to_the_model() -> None:
    zeroes = Pending(OP_WRITE_ZEROES, ranges=[(4096, 512), (0, 1024)])
    assert extent(zeroes) == (4096, 1536)
    assert extent(Pending(OP_WRITE_ZEROES)) == (0, 0)
    assert extent(Pending(OP_DISCARD, ranges=[(4096, 512)])) == (0, 0)


@pytest.mark.parametrize("profile", PROFILES)
def test_under_a_filter_it_is_as_slow(profile: str) -> None:
    """On its own thread, by the real clock."""
    disk = apply_filters(open_storage(parse_name(f"sim:{profile}?size=1m&speed=100")), ["stats"])
    assert disk.kind == KIND_REQUESTS
    disk.start()
    data = os.urandom(4096)
    wrote = write(4096, data)
    disk.submit([wrote])
    assert wrote.result() == 0
    got = read(4096, 4096)
    disk.submit([got])
    assert got.result() == 0
    assert bytes(got.buffer) == data
    disk.close()


def test_without_a_thread_requests_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    disk = open_storage(parse_name("sim:fusion-io?size=1m"))
    monkeypatch.setattr(threads.threading.Thread, "start", refuse)
    request = read(0, 512)
    disk.submit([request])
    assert request.result() == 11
    disk.close()
