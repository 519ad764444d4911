"""Checks of the messages that read and write the configuration space. What its fields say is a matter of `blk_config`.

docs/interop/vhost-user.rst, GET_CONFIG and SET_CONFIG.
"""

from __future__ import annotations

from typing import Final

from virtblk.check.peer import Gone
from virtblk.check.refusals import Refusals
from virtblk.check.requirement import DEVICE, Failed, Rejected, Severity
from virtblk.check.runner import Tester
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest
from virtblk.uapi.virtio_blk import BLK_CONFIG_WRITEBACK, VIRTIO_BLK_F_CONFIG_WCE

GET_CONFIG: Final = FrontendRequest.VHOST_USER_GET_CONFIG
SET_CONFIG: Final = FrontendRequest.VHOST_USER_SET_CONFIG
_HEADER: Final = uapi.CONFIG_HEADER.size


@DEVICE.must("vhost.config-size", "GET_CONFIG", Severity.HIGH)
def config_size(t: Tester) -> None:
    """The reply to GET_CONFIG has as many bytes of the space as were asked for, and they are the right ones."""
    session = t.session()
    whole = session.peer.get_config(0, len(t.facts.config))
    for size in (1, 8, 20, 32):
        part = session.peer.get_config(0, size)  # looks at the size
        if part != whole[:size]:
            raise Failed(f"{size} bytes at offset 0 are {part.hex(' ') or 'missing'}, expected {whole[:size].hex(' ')}")


@DEVICE.must("vhost.config-offset", "GET_CONFIG", Severity.DEVIATION)
def config_offset(t: Tester) -> None:
    """GET_CONFIG answers from the offset on that was asked for."""
    session = t.session()
    whole = session.peer.get_config(0, len(t.facts.config))
    for offset, size in ((20, 4), (8, 8), (len(whole) - 1, 1)):
        part, expected = session.peer.get_config(offset, size), whole[offset : offset + size]
        if part != expected:
            raise Failed(f"{size} bytes at offset {offset} are {part.hex(' ') or 'missing'}, not {expected.hex(' ')}")


@DEVICE.must("vhost.config-beyond", "GET_CONFIG", Severity.LOW)
def config_beyond(t: Tester) -> str:
    """What lies beyond the configuration space is answered by an empty reply, or reads as 0."""
    hows = []
    for offset, size in ((uapi.VHOST_USER_MAX_CONFIG_SIZE - 56, 56), ((1 << 32) - 8, 16)):
        asked = uapi.CONFIG_HEADER.pack(offset, size, 0) + b"\xa5" * size
        reply, how = _answer(t, asked)
        if reply[_HEADER:] == t.facts.config[:size]:
            how = "as from offset 0"  # which vhost.config-offset reports
        elif any(reply[_HEADER:]):
            raise Failed(f"{size} bytes at offset {offset} are {reply[_HEADER:].hex(' ')}")
        hows.append(how)
    return "; ".join(dict.fromkeys(hows))


@DEVICE.must("vhost.config-unsound", "GET_CONFIG", Severity.HIGH)
def config_unsound(t: Tester) -> None:
    """GET_CONFIG of no bytes, of too many, or of more than its message has, gets an empty reply or ends the session."""
    hows = []
    for size, there in ((0, 0), (257, 257), (1 << 31, 8), (64, 8)):
        reply, how = _answer(t, uapi.CONFIG_HEADER.pack(0, size, 0) + bytes(there))
        if len(reply) > _HEADER:
            raise Failed(f"{size} bytes, in a message that has {there}: {reply.hex(' ')}")
        hows.append(how)
    raise Rejected("; ".join(dict.fromkeys(hows)))


def _answer(t: Tester, asked: bytes) -> tuple[bytes, str]:
    """The reply's payload to a GET_CONFIG in a session of its own, and what it was."""
    with t.session() as session:
        try:
            reply = session.peer.ask(GET_CONFIG, asked)
        except Gone:
            return b"", "the session was closed"
    return reply, "0" if reply else "an empty reply"


@DEVICE.must("vhost.config-read-only", "SET_CONFIG", Severity.HIGH)
def config_read_only(t: Tester) -> str:
    """SET_CONFIG of a read-only field (the capacity) without the migration flag is not accepted."""
    unsound = Refusals(t)
    before = t.facts.config[:8]
    larger = (t.facts.capacity + 8).to_bytes(8, "little")
    peer = unsound.session.peer
    unsound.send("another capacity", SET_CONFIG, peer.config_message(0, larger, uapi.VHOST_USER_CONFIG_F_WRITABLE))
    now = unsound.session.peer.get_config(0, 8)
    if now != before:
        raise Failed(f"the capacity was {before.hex(' ')}, {larger.hex(' ')} was written, and now it is {now.hex(' ')}")
    return unsound.how


@DEVICE.must("vhost.config-flags", "SET_CONFIG", Severity.LOW, features=(VIRTIO_BLK_F_CONFIG_WCE,))
def config_flags(t: Tester) -> str:
    """SET_CONFIG with unknown flags is not accepted: the device has to look at them."""
    unsound = Refusals(t)
    writeback = unsound.session.peer.get_config(0, BLK_CONFIG_WRITEBACK + 1)[BLK_CONFIG_WRITEBACK:]
    for flags in (2, 1 << 31):
        message = unsound.session.peer.config_message(BLK_CONFIG_WRITEBACK, writeback, flags)
        unsound.send(f"flags {flags:#x}", SET_CONFIG, message)
    return unsound.how
