"""What the lying guest makes of a seed: the same each time, of every kind, and never a write to guarded sectors.

Each request is read back from guest memory the naive way, as a device would have to.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import INTERPRETED
from naive.ring import Memory
from virtblk.fuzz.groups import GROUPS, GUEST, Coverage
from virtblk.fuzz.guest.batch import MAKE, drive
from virtblk.fuzz.guest.state import FLIP_ADDR, FLIP_SECTOR, FLIP_TYPE, SLOT_BYTES, SLOT_DESCS
from virtblk.fuzz.guest_attack import SLOTS, GuestAttack
from virtblk.fuzz.messages import Facts
from virtblk.jit.arith import mix64
from virtblk.jit.atomics import load_u32

FEATURES = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 29 | 1 << 9 | 1 << 13 | 1 << 14
READ_ONLY = 1 << 5
INDIRECT, NEXT, WRITE = 4, 1, 2
OUT, DISCARD, WRITE_ZEROES = 1, 11, 13
COUNT = 800 if INTERPRETED else 16_000


def attack(features: int = FEATURES, capacity: int = 2048) -> GuestAttack:
    target: Any = SimpleNamespace(timeout=1.0)
    return GuestAttack(target, Facts(features, 0, 1, capacity), 3, Coverage())


@pytest.fixture
def guest() -> Iterator[GuestAttack]:
    made = attack()
    made._state["mutate"] = 1
    yield made
    made.close()


def make(guest: GuestAttack, *seeds: int) -> None:
    guest._fill_seeds(seeds)
    drive(guest._guest, MAKE, 0, len(seeds))


def seeds(count: int, first: int = 0) -> Iterator[list[int]]:
    """In batches."""
    for start in range(first, first + count, SLOTS):
        yield [mix64(number) >> 1 for number in range(start, start + SLOTS)]


def image(guest: GuestAttack) -> bytes:
    """All that a device can see of a batch."""
    state = guest._state
    ring = guest._arena.array(int(state["desc"]), 16 * int(state["num"])).tobytes()
    return ring + guest._arena.array(int(state["slot_at"]), SLOTS * SLOT_BYTES).tobytes()


def test_a_seed_is_a_request(guest: GuestAttack) -> None:
    images = []
    for _ in range(2):
        made = []
        for batch in seeds(10 * SLOTS):
            make(guest, *batch)
            made.append(image(guest))
        images.append(made)
        guest._guest.state[0]["batch"] += 17  # history is nothing
    assert images[0] == images[1]
    assert len(set(images[0])) == 10


class Walk:
    """A chain as it lies in memory: what is readable, and whether it is sound as a chain."""

    def __init__(self, guest: GuestAttack, slot: int) -> None:
        state = guest._state
        self._memory = Memory(guest._arena.array(int(state["start"]), guest._arena.length), int(state["start"]))
        self._bounds = int(state["start"]), int(state["end"])
        self.readable = b""
        self.sound = self._walk(int(state["desc"]), slot * SLOT_DESCS, int(state["num"]), True)

    def _walk(self, table: int, index: int, entries: int, outer: bool) -> bool:
        for _ in range(entries):
            load = self._memory.load
            entry = table + 16 * index
            address, length = load(entry, 8), load(entry + 8, 4)
            flags, following = load(entry + 12, 2), load(entry + 14, 2)
            inside = self._bounds[0] <= address and address + length <= self._bounds[1]
            if flags & INDIRECT:
                if not outer or flags & NEXT or length % 16 or not length or not inside:
                    return False
                return self._walk(address, 0, length // 16, False)
            if not inside:
                return False
            if not flags & WRITE:
                self.readable += load(address, length).to_bytes(length, "little")
            if not flags & NEXT:
                return True
            if following >= entries:
                return False
            index = following
        return False


def test_no_request_can_change_guarded_sectors(guest: GuestAttack) -> None:
    """Whatever is broken, and however many things are."""
    first, capacity = int(guest._state["guard_first"]), int(guest._state["capacity"])
    writes = 0
    for batch in seeds(COUNT):
        make(guest, *batch)
        for slot in range(len(batch)):
            sent = Walk(guest, slot).readable
            kind, sector = int.from_bytes(sent[:4], "little"), int.from_bytes(sent[8:16], "little")
            data = sent[16:]
            ranges: list[tuple[int, int]] = []
            if len(sent) >= 16 and kind & ~(1 << 31) == OUT and len(data) % 512 == 0:
                ranges = [(sector, len(data) // 512)]
            if len(sent) >= 16 and kind in (DISCARD, WRITE_ZEROES) and len(data) % 16 == 0:
                parts = [data[at : at + 16] for at in range(0, len(data), 16)]
                ranges = [(int.from_bytes(p[:8], "little"), int.from_bytes(p[8:12], "little")) for p in parts]
            for start, count in ranges:
                writes += 1
                valid = start + count <= capacity
                assert not (valid and count and start + count > first), (hex(batch[slot]), kind, start, count)
    assert writes > COUNT / 10


def mixtures(first: int, second: int, width: int) -> set[int]:
    """Some bytes of one value, then the rest of the other: what is seen in two reads."""
    cuts = [256**at for at in range(width + 1)]
    return {second // cut * cut + first % cut for cut in cuts}


def test_armed_words_are_harmless_with_either_value(guest: GuestAttack) -> None:
    """No part of one value with the rest of the other is a guarded sector of a write, or another type."""
    first, capacity = int(guest._state["guard_first"]), int(guest._state["capacity"])
    kinds = set()
    for batch in seeds(10 * COUNT):
        make(guest, *batch)
        flipped = [int(slot["flip"]) for slot in guest._guest.slots if slot["flip"]]
        for flip, word in zip(flipped, guest._guest.flips, strict=False):
            kinds.add(flip)
            values = [int(word[name]) % 256 ** int(word["width"]) for name in ("first", "second")]
            mixed = {value for pair in (values, values[::-1]) for value in mixtures(*pair, int(word["width"]))}
            if flip == FLIP_SECTOR and load_u32(int(word["addr"]) - 8) in (OUT, OUT | 1 << 31):
                assert all(not first <= sector < capacity for sector in mixed)
            if flip == FLIP_TYPE:
                assert not mixed - set(values) & {OUT, DISCARD, WRITE_ZEROES}
            if flip == FLIP_ADDR and values[1] == int(guest._state["scratch"]):
                assert load_u32(int(word["addr"]) + 12) & WRITE
    assert {FLIP_SECTOR, FLIP_TYPE, FLIP_ADDR} <= kinds


def test_sound_requests_are_sound(guest: GuestAttack) -> None:
    guest._state["mutate"] = 0
    for batch in seeds(SLOTS):
        make(guest, *batch)
        for slot in range(len(batch)):
            walk = Walk(guest, slot)
            assert walk.sound
            assert len(walk.readable) >= 16
            assert int.from_bytes(walk.readable[:4], "little") in (0, 1, 4, 8, 11, 13)
    assert int(guest._state["mutated"]) == 0


def test_half_of_the_requests_are_sound(guest: GuestAttack) -> None:
    mutated = total = 0
    for batch in seeds(4 * COUNT):
        make(guest, *batch)
        mutated += int(guest._state["mutated"])
        total += len(batch)
    assert 0.4 < mutated / total < 0.6


def test_few_requests_may_break_their_ring(guest: GuestAttack) -> None:
    broken = 0
    for batch in seeds(4 * COUNT):
        make(guest, *batch)
        broken += int(guest._state["breaking"])
    assert broken <= 4 * COUNT / 256


def test_every_kind_of_wrong_is_made() -> None:
    """43 is made when a batch is offered; 19 and 38 need a device that lacks indirect tables, or is read-only."""
    hits = set()
    for features in (FEATURES, FEATURES & ~(1 << 28), FEATURES | READ_ONLY):
        made = attack(features)
        made._state["mutate"] = 1
        made._state["breaking_every"] = 8
        for batch in seeds(2400):
            make(made, *batch)
        hits |= {item for item, count in enumerate(made._guest.hits) if count}
        made.close()
    mine = {item for group in GROUPS if GUEST in group.attackers for item in group.items}
    assert mine - hits == {26, 27, 43, 44, 50}


def test_regression_mutations_that_meet_make_no_write_to_the_guard() -> None:
    """A read of the last sector became a write, and its header, split and too long, became 512 bytes of data."""
    made = attack(0x170007E46, capacity=32768)
    made._state["mutate"] = 1
    make(made, 0x3B0C901ED4B82E2)
    sent = Walk(made, 0).readable
    made.close()
    assert int.from_bytes(sent[:4], "little") == OUT
    assert len(sent) == 16 + 512
    assert int.from_bytes(sent[8:16], "little") >= 32768
