"""The timing of `sim:fusion-io`: against a naive card, and in cases that can be worked out by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from naive.sim_fusion_io import NaiveFusionIo
from storage.sim_harness import model
from virtblk.storage.request import OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES
from virtblk.storage.sim.fusion_io import channel_of, fusion_io_ends
from virtblk.storage.sim.state import SimModel

US = 1_000
OPS = st.sampled_from([OP_READ, OP_READ, OP_WRITE, OP_WRITE, OP_WRITE, OP_FLUSH, OP_DISCARD, OP_WRITE_ZEROES])
ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 90 * US, 2_000 * US]),
        OPS,
        st.integers(0, 200).map(lambda sector: sector * 512),
        st.sampled_from([0, 512, 1024, 4096, 20480]),
        st.booleans(),
    ),
    max_size=40,
)
CARDS = st.fixed_dictionaries(
    {
        "channels": st.sampled_from([1, 2, 7]),
        "page": st.sampled_from(["512", "2k", "4k"]),
        "write_buffer": st.sampled_from(["4k", "10k", "1m"]),
        "overhead": st.sampled_from(["0us", "10us"]),
    }
)


@given(CARDS, ARRIVALS)
def test_any_arrivals_against_a_naive_card(
    keys: dict[str, object], arrivals: list[tuple[int, int, int, int, bool]]
) -> None:
    m = model("fusion-io", **keys)
    names = ("channels", "page", "read", "program", "overhead", "places")
    twin = NaiveFusionIo(*(int(m.fusion[0][name]) for name in names))
    now = 0
    for gap, op, offset, length, fua in arrivals:
        now += gap
        assert fusion_io_ends(m, op, offset, length, fua, now) == twin.submit(op, offset, length, fua, now)
        assert 0 <= m.fusion[0]["programs"] <= m.fusion[0]["places"]


def ends(m: SimModel, op: int, offset: int, length: int, now: int = 0) -> int:
    return int(fusion_io_ends(m, op, offset, length, False, now))


def test_reads_of_different_channels_overlap_and_those_of_one_do_not() -> None:
    m = model("fusion-io", channels=4, page="4k", read="100us", overhead="10us")
    on: dict[int, list[int]] = {}
    for offset in range(0, 100 * 512, 512):
        on.setdefault(int(channel_of(m, offset)), []).append(offset)
    assert sorted(on) == [0, 1, 2, 3]
    assert [ends(m, OP_READ, offsets[0], 512) for offsets in on.values()] == [110 * US] * 4
    assert ends(m, OP_READ, on[0][1], 4096) == 210 * US
    two = next(offset for offset in on[0] if channel_of(m, offset + 4096) == 0)
    assert ends(m, OP_READ, two, 4608, 10**9) == 10**9 + 210 * US  # two pages on one channel


def test_writes_are_fast_until_the_buffer_is_full_then_as_fast_as_programs() -> None:
    """Four pages of room on two channels: from the fifth page on one has to end first."""
    m = model("fusion-io", channels=2, page="4k", program="1ms", overhead="0us", write_buffer="16k")
    assert [ends(m, OP_WRITE, 0, 4096) for _ in range(8)] == [0, 0, 0, 0] + [1000 * US] * 2 + [2000 * US] * 2


def test_a_flush_waits_for_all_programs_and_a_small_write_takes_a_page() -> None:
    m = model("fusion-io", page="4k", program="1ms", overhead="0us", write_buffer="8k")
    assert ends(m, OP_FLUSH, 0, 0) == 0
    assert [ends(m, OP_WRITE, 0, 512) for _ in range(3)] == [0, 0, 1000 * US]
    assert ends(m, OP_FLUSH, 0, 0, 5) == 2000 * US
    assert fusion_io_ends(m, OP_WRITE, 0, 512, True, 10**9) == 10**9 + 1000 * US


def test_the_rate_is_what_the_parameters_say() -> None:
    """With all channels busy: channels over page read, and channels over program."""
    m = model("fusion-io", channels=8, page="4k", read="100us", program="1ms", overhead="0us", write_buffer="64k")
    count = 8000
    last = max(ends(m, OP_READ, page * 4096, 512) for page in range(count))
    assert abs(count / last * 1e9 / (8 / 100e-6) - 1) < 0.1  # some channels have a few pages more
    start = 10**10
    last = max(ends(m, OP_WRITE, 0, 512, start) for _ in range(count)) - start
    assert abs(count / last * 1e9 / (8 / 1e-3) - 1) < 0.03
