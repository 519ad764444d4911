"""Bad inputs, group Address (21 to 28), against the whole device: answered, or that ring broken and no other."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from device.guest import GUEST, USER, header
from door.rings import SIZE, Intruder, RingDoor
from naive.ring import INDIRECT, NEXT, WRITE, Buffer
from naive.virtio_blk import IN, IOERR, OK, OUT
from virtblk.vhost_user.frontend import Region
from waiting import wait_until

ROUNDS = 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RingDoor]:
    with RingDoor(str(tmp_path_factory.mktemp("door") / "s")) as door:
        yield door


@pytest.fixture
def guest(shared: RingDoor) -> Iterator[Intruder]:
    with Intruder(shared, regions=4) as intruder:
        yield intruder
    shared.check()


def end_of(guest: Intruder) -> int:
    return guest.regions[-1].guest_addr + guest.regions[-1].size


def answer(guest: Intruder, *chain: Buffer) -> tuple[int, int]:
    """(used length, status) of one chain, whose last buffer ends with the status."""
    guest.offer_chain(chain)
    broken, used = guest.attack([buffer for buffer in chain if buffer.writable])
    assert broken is None
    return used[0][1], guest.load(chain[-1].address + chain[-1].length - 1, 1)[0]


@pytest.mark.parametrize("address", [0, 1, USER, (1 << 63) - 1, 1 << 63, (1 << 64) - 512, (1 << 64) - 1])
@pytest.mark.parametrize("role", ["header", "data", "status", "table"])
def test_21_addresses_that_are_nowhere(guest: Intruder, address: int, role: str) -> None:
    """With 2^64-1 and more than one byte the end wraps."""
    sent, data, status = guest.buffer(header(OUT)).address, guest.buffer(b"w" * 512).address, guest.room(1).address
    where = {"header": sent, "data": data, "status": status, role: address}
    if role == "table":
        guest.offer((address, 48, INDIRECT, 0))
    else:
        guest.offer((where["header"], 16, NEXT, 1), (where["data"], 512, NEXT, 2), (where["status"], 16, WRITE, 0))
    broken, used = guest.attack()
    assert broken == f"address {address:#x} is in no memory region"
    assert used == []


def test_22_across_two_regions(guest: Intruder) -> None:
    """Guest addresses go on where one region ends and the next begins; the device's mappings do not."""
    border = guest.regions[1].guest_addr
    guest.store(border - 100, b"w" * 512)
    guest.door.content[512:1024] = b"w" * 512
    assert answer(guest, guest.buffer(header(OUT, 1)), Buffer(border - 100, 512, False), guest.room(1)) == (1, OK)


@pytest.mark.parametrize("kind", [IN, OUT])
def test_22_across_a_hole(guest: Intruder, kind: int) -> None:
    """All regions from the second on are taken away but the last."""
    for region in guest.regions[1:3]:
        guest.front.rem_mem_reg(region)
    border = guest.regions[1].guest_addr
    data = Buffer(border - 100, guest.size // 2 + 200, kind == IN)
    guest.offer_chain([guest.buffer(header(kind)), data, guest.room(1)])
    broken, _ = guest.attack()
    assert broken == f"address {border:#x} is in no memory region"


def test_23_the_last_byte(guest: Intruder) -> None:
    room = Buffer(end_of(guest) - 513, 513, True)
    assert answer(guest, guest.buffer(header(IN, 2)), room) == (513, OK)
    assert guest.load(room.address, 512) == guest.door.content[1024:1536]


def test_23_the_last_byte_and_one_more(guest: Intruder) -> None:
    guest.offer_chain([guest.buffer(header(IN, 2)), Buffer(end_of(guest) - 512, 513, True)])
    broken, _ = guest.attack()
    assert broken == f"address {end_of(guest):#x} is in no memory region"


@pytest.mark.parametrize("target", ["desc", "used", "table"])
def test_24_data_into_what_describes_it(guest: Intruder, target: str) -> None:
    """It is the guest's own memory. A sector of zeroes, so that the used index does not jump for the one who waits."""
    door = guest.door
    zeroes = guest.buffer(header(OUT, 3) + bytes(512)), guest.room(1)
    sent, status = guest.buffer(header(IN, 3)), guest.room(1)
    table = guest.alloc(16 * 32, 16)
    at = table if target == "table" else getattr(guest.bad.ring, target) - USER + GUEST
    data = Buffer(at, 512, True)
    door.content[3 * 512 : 4 * 512] = bytes(512)
    guest.offer_chain(zeroes)
    guest.bad.tokens += 1
    chain = [sent, data, status]
    assert guest.bad.driver.add(chain, guest.bad.tokens, table if target == "table" else 0)
    broken, used = guest.attack([zeroes[1], data, status], answers=2)
    assert broken is None
    assert used[1][1] == 513
    assert guest.load(status.address, 1) == bytes([OK])
    if target != "used":
        assert guest.load(at, 512) == bytes(512)


def test_24_data_into_the_available_ring(guest: Intruder) -> None:
    """Answered; then the index that the guest let be overwritten jumps, and that breaks the ring."""
    data = Buffer(guest.bad.ring.avail - USER + GUEST, 512, True)
    status = guest.room(1)
    guest.offer_chain([guest.buffer(header(IN, 4)), data, status])
    _, used = guest.attack([data, status])
    assert used[0][1] == 513
    assert guest.bad.broke()
    assert "available index moved by" in str(guest.device.queues[0].broken)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("address", [0, (1 << 64) - 1])
def test_25_buffers_of_no_length(guest: Intruder, place: int, address: int) -> None:
    """They are no pieces, wherever they are said to be."""
    sent, data, status = guest.buffer(header(IN, 5)), guest.room(512), guest.room(1)
    chain = [sent, data, status]
    chain.insert(place, Buffer(address, 0, place > 0))
    guest.offer_chain(chain)
    assert guest.attack([data, status]) == (None, [(0, 513)])
    assert guest.load(status.address, 1) == bytes([OK])


@pytest.mark.compiled
def test_26_a_region_whose_file_is_truncated(shared: RingDoor, caplog: pytest.LogCaptureFixture) -> None:
    """It breaks, acknowledges nothing, and the next client has a whole disk."""
    with Intruder(shared, start=True) as guest:
        sent, status = guest.buffer(header(OUT, 0)), guest.room(1)
        last = guest.alloc(1 << 18, 1 << 18)
        os.ftruncate(guest.fd, last - GUEST)
        guest.bad.add([sent, Buffer(last, 512, False), status])
        assert guest.bad.broke()
        assert "truncated" in caplog.text
        assert guest.bad.ring.used_idx == 0
        shared.content[:512] = bytes(512)  # the zeroes that were there to read; nobody was told that they are written
    shared.check()


def test_27_a_region_that_is_removed_with_requests_in_flight(shared: RingDoor) -> None:
    """Each is answered, or the ring is broken because of that address."""
    more = os.memfd_create("more")
    os.ftruncate(more, 1 << 20)
    extra = Region(GUEST + (1 << 30), 1 << 20, USER + (1 << 30), 0, more)
    try:
        with Intruder(shared, start=True) as guest:
            queue, sent, status = guest.bad, guest.buffer(header(IN, 6)), guest.room(1)
            for _ in range(ROUNDS):
                guest.front.add_mem_reg(extra)
                tokens = [queue.add([sent, Buffer(extra.guest_addr, 512, True), status]) for _ in range(16)]
                guest.front.rem_mem_reg(extra)
                wait_until(lambda: queue.broke(0) or (queue.reap() >= 0 and not queue.driver.in_flight))
                if queue.broke(0):
                    break
                assert [queue.done.pop(token) for token in tokens] == [513] * 16
            if not queue.broke(0):
                queue.add([sent, Buffer(extra.guest_addr, 512, True), status])
            wait_until(lambda: queue.broke(0))
            assert guest.device.queues[0].broken == f"address {extra.guest_addr:#x} is in no memory region"
            assert os.pread(more, 512, 0) in (bytes(512), shared.content[6 * 512 : 7 * 512])
            assert guest.queues[1].read(6, 512) == shared.content[6 * 512 : 7 * 512]
    finally:
        os.close(more)
    shared.check()


def test_28_overlapping_buffers_in_one_request(guest: Intruder) -> None:
    """A read into the same place twice, and a status on top of the header: the last one written is what stays."""
    sent = guest.buffer(header(IN, 7))
    data = guest.room(512)
    status = Buffer(sent.address, 1, True)
    guest.offer_chain([sent, data, data, status])
    broken, used = guest.attack([data, status])
    assert (broken, used[0][1]) == (None, 1025)
    assert guest.load(data.address, 512) == guest.door.content[8 * 512 : 9 * 512]
    assert guest.load(sent.address, 16) == bytes([OK]) + header(IN, 7)[1:]


def test_28_a_write_of_what_it_answers_into(guest: Intruder) -> None:
    """Data and status are the same byte: written to the disk as it was."""
    data = guest.buffer(b"w" * 512)
    guest.door.content[8 * 512 : 9 * 512] = b"w" * 512
    status = Buffer(data.address + 100, 1, True)
    assert answer(guest, guest.buffer(header(OUT, 8)), data, status) == (1, OK)


def test_28_the_disk_has_no_room_for_all_of_memory(guest: Intruder) -> None:
    """All of guest memory, rings and header included, to a disk that is smaller."""
    assert guest.size > SIZE
    whole = Buffer(GUEST, guest.size, False)
    assert answer(guest, guest.buffer(header(OUT, 0)), whole, guest.room(1)) == (1, IOERR)
