"""What a hostile peer can send, numbered: the groups that `virtblk fuzz` covers, and its count of what was sent.

Two attackers. The guest has only ring memory; the front end has the messages and their file descriptors. An item is one
way to be wrong; the kernels of `fuzz.guest` and the generators of `fuzz.messages` count each time that they use one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

GUEST: Final = "guest"
FRONT_END: Final = "front-end"

#: One more than the largest item: the length of a table of counts.
ITEMS: Final = 80


class Group(NamedTuple):
    """`items`: number -> what is sent."""

    name: str
    attackers: tuple[str, ...]
    items: dict[int, str]


GROUPS: Final = (
    Group(
        "chain",
        (GUEST,),
        {
            1: "descriptor that is its own next",
            2: "loop of two descriptors",
            3: "loop inside an indirect table",
            4: "next at or beyond the queue size",
            5: "available head at or beyond the queue size",
            6: "same head twice",
            7: "available index too far, by half its range, backwards",
            8: "chain as long as the ring, and longer",
            9: "header only",
            10: "no status",
            11: "status not writable, empty, too long",
            12: "header writable, short, long, split",
            13: "writable before readable",
            14: "INDIRECT with NEXT",
            15: "indirect table inside an indirect table",
            16: "indirect table of no whole number of entries",
            17: "indirect table past the end of memory",
            18: "indirect table longer than the ring",
            19: "INDIRECT without its feature",
            20: "chain of 2^32 bytes and more",
        },
    ),
    Group(
        "address",
        (GUEST, FRONT_END),
        {
            21: "address 0, 2^64 - 1, or wrapping",
            22: "address in a hole, or across a region's end",
            23: "buffer that ends at the last byte, and one after it",
            24: "buffer over the ring itself",
            25: "length 0 anywhere",
            26: "memory file truncated after it was mapped",
            27: "memory region removed under I/O",
            28: "overlapping buffers in one request",
        },
    ),
    Group(
        "request",
        (GUEST,),
        {
            29: "sector near and beyond capacity, 2^55, 2^63, 2^64 - 1",
            30: "segment of 2^23 and more sectors",
            31: "segment whose sectors wrap",
            32: "segments split into pieces, the first of one byte",
            33: "no segment, too many segments",
            34: "all flag bits of a segment",
            35: "data of 0, 1, 511, 513 bytes",
            36: "every request type",
            37: "flush with data and sector, identity of any length",
            38: "writes to a read-only disk",
        },
    ),
    Group(
        "double fetch",
        (GUEST,),
        {
            39: "type or sector changes under the device",
            40: "descriptor changes under the device",
            41: "indirect length changes under the device",
            42: "used ring rewritten under the device",
            43: "every used_event and available flag",
        },
    ),
    Group(
        "packed",
        (GUEST, FRONT_END),
        {
            44: "packed: id beyond the queue size, unnegotiated",
            47: "packed: used and available bits, unnegotiated",
            50: "packed: sizes that are no power of two, unnegotiated",
        },
    ),
    Group(
        "messages",
        (FRONT_END,),
        {
            51: "payload short, long, in pieces; two messages in one write",
            52: "version, reply flag, unknown requests",
            53: "any order, repeated, left out",
            54: "ring index beyond the rings",
            55: "ring size 0, odd, too large, changed while it runs",
            56: "ring base too large",
            57: "ring addresses unaligned, outside, overlapping",
            58: "memory tables: count, size, offset, wrap, overlap",
            59: "configuration: offset, size, wrap",
            60: "feature bits not offered, set twice, after the start",
        },
    ),
    Group(
        "file descriptors",
        (FRONT_END,),
        {
            61: "none, too many, where none belong",
            62: "files of every wrong kind",
            63: "kick descriptors: full, hung up, blocking",
            64: "call descriptors that block",
            65: "inflight descriptor asked for again and again",
            66: "back-end channel that nobody reads",
        },
    ),
    Group(
        "inflight",
        (FRONT_END,),
        {67: "inflight region of nonsense, unnegotiated", 68: "inflight region after the start, unnegotiated"},
    ),
    Group("log", (FRONT_END,), {69: "dirty log too small, beyond its file, unnegotiated"}),
    Group(
        "lifecycle",
        (FRONT_END,),
        {
            70: "hang up at each message and under I/O",
            71: "GET_VRING_BASE under I/O",
            72: "storm of ring enables",
            73: "reset under I/O",
            74: "two clients at once",
            75: "connect and hang up, many times",
        },
    ),
)

#: Item -> its group.
GROUP_OF: Final = {item: group for group in GROUPS for item in group.items}


@dataclass
class Coverage:
    """How often each item was sent."""

    counts: list[int] = field(default_factory=lambda: [0] * ITEMS)

    def add(self, items: Iterable[int]) -> None:
        for item in items:
            self.counts[item] += 1

    def covered(self, group: Group) -> int:
        """How many items of the group were sent at least once."""
        return sum(self.counts[item] > 0 for item in group.items)

    def inputs(self, group: Group) -> int:
        """How often any of them was."""
        return sum(self.counts[item] for item in group.items)

    def as_dict(self) -> dict[str, object]:
        return {
            group.name: {
                "items": len(group.items),
                "covered": self.covered(group),
                "inputs": self.inputs(group),
                "missing": [text for item, text in group.items.items() if not self.counts[item]],
            }
            for group in GROUPS
        }
