"""The device's chain walk over every content of small descriptor tables: a proof by enumeration (2.7.5, 2.7.5.3).

A letter is one content of a descriptor; every word over the letters is written into a ring of 2 or 4, or into an
indirect table of 2 or 3, and our device and the naive one have to come to the same verdict: the same head and pieces,
or the same broken rule with the same value. The naive one reads lists instead of memory, which makes it fast enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from conftest import INTERPRETED
from naive.ring import INDIRECT, NEXT, WRITE, Broken, Buffer, NaiveDevice
from virtblk.jit.atomics import store_u16
from virtblk.jit.kernel import kernel
from virtblk.jit.table import Table
from virtblk.uapi.virtio_ring import AVAIL_IDX, AVAIL_RING, DESC_SIZE
from virtblk.virtio import vringh_split
from virtblk.virtio.virtio_ring_split import write_desc
from virtblk.virtio.vringh_split import vringh_getdesc, vringh_init
from virtio.halves import CompiledDevice, World
from virtio.interleavings import plain
from virtio.wrong import Mistake, with_mistake

#: Offsets in the arena: ring and tables in two regions that touch, a hole, data in two more that touch. None ends with
#: a page, so that a walk that goes too far reads something.
JOIN, HOLE, DATA, CUT, END = 0x1FF0, 0x2FF8, 0x4000, 0x4008, 0x4FF0
REGIONS = [(0, JOIN), (JOIN, HOLE), (DATA, CUT), (CUT, END)]
#: Tables: in one region, with the second entry in the next one, with the second entry cut off by the hole.
TABLE, SPLIT_TABLE, CUT_TABLE = 0x1000, JOIN - 16, HOLE - 24

Letter = tuple[int, int, int, int]  # address, length, flags, next
#: What a case comes to: head or -2, broken rule, its value, pieces, readable pieces; then address and length of each.
HEADER, MOST_PIECES = 5, 8
ROW = HEADER + 2 * MOST_PIECES


@kernel
def write_letter(at, letters, letter):
    """Put letter number `letter` into the descriptor at `at`."""
    i = 4 * letter
    write_desc(at, letters[i], letters[i + 1], letters[i + 2], letters[i + 3])


@kernel
def walk_words(vr, mem, avail, table, letters, count, entries, first, words, head, out, row):
    """Write words first..first+words-1, in the base `count`, at `table`, and take the chain at `head` of each."""
    for word in range(first, first + words):
        rest = word
        for place in range(entries):
            write_letter(table + place * DESC_SIZE, letters, rest % count)
            rest //= count
        vringh_init(vr, 0)
        store_u16(avail + AVAIL_RING, head)
        store_u16(avail + AVAIL_IDX, 1)
        at = (word - first) * row
        out[at] = vringh_getdesc(vr, mem, 0)
        pieces = vr.state[0]["pieces"] if out[at] >= 0 else 0
        out[at + 1] = vr.state[0]["bad"]
        out[at + 2] = vr.state[0]["bad_value"] if vr.state[0]["bad"] else 0
        out[at + 3] = pieces
        out[at + 4] = vr.state[0]["readable"] if out[at] >= 0 else 0
        for piece in range(min(pieces, 8)):
            out[at + 5 + 2 * piece] = vr.piece_addr[piece]
            out[at + 6 + 2 * piece] = vr.piece_len[piece]


class ListedRing:
    """A ring whose descriptors come from lists: table address -> letters. One chain, at `head`."""

    avail_idx = 1
    used_idx = 0

    def __init__(self, num: int, desc: int) -> None:
        self.num, self.desc, self.head = num, desc, 0
        self.tables: dict[int, Sequence[Letter]] = {}

    def avail_head(self, idx: int) -> int:
        return self.head

    def read_desc(self, table: int, index: int) -> Letter:
        return self.tables[table][index]


RULES = {name: getattr(vringh_split, name) for name in dir(vringh_split) if name.startswith("BAD_")}


class Enumeration:
    """Both devices on a ring of `num`, both on words over letters whose addresses are offsets in the arena."""

    def __init__(self, num: int, letters: Sequence[Letter], *, indirect: bool = True) -> None:
        self.world = World(num, REGIONS)
        start = self.world.arena.address
        self.letters = [(start + address, length, flags, after) for address, length, flags, after in letters]
        self.table = Table(4 * len(letters))
        self.table[:] = list(itertools.chain(*self.letters))
        self.device = CompiledDevice(self.world, indirect=indirect)
        self.ring = ListedRing(num, self.world.ring.desc)
        self.indirect = indirect
        self.cases = self.accepted = 0
        self.rules: set[str] = set()

    def __enter__(self) -> Enumeration:
        return self

    def __exit__(self, *_: object) -> None:
        self.world.close()

    def fixed(self, offset: int, table: Sequence[Letter]) -> int:
        """A table that stays as it is; returns its address."""
        at = self.world.arena.address + offset
        rows = [(self.world.arena.address + address, *rest) for address, *rest in table]
        for index, row in enumerate(rows):
            self.world.ring.write_desc(at, index, *row)
        self.ring.tables[at] = rows  # type: ignore[assignment]
        return at

    def check(self, heads: Sequence[int], entries: int, offset: int = 0, batch: int = 1 << 14) -> None:
        """All words of `entries` letters at `offset` (0 is the ring's own table)."""
        count, at = len(self.letters), self.world.arena.address + offset
        total = count**entries
        out = Table(ROW * min(batch, total))
        avail = self.world.ring.avail
        for head, first in itertools.product(heads, range(0, total, batch)):
            words = min(batch, total - first)
            walk_words(
                self.device.vr, self.device.mem, avail, at, self.table, count, entries, first, words, head, out, ROW
            )
            rows = out[: ROW * words].reshape(words, ROW).tolist()
            self.ring.head = head
            for word, row in zip(self.words(count, entries, first, words), rows, strict=True):
                self.ring.tables[at] = [self.letters[letter] for letter in word]
                assert self.ours(row) == self.naive(), (head, [self.letters[letter] for letter in word])
                self.cases += 1

    @staticmethod
    def words(count: int, entries: int, first: int, words: int) -> Iterator[list[int]]:
        for word in range(first, first + words):
            yield [word // count**place % count for place in range(entries)]

    def ours(self, row: list[int]) -> Any:
        head, bad, value, pieces, readable = row[:HEADER]
        if bad:
            return bad, value % (1 << 64)
        assert pieces <= MOST_PIECES
        hosts, lengths = row[HEADER : HEADER + 2 * pieces : 2], row[HEADER + 1 : HEADER + 2 * pieces : 2]
        guests = map(self.world.guest_of, hosts)
        return head, [Buffer(*piece, i >= readable) for i, piece in enumerate(zip(guests, lengths, strict=True))]

    def naive(self) -> Any:
        judge = NaiveDevice(self.ring, self.world.regions, indirect=self.indirect)  # type: ignore[arg-type]
        try:
            taken = judge.take()
        except Broken as broken:
            self.rules.add(broken.rule)
            return RULES[broken.rule], broken.value % (1 << 64)
        assert taken is not None
        self.accepted += 1
        return taken


def letters(buffers: Sequence[tuple[int, int]], flags: Sequence[int], following: Sequence[int]) -> list[Letter]:
    return [(*buffer, flag, after) for buffer in buffers for flag in flags for after in following]


ALL_FLAGS = range(8)
#: What follows counts only with NEXT; without it a value that would break the walk if it were looked at.
STEPS = [(DATA, 4, flags, after) for flags in (NEXT | WRITE, NEXT) for after in range(5)]
ENDS = [(DATA, 4, flags, 65535) for flags in (0, WRITE)]


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_every_content_of_a_ring_of_two(indirect: bool) -> None:
    """All flags, every next; buffers that are whole, empty, or cut where regions meet, and a table: 9216 contents."""
    buffers = [(DATA, 4), (DATA, 0), (DATA + 4, 8), (TABLE, 32)]
    alphabet = letters(buffers, ALL_FLAGS, [0, 1, 2])
    with Enumeration(2, alphabet, indirect=indirect) as every:
        every.fixed(TABLE, [(DATA, 1, NEXT, 1), (DATA, 2, WRITE, 0)])
        every.check([0, 1, 2] if not INTERPRETED else [0, 2], 2)
        assert every.rules == {"BAD_HEAD", "BAD_LOOP", "BAD_NEXT", "BAD_ORDER"} | (
            {"BAD_INDIRECT_NEXT", "BAD_INDIRECT_LEN"} if indirect else {"BAD_INDIRECT_OFF"}
        )
        assert every.accepted > every.cases // 10


def test_every_address_and_length_in_a_ring_of_two() -> None:
    """Ends of regions, holes, addresses that wrap, lengths whose sum is past 2^32."""
    buffers = [
        *[(DATA, 8), (DATA, 9), (END - 1, 1), (END - 1, 2), (HOLE - 1, 2), (HOLE, 1), (HOLE, 0)],
        *[(1 << 62, 1), (DATA, (1 << 32) - 1), (END, 0xFFFFFFFF), (TABLE, 15), (TABLE, 16), (HOLE, 16), (0, 0)],
    ]
    alphabet = letters(buffers, [0, NEXT, WRITE, INDIRECT], [1])
    with Enumeration(2, alphabet) as every:
        every.fixed(TABLE, [(DATA, 1, 0, 0)])
        every.fixed(HOLE - 16, [(DATA, 1, 0, 0)])
        every.check([0], 2)
        assert {"BAD_ADDRESS", "BAD_INDIRECT_LEN"} <= every.rules


def test_every_shape_of_a_ring_of_four() -> None:
    """Every way to link four descriptors, in either direction, loops and ends outside included: 13^4 contents."""
    alphabet = [*STEPS, *ENDS, (TABLE, 32, INDIRECT, 65535)]
    if INTERPRETED:
        alphabet = alphabet[3:]  # a writable descriptor links to the last and outside only
    with Enumeration(4, alphabet) as every:
        every.fixed(TABLE, [(DATA, 1, NEXT, 1), (DATA, 2, WRITE, 0)])
        every.check([0] if INTERPRETED else [0, 1, 2, 3, 4], 4)
        assert {"BAD_LOOP", "BAD_NEXT", "BAD_ORDER"} <= every.rules


@pytest.mark.parametrize("at", [TABLE, SPLIT_TABLE, CUT_TABLE], ids=["whole", "split", "cut"])
@pytest.mark.parametrize("entries", [1, 2])
def test_every_content_of_an_indirect_table(entries: int, at: int) -> None:
    """A table in one region, one whose second entry lies in the next, and one whose second entry ends in a hole."""
    alphabet = letters([(DATA, 4), (DATA + 4, 8), (HOLE, 1), (TABLE, 16)], ALL_FLAGS, [0, 1, 2])
    with Enumeration(2, alphabet) as every:
        every.fixed(0, [(at, 16 * entries, INDIRECT, 1), (DATA, 4, 0, 0)])
        every.check([0], entries, at)
        assert every.cases == len(alphabet) ** entries
        assert {"BAD_LOOP", "BAD_NEXT", "BAD_INDIRECT_NESTED", "BAD_ADDRESS"} <= every.rules


def test_every_shape_of_an_indirect_table_of_three_after_a_descriptor() -> None:
    """Order and length go on from the ring into its table; the table's own end and its own limit count."""
    alphabet = [*STEPS[:4], *STEPS[5:9], *ENDS, (TABLE, 16, INDIRECT, 0)]
    with Enumeration(2, alphabet) as every:
        for flags in (NEXT, NEXT | WRITE):
            every.fixed(0, [(DATA, 4, flags, 1), (SPLIT_TABLE, 48, INDIRECT, 0)])
            every.check([0], 3, SPLIT_TABLE)
        assert {"BAD_LOOP", "BAD_NEXT", "BAD_INDIRECT_NESTED", "BAD_ORDER"} <= every.rules


# Walks that are wrong in one place: an enumeration finds each.

WRONG_WALKS = {
    "next may be the table's size": Mistake("walk", "following >= entries", "following > entries"),
    "one descriptor too many": Mistake("walk", "for _ in range(limit)", "for _ in range(limit + 1)"),
    "one descriptor too few": Mistake("walk", "for _ in range(limit)", "for _ in range(limit - 1)"),
    "any order": Mistake("walk", "elif readable < 0:", "elif False:"),
    "tables in tables": Mistake("walk", "if is_indirect:", "if False:"),
    "INDIRECT with NEXT": Mistake("walk", "if flags & VRING_DESC_F_NEXT:", "if False:"),
    "an empty table": Mistake("walk", "length == 0 or", "False or"),
    "a table of half an entry": Mistake("walk", "length % DESC_SIZE or", "False or"),
    "indirect without being negotiated": Mistake("walk", 'vr.state[0]["indirect"] == 0', "False"),
    "4 GiB": Mistake("walk", "total >= 1 << 32", "total > 1 << 32"),
    "an entry that ends in a hole": Mistake("walk", "here != DESC_SIZE", "here == 0"),
    "a split buffer counts once": Mistake("walk", "readable += at - begin", "readable += 1"),
    "pieces of the wrong length": Mistake("add_pieces", "vr.piece_len[at] = here", "vr.piece_len[at] = length"),
    "a hole": Mistake("add_pieces", "if here == 0:", "if False:"),
    "a head that is the ring's size": Mistake("vringh_getdesc", "if head >= num", "if head > num"),
    "a table is where it begins": Mistake("vringh_getdesc", "whole = here == length", "whole = here > 0"),
}


@pytest.mark.once
@pytest.mark.parametrize("mistake", WRONG_WALKS)
def test_a_wrong_walk_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    python, wrong = plain(walk_words), with_mistake(vringh_split, WRONG_WALKS[mistake])
    monkeypatch.setitem(python.__globals__, "walk_words", python)
    monkeypatch.setitem(python.__globals__, "vringh_getdesc", wrong["vringh_getdesc"])
    found = 0
    for proof in (few_of_a_ring_of_two, few_addresses, few_of_a_table):
        try:
            proof()
        except (AssertionError, IndexError, MemoryError):
            found += 1
    assert found


def few_of_a_ring_of_two() -> None:
    """The smallest of the enumerations above that meet every rule: Python walks them."""
    alphabet = letters([(DATA + 4, 8), (TABLE, 32)], range(6), [1, 2])
    for indirect in (False, True):
        with Enumeration(2, alphabet, indirect=indirect) as every:
            every.fixed(TABLE, [(DATA, 1, NEXT, 1), (DATA, 2, WRITE, 0)])
            every.check([0, 2], 2)


def few_addresses() -> None:
    buffers = [(END - 1, 1), (DATA, (1 << 32) - 1), (HOLE, 1), (TABLE, 0), (TABLE, 15)]
    with Enumeration(2, letters(buffers, [0, NEXT, INDIRECT], [1])) as every:
        every.check([0], 2)


def few_of_a_table() -> None:
    for at in (SPLIT_TABLE, CUT_TABLE):
        with Enumeration(2, letters([(DATA, 4), (TABLE, 16)], [0, 1, 3, 4], [0, 1, 2])) as every:
            every.fixed(TABLE, [(DATA, 1, 0, 0)])
            every.fixed(0, [(at, 32, INDIRECT, 1), (DATA, 4, 0, 0)])
            every.check([0], 2, at)
