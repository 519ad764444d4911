"""Checks of vhost-user's messages: headers, replies, acknowledgements, negotiation, what is unknown, and the stream.

docs/interop/vhost-user.rst, "Header", "Communication", "VHOST_USER_PROTOCOL_F_REPLY_ACK" and the message types.
"""

from __future__ import annotations

import time
from typing import Final

from virtblk.check.peer import NEED_REPLY, REPLY, REQUEST, Gone, Peer, Silent
from virtblk.check.refusals import Refusals
from virtblk.check.requirement import DEVICE, Failed, Level, Rejected, Severity, Skipped
from virtblk.check.runner import Tester
from virtblk.check.session import Session
from virtblk.check.target import UNDERSTOOD_PROTOCOL
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest, ProtocolFeature
from virtblk.uapi.virtio_config import VIRTIO_F_VERSION_1
from virtblk.vhost_user.message import request_name

GET_FEATURES: Final = FrontendRequest.VHOST_USER_GET_FEATURES
GET_PROTOCOL_FEATURES: Final = FrontendRequest.VHOST_USER_GET_PROTOCOL_FEATURES
SET_OWNER: Final = FrontendRequest.VHOST_USER_SET_OWNER
SET_FEATURES: Final = FrontendRequest.VHOST_USER_SET_FEATURES
SET_VRING_NUM: Final = FrontendRequest.VHOST_USER_SET_VRING_NUM

_MQ: Final = ProtocolFeature.VHOST_USER_PROTOCOL_F_MQ
_SLOTS: Final = ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
_REPLY_ACK: Final = (ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK,)
_HEADER: Final = "Header"
_COMMUNICATION: Final = "Communication"
_ACK: Final = "REPLY_ACK"
_LEAST: Final = 1 << uapi.VHOST_USER_F_PROTOCOL_FEATURES | 1 << VIRTIO_F_VERSION_1
_NO_REPLY_ACK: Final = UNDERSTOOD_PROTOCOL & ~(1 << ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK)

#: Messages that exist, and not for a block device or not any more; then ids that do not exist.
_FOREIGN: Final = (
    FrontendRequest.VHOST_USER_SEND_RARP,
    FrontendRequest.VHOST_USER_CREATE_CRYPTO_SESSION,
    FrontendRequest.VHOST_USER_GPU_SET_SOCKET,
)
_UNKNOWN: Final = (0, 63, 99, 1000, 1 << 31, (1 << 32) - 1)


def header(request: int, flags: int, size: int) -> bytes:
    return uapi.HEADER.pack(request, flags, size)


# Replies.


def questions(t: Tester) -> list[tuple[int, bytes, int]]:
    """Messages that this device has a reply of its own to: the request, its payload, bytes of the reply's payload."""
    config = uapi.CONFIG_HEADER.pack(0, 8, 0) + bytes(8)
    asked: list[tuple[int, bytes, int]] = [
        (GET_FEATURES, b"", 8),
        (GET_PROTOCOL_FEATURES, b"", 8),
        (FrontendRequest.VHOST_USER_GET_CONFIG, config, len(config)),
        (FrontendRequest.VHOST_USER_GET_VRING_BASE, uapi.VRING_STATE.pack(0, 0), uapi.VRING_STATE.size),
    ]
    if t.facts.speaks(_MQ):
        asked.append((FrontendRequest.VHOST_USER_GET_QUEUE_NUM, b"", 8))
    if t.facts.speaks(_SLOTS):
        asked.append((FrontendRequest.VHOST_USER_GET_MAX_MEM_SLOTS, b"", 8))
    return asked


@DEVICE.must("vhost.reply-header", _HEADER, Severity.HIGH)
def reply_header(t: Tester) -> str:
    """Each reply has version 1, the reply flag, and the request that it answers."""
    session = t.session()
    for request, payload, _ in questions(t):
        session.peer.ask(request, payload)  # looks at all three
    return ", ".join(request_name(request).removeprefix("VHOST_USER_") for request, _, _ in questions(t))


@DEVICE.must("vhost.reply-size", "Message types", Severity.HIGH)
def reply_size(t: Tester) -> None:
    """Each reply has the payload that the message's description names, neither more nor less."""
    session = t.session()
    for request, payload, size in questions(t):
        got = len(session.peer.ask(request, payload))
        if got != size:
            raise Failed(f"{request_name(request)} was answered with {got} bytes, expected {size}")


@DEVICE.must("vhost.reply-each", _COMMUNICATION, Severity.HIGH)
def reply_each(t: Tester) -> None:
    """Messages that are sent without waiting for the replies are all answered, in order."""
    session = t.session()
    asked = questions(t) * 4
    for request, payload, _ in asked:
        session.peer.send(request, payload)
    for request, _, _ in asked:
        expect_reply(session.peer, request)


def expect_reply(peer: Peer, request: int, *, ignored: int = 0) -> bytes:
    """The next message has to be the reply to `request`; its payload. `ignored` are flags that mean nothing."""
    with peer.recv() as message:
        if (message.request, message.flags & ~ignored) != (request, REPLY):
            raise Failed(
                f"expected the reply to {request_name(request)}, {message.name} came with flags {message.flags:#x} and "
                f"{len(message.payload)} bytes ({message.payload[:16].hex(' ')})"
            )
        return message.payload


# Acknowledgements.


@DEVICE.must("vhost.ack-success", _ACK, Severity.HIGH, protocol=_REPLY_ACK)
def ack_success(t: Tester) -> None:
    """With REPLY_ACK and need_reply, a message without a reply of its own is answered by a u64, 0 for success."""
    peer = t.peer()
    peer.get_features()
    peer.set_protocol_features(peer.get_protocol_features() & UNDERSTOOD_PROTOCOL)
    peer.tell(SET_OWNER)
    peer.set_features(_LEAST)
    peer.close()
    session = t.session()  # and with all that makes a ring run
    session.read(0, t.block_sectors)


@DEVICE.must("vhost.ack-failure", _ACK, Severity.HIGH, protocol=_REPLY_ACK)
def ack_failure(t: Tester) -> str:
    """With REPLY_ACK and need_reply, a message that fails is answered by a u64 other than 0."""
    session = t.session(start=False)
    table = uapi.MEMORY_HEADER.pack(1, 0) + uapi.MEMORY_REGION.pack(0, 1 << 20, 0, 0)
    how = session.peer.refusal(FrontendRequest.VHOST_USER_SET_MEM_TABLE, table, [session.event_fd()])
    if how is None:
        raise Failed("a memory table with an eventfd, which cannot be mapped, was acknowledged with 0")
    return how


@DEVICE.must("vhost.ack-unasked", _ACK, Severity.HIGH, protocol=_REPLY_ACK)
def ack_unasked(t: Tester) -> None:
    """With REPLY_ACK, a message without the need_reply flag gets no acknowledgement."""
    peer = t.session(start=False).peer
    peer.send(SET_OWNER, flags=REQUEST)
    peer.send(GET_FEATURES)
    expect_reply(peer, GET_FEATURES)


@DEVICE.must("vhost.ack-beside-reply", _ACK, Severity.HIGH, protocol=_REPLY_ACK)
def ack_beside_reply(t: Tester) -> None:
    """The need_reply flag changes nothing for a message that has a reply of its own."""
    peer = t.session().peer
    for request, payload, size in questions(t):
        peer.send(request, payload, flags=NEED_REPLY)
        got = len(expect_reply(peer, request, ignored=NEED_REPLY ^ REQUEST))
        if got != size:
            raise Failed(f"{request_name(request)} with need_reply was answered with {got} bytes, expected {size}")
        peer.send(GET_PROTOCOL_FEATURES)
        expect_reply(peer, GET_PROTOCOL_FEATURES)


@DEVICE.should("vhost.reply-flags", _HEADER, Severity.DEVIATION)
def reply_flags(t: Tester) -> None:
    """A reply has no other flags, and above all does not ask for a reply in its turn."""
    peer = t.session().peer
    for request, payload, _ in questions(t):
        peer.send(request, payload, flags=NEED_REPLY)
        expect_reply(peer, request)


@DEVICE.must("vhost.ack-unnegotiated", _ACK, Severity.LOW)
def ack_unnegotiated(t: Tester) -> None:
    """Without REPLY_ACK the need_reply flag means nothing: no acknowledgement comes."""
    peer = t.session(start=False, protocol=_NO_REPLY_ACK).peer
    peer.send(SET_OWNER, flags=NEED_REPLY)
    peer.send(GET_FEATURES)
    expect_reply(peer, GET_FEATURES)


# Negotiation.


@DEVICE.must("vhost.protocol-features-early", "GET_PROTOCOL_FEATURES", Severity.HIGH, protocol=_REPLY_ACK)
def protocol_features_early(t: Tester) -> None:
    """Protocol features are told and taken before SET_FEATURES, and stay in effect after it."""
    peer = t.peer()
    early = peer.get_protocol_features()
    peer.set_protocol_features(early & UNDERSTOOD_PROTOCOL)
    peer.tell(SET_OWNER)
    peer.set_features(_LEAST)
    peer.tell(SET_OWNER)
    late = peer.get_protocol_features()
    if late != early:
        raise Failed(f"GET_PROTOCOL_FEATURES answered {early:#x} before SET_FEATURES, and {late:#x} after it")


@DEVICE.must("vhost.protocol-features-alone", "SET_PROTOCOL_FEATURES", Severity.LOW, protocol=_REPLY_ACK)
def protocol_features_alone(t: Tester) -> None:
    """Protocol features are in effect even if SET_FEATURES does not accept bit 30."""
    session = t.session(start=False, without=(uapi.VHOST_USER_F_PROTOCOL_FEATURES,))
    session.peer.tell(SET_OWNER)


@DEVICE.must("vhost.protocol-features-unoffered", "SET_PROTOCOL_FEATURES", Severity.LOW, protocol=_REPLY_ACK)
def protocol_features_unoffered(t: Tester) -> None:
    """Protocol features that were not offered are refused."""
    bit = next(bit for bit in range(62, 0, -1) if not t.facts.speaks(bit))
    unsound = Refusals(t, start=False)
    bits = unsound.session.protocol | 1 << bit
    unsound.send(f"bit {bit}", FrontendRequest.VHOST_USER_SET_PROTOCOL_FEATURES, uapi.U64.pack(bits))
    unsound.end()


# What cannot be understood.


@DEVICE.must("vhost.unknown-message", _ACK, Severity.HIGH)
def unknown_message(t: Tester) -> str:
    """A message that the device does not know is refused, and never left without an answer."""
    unsound = Refusals(t, start=False)
    for request in _UNKNOWN:
        unsound.send(f"message {request}", request)
    return unsound.how


@DEVICE.must("vhost.foreign-message", _ACK, Severity.LOW)
def foreign_message(t: Tester) -> str:
    """A message of other kinds of devices is refused, and never left without an answer."""
    unsound = Refusals(t, start=False)
    for request in _FOREIGN:
        unsound.send(request_name(request), request, bytes(8))
    return unsound.how


@DEVICE.must("vhost.unknown-message-unacked", _COMMUNICATION, Severity.HIGH)
def unknown_message_unacked(t: Tester) -> str:
    """After an unknown message that needs no reply, the device goes on, or closes the session."""
    peer = t.session(start=False).peer
    peer.send(99, bytes(8), flags=REQUEST)
    return _goes_on(peer)


def _goes_on(peer: Peer) -> str:
    """Rejected where the session was closed."""
    try:
        peer.send(GET_FEATURES)
        expect_reply(peer, GET_FEATURES)
    except Gone:
        raise Rejected("the session was closed") from None
    return "the session goes on"


@DEVICE.should("vhost.other-version", _HEADER, Severity.LOW)
def other_version(t: Tester) -> None:
    """Messages of another protocol version than 1 are refused."""
    for version in (0, 2, 3):
        peer = t.session(start=False).peer
        peer.send_raw(header(GET_FEATURES, version, 0))
        try:
            with peer.recv(t.settle_time) as message:
                raise Failed(f"GET_FEATURES of version {version} was answered by {message.name}")
        except Silent:
            pass
        except Gone:
            pass
        peer.close()
    raise Rejected("not answered")


@DEVICE.should("vhost.payload-size", "Payload", Severity.LOW, protocol=_REPLY_ACK)
def payload_size(t: Tester) -> None:
    """A message whose payload is too short or too long for it is refused."""
    unsound = Refusals(t)
    state = uapi.VRING_STATE.pack(0, 1)
    for what, request, payload in (
        ("SET_VRING_ENABLE without a payload", FrontendRequest.VHOST_USER_SET_VRING_ENABLE, b""),
        ("SET_VRING_ENABLE of 4 bytes", FrontendRequest.VHOST_USER_SET_VRING_ENABLE, state[:4]),
        ("SET_VRING_ENABLE of 12 bytes", FrontendRequest.VHOST_USER_SET_VRING_ENABLE, state + bytes(4)),
        ("SET_FEATURES of 4 bytes", SET_FEATURES, uapi.U64.pack(unsound.session.features)[:4]),
        ("SET_FEATURES of 16 bytes", SET_FEATURES, uapi.U64.pack(unsound.session.features) + bytes(8)),
    ):
        unsound.send(what, request, payload)
    unsound.end()


@DEVICE.must("vhost.payload-huge", "Payload", Severity.HIGH)
def payload_huge(t: Tester) -> str:
    """A header that announces a payload of 4 GiB, or of 64 KiB, harms nobody."""
    for size in ((1 << 32) - 1, 1 << 31, 1 << 16):
        peer = t.session(start=False).peer
        peer.send_raw(header(SET_FEATURES, REQUEST, size) + bytes(64))
        closed = peer.waits_to_be_gone(t.settle_time / 2)
        peer.close()
    if closed:
        raise Rejected("the session was closed")
    return "the device waits for the rest"


# The stream.


@DEVICE.must("vhost.message-in-pieces", _COMMUNICATION, Severity.LOW)
def message_in_pieces(t: Tester) -> None:
    """The socket is a stream: a message that arrives byte by byte is a message."""
    peer = t.session(start=False).peer
    whole = header(SET_VRING_NUM, REQUEST, 8) + uapi.VRING_STATE.pack(0, 64) + header(GET_FEATURES, REQUEST, 0)
    for position in range(len(whole)):
        peer.send_raw(whole[position : position + 1])
        time.sleep(0.002)  # so that the device sees them one by one
    expect_reply(peer, GET_FEATURES)


@DEVICE.must("vhost.messages-joined", _COMMUNICATION, Severity.HIGH)
def messages_joined(t: Tester) -> None:
    """The socket is a stream: several messages that arrive at once are several messages."""
    peer = t.session(start=False).peer
    peer.send_raw(
        header(SET_VRING_NUM, REQUEST, 8) + uapi.VRING_STATE.pack(0, 64) + 3 * header(GET_FEATURES, REQUEST, 0)
    )
    for _ in range(3):
        expect_reply(peer, GET_FEATURES)


@DEVICE.must("vhost.message-cut", _COMMUNICATION, Severity.HIGH)
def message_cut(t: Tester) -> None:
    """A front end that goes away in the middle of a message does not keep the device from the next one."""
    whole = header(SET_VRING_NUM, REQUEST, 8) + uapi.VRING_STATE.pack(0, 64)
    for length in (1, 11, 12, 16):
        peer = t.session(start=False).peer
        peer.send_raw(whole[:length])
        peer.close()
    t.session(start=False)


# Sessions.


@DEVICE.must("vhost.sessions", _COMMUNICATION, Severity.HIGH)
def sessions(t: Tester) -> str:
    """Front ends come one after the other, say much, little or nothing, and go: each is served."""
    for number in range(24):
        peer = t.peer()
        if number % 3:
            peer.get_features()
        if number % 3 > 1:
            peer.close()
            _one_request(t)
        peer.close()
    return "24 front ends"


def _one_request(t: Tester) -> None:
    with t.session() as session:
        session.read(0, t.block_sectors)


@DEVICE.must("vhost.session-afresh", "SET_OWNER", Severity.HIGH, protocol=_REPLY_ACK)
def session_afresh(t: Tester) -> None:
    """A new session knows nothing of what the one before it negotiated."""
    t.session(start=False, protocol=_NO_REPLY_ACK).close()
    if _acknowledges(t):
        raise Skipped("the device acknowledges without REPLY_ACK, so that nobody can tell")
    t.session(start=False).close()
    if _acknowledges(t):
        raise Failed("SET_OWNER was acknowledged: REPLY_ACK is still in effect, which the session before negotiated")


def _acknowledges(t: Tester) -> bool:
    """Whether a session that has negotiated nothing gets acknowledgements."""
    with t.peer() as peer:
        peer.send(SET_OWNER, flags=NEED_REPLY)
        peer.send(GET_FEATURES)
        with peer.recv() as message:
            return message.request == SET_OWNER


@DEVICE.must("vhost.session-ends-with-requests", _COMMUNICATION, Severity.HIGH)
def session_ends_with_requests(t: Tester) -> None:
    """A front end that goes away with requests out does not keep the device from the next one."""
    for _ in range(4):
        session: Session = t.session()
        session.submit(*(session.prepare(0, 0, room=512 * t.lines_up(8)) for _ in range(16)))
        session.close()
    _one_request(t)


# What no device here has, to be tried on.

for _id, _section, _bit, _text in (
    (
        "vhost.log-complete",
        "Migration",
        ProtocolFeature.VHOST_USER_PROTOCOL_F_LOG_SHMFD,
        "With LOG_ALL, each page that the device writes is marked in the log, those of used rings where asked for.",
    ),
    (
        "vhost.inflight-region",
        "Inflight I/O tracking",
        ProtocolFeature.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
        "The inflight region has version 1 and as many entries as the queue has descriptors.",
    ),
    (
        "vhost.inflight-resubmitted",
        "Inflight I/O tracking",
        ProtocolFeature.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
        "After a crash and SET_INFLIGHT_FD, all that was in flight is submitted again, in order, and nothing twice.",
    ),
    (
        "vhost.reset-device",
        "RESET_DEVICE",
        ProtocolFeature.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
        "RESET_DEVICE disables all rings and has the device begin anew; the session keeps its owner.",
    ),
    (
        "vhost.inband-alone",
        "In-band notifications",
        ProtocolFeature.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
        "INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK closes the session.",
    ),
    (
        "vhost.base-inflight",
        "GET_VRING_BASE",
        ProtocolFeature.VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
        "GET_VRING_BASE without draining leaves what is in flight to the inflight region.",
    ),
):
    DEVICE.unbuilt(_id, _section, Level.MUST, _text, "not built yet", protocol=(_bit,))
