"""A vhost-user front end that may say anything: the messages of the conformance checks, sound and unsound.

Sound messages are acknowledged where REPLY_ACK was negotiated, and otherwise followed by a GET_FEATURES, so that a
refusal shows before the next step in both cases. Every wait ends after `timeout`. Called by `tester` and by checks.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from typing import Final

from virtblk.check.requirement import Failed
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest, ProtocolFeature
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.message import Message, ProtocolError, request_name

REQUEST: Final = uapi.VHOST_USER_VERSION
NEED_REPLY: Final = uapi.VHOST_USER_VERSION | uapi.VHOST_USER_NEED_REPLY_MASK
REPLY: Final = uapi.VHOST_USER_VERSION | uapi.VHOST_USER_REPLY_MASK
PROTOCOL_FEATURES_BIT: Final = 1 << uapi.VHOST_USER_F_PROTOCOL_FEATURES


class Gone(Exception):
    """The device closed the connection."""


class Silent(Exception):
    """The device did not answer within the time-out."""


class Unreachable(OSError):
    """Nobody takes the connection. An OSError of another kind is about this process, and says nothing of the device."""


class Peer:
    """One connection. Raises Gone and Silent; Failed where a reply is not what the protocol demands."""

    def __init__(self, path: str, timeout: float) -> None:
        """Raises Unreachable, and OSError where this process cannot have a socket."""
        self.timeout = timeout
        try:
            self.conn = Connection.connect(path, timeout)
        except OSError as error:
            if error.filename is None:
                raise
            raise Unreachable(error.errno, error.strerror, path) from None
        self._sock = self.conn._sock
        self.reply_ack = False

    @classmethod
    def on(cls, sock: socket.socket, timeout: float) -> Peer:
        """On a socket that is connected, and belongs to the peer from now on."""
        peer = cls.__new__(cls)
        peer.timeout = timeout
        peer.conn = Connection(sock)
        peer._sock = sock
        peer.reply_ack = False
        return peer

    # Anything at all.

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Any bytes; descriptors travel with the first of them. Gone where the device no longer takes them."""
        self._sock.settimeout(self.timeout)
        try:
            if fds:
                sent = socket.send_fds(self._sock, [data], list(fds), socket.MSG_NOSIGNAL)
                data = data[sent:]
            self._sock.sendall(data, socket.MSG_NOSIGNAL)
        except TimeoutError:
            raise Silent("the device reads no more messages") from None
        except (BrokenPipeError, ConnectionResetError):
            raise Gone("the device closed the connection") from None
        finally:
            self._sock.setblocking(False)

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = REQUEST) -> None:
        self.send_raw(uapi.HEADER.pack(request, flags, len(payload)) + payload, fds)

    def recv(self, timeout: float | None = None) -> Message:
        """The next message, whatever it is; its descriptors are the caller's to close."""
        try:
            return self.conn.recv(self.timeout if timeout is None else timeout)
        except ConnectionClosed:
            raise Gone("the device closed the connection") from None
        except TimeoutError:
            raise Silent("no reply") from None
        except ProtocolError as error:
            raise Failed(f"reply: {error}") from None

    def gone(self) -> bool:
        return self.conn.peer_gone()

    def waits_to_be_gone(self, seconds: float) -> bool:
        """Wait for the device to hang up, and for at most that long: whether it did."""
        deadline = time.monotonic() + seconds
        while not self.gone():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    # What the protocol knows.

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """A message that has a reply of its own: the payload of that."""
        return self.ask_for_fds(request, payload, fds, close=True).payload

    def ask_for_fds(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, close: bool = False
    ) -> Message:
        """The same, with the reply's descriptors, which the caller closes unless `close` says to do so here."""
        self.send(request, payload, fds)
        message = self.recv()
        if close:
            message.close_fds()
        if (message.request, message.flags) != (request, REPLY):
            message.close_fds()
            raise Failed(
                f"{request_name(request)} was answered by {message.name} with flags {message.flags:#x}, "
                f"expected the same request with flags {REPLY:#x}"
            )
        return message

    def ack(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """A message without a reply of its own: what the device acknowledges, 0 for success."""
        if not self.reply_ack:
            self.send(request, payload, fds)
            self.get_features()
            return 0
        self.send(request, payload, fds, NEED_REPLY)
        with self.recv() as message:
            if (message.request, message.flags, len(message.payload)) != (request, REPLY, 8):
                raise Failed(
                    f"{request_name(request)} was acknowledged by {message.name} with flags {message.flags:#x} and "
                    f"{len(message.payload)} bytes, expected the same request, flags {REPLY:#x} and a u64"
                )
            return int(uapi.U64.unpack(message.payload)[0])

    def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """A sound message: Failed if the device refuses it."""
        code = self.ack(request, payload, fds)
        if code:
            raise Failed(f"{request_name(request)} ({payload.hex(' ')}) was refused with {code}")

    def refusal(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> str | None:
        """An unsound message: how the device refused it, or None if it did not."""
        try:
            code = self.ack(request, payload, fds)
        except Gone:
            return "the session was closed"
        return f"refused with {code}" if code else None

    # The messages by name.

    def get_u64(self, request: int) -> int:
        payload = self.ask(request)
        if len(payload) != 8:
            raise Failed(f"{request_name(request)} answered {len(payload)} bytes, expected a u64")
        return int(uapi.U64.unpack(payload)[0])

    def get_features(self) -> int:
        return self.get_u64(FrontendRequest.VHOST_USER_GET_FEATURES)

    def set_features(self, bits: int) -> None:
        self.tell(FrontendRequest.VHOST_USER_SET_FEATURES, uapi.U64.pack(bits))

    def get_protocol_features(self) -> int:
        return self.get_u64(FrontendRequest.VHOST_USER_GET_PROTOCOL_FEATURES)

    def set_protocol_features(self, bits: int) -> None:
        """From here on messages are acknowledged, if `bits` say so."""
        self.send(FrontendRequest.VHOST_USER_SET_PROTOCOL_FEATURES, uapi.U64.pack(bits))
        self.reply_ack = bool(bits >> ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK & 1)
        self.get_features()

    def get_config(self, offset: int, size: int) -> bytes:
        """Part of the configuration space; b"" where the device says that it cannot."""
        payload = self.ask(
            FrontendRequest.VHOST_USER_GET_CONFIG, uapi.CONFIG_HEADER.pack(offset, size, 0) + bytes(size)
        )
        if not payload:
            return b""
        if len(payload) != uapi.CONFIG_HEADER.size + size:
            raise Failed(
                f"GET_CONFIG of {size} bytes was answered with {len(payload)} bytes, expected {12 + size} or 0"
            )
        return payload[uapi.CONFIG_HEADER.size :]

    def config_message(self, offset: int, data: bytes, flags: int = 0) -> bytes:
        """The payload of SET_CONFIG."""
        return uapi.CONFIG_HEADER.pack(offset, len(data), flags) + data

    def set_vring(self, request: int, index: int, num: int) -> None:
        self.tell(request, uapi.VRING_STATE.pack(index, num))

    def get_vring_base(self, index: int) -> int:
        """Stops the ring."""
        payload = self.ask(FrontendRequest.VHOST_USER_GET_VRING_BASE, uapi.VRING_STATE.pack(index, 0))
        if len(payload) != uapi.VRING_STATE.size:
            raise Failed(f"GET_VRING_BASE answered {len(payload)} bytes, expected 8")
        got, base = struct.unpack("<II", payload)
        if got != index:
            raise Failed(f"GET_VRING_BASE of ring {index} answered for ring {got}")
        return int(base)

    def close(self) -> None:
        self.conn.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
