"""A device that was probed: what is negotiated, what the limits make of requests, attributes, and the end."""

from __future__ import annotations

import struct

import pytest

from driver.harness import DEFAULTS, driver, probed, read, write
from fake_device import Answer, FakeDevice, Fault
from naive.virtio_blk import (
    F_BLK_SIZE,
    F_FLUSH,
    F_MQ,
    F_RO,
    F_SEG_MAX,
    F_SIZE_MAX,
    F_TOPOLOGY,
    F_WCE,
    FEATURES,
    GET_ID,
    IOERR,
    OK,
    P_CONFIG,
    P_MQ,
    P_REPLY_ACK,
    P_SLOTS,
    UNSUPP,
    VERSION_1,
    VHOST_PROTOCOL,
    blk_config,
)
from virtblk.driver import virtio_blk
from virtblk.driver.naming import IndexAllocator, virtblk_name_format
from virtblk.driver.virtio_blk import DRIVER_FEATURES, DRIVER_PROTOCOL_FEATURES, Topology
from virtblk.uapi.vhost_user import FrontendRequest as R
from waiting import PATIENCE

KNOWN = sum(1 << bit for bit in DRIVER_FEATURES)


# Features.


@pytest.mark.parametrize(
    "offered",
    [
        FEATURES,
        (1 << 64) - 1 & ~(1 << 63),
        VERSION_1 | VHOST_PROTOCOL,
        FEATURES & ~(F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_MQ),
        FEATURES | 1 << 13 | 1 << 26 | 1 << 34 | 1 << 35 | 1 << 40,
    ],
)
def test_what_is_accepted_was_offered_and_is_known(offered: int) -> None:
    with FakeDevice(features=offered) as device, driver(device) as opened:
        assert device.accepted == offered & KNOWN == opened.features
        assert opened.device_features == offered
        assert read(opened, 0, 512) == bytes(512)


def test_features_can_be_left_out() -> None:
    with FakeDevice() as device, driver(device, without={9, 28, 29}):
        assert device.accepted == FEATURES & ~(1 << 9 | 1 << 28 | 1 << 29)


@pytest.mark.parametrize("missing", [0, P_MQ, P_REPLY_ACK, P_SLOTS, P_MQ | P_REPLY_ACK | P_SLOTS, ~0 << 4 & ~P_CONFIG])
def test_protocol_features(missing: int) -> None:
    offered = ((1 << 23) - 1) & ~missing
    with FakeDevice(protocol_features=offered) as device, driver(device) as opened:
        assert device.accepted_protocol == offered & DRIVER_PROTOCOL_FEATURES
        assert (R.VHOST_USER_GET_QUEUE_NUM in device.messages) == bool(offered & P_MQ)
        assert (R.VHOST_USER_ADD_MEM_REG in device.messages) == bool(offered & P_SLOTS)
        assert (R.VHOST_USER_SET_MEM_TABLE in device.messages) != bool(offered & P_SLOTS)
        assert read(opened, 1, 512) == bytes(512)


# Limits.


@pytest.mark.parametrize(
    ("size_max", "seg_max", "longest", "most"),
    [
        (0, 126, 4096, 126),  # qemu-storage-daemon's way to say that there is no limit
        (100, 126, 100, 126),
        (511, 10, 511, 10),
        (513, 126, 512, 126),  # whole sectors, where a segment can hold one
        (4096, 0, 4096, 1),  # as Linux reads it
        (1 << 31, (1 << 32) - 1, 4096, 126),
        (512, 1, 512, 1),
    ],
)
def test_limits_hold_for_every_request(size_max: int, seg_max: int, longest: int, most: int) -> None:
    with FakeDevice(config=blk_config(size_max=size_max, seg_max=seg_max)) as device, driver(device) as opened:
        data = bytes(range(256)) * 16
        assert write(opened, 1, data) == 0
        assert read(opened, 1, len(data)) == data
        assert bytes(device.disk[512 : 512 + len(data)]) == data
        for request in device.io:
            lengths = [buffer.length for buffer in request.buffers[1:-1]]
            assert max(lengths) <= longest
            assert len(lengths) <= most
            assert sum(lengths) % 512 == 0


def test_regression_a_boundless_seg_max_asks_for_no_boundless_memory() -> None:
    """A request of 1 MiB cannot have more segments than sectors; room for 32766 in each of 32785 made 16 GiB."""
    with FakeDevice(config=blk_config(seg_max=(1 << 32) - 1)) as device, driver(device, queue_size=32768) as opened:
        assert opened.view.queue[0]["max_segs"] == 2048
        assert opened.arena.length < 2 << 30
        assert read(opened, 0, 4096) == bytes(4096)


# Identity.


@pytest.mark.parametrize(
    ("answer", "serial"),
    [
        (Answer(OK, b"S/N 12345".ljust(20, b"\0")), "S/N 12345"),
        (Answer(OK, b"x" * 20), "x" * 20),  # not terminated
        (Answer(OK, b"padded".ljust(20)), "padded"),  # SPDK's way
        (Answer(OK, b"caf\xc3\xa9".ljust(20, b"\0")), "caf��"),
        (Answer(OK, b"a\0garbage".ljust(20, b"!")), "a"),
        (Answer(OK, bytes(20)), ""),
        (Answer(OK, b""), ""),
        (Answer(UNSUPP), ""),
        (Answer(IOERR), ""),
        (Answer(None), ""),
    ],
)
def test_serials(answer: Answer, serial: str) -> None:
    with FakeDevice(lambda request: answer if request.type == GET_ID else None) as device, driver(device) as opened:
        assert opened.serial == serial
        assert [(r.type, r.sector, r.room) for r in device.requests] == [(GET_ID, 0, 20)]
        assert read(opened, 0, 512) == bytes(512)


def test_regression_a_serial_holds_nothing_that_a_terminal_would_obey() -> None:
    """It is printed: a device must not be able to clear the screen, or to begin a new line."""
    with FakeDevice(serial=b"a\x1b[2Jb\nc\x7f\0") as device, driver(device) as opened:
        assert opened.serial == "a�[2Jb�c�"


@pytest.mark.parametrize(
    ("index", "name"),
    list({0: "vda", 25: "vdz", 26: "vdaa", 51: "vdaz", 52: "vdba", 701: "vdzz", 702: "vdaaa", 18278: "vdaaaa"}.items()),
)
def test_disk_names(index: int, name: str) -> None:
    assert virtblk_name_format("vd", index) == name


def test_the_lowest_free_index_is_given() -> None:
    allocator = IndexAllocator()
    assert [allocator.get() for _ in range(4)] == [0, 1, 2, 3]
    for index in (2, 1):
        allocator.put(index)
    assert [allocator.get() for _ in range(3)] == [1, 2, 4]


def test_names_and_minors_of_several_disks() -> None:
    with FakeDevice() as one, FakeDevice() as two, FakeDevice() as three, driver(one) as first:
        with driver(two) as second:
            assert (first.name, second.name, second.first_minor) == ("vda", "vdb", 16)
        with driver(three) as third:
            assert third.name == "vdb"


# Attributes.


def test_topology() -> None:
    config = blk_config(
        blk_size=1024, physical_block_exp=2, alignment_offset=3, min_io_size=4, opt_io_size=(1 << 32) - 1
    )
    with FakeDevice(features=FEATURES | F_TOPOLOGY, config=config) as device, driver(device) as opened:
        assert opened.topology == Topology(1024, 4096, 3072, 4096, ((1 << 32) - 1) * 1024)
    with FakeDevice(config=config) as device, driver(device) as opened:
        assert opened.topology == Topology(1024, 1024, 0, 1024, 0)


@pytest.mark.parametrize(
    ("features", "writeback", "expected"),
    [
        (FEATURES, 0, True),
        (FEATURES & ~F_FLUSH, 1, False),
        (FEATURES | F_WCE, 0, False),
        (FEATURES | F_WCE, 1, True),
        (FEATURES & ~F_FLUSH | F_WCE, 1, True),
    ],
)
def test_cache_mode(features: int, writeback: int, expected: bool) -> None:
    with FakeDevice(features=features, config=blk_config(writeback=writeback)) as device, driver(device) as opened:
        assert opened.writeback is expected


def test_read_only_by_the_device_or_by_option() -> None:
    with FakeDevice(features=FEATURES | F_RO) as device, driver(device) as opened:
        assert (opened.read_only, opened.device_read_only) == (True, True)
    with FakeDevice() as device, driver(device, read_only=True) as opened:
        assert (opened.read_only, opened.device_read_only) == (True, False)


# The end.


def test_close_stops_the_ring_and_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtio_blk, "CLOSE_TIMEOUT", PATIENCE)
    with FakeDevice() as device:
        with driver(device) as opened:
            assert read(opened, 0, 512) == bytes(512)
            opened.close()
            assert device.messages[-1] == R.VHOST_USER_GET_VRING_BASE
        opened.close()


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.CLOSE, b"", struct.pack("<II", 9, 9)])
def test_close_does_not_need_an_answer(fault: Fault | bytes, caplog: pytest.LogCaptureFixture) -> None:
    with FakeDevice(faults={R.VHOST_USER_GET_VRING_BASE: fault}) as device:
        opened = probed(device, DEFAULTS | {"timeout": 0.2})
        opened.close()
    assert "fake: stopping the ring: VHOST_USER_GET_VRING_BASE" in caplog.text
