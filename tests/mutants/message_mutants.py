"""Defects of the device's side of vhost-user: messages, answers, ring states, memory, and the back-end program."""

from __future__ import annotations

from typing import Final

from .mutant import Edit, Mutant, mutant

BACKEND: Final = "vhost_user/backend.py"
VRING: Final = "vhost_user/vring.py"
MESSAGE: Final = "vhost_user/message.py"
CONNECTION: Final = "vhost_user/connection.py"
SERVE: Final = "cli/serve.py"
DEVICE: Final = "device/virtio_blk.py"
QUEUE: Final = "device/queue.py"
GUEST_MEMORY: Final = "mem/guest_memory.py"
_SEND: Final = "self._conn.send(msg.request, flags, reply, timeout=REPLY_TIMEOUT, stop_fd=stop_fd)"
_CONFIG_REPLY: Final = "return message.encode_config(Config(asked.offset, asked.flags, self._config_space(asked)))"
_MAY_RUN: Final = "return ring.started and ring.enabled and ring.num_set and ring.addr_set and self.have_memory"
_SERVE_HANDLER: Final = "            reply = handler.serve(self, msg)\n"
_UNSUPPORTED: Final = 'raise Refused("not supported")'

MUTANTS: Final[tuple[Mutant, ...]] = (
    # Header and replies.
    mutant("reply_version_2", "", "Replies have version 2.", BACKEND, _SEND, f"flags += 1; {_SEND}"),
    mutant(
        "reply_bit_missing",
        "",
        "Replies lack the reply flag.",
        BACKEND,
        "flags = uapi.VHOST_USER_VERSION | uapi.VHOST_USER_REPLY_MASK",
        "flags = uapi.VHOST_USER_VERSION",
    ),
    mutant(
        "reply_names_other_request",
        "",
        "Replies name the request before.",
        BACKEND,
        "self._conn.send(msg.request, flags,",
        "self._conn.send(msg.request - 1, flags,",
    ),
    mutant(
        "reply_to_queue_num_missing",
        "",
        "GET_QUEUE_NUM is never answered.",
        BACKEND,
        "return message.encode_u64(self._device.max_queues)",
        "return None",
    ),
    mutant(
        "reply_too_long",
        "",
        "The reply to GET_VRING_BASE has four bytes too many.",
        BACKEND,
        "return message.encode_vring_state(VringState(ring.index, ring.base))",
        'return message.encode_vring_state(VringState(ring.index, ring.base)) + b"\\0\\0\\0\\0"',
    ),
    mutant(
        "version_unchecked",
        "",
        "Messages of any protocol version are taken.",
        MESSAGE,
        "if version != uapi.VHOST_USER_VERSION:",
        "if False:",
    ),
    mutant(
        "protocol_features_late",
        "",
        "GET_PROTOCOL_FEATURES is refused before SET_FEATURES.",
        BACKEND,
        "return message.encode_u64(PROTOCOL_FEATURES)",
        'if self._features is None:\n            raise Refused("too early")\n        '
        "return message.encode_u64(PROTOCOL_FEATURES)",
    ),
    mutant(
        "protocol_feature_unoffered",
        "",
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
    mutant(
        "owner_not_acked",
        "",
        "SET_OWNER is never acknowledged.",
        BACKEND,
        "            if reply is None and (acked or",
        "            if reply is None and msg.request != 3 and (acked or",
    ),
    mutant(
        "ack_unasked",
        "",
        "Messages are acknowledged that did not ask for it.",
        BACKEND,
        "acked = msg.needs_reply and self._reply_ack()",
        "acked = self._reply_ack()",
    ),
    mutant(
        "ack_beside_reply",
        "",
        "A message with a reply of its own is acknowledged besides.",
        BACKEND,
        _SEND,
        f"{_SEND}\n                if handler and handler.replies and acked:\n"
        "                    self._conn.send(msg.request, flags, message.encode_u64(0))",
    ),
    mutant(
        "ack_zero_for_failure",
        "",
        "A message that was refused is acknowledged with 0.",
        BACKEND,
        "                reply = message.encode_u64(1)\n",
        "                reply = message.encode_u64(0)\n",
    ),
    mutant(
        "ack_u32",
        "",
        "Acknowledgements have four bytes.",
        BACKEND,
        "                reply = message.encode_u64(0)\n",
        "                reply = message.encode_u64(0)[:4]\n",
    ),
    mutant(
        "unknown_message_ok",
        "",
        "An unknown message is acknowledged with 0.",
        BACKEND,
        _UNSUPPORTED,
        "handler = _Handler(lambda self, msg: None)",
    ),
    mutant(
        "unknown_message_hangs",
        "",
        "After an unknown message, the device says nothing any more.",
        BACKEND,
        _UNSUPPORTED,
        "self._conn.recv(60.0, stop_fd=stop_fd)",
    ),
    mutant(
        "short_message_hangs",
        "",
        "Sixteen bytes are awaited for each u64.",
        CONNECTION,
        "payload = self._recv_exactly(header.size, fds,",
        "payload = self._recv_exactly(16 if header.size == 8 else header.size, fds,",
    ),
    mutant(
        "payload_size_unchecked",
        "",
        "Payloads that are too short are padded with zeroes, the rest of long ones is ignored.",
        MESSAGE,
        '        raise ProtocolError(f"{what} payload has {len(payload)} bytes, expected {expected}")',
        "        pass",
        Edit(
            MESSAGE, "(value,) = uapi.U64.unpack(payload)", "(value,) = uapi.U64.unpack(payload.ljust(8, b'\\0')[:8])"
        ),
    ),
    # Configuration space.
    mutant(
        "config_offset_ignored",
        "",
        "GET_CONFIG answers from offset 0 whatever was asked for.",
        BACKEND,
        "return space[config.offset : end]",
        "return space[: len(config.data)]",
    ),
    mutant(
        "config_reply_whole",
        "",
        "GET_CONFIG answers with all of the space whatever was asked for.",
        BACKEND,
        _CONFIG_REPLY,
        "return message.encode_config(Config(0, asked.flags, self._device.get_config()))",
    ),
    mutant(
        "config_reply_short",
        "",
        "GET_CONFIG answers with one byte less than was asked for.",
        BACKEND,
        _CONFIG_REPLY,
        "return message.encode_config(Config(asked.offset, asked.flags, self._config_space(asked)[:-1]))",
    ),
    mutant(
        "config_not_padded",
        "",
        "Config bytes past the end of the space are what was asked with, in place of an error.",
        BACKEND,
        "        if end > len(space):\n",
        "        space = space + config.data[max(0, len(space) - config.offset) :]\n        if False:\n",
    ),
    mutant(
        "queue_num_256",
        "",
        "GET_QUEUE_NUM says 0.",
        BACKEND,
        "return message.encode_u64(self._device.max_queues)",
        "return message.encode_u64(0)",
    ),
    # Memory.
    mutant(
        "region_fd_leaked",
        "",
        "The descriptor of an added memory region stays open.",
        BACKEND,
        "            self._map(region, msg.fds[0])\n",
        "            self._map(region, msg.take_fd(0))\n",
    ),
    mutant(
        "table_fds_leaked",
        "",
        "The descriptors of a memory table stay open.",
        BACKEND,
        "        with self._rings.paused():\n            self._clear_memory()\n            try:\n",
        "        msg.fds[:] = [os.dup(fd) for fd in msg.fds]\n        with self._rings.paused():\n"
        "            self._clear_memory()\n            try:\n",
    ),
    mutant(
        "removed_fd_leaked",
        "",
        "A descriptor that comes with REM_MEM_REG stays open.",
        BACKEND,
        "        wanted = message.decode_mem_reg(msg.payload)\n",
        "        wanted = message.decode_mem_reg(msg.payload)\n        while msg.fds:\n            msg.take_fd(0)\n",
    ),
    mutant(
        "refused_fds_leaked",
        "",
        "Descriptors of a message that is refused stay open.",
        BACKEND,
        "        except (Refused, ProtocolError) as error:\n",
        "        except (Refused, ProtocolError) as error:\n            msg.fds.clear()\n",
    ),
    mutant(
        "old_call_fd_leaked",
        "",
        "The old call descriptor stays open when a new one comes.",
        VRING,
        "                self._device.set_call(ring.index, fd)\n        finally:\n            close_fd(old)",
        "                self._device.set_call(ring.index, fd)\n        finally:\n            pass",
    ),
    mutant(
        "removal_wants_mmap_offset",
        "",
        "REM_MEM_REG finds no region unless the mmap offset is given as well.",
        BACKEND,
        "if region[:3] == wanted[:3]:",
        "if region == wanted:",
    ),
    mutant(
        "removed_region_stays",
        "",
        "A removed memory region stays mapped, and is used.",
        BACKEND,
        "            self._memory.unmap(region.guest_addr, region.size, region.user_addr)\n",
        "",
    ),
    mutant(
        "removed_region_stays_mapped",
        "",
        "A removed memory region is not used any more, and stays mapped.",
        GUEST_MEMORY,
        "                self._publish()\n                region.close()\n",
        "                self._publish()\n                _kept.append(region)\n",
        extra="\n_kept: list[object] = []\n",
    ),
    mutant(
        "two_fds_per_region",
        "",
        "ADD_MEM_REG takes no descriptor as an empty region.",
        BACKEND,
        "        if len(msg.fds) != 1:\n"
        '            raise Refused(f"{len(msg.fds)} file descriptors, expected exactly 1")\n'
        "        if len(self._regions)",
        "        if len(msg.fds) != 1:\n            return\n        if len(self._regions)",
    ),
    mutant(
        "memory_change_ends_rings",
        "",
        "A change of memory leaves the rings stopped.",
        VRING,
        "            if self._may_run(ring):\n                try:\n                    self._start(ring)",
        "            if False:\n                try:\n                    self._start(ring)",
    ),
    mutant(
        "memory_change_ignored",
        "",
        "A second memory table is acknowledged, and ignored.",
        BACKEND,
        "        with self._rings.paused():\n            self._clear_memory()\n            try:\n",
        "        if self._regions:\n            return\n        with self._rings.paused():\n"
        "            self._clear_memory()\n            try:\n",
    ),
    mutant(
        "mmap_offset_ignored",
        "",
        "The mmap offset of a memory region is taken for 0.",
        GUEST_MEMORY,
        "        inner = mmap_offset % granule\n",
        "        mmap_offset = 0\n        inner = mmap_offset % granule\n",
    ),
    # Rings.
    mutant(
        "runs_while_disabled",
        "",
        "A ring that is disabled is served.",
        VRING,
        _MAY_RUN,
        _MAY_RUN.replace("ring.enabled and ", ""),
    ),
    mutant(
        "disable_ignored",
        "",
        "SET_VRING_ENABLE 0 is acknowledged, and ignored.",
        BACKEND,
        "        ring.enabled = bool(state.num)\n",
        "        ring.enabled = True\n",
    ),
    mutant(
        "stays_disabled",
        "",
        "Without protocol features, rings stay disabled.",
        BACKEND,
        "        if not (self._features or 0) & _PROTOCOL_FEATURES_BIT:\n            ring.enabled = True\n",
        "",
        Edit(BACKEND, "        if not bits & _PROTOCOL_FEATURES_BIT:\n", "        if False:\n"),
    ),
    mutant(
        "features_disable_rings",
        "",
        "SET_FEATURES disables all rings.",
        BACKEND,
        "        if bits != self._features:\n",
        "        for ring in self._rings:\n            ring.enabled = False\n            self._rings.update(ring)\n"
        "        if bits != self._features:\n",
    ),
    mutant(
        "features_restart_ring",
        "",
        "SET_FEATURES has all rings begin at index 0 again.",
        BACKEND,
        "                self._features = bits\n",
        "                self._features = bits\n"
        "                for ring in self._rings:\n                    ring.base = 0\n",
    ),
    mutant(
        "base_not_stopping",
        "",
        "GET_VRING_BASE does not stop the ring.",
        BACKEND,
        "        self._rings.stop(ring)\n        return message.encode_vring_state",
        "        self._rings.halt(ring)\n        self._rings.update(ring)\n        return message.encode_vring_state",
    ),
    mutant(
        "base_one_more",
        "",
        "GET_VRING_BASE answers one more than the next available index.",
        BACKEND,
        "VringState(ring.index, ring.base))",
        "VringState(ring.index, ring.base + 1 & 0xFFFF))",
    ),
    mutant(
        "base_zero",
        "",
        "GET_VRING_BASE always answers 0.",
        BACKEND,
        "VringState(ring.index, ring.base))",
        "VringState(ring.index, 0))",
    ),
    mutant(
        "base_of_start",
        "",
        "GET_VRING_BASE answers the index at which the ring began.",
        QUEUE,
        'return int(self._vring.state[0]["last_avail"])',
        "return self._begun_at",
        Edit(
            QUEUE,
            "vringh_init(self._vring, vring.base)",
            "vringh_init(self._vring, vring.base)\n        self._begun_at = vring.base",
        ),
    ),
    mutant(
        "ring_index_unchecked",
        "",
        "Ring numbers are taken modulo the number of rings.",
        VRING,
        '            raise Refused(f"ring {index}, the device has {len(self._rings)}")\n'
        "        return self._rings[index]",
        "            index %= len(self._rings)\n        return self._rings[index]",
    ),
    mutant(
        "kick_fd_needed",
        "",
        "A ring without a kick descriptor sleeps until something else happens.",
        QUEUE,
        'worker["poll_ns"] = poll_ns if vring.kick_fd >= 0 else _POLL_FOREVER',
        'worker["poll_ns"] = poll_ns',
        Edit("device/worker.py", 'worker[0]["stop_fd"], WAIT_MS)', 'worker[0]["stop_fd"], 60000)'),
    ),
    mutant(
        "no_call_fd_refused",
        "",
        "SET_VRING_CALL without a descriptor is refused.",
        BACKEND,
        "        expected = 0 if value & uapi.VHOST_USER_VRING_NOFD_MASK else 1\n",
        "        expected = 1\n",
    ),
    mutant(
        "call_fd_change_ignored",
        "",
        "A new call descriptor is not used before the ring is started again.",
        VRING,
        "            if ring.running:\n                self._device.set_call(ring.index, fd)\n",
        "            if ring.running:\n                return\n",
        Edit(
            VRING,
            "        finally:\n            close_fd(old)\n\n    def set_err",
            "        finally:\n            pass\n\n    def set_err",
        ),
    ),
    mutant(
        "starts_at_first_kick",
        "",
        "A started ring is not looked at before the first kick.",
        "device/worker.py",
        "    vringh_notify_disable(vr)\n    deadline = clock_ns() + poll_ns\n",
        "    vringh_notify_enable(vr)\n"
        '    while load_acquire_i64(worker[0]["stop"]) == 0 and worker[0]["kicks"] == 0:\n'
        "        wait_for_kick(worker)\n    vringh_notify_disable(vr)\n    deadline = clock_ns() + poll_ns\n",
    ),
    mutant(
        "ring_size_unchecked",
        "",
        "SET_VRING_NUM takes sizes that are no power of two.",
        BACKEND,
        "if not 1 <= state.num <= most or state.num & (state.num - 1):",
        "if not 1 <= state.num <= most:",
    ),
    mutant(
        "owner_reset_closes",
        "",
        "RESET_OWNER ends the session.",
        BACKEND,
        '        """Deprecated; what is left of it is to disable all rings."""\n',
        '        raise ConnectionClosed("reset")\n',
    ),
    mutant(
        "session_serves_once",
        "",
        "After its first client, the device accepts no other.",
        "vhost_user/listener.py",
        "                    current.thread.join()\n                    current = None\n",
        "                    current.thread.join()\n                    select.poll().poll()\n",
    ),
    # The program.
    mutant(
        "sigterm_ignored",
        "",
        "SIGTERM does not end the program.",
        SERVE,
        "signal.signal(signal.SIGTERM, self._on_signal)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    ),
    mutant(
        "socket_left",
        "",
        "The socket's file stays when the program ends.",
        "vhost_user/listener.py",
        "            if os.path.samestat(os.lstat(path), made):\n",
        "            if False:\n",
    ),
)
