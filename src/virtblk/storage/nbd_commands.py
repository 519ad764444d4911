"""Which NBD commands a request becomes (NBD protocol, "Transmission phase"): long and aligned as the server wants them.

A command is at most as long as the server takes, and a multiple of its smallest block. What does not fill a block is
read, patched and written back (`Command.patch`), so that a guest may address 512 bytes on any server. Commands are made
one by one, so that a request of any length costs no more memory than its commands on the wire. Pure; called by
`storage.nbd` on its I/O thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from virtblk.storage.io_request import Request
from virtblk.storage.request import OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES

#: The longest commands, in bytes. Zeroes: what any server takes that says nothing (protocol, "Block size constraints").
#: Data: less, so that a buffer stays small and several are on their way. Discards: a length on the wire is a u32.
LONGEST: Final = 32 << 20
LONGEST_WITH_DATA: Final = 4 << 20
LONGEST_DISCARD: Final = 1 << 30


class Limits(NamedTuple):
    """What a server wants: all in bytes, multiples of `block`, a power of two."""

    block: int = 512
    data: int = LONGEST_WITH_DATA
    zeroes: int = LONGEST
    discard: int = LONGEST_DISCARD


def limits_of(minimum: int, maximum: int) -> Limits:
    """The limits of a server that advertises these block sizes in bytes; 0 where it says nothing."""
    block = max(minimum, 512)
    longest = max(min(maximum or LONGEST, LONGEST) // block * block, block)
    return Limits(block, max(min(longest, LONGEST_WITH_DATA // block * block), block), longest)


@dataclass(slots=True, eq=False)
class Command:
    """One command on the wire, and which of its bytes are whose.

    Bytes `skip` to `skip + size` of its data are bytes `at` to `at + size` of the request's pieces, or zeroes.
    """

    op: int  # OP_*, what goes to the server
    offset: int = 0  # on the export, bytes
    length: int = 0
    at: int = 0
    skip: int = 0
    size: int = 0
    patch: bool = False  # a write of less than a block: read it first
    zeroes: bool = False  # a patch that comes from no piece


def needs_patching(request: Request, limits: Limits) -> bool:
    """Whether a command of `request` is a patch: nothing may write next to it meanwhile."""
    if request.op == OP_WRITE:
        return (request.offset | request.length) % limits.block != 0
    return request.op == OP_WRITE_ZEROES and any((start | length) % limits.block for start, length in request.ranges)


def commands_of(request: Request, limits: Limits) -> Iterator[Command]:
    """The commands of a request, in the order of their offsets. None at all: there is nothing to do."""
    if request.op == OP_FLUSH:
        yield Command(OP_FLUSH)
    elif request.op == OP_READ:
        yield from _read(request.offset, request.length, limits)
    elif request.op == OP_WRITE:
        yield from _write(request.offset, request.length, limits, OP_WRITE, limits.data)
    elif request.op == OP_WRITE_ZEROES:
        for start, length in request.ranges:
            yield from _write(start, length, limits, OP_WRITE_ZEROES, limits.zeroes)
    elif request.op == OP_DISCARD:
        for start, length in request.ranges:
            yield from _discard(start, length, limits)


def _read(offset: int, length: int, limits: Limits) -> Iterator[Command]:
    end, at = offset + length, 0
    while offset < end:
        start = offset - offset % limits.block
        stop = min(start + limits.data, end)
        whole = stop + -stop % limits.block
        yield Command(OP_READ, start, whole - start, at, offset - start, stop - offset)
        at += stop - offset
        offset = stop


def _write(offset: int, length: int, limits: Limits, op: int, longest: int) -> Iterator[Command]:
    end, at = offset + length, 0
    while offset < end:
        into = offset % limits.block
        if into or end - offset < limits.block:  # the first block, or the last, in part
            size = min(limits.block - into, end - offset)
            zeroes = op == OP_WRITE_ZEROES
            yield Command(OP_WRITE, offset - into, limits.block, at, into, size, patch=True, zeroes=zeroes)
        else:
            size = min(longest, (end - offset) // limits.block * limits.block)
            yield Command(op, offset, size, at, 0, size)
        at += size
        offset += size


def _discard(offset: int, length: int, limits: Limits) -> Iterator[Command]:
    """Whole blocks only: the rest of the range keeps its contents, as a discard may."""
    end = (offset + length) // limits.block * limits.block
    offset += -offset % limits.block
    while offset < end:
        size = min(limits.discard, end - offset)
        yield Command(OP_DISCARD, offset, size)
        offset += size


def gather(pieces: Sequence[memoryview], at: int, into: memoryview) -> None:
    """Fill `into` with the bytes of the pieces from byte `at` on."""
    done = 0
    for piece in pieces:
        if at < len(piece) and done < len(into):
            size = min(len(piece) - at, len(into) - done)
            into[done : done + size] = piece[at : at + size]
            done, at = done + size, at + size
        at = max(at - len(piece), 0)


def scatter(pieces: Sequence[memoryview], at: int, data: memoryview) -> None:
    """Put `data` into the pieces, from their byte `at` on."""
    done = 0
    for piece in pieces:
        if at < len(piece) and done < len(data):
            size = min(len(piece) - at, len(data) - done)
            piece[at : at + size] = data[done : done + size]
            done, at = done + size, at + size
        at = max(at - len(piece), 0)
