"""Probe: devices that are refused and in which words, handshakes that go wrong at every step. Nothing stays behind."""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Iterator

import pytest

from driver.harness import driver, read, write
from fake_device import HOLD, FakeDevice, Fault, Request
from naive.virtio_blk import F_TOPOLOGY, FEATURES, P_CONFIG, PROTOCOL_FEATURES, VERSION_1, VHOST_PROTOCOL, blk_config
from virtblk.errors import OpenError, UsageError
from virtblk.uapi.vhost_user import FrontendRequest as R


@pytest.fixture(autouse=True)
def no_thread_and_no_name_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("vd")] == []
    with FakeDevice() as device, driver(device) as opened:
        assert opened.name == "vda"


def refusal(device: FakeDevice, **options: object) -> OpenError:
    """The error of a probe that fails: an errno, and one line that names the disk."""
    with device, pytest.raises(OpenError) as caught, driver(device, patience=0, **options):
        pass
    error = caught.value
    assert error.errno
    assert error.strerror
    assert error.strerror.startswith("fake")
    assert "\n" not in str(error)
    return error


#: For one that is silent: long enough, unless the machine is so busy that an answer before the silence is late too.
TIMEOUTS = (0.1, 1.0, 10.0)


# Devices that are refused.


@pytest.mark.parametrize(
    ("features", "protocol_features", "words"),
    [
        (FEATURES & ~VERSION_1, PROTOCOL_FEATURES, "VIRTIO_F_VERSION_1"),
        (FEATURES & ~VHOST_PROTOCOL, PROTOCOL_FEATURES, "no protocol features"),
        (FEATURES, PROTOCOL_FEATURES & ~P_CONFIG, "VHOST_USER_PROTOCOL_F_CONFIG"),
    ],
)
def test_devices_without_what_we_need_are_refused(features: int, protocol_features: int, words: str) -> None:
    error = refusal(FakeDevice(features=features, protocol_features=protocol_features))
    assert error.errno == errno.EPROTO
    assert words in error.strerror


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (blk_config(capacity=0), "0 bytes"),
        (blk_config(capacity=7, blk_size=4096), "3584 bytes"),
        (blk_config(capacity=1 << 63), str(1 << 63)),
        (blk_config(capacity=(1 << 64) - 1), str((1 << 64) - 1)),
        (blk_config(blk_size=0), "block size is 0"),
        (blk_config(blk_size=256), "block size is 256"),
        (blk_config(blk_size=513), "block size is 513"),
        (blk_config(blk_size=1 << 20), "block size is 1048576"),
        (blk_config(size_max=100, seg_max=5), "5 segments of 100 bytes"),
        (blk_config(size_max=1024, seg_max=3, blk_size=4096), "3 segments of 1024 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_configurations_that_cannot_be_are_refused(config: bytes, words: str) -> None:
    error = refusal(FakeDevice(config=config))
    assert error.errno == errno.EPROTO
    assert words in error.strerror


def test_a_physical_block_exponent_that_cannot_be() -> None:
    error = refusal(FakeDevice(features=FEATURES | F_TOPOLOGY, config=blk_config(physical_block_exp=200)))
    assert "exponent is 200" in error.strerror


def test_regression_mq_with_no_queue_is_refused() -> None:
    """The device's num_queues of 0 (5.2.4: at least 1) was read as 1; Linux refuses it too. So was the back end's."""
    assert "0 queues" in refusal(FakeDevice(config=blk_config(num_queues=0))).strerror
    assert "0 queues" in refusal(FakeDevice(queue_num=0)).strerror


def test_fields_of_features_that_are_not_offered_do_not_matter() -> None:
    features = VERSION_1 | VHOST_PROTOCOL
    config = blk_config(size_max=1, seg_max=0, blk_size=513, physical_block_exp=200, num_queues=0)
    with FakeDevice(features=features, config=config) as device, driver(device) as opened:
        assert (opened.topology.block_size, opened.seg_max, opened.size_max, opened.num_queues) == (512, 1, 0, 1)
        assert read(opened, 0, 4096) == bytes(4096)


@pytest.mark.parametrize("size", [60, 36, 24])
def test_a_device_that_has_less_configuration_is_asked_for_less(size: int) -> None:
    class Shorter(FakeDevice):
        def _message(self, msg: object) -> bool:
            asked = len(msg.payload) - 12  # type: ignore[attr-defined]
            self.faults = {R.VHOST_USER_GET_CONFIG: Fault.REFUSE} if asked > size else {}
            return super()._message(msg)  # type: ignore[arg-type]

    with Shorter(config=blk_config(capacity=64)) as device, driver(device) as opened:
        assert opened.size == 64 * 512
        assert len(opened.config_bytes) == size


def test_a_refused_configuration() -> None:
    error = refusal(FakeDevice(faults={R.VHOST_USER_GET_CONFIG: Fault.REFUSE}))
    assert "no blk config" in error.strerror


# Handshakes that go wrong, at every step.


def honest_messages() -> list[R]:
    with FakeDevice() as device, driver(device):
        return [R(message) for message in device.messages]


NEGOTIATION = ["GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "SET_OWNER", "GET_QUEUE_NUM"]
SHARING = ["GET_CONFIG", "SET_FEATURES", "ADD_MEM_REG"]
STARTING = [f"SET_VRING_{what}" for what in ("NUM", "BASE", "ADDR", "CALL", "ERR", "KICK", "ENABLE")]
HANDSHAKE = NEGOTIATION + SHARING + STARTING
#: The front end has no acknowledgement to wait for before this one is over.
UNACKED = ["SET_PROTOCOL_FEATURES"]


def test_the_handshake_is_the_one_whose_every_step_is_tested() -> None:
    assert [message.name.removeprefix("VHOST_USER_") for message in honest_messages()] == HANDSHAKE


@pytest.mark.parametrize("step", range(len(HANDSHAKE)))
def test_a_peer_that_hangs_up_at_any_step(step: int) -> None:
    error = refusal(FakeDevice(close_at=step))
    assert error.errno in (errno.EPROTO, errno.ENODEV)
    assert "closed the connection" in error.strerror


@pytest.mark.parametrize("name", [name for name in HANDSHAKE if name not in UNACKED])
def test_a_peer_that_falls_silent_at_any_step(name: str) -> None:
    for seconds in TIMEOUTS:
        error = refusal(FakeDevice(faults={R[f"VHOST_USER_{name}"]: Fault.SILENT}), timeout=seconds)
        assert error.errno == errno.ETIMEDOUT
        if f"VHOST_USER_{name}: no answer within {seconds:g} s" in error.strerror:
            return
    pytest.fail(f"another step took so long: {error}")


@pytest.mark.parametrize("name", [n for n in HANDSHAKE if not n.startswith("GET") and n not in UNACKED])
def test_a_peer_that_refuses_any_step(name: str) -> None:
    error = refusal(FakeDevice(faults={R[f"VHOST_USER_{name}"]: Fault.REFUSE}))
    assert error.errno == errno.EPROTO
    assert f"VHOST_USER_{name} refused" in error.strerror


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("GET_FEATURES", b""),
        ("GET_FEATURES", bytes(4)),
        ("GET_QUEUE_NUM", bytes(16)),
        ("GET_CONFIG", struct.pack("<III", 0, 36, 0) + bytes(36)),
        ("GET_CONFIG", bytes(5)),
        ("SET_OWNER", b"yes"),
    ],
)
def test_replies_of_the_wrong_size(name: str, payload: bytes) -> None:
    error = refusal(FakeDevice(faults={R[f"VHOST_USER_{name}"]: payload}))
    assert error.errno == errno.EPROTO
    assert f"VHOST_USER_{name}" in error.strerror


def test_a_first_request_that_is_never_answered() -> None:
    for seconds in TIMEOUTS:
        error = refusal(FakeDevice(lambda request: HOLD), timeout=seconds)
        assert error.errno == errno.ETIMEDOUT
        if error.strerror == f"fake: the device did not answer in time ({seconds:g} s)":
            return
    pytest.fail(f"another step took so long: {error}")


def test_a_peer_that_dies_with_the_first_request() -> None:
    def die(request: Request) -> object:
        device.hang_up()
        return HOLD

    device = FakeDevice(die)
    error = refusal(device)
    assert (error.errno, error.strerror) == (errno.ENODEV, "fake: the device closed the connection")


# Options.


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100, 65536, -4])
def test_queue_sizes_that_cannot_be(size: int) -> None:
    match = f"queue size {size}: give a power of two from 4 to 32768"
    with FakeDevice() as device, pytest.raises(UsageError, match=match), driver(device, queue_size=size):
        pass


def test_regression_queue_size_0_is_not_the_default() -> None:
    with FakeDevice() as device, pytest.raises(UsageError, match="queue size 0:"), driver(device, queue_size=0):
        pass


@pytest.mark.parametrize("size", [4, 256, 32768])
def test_queue_sizes(size: int) -> None:
    with FakeDevice(config=blk_config(seg_max=8)) as device, driver(device, queue_size=size) as opened:
        assert device.ring is not None
        assert device.ring.num == size
        assert write(opened, 0, b"q" * 512) == 0
        assert bytes(device.disk[:512]) == b"q" * 512
