"""Blocks that prove themselves: whatever is wrong with one is seen, and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naive import verify as naive
from virtblk.bench.verify import (
    BAD_BLOCK_TEXT,
    BAD_CRC,
    BAD_GENERATION,
    BAD_MAGIC,
    BAD_OFFSET,
    BLOCK_GOOD,
    CRC_WORD,
    GENERATION_WORD,
    MAGIC,
    NEVER_WRITTEN,
    OFFSET_WORD,
    PAYLOAD_WORD,
    UNKNOWN,
    check_block,
    fill_block,
)

BS = 512
WORDS = BS // 8


class Memory:
    """One block in memory, as a job's buffer holds it."""

    def __init__(self, bs: int = BS) -> None:
        self.words = np.zeros(bs // 8, np.int64)
        self.address, self.bs = int(self.words.ctypes.data), bs

    def fill(self, offset: int, generation: int = 1, seed: int = 1) -> Memory:
        fill_block(self.address, self.bs, offset, generation, seed)
        return self

    def check(self, offset: int, generation: int = 1) -> int:
        return int(check_block(self.address, self.bs, offset, generation))

    @property
    def bytes(self) -> bytes:
        return self.words.tobytes()


@given(
    st.integers(0, 1 << 40).map(lambda block: block * 512),
    st.integers(0, 1 << 40),
    st.integers(0, (1 << 62) - 1),
    st.sampled_from([512, 1024, 4096]),
)
def test_what_is_filled_in_is_good(offset: int, generation: int, seed: int, bs: int) -> None:
    block = Memory(bs).fill(offset, generation, seed)
    assert block.check(offset, generation) == BLOCK_GOOD
    assert naive.decode(block.bytes) == (offset, generation, True)


def test_a_block_begins_with_its_name() -> None:
    assert Memory().fill(0).bytes.startswith(b".virtblk")
    assert MAGIC.to_bytes(8, "little") == b".virtblk"


def test_header_words() -> None:
    words = Memory().fill(7 * BS, 3).words
    assert words[OFFSET_WORD // 8] == 7 * BS
    assert words[GENERATION_WORD // 8] == 3
    assert 0 <= words[CRC_WORD // 8] < 1 << 32
    assert PAYLOAD_WORD == 32


def test_every_single_flipped_bit_is_caught() -> None:
    """Of header, generation and checksum as well as of the payload."""
    block = Memory().fill(BS)
    wrong = {}
    for bit in range(BS * 8):
        block.words[bit // 64] ^= np.int64(-(1 << 63)) if bit % 64 == 63 else np.int64(1 << bit % 64)
        wrong[bit] = block.check(BS)
        block.words[bit // 64] ^= np.int64(-(1 << 63)) if bit % 64 == 63 else np.int64(1 << bit % 64)
    assert block.check(BS) == BLOCK_GOOD
    assert {bit for bit, bad in wrong.items() if bad == BAD_MAGIC} == set(range(64))
    assert {bit for bit, bad in wrong.items() if bad == BAD_OFFSET} == set(range(64, 128))
    assert {bit for bit, bad in wrong.items() if bad == BAD_CRC} == set(range(128, BS * 8))


@given(st.integers(0, WORDS - 1), st.integers(-(1 << 63), (1 << 63) - 1))
def test_every_other_word_is_caught(index: int, value: int) -> None:
    block = Memory().fill(BS)
    same = int(block.words[index]) == value
    block.words[index] = value
    assert (block.check(BS) == BLOCK_GOOD) == same
    assert naive.decode(block.bytes).good == same or index == OFFSET_WORD // 8


@given(st.integers(0, WORDS - 1), st.integers(0, WORDS - 1))
def test_swapped_words_are_caught(first: int, second: int) -> None:
    block = Memory().fill(BS)
    block.words[[first, second]] = block.words[[second, first]]
    assert (block.check(BS) == BLOCK_GOOD) == (first == second)


def test_a_torn_block_is_caught() -> None:
    """The first part of one generation and the rest of another, cut anywhere."""
    old, new = Memory().fill(BS, 1), Memory().fill(BS, 2)
    for cut in range(1, WORDS):
        torn = Memory()
        torn.words[:cut], torn.words[cut:] = new.words[:cut], old.words[cut:]
        assert torn.check(BS, 2) != BLOCK_GOOD, cut


def test_the_block_of_another_offset_is_caught() -> None:
    assert Memory().fill(2 * BS).check(BS) == BAD_OFFSET


@pytest.mark.parametrize("kept", [0, 1, 2, 4])
def test_an_old_or_future_generation_is_caught(kept: int) -> None:
    assert Memory().fill(BS, kept).check(BS, 3) == BAD_GENERATION


@pytest.mark.parametrize("unknown", [NEVER_WRITTEN, UNKNOWN])
def test_any_generation_will_do_where_none_is_known(unknown: int) -> None:
    assert Memory().fill(BS, 9).check(BS, unknown) == BLOCK_GOOD


@pytest.mark.parametrize("content", [0, -1])
def test_a_blank_block_is_no_block(content: int) -> None:
    block = Memory()
    block.words[:] = content
    assert block.check(0) == BAD_MAGIC


def test_a_corrupt_old_block_is_called_corrupt() -> None:
    """`an acknowledged write is lost` is a grave thing to say of a device: the checksum must fit."""
    block = Memory().fill(BS, 1)
    block.words[-1] ^= 1
    assert block.check(BS, 2) == BAD_CRC


def test_payloads_differ_by_offset_generation_and_seed() -> None:
    payloads = [
        Memory().fill(offset, generation, seed).words[PAYLOAD_WORD // 8 :]
        for offset, generation, seed in ((BS, 1, 1), (2 * BS, 1, 1), (BS, 2, 1), (BS, 1, 9))
    ]
    words = np.concatenate(payloads)
    assert len(set(words.tolist())) == len(words)


def test_every_verdict_has_a_text() -> None:
    assert set(BAD_BLOCK_TEXT) == {BAD_MAGIC, BAD_OFFSET, BAD_GENERATION, BAD_CRC}
    assert len(set(BAD_BLOCK_TEXT.values())) == 4


def test_the_naive_decoder_reads_image_files(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"".join(Memory().fill(i * BS, 5).bytes for i in range(4)) + bytes(BS))
    blocks = list(naive.decode_image(image, BS))
    assert blocks[:4] == [(i * BS, 5, True) for i in range(4)]
    assert not blocks[4].good
    assert len(list(naive.decode_image(image, BS, 2 * BS))) == 2
