"""Bad inputs, group Chain (1 to 20), against the whole device: each is answered, or breaks its own ring and no other.

What the ring's code makes of each chain is in virtio/test_vringh_hostile.py; the numbers are those of both lists.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from device.guest import header
from door.rings import CAPACITY, Intruder, Prepare, RingDoor
from naive.ring import INDIRECT, NEXT, WRITE, Buffer
from naive.virtio_blk import IN, IOERR, OK, OUT
from naive.virtio_blk import INDIRECT as F_INDIRECT

NUM = 64


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RingDoor]:
    with RingDoor(str(tmp_path_factory.mktemp("door") / "s")) as door:
        yield door


@pytest.fixture
def guest(shared: RingDoor) -> Iterator[Intruder]:
    with Intruder(shared, num=NUM) as intruder:
        yield intruder
    shared.check()


def write_header(guest: Intruder) -> int:
    """A header that would write to sector 0, if only the rest of the chain were sound."""
    return guest.buffer(header(OUT)).address


BREAKS: dict[str, tuple[Prepare, str]] = {
    "1 self loop": (lambda g: g.offer((write_header(g), 16, NEXT, 0)), "a loop"),
    "1 self loop of nothing": (lambda g: g.offer((write_header(g), 0, NEXT, 0)), "a loop"),
    "2 two-node loop": (lambda g: g.offer((write_header(g), 16, NEXT, 1), (write_header(g), 16, NEXT, 0)), "a loop"),
    "3 loop in an indirect table": (
        lambda g: g.offer_indirect((write_header(g), 16, NEXT, 1), (write_header(g), 512, NEXT, 0)),
        "a loop",
    ),
    "4 next = size": (lambda g: g.offer((write_header(g), 16, NEXT, NUM)), "next 64 is outside"),
    "4 next 65535": (lambda g: g.offer((write_header(g), 16, NEXT, 65535)), "next 65535 is outside"),
    "4 next outside an indirect table": (
        lambda g: g.offer_indirect((write_header(g), 16, NEXT, 2), (write_header(g), 16, 0, 0)),
        "next 2 is outside",
    ),
    "5 head = size": (lambda g: g.offer(head=NUM), "head 64 is not below"),
    "5 head 65535": (lambda g: g.offer(head=65535), "head 65535 is not below"),
    "7 index + size + 1": (lambda g: g.offer((write_header(g), 16, 0, 0), moved=NUM + 1), "moved by 65"),
    "7 index + 32768": (lambda g: g.offer((write_header(g), 16, 0, 0), moved=32768), "moved by 32768"),
    "7 index backwards": (lambda g: g.offer((write_header(g), 16, 0, 0), moved=-1), "moved by 65535"),
    "8 chain = size + 1": (
        lambda g: g.offer(*((write_header(g), 16, NEXT, (i + 1) % NUM) for i in range(NUM))),
        "a loop",
    ),
    "13 readable after writable": (
        lambda g: g.offer((write_header(g), 16, NEXT, 1), (g.room(512).address, 512, WRITE | NEXT, 2), (0, 0, 0, 0)),
        "after a device-writable one",
    ),
    "14 INDIRECT and NEXT": (
        lambda g: g.offer((g.table((write_header(g), 16, 0, 0)), 16, INDIRECT | NEXT, 1), (write_header(g), 16, 0, 0)),
        "both INDIRECT and NEXT",
    ),
    "15 nested tables": (
        lambda g: g.offer_indirect((g.table((write_header(g), 16, 0, 0)), 16, INDIRECT, 0)),
        "inside an indirect table",
    ),
    **{
        f"16 table of {size} bytes": (
            lambda g, size=size: g.offer((g.table((write_header(g), 16, 0, 0)), size, INDIRECT, 0)),
            f"indirect table of {size} bytes",
        )
        for size in (0, 8, 17, 16 * 1025, (1 << 32) - 16)
    },
    "20 more than 2^32 bytes": (
        lambda g: g.offer(*((write_header(g), 1 << 19, NEXT, i + 1) for i in range(NUM - 1)), (0, (1 << 32) - 1, 0, 0)),
        "over 2**32",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_chain_that_breaks_the_ring(guest: Intruder, name: str) -> None:
    prepare, words = BREAKS[name]
    if name.startswith("20"):
        guest.alloc(600 << 10)  # behind every header there are 2^19 bytes of memory
        guest.release(guest.mark() - (600 << 10))
    prepare(guest)
    broken, used = guest.attack()
    assert broken is not None
    assert words in broken
    assert used == []


def test_17_a_table_past_the_end_of_its_region(guest: Intruder) -> None:
    end = guest.regions[0].guest_addr + guest.size
    guest.bad.ring.write_desc(end - 16, 0, write_header(guest), 16, NEXT, 1)
    guest.offer((end - 16, 32, INDIRECT, 0))
    broken, _ = guest.attack()
    assert broken == f"address {end:#x} is in no memory region"


def test_19_indirect_that_was_not_negotiated(shared: RingDoor) -> None:
    with Intruder(shared, features=0x3FFFFFFFF & ~F_INDIRECT) as guest:
        guest.offer_indirect((write_header(guest), 16, 0, 0))
        broken, _ = guest.attack()
        assert broken == "indirect descriptor 0, but INDIRECT_DESC was not negotiated"
    shared.check()


def test_6_the_same_head_twice(guest: Intruder) -> None:
    """The guest harms its own request only: it is done twice."""
    sent, status = guest.buffer(header(IN)), guest.room(513)
    guest.offer((sent.address, 16, NEXT, 1), (status.address, 513, WRITE, 0))
    guest.offer()
    assert guest.attack([status], answers=2) == (None, [(0, 513), (0, 513)])
    assert guest.load(status.address, 513) == guest.door.content[:512] + b"\0"


def test_8_a_chain_as_long_as_the_ring(guest: Intruder) -> None:
    pieces = [guest.room(8) for _ in range(NUM - 2)]
    status = guest.room(17)
    guest.offer_chain([guest.buffer(header(IN)), *pieces, status])
    assert guest.attack([*pieces, status]) == (None, [(0, 8 * (NUM - 2) + 17)])
    assert guest.load(status.address + 16, 1) == bytes([OK])


def test_18_a_table_longer_than_the_ring(guest: Intruder) -> None:
    """Windows guests send them (spdk#2330)."""
    pieces = [guest.room(8) for _ in range(4 * NUM)]
    chain = [guest.buffer(header(IN)), *pieces, guest.room(1)]
    guest.offer_indirect(
        *(
            (b.address, b.length, (WRITE if b.writable else 0) | (NEXT if b is not chain[-1] else 0), i + 1)
            for i, b in enumerate(chain)
        )
    )
    assert guest.attack(chain[1:]) == (None, [(0, 8 * 4 * NUM + 1)])


def answer(guest: Intruder, chain: list[Buffer]) -> tuple[int, int | None]:
    """(used length, the last writable byte) of one chain."""
    writable = [buffer for buffer in chain if buffer.writable]
    guest.offer_chain(chain)
    broken, used = guest.attack(writable)
    assert broken is None
    last = next((buffer for buffer in reversed(writable) if buffer.length), None)
    return used[0][1], guest.load(last.address + last.length - 1, 1)[0] if last else None


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([header(OUT)], id="9 head only"),
        pytest.param([header(OUT), b"w" * 512], id="10 no status"),
        pytest.param([header(OUT), b"w" * 512, b"\0"], id="11 status not writable"),
        pytest.param([b""], id="nothing at all"),
    ],
)
def test_no_status_no_execution(guest: Intruder, pieces: list[bytes]) -> None:
    """The head comes back with length 0: there is nowhere to say more."""
    assert answer(guest, [guest.buffer(piece) for piece in pieces]) == (0, None)


def test_11_a_status_of_no_length_is_none(guest: Intruder) -> None:
    assert answer(guest, [guest.buffer(header(OUT) + b"w" * 512), guest.room(0)]) == (0, None)


@pytest.mark.parametrize("length", [2, 513, 1000])
def test_11_a_status_that_is_too_long(guest: Intruder, length: int) -> None:
    """Its last byte is the status; on a write the others stay."""
    status = guest.room(length)
    assert answer(guest, [guest.buffer(header(OUT, CAPACITY) + b"w" * 512), status]) == (0, IOERR)
    assert set(guest.load(status.address, length - 1)) == {0xEE}


@pytest.mark.parametrize("length", [0, 1, 15])
def test_12_a_header_that_is_short(guest: Intruder, length: int) -> None:
    assert answer(guest, [guest.buffer(header(OUT)[:length]), guest.room(1)]) == (1, IOERR)


def test_12_a_header_that_is_writable(guest: Intruder) -> None:
    sent = guest.room(16)
    guest.store(sent.address, header(OUT))
    assert answer(guest, [sent, guest.buffer(b"")._replace(writable=True), guest.room(1)]) == (0, IOERR)
    assert guest.load(sent.address, 16) == header(OUT)


@pytest.mark.parametrize("cut", [1, 8, 15])
def test_12_a_header_that_is_split(guest: Intruder, cut: int) -> None:
    sent = header(OUT, CAPACITY - 2)
    guest.door.content[(CAPACITY - 2) * 512 : (CAPACITY - 1) * 512] = b"w" * 512
    chain = [guest.buffer(sent[:cut]), guest.buffer(sent[cut:] + b"w" * 512), guest.room(1)]
    assert answer(guest, chain) == (1, OK)


def test_12_a_header_of_17_bytes_has_a_byte_of_data(guest: Intruder) -> None:
    assert answer(guest, [guest.buffer(header(OUT) + b"w"), guest.room(1)]) == (1, IOERR)
