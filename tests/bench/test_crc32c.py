"""The checksum against RFC 3720's examples and a bitwise twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naive.crc32c import crc32c as naive_crc32c
from naive.verify import checksum
from virtblk.bench.crc32c import crc32c, crc32c_word
from virtblk.bench.crc32c_tables import TABLES

#: RFC 3720, B.4: bytes and their CRC. The last is an iSCSI read command.
COMMAND = "01c0" + 14 * "00" + "14000000000004000000001400000018" + "28000000000000000200000000000000"
VECTORS = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (bytes.fromhex(COMMAND), 0xD9963A56),
]
WORDS = st.binary(max_size=512).map(lambda data: data[: len(data) // 8 * 8])


def crc_of(data: bytes) -> int:
    memory = np.frombuffer(data, np.uint8).copy()
    return int(crc32c(int(memory.ctypes.data), len(data)))


@pytest.mark.parametrize(("data", "crc"), VECTORS, ids=["zeroes", "ones", "rising", "falling", "command"])
def test_examples_of_rfc_3720(data: bytes, crc: int) -> None:
    assert crc_of(data) == crc
    assert naive_crc32c(data) == crc
    assert checksum(data) == crc


def test_the_twin_knows_the_check_value() -> None:
    """b"123456789", which is no multiple of 8 bytes, is what every catalogue gives."""
    assert naive_crc32c(b"123456789") == 0xE3069283
    assert checksum(b"123456789") == 0xE3069283


def test_of_nothing() -> None:
    assert crc_of(b"") == naive_crc32c(b"") == 0


@given(WORDS)
def test_as_the_bitwise_twin(data: bytes) -> None:
    assert crc_of(data) == naive_crc32c(data) == checksum(data)


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8))
def test_a_word_continues_what_came_before(first: bytes, second: bytes) -> None:
    """Words arrive as int64: those of 2**63 and more are negative."""
    crc = 0xFFFFFFFF
    for word in (first, second):
        crc = int(crc32c_word(crc, int.from_bytes(word, "little", signed=True)))
        assert 0 <= crc < 1 << 32
    assert crc ^ 0xFFFFFFFF == naive_crc32c(first + second)


@given(WORDS.filter(len), st.data())
def test_every_flipped_bit_shows(data: bytes, draw: st.DataObject) -> None:
    bit = draw.draw(st.integers(0, len(data) * 8 - 1))
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    assert crc_of(bytes(flipped)) != crc_of(data)


@pytest.mark.parametrize("step", range(8))
def test_tables_are_the_effect_of_one_byte_that_others_follow(step: int) -> None:
    """CRCs are linear: what a byte does to the state is the CRC of it and its followers, minus that of zeroes."""
    for byte in (0, 1, 0x80, 0xFF):
        data = bytes([byte]) + bytes(step)
        assert TABLES[step, byte] == naive_crc32c(data) ^ naive_crc32c(bytes(step + 1))
