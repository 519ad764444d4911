"""Index arithmetic against the specification's words, round the wrap; random numbers against known ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import INTERPRETED
from naive.ring import passed
from virtblk.jit.arith import mix64, u16, vring_need_event
from virtblk.jit.kernel import kernel

WIDTH = 12 if INTERPRETED else 24


@kernel
def native_mix64(value):
    return mix64(value)


@pytest.mark.parametrize("value", [0, 1, 65535, 65536, 65537, -1, -65536, -65537, (1 << 62) + 5])
def test_u16(value: int) -> None:
    assert u16(value) == value % 65536


@pytest.mark.parametrize("base", [0, 65536 - WIDTH // 2, 32768 - WIDTH // 2, 40000])
def test_need_event_for_all_triples_of_a_window(base: int) -> None:
    """Every event, new and old index within a few of each other, round 0, 32768 and 65536."""
    window = [(base + i) % 65536 for i in range(WIDTH)]
    for old in range(base, base + WIDTH):
        for new in range(old, base + WIDTH):
            for event in window:
                wanted = event in {i % 65536 for i in range(old, new)}
                assert vring_need_event(event, new % 65536, old % 65536) == wanted == passed(event, new, old)


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 1), (65535, 65536), (65530, 65541), (7, 7 + 32768), (1, 65536)])
def test_need_event_for_every_event(old: int, new: int) -> None:
    wanted = {i % 65536 for i in range(old, new)}
    step = 7 if INTERPRETED else 1
    for event in range(0, 65536, step):
        assert vring_need_event(event, new % 65536, old % 65536) == (event in wanted)


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 65535))
def test_need_event_anywhere(event: int, new: int, old: int) -> None:
    assert vring_need_event(event, new, old) == passed(event, new, old)


#: The first outputs of Vigna's splitmix64 for two seeds; state n is seed + n * 0x9E3779B97F4A7C15.
KNOWN = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B],
    1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821],
}


@pytest.mark.parametrize("seed", KNOWN)
def test_mix64_is_splitmix64(seed: int) -> None:
    for n, output in enumerate(KNOWN[seed]):
        state = (seed + n * 0x9E3779B97F4A7C15) % (1 << 64)
        state -= (state >> 63) << 64
        assert mix64(state) == native_mix64(state) == output >> 1


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_mix64_twin_and_native(value: int) -> None:
    found = native_mix64(value)
    assert found == mix64(value)
    assert 0 <= found < 1 << 63
