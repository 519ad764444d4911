"""Defects of the device's side of vhost-user: headers, answers, negotiation, config space, stream and sessions.

Those of headers and replies are confined to GET_VRING_BASE (11): where a device does not even say what it is, no check
begins.
"""

from __future__ import annotations

from typing import Final

from .mutant import VOLATILE, Edit, Mutant, mutant

BACKEND: Final = "vhost_user/backend.py"
MESSAGE: Final = "vhost_user/message.py"
CONNECTION: Final = "vhost_user/connection.py"
LISTENER: Final = "vhost_user/listener.py"
DEVICE: Final = "device/virtio_blk.py"

_SEND: Final = "self._conn.send(msg.request, flags, reply, timeout=REPLY_TIMEOUT, stop_fd=stop_fd)"
_UNSUPPORTED: Final = 'raise Refused("not supported")'
_CONFIG_REPLY: Final = "return message.encode_config(Config(asked.offset, asked.flags, self._config_space(asked)))"
_BASE_REPLY: Final = "return message.encode_vring_state(VringState(ring.index, ring.base))"

MUTANTS: Final[tuple[Mutant, ...]] = (
    # Replies.
    mutant(
        "reply_version_2",
        "vhost.reply-header",
        "The reply to GET_VRING_BASE has version 2.",
        BACKEND,
        _SEND,
        f"flags += msg.request == 11\n                {_SEND}",
    ),
    mutant(
        "reply_bit_missing",
        "vhost.reply-header",
        "The reply to GET_VRING_BASE lacks the reply flag.",
        BACKEND,
        "flags = uapi.VHOST_USER_VERSION | uapi.VHOST_USER_REPLY_MASK",
        "flags = uapi.VHOST_USER_VERSION | (uapi.VHOST_USER_REPLY_MASK if msg.request != 11 else 0)",
    ),
    mutant(
        "reply_names_other_request",
        "vhost.reply-header",
        "The reply to GET_VRING_BASE names the request before.",
        BACKEND,
        "self._conn.send(msg.request, flags,",
        "self._conn.send(msg.request - (msg.request == 11), flags,",
    ),
    mutant(
        "reply_missing",
        "vhost.reply-header vhost.reply-each",
        "GET_MAX_MEM_SLOTS is never answered.",
        BACKEND,
        "return message.encode_u64(MAX_MEM_SLOTS)",
        "return None",
    ),
    mutant(
        "reply_too_long",
        "vhost.reply-size",
        "The reply to GET_VRING_BASE has four bytes too many.",
        BACKEND,
        _BASE_REPLY,
        f'{_BASE_REPLY} + b"\\0\\0\\0\\0"',
    ),
    # Acknowledgements.
    mutant(
        "owner_not_acked",
        "vhost.ack-success",
        "SET_OWNER is never acknowledged.",
        BACKEND,
        "            if reply is None and (acked or",
        "            if reply is None and msg.request != 3 and (acked or",
    ),
    mutant(
        "ack_u32",
        "vhost.ack-success",
        "Acknowledgements have four bytes.",
        BACKEND,
        "                reply = message.encode_u64(0)\n",
        "                reply = message.encode_u64(0)[:4]\n",
    ),
    mutant(
        "ack_zero_for_failure",
        "vhost.ack-failure vhost.unknown-message",
        "A message that was refused is acknowledged with 0.",
        BACKEND,
        "                reply = message.encode_u64(1)\n",
        "                reply = message.encode_u64(0)\n",
    ),
    mutant(
        "ack_unasked",
        "vhost.ack-unasked",
        "Messages are acknowledged that did not ask for it.",
        BACKEND,
        "acked = msg.needs_reply and self._reply_ack()",
        "acked = self._reply_ack()",
    ),
    mutant(
        "ack_beside_reply",
        "vhost.ack-beside-reply",
        "A message with a reply of its own is acknowledged besides.",
        BACKEND,
        _SEND,
        f"{_SEND}\n                if handler and handler.replies and acked:\n"
        "                    self._conn.send(msg.request, flags, message.encode_u64(0))",
    ),
    mutant(
        "reply_asks_for_reply",
        "vhost.reply-flags",
        "A reply to a message with need_reply has that flag too.",
        BACKEND,
        "flags = uapi.VHOST_USER_VERSION | uapi.VHOST_USER_REPLY_MASK",
        "flags = uapi.VHOST_USER_VERSION | uapi.VHOST_USER_REPLY_MASK\n"
        "            if handler and handler.replies:\n"
        "                flags |= msg.flags & uapi.VHOST_USER_NEED_REPLY_MASK",
    ),
    mutant(
        "ack_unnegotiated",
        "vhost.ack-unnegotiated",
        "Messages that ask for it are acknowledged although REPLY_ACK was not negotiated.",
        BACKEND,
        "            if reply is None and (acked or",
        "            if reply is None and (msg.needs_reply or",
    ),
    # Negotiation.
    mutant(
        "protocol_features_forgotten",
        "vhost.protocol-features-early",
        "SET_FEATURES has the protocol features forgotten that were set before.",
        BACKEND,
        "                self._features = bits\n",
        "                self._features = bits\n                self._protocol_features = 0\n",
    ),
    mutant(
        "protocol_features_vary",
        "vhost.protocol-features-early",
        "After SET_FEATURES, GET_PROTOCOL_FEATURES answers one feature less.",
        BACKEND,
        "return message.encode_u64(PROTOCOL_FEATURES)",
        "return message.encode_u64(PROTOCOL_FEATURES & ~(self._features is not None))",
    ),
    mutant(
        "protocol_features_need_bit_30",
        "vhost.protocol-features-alone",
        "Protocol features have no effect unless SET_FEATURES accepts bit 30.",
        BACKEND,
        "                self._features = bits\n",
        "                self._features = bits\n                self._protocol_features *= bits >> 30 & 1\n",
    ),
    mutant(
        "protocol_feature_unoffered",
        "vhost.protocol-features-unoffered",
        "SET_PROTOCOL_FEATURES takes bits that were not offered.",
        BACKEND,
        "if bits & ~PROTOCOL_FEATURES:",
        "if False:",
    ),
    mutant(
        "features_unoffered",
        "common.unoffered-refused",
        "SET_FEATURES takes bits that were not offered.",
        BACKEND,
        "        if unoffered:",
        "        if False:",
    ),
    # What cannot be understood.
    mutant(
        "unknown_message_ok",
        "vhost.unknown-message vhost.foreign-message",
        "An unknown message is acknowledged with 0.",
        BACKEND,
        _UNSUPPORTED,
        "handler = _Handler(lambda self, msg: None)",
    ),
    mutant(
        "unknown_message_hangs",
        "vhost.unknown-message vhost.unknown-message-unacked",
        "After an unknown message, the device says nothing any more.",
        BACKEND,
        _UNSUPPORTED,
        "self._conn._wait(0, None, stop_fd)",
    ),
    mutant(
        "version_unchecked",
        "vhost.other-version",
        "Messages of any protocol version are taken.",
        MESSAGE,
        "if version != uapi.VHOST_USER_VERSION:",
        "if False:",
    ),
    mutant(
        "payload_size_unchecked",
        "vhost.payload-size",
        "Payloads that are too short are padded with zeroes, the rest of long ones is ignored.",
        MESSAGE,
        '        raise ProtocolError(f"{what} payload has {len(payload)} bytes, expected {expected}")',
        "        pass",
        Edit(
            MESSAGE, "(value,) = uapi.U64.unpack(payload)", "(value,) = uapi.U64.unpack(payload.ljust(8, b'\\0')[:8])"
        ),
        Edit(
            MESSAGE,
            "return VringState(*uapi.VRING_STATE.unpack(payload))",
            "return VringState(*uapi.VRING_STATE.unpack(payload.ljust(8, b'\\0')[:8]))",
        ),
    ),
    mutant(
        "huge_payload_aborts",
        "vhost.payload-huge",
        "A header that announces too much ends the process.",
        MESSAGE,
        "    if size > MAX_PAYLOAD:\n",
        "    if size > MAX_PAYLOAD:\n        os._exit(1)\n",
    ),
    # Configuration space.
    mutant(
        "config_offset_ignored",
        "vhost.config-offset",
        "GET_CONFIG answers from offset 0 whatever was asked for.",
        BACKEND,
        "return space[config.offset : end]",
        "return space[: len(config.data)]",
    ),
    mutant(
        "config_reply_whole",
        "vhost.config-size",
        "GET_CONFIG answers with 36 bytes if fewer were asked for.",
        BACKEND,
        _CONFIG_REPLY,
        "space = self._config_space(asked)\n"
        "        space += self._device.get_config()[len(space) : 36]\n"
        "        return message.encode_config(Config(asked.offset, asked.flags, space))",
    ),
    mutant(
        "config_reply_short",
        "vhost.config-size",
        "GET_CONFIG answers with one byte less than was asked for, if that is not the whole space.",
        BACKEND,
        _CONFIG_REPLY,
        "space = self._config_space(asked)\n"
        "        space = space if len(space) in (36, 60) else space[:-1] or b'?'\n"
        "        return message.encode_config(Config(asked.offset, asked.flags, space))",
    ),
    mutant(
        "config_not_padded",
        "vhost.config-beyond",
        "Config bytes past the end of the space are what was asked with, in place of an error.",
        BACKEND,
        "        if end > len(space):\n",
        "        space = space.ljust(config.offset, b'\\0') + config.data[max(0, len(space) - config.offset) :]\n"
        "        if False:\n",
    ),
    mutant(
        "config_size_unchecked",
        "vhost.config-unsound",
        "GET_CONFIG answers with as many bytes as its message has, whatever the size says.",
        MESSAGE,
        "    if not 1 <= size <= uapi.VHOST_USER_MAX_CONFIG_SIZE:\n",
        "    size = len(payload) - uapi.CONFIG_HEADER.size\n    if False:\n",
    ),
    mutant(
        "config_writable",
        "vhost.config-read-only",
        "SET_CONFIG writes any field.",
        DEVICE,
        "        if offset != BLK_CONFIG_WRITEBACK or len(data) != 1:\n",
        "        if offset != BLK_CONFIG_WRITEBACK:\n"
        "            self._config.view('u1')[offset : offset + len(data)] = list(data)\n            return\n"
        "        if len(data) != 1:\n",
    ),
    mutant(
        "config_flags_ignored",
        "vhost.config-flags",
        "The flags of SET_CONFIG are not looked at.",
        BACKEND,
        "        if config.flags not in (uapi.VHOST_USER_CONFIG_F_WRITABLE, uapi.VHOST_USER_CONFIG_F_MIGRATION):\n",
        "        if False:\n",
        disk=VOLATILE,
    ),
    # The stream.
    mutant(
        "pieces_refused",
        "vhost.message-in-pieces",
        "A header or a payload that does not arrive at once ends the session.",
        CONNECTION,
        "                data += piece\n",
        "                data += piece\n                if len(data) < size:\n"
        '                    raise ConnectionClosed("short read")\n',
    ),
    mutant(
        "joined_message_lost",
        "vhost.messages-joined vhost.reply-each",
        "What arrives together with a message is dropped, if it is more than one other.",
        CONNECTION,
        "        surplus = fds[uapi.VHOST_USER_MAX_FDS :]\n",
        "        with suppress(BlockingIOError):\n"
        "            if len(self._sock.recv(4096, socket.MSG_PEEK)) > 20:\n                self._sock.recv(4096)\n"
        "        surplus = fds[uapi.VHOST_USER_MAX_FDS :]\n",
    ),
    mutant(
        "cut_message_hangs",
        "vhost.message-cut",
        "When the peer goes away in the middle of a message, the device waits for the rest.",
        CONNECTION,
        "                if not piece:\n",
        "                if not piece and (data or part == 'payload'):\n                    time.sleep(60)\n"
        "                if not piece:\n",
    ),
    # Sessions.
    mutant(
        "sessions_limited",
        "vhost.sessions",
        "The twentieth client, and whoever comes after it, is not served.",
        LISTENER,
        "                    current.thread.join()\n                    current = None\n",
        "                    current.thread.join()\n                    _served.append(current)\n"
        "                    current = None if len(_served) < 20 else current\n",
        extra="\n_served: list[object] = []\n",
    ),
    mutant(
        "protocol_features_kept",
        "vhost.session-afresh",
        "A new session begins with the protocol features of the one before it.",
        BACKEND,
        "        self._protocol_features = bits\n",
        "        self._protocol_features = _kept[0] = bits\n",
        Edit(BACKEND, "        self._protocol_features = 0\n", "        self._protocol_features = _kept[0]\n"),
        extra="\n_kept = [0]\n",
    ),
    mutant(
        "requests_outlive_session",
        "vhost.session-ends-with-requests",
        "A front end that goes away while a ring runs ends the process.",
        BACKEND,
        "        except ConnectionClosed as error:\n            return str(error)\n",
        "        except ConnectionClosed as error:\n            if any(ring.running for ring in self._rings):\n"
        "                os._exit(1)\n            return str(error)\n",
    ),
)
