"""Storages: what can be opened, what is refused, and what batches of requests do to them."""

from __future__ import annotations

import ctypes
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.errors import UsageError
from virtblk.jit.table import Table
from virtblk.mem.guest_memory import GuestMemory
from virtblk.mem.shm import Mapping
from virtblk.names import parse_name
from virtblk.storage.memory import memory_execute
from virtblk.storage.null import null_execute
from virtblk.storage.open import open_storage
from virtblk.storage.request import (
    KIND_MEMORY,
    KIND_NULL,
    OP_DISCARD,
    OP_FLUSH,
    OP_NONE,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
    REQUEST_DTYPE,
    SCRATCH_BYTES,
    give_scratch,
)
from virtblk.storage.storage import Storage


def opened(name: str) -> Storage:
    return open_storage(parse_name(name))


def test_a_memory_disk_is_zeroed_and_writable_memory() -> None:
    disk = opened("ram:64k?block_size=4k")
    assert (disk.name, disk.kind, disk.size, disk.block_size) == ("ram:64k?block_size=4k", KIND_MEMORY, 65536, 4096)
    assert (disk.read_only, disk.can_flush) == (False, True)
    assert ctypes.string_at(disk.address, disk.size) == bytes(disk.size)
    ctypes.memset(disk.address, 1, disk.size)
    disk.close()
    disk.close()


def test_a_null_disk_has_no_memory_at_any_size() -> None:
    disk = opened("null:4096p")
    assert (disk.kind, disk.size, disk.address, disk.block_size) == (KIND_NULL, 1 << 62, 0, 512)
    disk.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ram:0", "size 0 is not a positive multiple of the block size 512"),
        ("ram:513", "size 513 is not"),
        ("null:1k?block_size=4k", "size 1k is not a positive multiple of the block size 4096"),
        ("null:6k?block_size=4k", "size 6k is not"),
        ("ram:1m?block_size=0", "block_size 0: give a power of two from 512 to 64k"),
        ("ram:1m?block_size=511", "block_size 511:"),
        ("ram:1m?block_size=768", "block_size 768:"),
        ("ram:1m?block_size=128k", "block_size 131072:"),
        ("ram:1m?colour=red", "unknown key 'colour' (known: block_size)"),
        ("ram:2048p", "no memory for 2048p"),
        ("vhost-user:/x", "vhost-user: is no storage of this version"),
    ],
)
def test_storages_that_cannot_be(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        opened(name)
    assert str(caught.value).startswith(f"disk {name!r}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


SIZE = 8192
#: op, sector, lengths of the pieces (some of them empty).
REQUEST = st.tuples(
    st.sampled_from([OP_READ, OP_WRITE, OP_WRITE, OP_FLUSH, OP_NONE, OP_DISCARD, OP_WRITE_ZEROES]),
    st.integers(0, 7),
    st.lists(st.sampled_from([0, 1, 100, 412, 511, 512, 1024]), max_size=5),
)


@given(st.lists(REQUEST, min_size=1, max_size=6), st.integers(0, 255))
def test_a_batch_on_a_memory_disk(batch: list[tuple[int, int, list[int]]], seed: int) -> None:
    """Against bytes that are moved by slices: in order, each piece from where the one before ended."""
    mapping, disk = Mapping(1 << 17), opened("ram:8k")
    memory = GuestMemory()
    guest = mapping.array(mapping.address, mapping.length)
    guest[:] = np.resize(np.arange(seed, seed + 251) % 256, len(guest)).astype(np.uint8)
    model, model_guest = bytearray(SIZE), bytearray(guest.tobytes())
    requests, piece_addr, piece_len = Table(8, REQUEST_DTYPE), Table(64), Table(64)
    requests["result"] = 77
    scratch = give_scratch(requests)
    at, piece = 64, 0
    for i, (op, sector, lengths) in enumerate(batch):
        requests[i]["op"], requests[i]["offset"] = op, sector * 512
        requests[i]["first"], requests[i]["count"] = piece, len(lengths)
        requests[i]["length"] = sum(lengths)
        where = sector * 512
        if op in (OP_DISCARD, OP_WRITE_ZEROES):
            ranges = [((sector + i) % 8, length % 7) for i, length in enumerate(lengths)]
            ranges = [(start, min(sectors, 16 - start)) for start, sectors in ranges]
            zero(requests[i], ranges)
            for start, sectors in ranges:
                model[start * 512 : (start + sectors) * 512] = bytes(sectors * 512)
            lengths = []
        for length in lengths:
            piece_addr[piece], piece_len[piece] = mapping.address + at, length
            if op == OP_READ:
                model_guest[at : at + length] = model[where : where + length]
            elif op == OP_WRITE:
                model[where : where + length] = model_guest[at : at + length]
            where += length
            at += length + 3
            piece += 1
    memory.table.regions[0] = (0, mapping.length, mapping.address, 0)  # for a checking build
    memory.table.head[0]["count"] = 1
    memory_execute(disk.address, memory.table, requests, len(batch), piece_addr, piece_len)
    assert ctypes.string_at(disk.address, SIZE) == bytes(model)
    assert guest.tobytes() == bytes(model_guest)
    assert list(requests["result"][: len(batch)]) == [0] * len(batch)
    assert requests["result"][len(batch)] == 77
    assert memory.violations == 0
    assert len(scratch) * 8 == 8 * SCRATCH_BYTES
    disk.close()
    mapping.close()


def zero(request: np.void, ranges: list[tuple[int, int]]) -> None:
    """Give a record the ranges of a discard or write zeroes: no pieces, and (sector, sectors, flags) in its scratch."""
    request["count"], request["ranges"] = 0, len(ranges)
    packed = b"".join(struct.pack("<QII", start, sectors, 1) for start, sectors in ranges)
    ctypes.memmove(int(request["scratch"]) + 16, packed, len(packed))


def test_the_scratch_of_records_is_their_own() -> None:
    requests = Table(40, REQUEST_DTYPE)
    scratch = give_scratch(requests)
    starts = [int(record["scratch"]) for record in requests]
    assert starts == list(range(scratch.address, scratch.address + scratch.nbytes, 16 + 16 * 32))
    assert not any(start % 8 for start in starts)


def test_a_null_disk_says_yes_to_what_it_is_asked() -> None:
    requests = Table(4, REQUEST_DTYPE)
    requests["result"] = 5
    null_execute(requests, 3)
    assert list(requests["result"]) == [0, 0, 0, 5]
