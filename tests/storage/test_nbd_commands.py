"""From requests to NBD commands: whatever the server's limits, the bytes are those of a plain array."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.pending import Pending, discard, flush, read, write, write_zeroes
from virtblk.storage.nbd_commands import (
    LONGEST,
    LONGEST_DISCARD,
    LONGEST_WITH_DATA,
    Limits,
    commands_of,
    gather,
    limits_of,
    needs_patching,
    scatter,
)
from virtblk.storage.request import OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES

SECTOR = 512
SECTORS = 64


class NaiveServer:
    """Executes commands on an array, and wants whole blocks and short commands."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.data, self.limits = bytearray(data), limits

    def execute(self, request: Pending) -> None:
        for command in commands_of(request, self.limits):
            part = slice(command.offset, command.offset + command.length)
            assert command.length > 0
            assert not command.offset % self.limits.block
            assert not command.length % self.limits.block
            assert part.stop <= len(self.data)
            assert (
                command.length
                <= {
                    OP_READ: self.limits.data,
                    OP_WRITE: self.limits.data,
                    OP_WRITE_ZEROES: self.limits.zeroes,
                    OP_DISCARD: self.limits.discard,
                }[command.op]
            )
            wanted = slice(command.skip, command.skip + command.size)
            if command.op == OP_READ:
                scatter(request.pieces, command.at, memoryview(self.data)[part][wanted])
            elif command.op == OP_WRITE:
                block = self.data[part] if command.patch else bytearray(command.length)
                new = bytearray(command.size)
                if not command.zeroes:
                    gather(request.pieces, command.at, memoryview(new))
                block[wanted] = new
                self.data[part] = block
            else:
                self.data[part] = bytes(command.length)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int]:
    start = draw(st.integers(0, SECTORS - 1))
    return start * SECTOR, draw(st.integers(1, SECTORS - start)) * SECTOR


LIMITS = st.builds(
    lambda shift, data, zeroes, discards: Limits(*(SECTOR * count << shift for count in (1, data, zeroes, discards))),
    st.integers(0, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 9),
)
BEFORE = bytes(sector % 251 + 1 for sector in range(SECTORS) for _ in range(SECTOR))


@given(LIMITS, ranges(), st.lists(st.integers(0, SECTORS * SECTOR), max_size=4), st.randoms(use_true_random=False))
def test_reads_and_writes(limits: Limits, where: tuple[int, int], cuts: list[int], dice: Random) -> None:
    offset, length = where
    cuts = [min(cut, length) for cut in cuts]
    server = NaiveServer(BEFORE, limits)
    request = read(offset, length, cuts)
    server.execute(request)
    assert request.buffer == BEFORE[offset : offset + length]
    assert not needs_patching(request, limits)
    data = dice.randbytes(length)
    request = write(offset, data, cuts)
    server.execute(request)
    assert server.data == BEFORE[:offset] + data + BEFORE[offset + length :]
    assert needs_patching(request, limits) == any(command.patch for command in commands_of(request, limits))


@given(LIMITS, st.lists(ranges(), min_size=1, max_size=3))
def test_zeroes(limits: Limits, where: list[tuple[int, int]]) -> None:
    server = NaiveServer(BEFORE, limits)
    request = write_zeroes(*where)
    server.execute(request)
    model = bytearray(BEFORE)
    for start, length in where:
        model[start : start + length] = bytes(length)
    assert server.data == model
    assert needs_patching(request, limits) == any(command.patch for command in commands_of(request, limits))


@given(LIMITS, st.lists(ranges(), min_size=1, max_size=3))
def test_a_discard_takes_the_whole_blocks_of_its_ranges_and_no_others(
    limits: Limits, where: list[tuple[int, int]]
) -> None:
    server = NaiveServer(BEFORE, limits)
    server.execute(discard(*where))
    model = bytearray(BEFORE)
    for block in range(0, len(model), limits.block):
        if any(start <= block and block + limits.block <= start + length for start, length in where):
            model[block : block + limits.block] = bytes(limits.block)
    assert server.data == model


def test_a_flush_is_one_command_and_nothing_at_all_is_none() -> None:
    assert [command.op for command in commands_of(flush(), Limits())] == [OP_FLUSH]
    assert list(commands_of(discard((512, 512)), Limits(block=4096))) == []
    assert list(commands_of(discard(), Limits())) == []
    assert list(commands_of(Pending(99), Limits())) == []


def test_commands_are_made_one_by_one() -> None:
    commands: Iterator[object] = commands_of(write_zeroes((0, 1 << 62)), Limits(zeroes=512))
    assert next(commands) is not next(commands)


@pytest.mark.parametrize(
    ("minimum", "maximum", "limits"),
    [
        (0, 0, Limits(512, LONGEST_WITH_DATA, LONGEST, LONGEST_DISCARD)),
        (1, 0xFFFFFFFF, Limits(512, LONGEST_WITH_DATA, LONGEST, LONGEST_DISCARD)),
        (4096, 65536, Limits(4096, 65536, 65536, LONGEST_DISCARD)),
        (512, 100_000, Limits(512, 99_840, 99_840, LONGEST_DISCARD)),
        (65536, 4096, Limits(65536, 65536, 65536, LONGEST_DISCARD)),  # nonsense, and no endless loop
    ],
)
def test_limits(minimum: int, maximum: int, limits: Limits) -> None:
    assert limits_of(minimum, maximum) == limits


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=5), st.integers(0, 40), st.integers(0, 40))
def test_gather_and_scatter(data: bytes, cuts: list[int], at: int, size: int) -> None:
    request = write(0, data, [min(cut, len(data)) for cut in cuts])
    at = min(at, len(data))
    size = min(size, len(data) - at)
    got = bytearray(size)
    gather(request.pieces, at, memoryview(got))
    assert got == data[at : at + size]
    scatter(request.pieces, at, memoryview(b"\xff" * size))
    assert request.buffer == data[:at] + b"\xff" * size + data[at + size :]
