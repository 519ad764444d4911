"""The timing of `sim:sata`: against a naive drive, and in a few cases that can be worked out by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from naive.sim_sata import Command, NaiveSata, Parameters
from storage.sim_harness import Sata
from virtblk.storage.request import OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES
from virtblk.storage.sim.sata import sata_advance

MS, US = 1_000_000, 1_000
REVOLUTION = 60 * 10**9 // 7200

#: Times in ns between arrivals: at once, within a command's overhead, and so long that everything has ended.
GAPS = st.sampled_from([0, 0, 0, 1, 50 * US, MS, 7 * MS, 40 * MS])
#: Places near each other, so that all caches are met; and a far one.
PLACES = st.one_of(st.integers(0, 600), st.integers(0, 40).map(lambda n: n * 64), st.just(1_000_000))
OPS = st.sampled_from([OP_READ, OP_READ, OP_READ, OP_WRITE, OP_WRITE, OP_FLUSH, OP_DISCARD, OP_WRITE_ZEROES])
ARRIVALS = st.lists(st.tuples(GAPS, OPS, PLACES, st.sampled_from([0, 1, 8, 64, 200]), st.booleans()), max_size=40)
DRIVES = st.fixed_dictionaries(
    {
        "depth": st.sampled_from([1, 2, 5, 32]),
        "reorder": st.sampled_from(["on", "off"]),
        "merge": st.sampled_from(["0", "8k", "512k"]),
        "max_skips": st.sampled_from([0, 3, 64]),
        "segments": st.integers(1, 3),
        "read_ahead": st.sampled_from(["0", "8k", "64k"]),
        "segment": st.sampled_from(["64k", "96k"]),
        "write_cache": st.sampled_from(["0", "0", "16k", "128k"]),
        "overhead": st.sampled_from(["0us", "100us"]),
        "rpm": st.sampled_from([7200, 5400]),
        "rate": st.sampled_from(["110m", "41234567"]),
        "link": st.sampled_from(["300m", "20m"]),
    }
)


def twin_of(drive: Sata) -> NaiveSata:
    state = drive.m.sata[0]
    names = (name for name in Parameters.__dataclass_fields__ if name != "seek")
    values = {name: int(state[name]) for name in names}
    seek = tuple(float(state[name]) for name in ("seek_min", "seek_root", "seek_linear"))
    return NaiveSata(Parameters(seek=seek, **values))  # type: ignore[arg-type]


@given(DRIVES, ARRIVALS)
def test_any_arrivals_against_a_naive_drive(
    keys: dict[str, object], arrivals: list[tuple[int, int, int, int, bool]]
) -> None:
    drive = Sata(**keys)
    twin = twin_of(drive)
    now = 0
    for number, (gap, op, sector, sectors, fua) in enumerate(arrivals):
        now += gap
        drive.submit(number, op, sector, sectors, now, fua=fua)
        twin.advance(now)
        twin.submit(Command(number, op, sector, sectors, fua), now)
        assert drive.ended == twin.ended
    drive.run()
    while twin.busy is not None:
        twin.advance(twin.due)
    assert drive.ended == twin.ended
    assert sorted(number for number, _ in drive.ended) == list(range(len(arrivals)))
    assert drive.m.sata[0]["dirty"] == drive.m.sata[0]["dirty_sectors"] == 0


@given(DRIVES, ARRIVALS)
def test_it_does_not_matter_how_often_the_time_is_told(
    keys: dict[str, object], arrivals: list[tuple[int, int, int, int, bool]]
) -> None:
    """A worker that wakes late ends what was due meanwhile, in the same order; only what it brings comes later."""
    often, late = Sata(**keys), Sata(**keys)
    for number, (_, op, sector, sectors, fua) in enumerate(arrivals):
        for drive in (often, late):
            drive.submit(number, op, sector, sectors, 0, fua=fua)
    often.run()
    sata_advance(late.m, 10**15)
    at_last = late.m.done[: late.m.state[0]["done"]].tolist()
    assert [number for number, _ in late.ended] + at_last == [number for number, _ in often.ended]


def times(drive: Sata) -> dict[int, int]:
    drive.run()
    return dict(drive.ended)


def test_a_read_waits_for_the_platter_and_what_follows_it_for_nothing() -> None:
    """Sector 0 is under the head at 0, so a command that takes 100 us to note misses it by that."""
    drive = Sata(rate=512 * 10**5, read_ahead=0, depth=2)  # 10 us a sector
    drive.submit(0, OP_READ, 0, 8, 0)
    drive.submit(1, OP_READ, 8, 8, 0)
    assert times(drive) == {0: REVOLUTION + 80 * US, 1: REVOLUTION + 160 * US}


def test_a_write_without_a_cache_misses_a_revolution_where_the_drive_knows_one_command() -> None:
    """With two it has noted the second while it wrote the first."""
    for depth, missed in ((1, REVOLUTION), (2, 0)):
        drive = Sata(rate=512 * 10**5, depth=depth)
        drive.submit(0, OP_WRITE, 100, 8, 0)
        drive.submit(1, OP_WRITE, 108, 8, 0)
        ended = times(drive)
        assert ended[1] - ended[0] == missed + 80 * US


def test_seeks_have_the_three_times_of_the_data_sheet() -> None:
    """A third of the way takes seek_avg, all of it seek_max; the platter adds less than a revolution."""
    keys = {"size": "100g", "seek_min": "1ms", "seek_avg": "8ms", "seek_max": "16ms", "overhead": "0us"}
    state = Sata(**keys).m.sata[0]
    track, tracks = int(state["track"]), int(state["tracks"])
    for part, at_least in ((1, MS), (tracks // 3, 8 * MS), (tracks - 1, 16 * MS)):
        drive = Sata(**keys)
        drive.submit(0, OP_READ, part * track, 1, 0)
        took = times(drive)[0]
        assert at_least * 0.99 <= took < at_least * 1.01 + REVOLUTION + MS / 2


def test_what_was_read_ahead_comes_out_of_the_track_cache() -> None:
    drive = Sata(rate=512 * 10**5, link=512 * 10**6, read_ahead="64k", overhead="0us")  # 10 us and 1 us a sector
    drive.submit(0, OP_READ, 0, 8, 0)
    drive.run()
    drive.submit(1, OP_READ, 8, 8, 5 * MS)
    drive.submit(2, OP_READ, 64, 8, 5 * MS)
    drive.submit(3, OP_READ, 136, 8, 5 * MS)  # the first one behind it: a wait for the platter
    ended = times(drive)
    assert ended[1] == 5 * MS + 8 * US
    assert ended[2] == 5 * MS + 16 * US
    assert ended[3] > 5 * MS + 100 * US


def test_a_write_makes_the_track_cache_forget() -> None:
    drive = Sata(read_ahead="64k", overhead="0us")
    drive.submit(0, OP_READ, 0, 8, 0)
    drive.run()
    drive.submit(1, OP_WRITE, 10, 1, 20 * MS)
    drive.run()
    begun = 40 * MS
    drive.submit(2, OP_READ, 0, 8, begun)
    assert times(drive)[2] - begun > 100 * US


def test_the_write_cache_answers_at_once_until_it_is_full_and_a_flush_waits_for_all() -> None:
    drive = Sata(write_cache="8k", link=512 * 10**6, overhead="0us", depth=32)
    for number in range(3):
        drive.submit(number, OP_WRITE, number * 1000, 8, 0)
    drive.submit(3, OP_FLUSH, 0, 0, 0)
    ended = times(drive)
    assert [ended[0], ended[1]] == [8 * US, 16 * US]
    assert ended[2] > 100 * US
    assert ended[3] > ended[2]


def test_fua_is_written_through() -> None:
    drive = Sata(write_cache="8k", overhead="0us")
    drive.submit(0, OP_WRITE, 1000, 8, 0, fua=True)
    assert times(drive)[0] > 100 * US


def order(reorder: str, depth: int) -> list[int]:
    seeks = {"seek_min": "1ms", "seek_avg": "400ms", "seek_max": "1s"}
    drive = Sata(reorder=reorder, depth=depth, read_ahead=0, size="500g", **seeks)
    drive.submit(9, OP_READ, 0, 8, 0)  # keeps the drive busy while the others come
    for number, place in enumerate((5, 1, 4, 2, 3)):
        drive.submit(number, OP_READ, place * 10**8, 8, 0)
    return [number for number in times(drive) if number != 9]


def test_the_host_sorts_if_it_may() -> None:
    assert order("off", 1) == [0, 1, 2, 3, 4]
    assert order("on", 1) == [1, 3, 4, 2, 0]


def test_the_drive_sorts_what_it_knows() -> None:
    """Each of the five is further away than all that the platter can make up for."""
    assert order("off", 32) == [1, 3, 4, 2, 0]


def test_nothing_waits_for_ever_in_the_drive() -> None:
    """Reads next to the head keep coming; the one far away is overtaken by `max_skips`."""
    drive = Sata(depth=4, max_skips=5, overhead="0us", read_ahead=0)
    drive.submit(0, OP_READ, 0, 8, 0)
    drive.submit(99, OP_READ, 9 * 10**8, 8, 0)
    number = 0
    while 99 not in dict(drive.ended):
        assert number < 20
        number += 1
        due = int(drive.m.sata[0]["due"])
        drive.submit(number, OP_READ, 8 * number, 8, due - 1)
        drive.advance(due)
    assert [n for n, _ in drive.ended].index(99) == 6


def test_the_host_makes_one_command_of_neighbours() -> None:
    """Five in a row, in any order, and one more than `merge` allows; only where the host sorts at all."""
    for reorder, commands in (("on", [3, 1, 4, 2, 0]), ("off", [])):
        drive = Sata(reorder=reorder, depth=1, read_ahead=0, merge="20k", size="500g")
        drive.submit(9, OP_READ, 0, 8, 0)  # keeps the drive busy while the others come
        for number, place in enumerate((4, 1, 3, 0, 2, 5)):
            drive.submit(number, OP_READ, 10**8 + place * 8, 8, 0)
        ended = times(drive)
        together = [number for number in ended if number not in (9, 5) and ended[number] == ended[0]]
        assert together == (commands or [0])
        assert ended[5] > ended[0]
