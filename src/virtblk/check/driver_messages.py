"""What a driver does with a back end that breaks vhost-user or says impossible things of its disk.

Each check plays one misbehaviour and demands what a sound driver does: it refuses the disk with a word to its user,
within its own time-out, and does not touch the ring; or, where nothing is lost, it goes on. Registered on import.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from virtblk.check.driver_device import FEATURES, PROTOCOL_FEATURES, REPLY, Device, blk_config
from virtblk.check.driver_trial import CONNECT_TIMEOUT, DRIVER, R, Story, Trial
from virtblk.check.requirement import Severity
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi import virtio_blk as blk
from virtblk.uapi.virtio_config import VIRTIO_F_VERSION_1
from virtblk.vhost_user.message import Message

CRITICAL, HIGH, LOW = Severity.CRITICAL, Severity.HIGH, Severity.LOW
_COMMUNICATION: Final = "vhost-user: Communication"
_STATUS: Final = "vhost-user: REPLY_ACK"
HANDSHAKE: Final = (
    *(R.VHOST_USER_GET_FEATURES, R.VHOST_USER_GET_PROTOCOL_FEATURES, R.VHOST_USER_SET_PROTOCOL_FEATURES),
    *(R.VHOST_USER_SET_OWNER, R.VHOST_USER_GET_QUEUE_NUM, R.VHOST_USER_GET_CONFIG, R.VHOST_USER_SET_FEATURES),
    *(R.VHOST_USER_SET_MEM_TABLE, R.VHOST_USER_ADD_MEM_REG, R.VHOST_USER_SET_VRING_NUM, R.VHOST_USER_SET_VRING_BASE),
    *(R.VHOST_USER_SET_VRING_ADDR, R.VHOST_USER_SET_VRING_CALL, R.VHOST_USER_SET_VRING_KICK),
    R.VHOST_USER_SET_VRING_ENABLE,
)


@DRIVER.must("honest.session", "2.7, 5.2.6", CRITICAL)
def honest_session(trial: Trial) -> str:
    """With a device that keeps all rules the driver does its work, accepts only what is offered, and keeps to the
    ring's rules itself. (Every other check leans on this one. A driver that compiles itself first may do so here.)"""
    trial.timeout = max(trial.timeout, CONNECT_TIMEOUT)
    return trial.play(request=lambda device, request: device.complete(request)).goes_on()


# The socket.


def hang_up(device: Device, msg: Message) -> None:
    device.hang_up()


def silence(device: Device, msg: Message) -> None:
    pass


def refuse(device: Device, msg: Message) -> None:
    """A non-zero acknowledgement, where one was asked for."""
    if device.answer_of(msg) is not None:
        device.reply(msg.request, uapi.U64.pack(1))


def short_name(request: R) -> str:
    return request.name.removeprefix("VHOST_USER_").lower().replace("_", "-")


def _refused(trial: Trial, request: R) -> str:
    asked = []

    def answer(device: Device, msg: Message) -> None:
        if device.answer_of(msg) is None:
            device.spoilt = ""  # nothing was asked, so nothing is refused
            device.obey(msg)
            return
        asked.append(msg)
        refuse(device, msg)

    return trial.play(messages={request: answer}).refuses()


def _each_message(
    prefix: str, requests: tuple[R, ...], severity: Severity, text: str, check: Callable[[Trial, R], str]
) -> None:
    for request in requests:

        def one(trial: Trial, request: R = request) -> str:
            return check(trial, request)

        one.__doc__ = text.format(name=request.name)
        DRIVER.must(f"{prefix}.{short_name(request)}", _COMMUNICATION, severity)(one)


_each_message(
    *("hangup", HANDSHAKE, HIGH, "A back end that closes the socket at {name} is noticed and reported."),
    lambda trial, request: trial.play(messages={request: hang_up}).fails(),
)
_each_message(
    "silent",
    (
        R.VHOST_USER_GET_FEATURES,
        R.VHOST_USER_GET_CONFIG,
        R.VHOST_USER_GET_QUEUE_NUM,
        R.VHOST_USER_GET_PROTOCOL_FEATURES,
    ),
    *(HIGH, "A back end that never answers {name} does not keep the driver waiting for ever."),
    lambda trial, request: trial.play(messages={request: silence}).refuses(),
)
_each_message(
    "refused",
    (
        *(request for request in HANDSHAKE if request.name.startswith("VHOST_USER_SET_V")),
        *(R.VHOST_USER_SET_FEATURES, R.VHOST_USER_ADD_MEM_REG, R.VHOST_USER_SET_MEM_TABLE),
    ),
    *(HIGH, "A back end that answers {name} with an error, where an answer was asked for, is believed."),
    _refused,
)


def raw(make: Callable[[Device, Message, bytes], bytes]) -> Callable[[Device, Message], None]:
    """Obey, then send what `make` makes of the honest payload."""

    def action(device: Device, msg: Message) -> None:
        device.obey(msg)
        device.send(make(device, msg, device.answer_of(msg) or b""))

    return action


def header(request: int, size: int, flags: int = REPLY) -> bytes:
    return uapi.HEADER.pack(request, flags, size)


_GET: Final = R.VHOST_USER_GET_FEATURES
_BAD_REPLIES: Final[dict[str, tuple[str, Callable[[Device, Message, bytes], bytes]]]] = {
    "runt-header": (
        "A reply of half a header, and no more, ends in an error.",
        lambda d, m, p: header(m.request, 8)[:6],
    ),
    "half-payload": (
        "A reply that stops in its payload ends in an error.",
        lambda d, m, p: header(m.request, 8) + p[:4],
    ),
    "short": (
        "A reply whose payload is shorter than the message's is refused.",
        lambda d, m, p: header(m.request, 4) + p[:4],
    ),
    "long": (
        "A reply whose payload is longer than the message's is refused.",
        lambda d, m, p: header(m.request, 16) + p + p,
    ),
    "empty": ("A reply without a payload is refused.", lambda d, m, p: header(m.request, 0)),
    "huge": (
        "A reply that announces 4 GiB is refused before they come.",
        lambda d, m, p: header(m.request, 0xFFFFFFFF) + p,
    ),
    "other": ("A reply to another request is refused.", lambda d, m, p: header(R.VHOST_USER_GET_QUEUE_NUM, 8) + p),
    "not-a-reply": ("A message without the reply bit is no reply.", lambda d, m, p: header(m.request, 8, 1) + p),
    "version": ("A reply of protocol version 2 is refused.", lambda d, m, p: header(m.request, 8, REPLY + 1) + p),
    "unasked": ("A request of the back end's on this socket is refused.", lambda d, m, p: header(2, 8, 1) + p),
    "noise": ("Bytes that are no message are refused.", lambda d, m, p: bytes(range(1, 64))),
}
for _name, (_text, _make) in _BAD_REPLIES.items():

    def _bad_reply(trial: Trial, make: Callable[[Device, Message, bytes], bytes] = _make) -> str:
        return trial.play(messages={_GET: raw(make)}).refuses()

    _bad_reply.__doc__ = _text
    DRIVER.must(f"reply.{_name}", "vhost-user: Message Specification", HIGH)(_bad_reply)


@DRIVER.must("reply.fds", "vhost-user: Ancillary data", HIGH)
def reply_with_fds(trial: Trial) -> str:
    """File descriptors that come with a reply which has none are closed, and the reply is refused or taken without
    them: none is kept."""

    def action(device: Device, msg: Message) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        payload = device.answer_of(msg) or b""
        device.conn.send(msg.request, REPLY, payload, [write] * 8)
        os.close(write)
        device.memory_fds.append(read)

    return trial.play(messages={_GET: action}).survives()


@DRIVER.must("reply.twice", _COMMUNICATION, HIGH)
def reply_twice(trial: Trial) -> str:
    """A reply that comes twice is not taken for the answer to the next request."""
    return trial.play(messages={_GET: raw(lambda d, m, p: 2 * (header(m.request, 8) + p))}).refuses()


@DRIVER.must("ack.short", _STATUS, HIGH)
def ack_of_four_bytes(trial: Trial) -> str:
    """An acknowledgement of the wrong size is not taken for success."""
    return trial.play(
        messages={R.VHOST_USER_SET_FEATURES: raw(lambda d, m, p: header(m.request, 4) + bytes(4) if p else b"")}
    ).refuses()


@DRIVER.should("reply.byte-by-byte", _COMMUNICATION, LOW)
def reply_byte_by_byte(trial: Trial) -> str:
    """A stream has no message boundaries: a reply that comes in single bytes is a reply."""

    def action(device: Device, msg: Message) -> None:
        payload = device.answer_of(msg) or b""
        for byte in header(msg.request, len(payload)) + payload:
            device.send(bytes([byte]))

    return trial.play(messages={_GET: action}).goes_on()


@DRIVER.should("reply.slow", _COMMUNICATION, LOW)
def slow_replies(trial: Trial) -> str:
    """Answers that take a while, as those of a busy back end do, are waited for."""

    def action(device: Device, msg: Message) -> None:
        time.sleep(min(0.2, trial.timeout / 20))
        device.obey(msg)
        device.respond(msg)

    slow = (R.VHOST_USER_GET_FEATURES, R.VHOST_USER_GET_CONFIG, R.VHOST_USER_SET_VRING_KICK)
    return trial.play(messages=dict.fromkeys(slow, action)).goes_on()


@DRIVER.must("stop.bad-base", "vhost-user: GET_VRING_BASE", LOW)
def stop_with_an_impossible_base(trial: Trial) -> str:
    """An index past 65535 of another ring, when the driver stops its ring, does it no harm."""

    def action(device: Device, msg: Message) -> None:
        device.obey(msg)
        device.reply(msg.request, uapi.VRING_STATE.pack(7, 0xFFFFFFFF))

    return trial.play(messages={R.VHOST_USER_GET_VRING_BASE: action}).survives()


@DRIVER.must("stop.hangup", "vhost-user: GET_VRING_BASE", LOW)
def stop_with_a_hangup(trial: Trial) -> str:
    """A back end that hangs up when the ring is to be stopped does no harm: the work was done."""
    return trial.play(messages={R.VHOST_USER_GET_VRING_BASE: hang_up}).survives()


@DRIVER.should("stop.silent", "vhost-user: GET_VRING_BASE", LOW)
def stop_without_an_answer(trial: Trial) -> str:
    """A back end that never says where the ring stopped does not keep the driver for ever."""
    return trial.play(messages={R.VHOST_USER_GET_VRING_BASE: silence}).survives()


# Features.


def _features(trial: Trial, **facts: Any) -> Story:
    """The misbehaviour lies in what is offered, from the first message on."""

    def action(device: Device, msg: Message) -> None:
        device.obey(msg)
        device.respond(msg)

    return trial.play(messages={_GET: action}, **facts)


@DRIVER.must("features.no-version-1", "6.1, 6.2", HIGH)
def no_version_1(trial: Trial) -> str:
    """A device that does not offer VERSION_1 is refused, or driven as the legacy device that it says it is."""
    return _features(trial, features=FEATURES & ~(1 << VIRTIO_F_VERSION_1)).survives()


@DRIVER.must("features.no-config", "vhost-user: VHOST_USER_PROTOCOL_F_CONFIG", HIGH)
def no_config(trial: Trial) -> str:
    """A back end without a configuration space to read is refused: nobody knows how large its disk is."""
    return _features(trial, protocol_features=PROTOCOL_FEATURES & ~(1 << 9)).refuses()


@DRIVER.must("features.none", "vhost-user: Feature negotiation", HIGH)
def no_features(trial: Trial) -> str:
    """A back end that offers nothing at all is refused."""
    return _features(trial, features=0).refuses()


@DRIVER.must("features.all", "2.2.1", HIGH)
def all_features(trial: Trial) -> str:
    """A driver does not accept features that it does not know, and does not fall over them."""
    story = _features(trial, features=(1 << 64) - 1, protocol_features=(1 << 64) - 1)
    for bit in (*range(42, 64), 18, 19, 20):
        if story.device.accepted >> bit & 1:
            story.device.complaints.append(f"feature bit {bit} was accepted, which means nothing to a block device")
    return story.survives()


@DRIVER.must("features.least", "2.2.1, 6.3", LOW)
def few_features(trial: Trial) -> str:
    """A device with none of the optional features is driven all the same, or refused with a word."""
    least = 1 << VIRTIO_F_VERSION_1 | 1 << uapi.VHOST_USER_F_PROTOCOL_FEATURES
    return _features(trial, features=least).survives()


# The configuration space.

_NO_DISKS: Final[dict[str, tuple[str, bytes]]] = {
    "capacity-0": ("A disk of no sectors is refused, or is empty: nothing is read from it.", blk_config(capacity=0)),
    "capacity-huge": ("A disk of 2^64-1 sectors does not overflow.", blk_config(capacity=(1 << 64) - 1)),
    "capacity-2-55": ("A disk of 2^55 sectors, 2^64 bytes, does not overflow.", blk_config(capacity=1 << 55)),
    "block-0": ("A block size of 0 is refused, or not believed.", blk_config(blk_size=0)),
    "block-513": ("A block size that is no power of two is refused, or not believed.", blk_config(blk_size=513)),
    "block-2-31": ("A block size of 2 GiB is refused, or not believed.", blk_config(blk_size=1 << 31)),
    "seg-max-0": ("A device that takes no data segments gets one at a time, or is refused.", blk_config(seg_max=0)),
    "seg-max-huge": (
        "A device that takes 2^32-1 segments gets no chain that its ring cannot hold.",
        blk_config(seg_max=0xFFFFFFFF),
    ),
    "exponent-255": ("A physical block of 2^255 blocks does no harm.", blk_config(physical_block_exp=255)),
    "queues-0": ("A device with MQ and no queue is refused, or gets its one queue.", blk_config(num_queues=0)),
    "queues-65535": (
        "A device that says it has 65535 queues gets as many as its back end serves.",
        blk_config(num_queues=65535),
    ),
    "noise": ("A configuration space of 0xFF does no harm.", b"\xff" * 60),
}
for _name, (_text, _config) in _NO_DISKS.items():

    def _no_disk(trial: Trial, config: bytes = _config) -> str:
        return _features(trial, config=config, features=FEATURES | 1 << blk.VIRTIO_BLK_F_TOPOLOGY).survives()

    _no_disk.__doc__ = _text
    DRIVER.must(f"config.{_name}", "5.2.4, 5.2.5", HIGH)(_no_disk)


@DRIVER.must("config.size-max-1", "5.2.5", LOW)
def segments_of_one_byte(trial: Trial) -> str:
    """A device whose segments hold one byte is refused, or gets bytes; it does not get longer segments."""
    features = FEATURES | 1 << blk.VIRTIO_BLK_F_SIZE_MAX
    return _features(trial, config=blk_config(size_max=1), features=features).survives()


def _config_reply(make: Callable[[bytes], bytes]) -> dict[int, Callable[[Device, Message], None]]:
    def action(device: Device, msg: Message) -> None:
        device.reply(msg.request, make(device.answer_of(msg) or b""))

    return {R.VHOST_USER_GET_CONFIG: action}


@DRIVER.must("config.refused", "vhost-user: GET_CONFIG", HIGH)
def empty_config(trial: Trial) -> str:
    """An empty payload says that there is no such configuration: the disk is refused."""
    return trial.play(messages=_config_reply(lambda payload: b"")).refuses()


@DRIVER.must("config.short", "vhost-user: GET_CONFIG", HIGH)
def short_config(trial: Trial) -> str:
    """A configuration space shorter than was asked for is not read past its end."""
    return trial.play(messages=_config_reply(lambda payload: payload[:20])).survives()


@DRIVER.must("config.size-lies", "vhost-user: GET_CONFIG", HIGH)
def config_whose_size_lies(trial: Trial) -> str:
    """A size field that is not the payload's size is not believed."""
    return trial.play(messages=_config_reply(lambda p: struct.pack("<III", 0, 256, 0) + p[12:])).survives()


@DRIVER.must("queue-num.0", "vhost-user: GET_QUEUE_NUM", HIGH)
def no_queues(trial: Trial) -> str:
    """A back end that serves no queue is refused."""
    return _features(trial, queue_num=0).survives()


@DRIVER.must("queue-num.huge", "vhost-user: GET_QUEUE_NUM", HIGH)
def too_many_queues(trial: Trial) -> str:
    """A back end that says it serves 2^64-1 queues gets no more than its device has."""
    return _features(trial, queue_num=(1 << 64) - 1).survives()
