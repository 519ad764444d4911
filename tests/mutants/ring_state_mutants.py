"""Defects of the rings' states: when they run, GET_VRING_BASE, descriptors, and the bounds of what SET_VRING_* says."""

from __future__ import annotations

from typing import Final

from .mutant import Edit, Mutant, mutant

BACKEND: Final = "vhost_user/backend.py"
VRING: Final = "vhost_user/vring.py"
QUEUE: Final = "device/queue.py"
WORKER: Final = "device/worker.py"

_MAY_RUN: Final = "return ring.started and ring.enabled and ring.num_set and ring.addr_set and self.have_memory"
_BASE_REPLY: Final = "VringState(ring.index, ring.base))"
_SET_FEATURES: Final = "        if bits != self._features:\n"
_START: Final = "            self._device.start_queue(ring.index, ring)\n"

MUTANTS: Final[tuple[Mutant, ...]] = (
    # States.
    mutant(
        "runs_unstarted",
        "vhost.ring-stopped",
        "A ring is served as soon as it is described and enabled.",
        VRING,
        _MAY_RUN,
        _MAY_RUN.replace("ring.started and ", ""),
    ),
    mutant(
        "runs_while_disabled",
        "vhost.ring-disabled vhost.ring-disable",
        "A ring that is disabled is served.",
        VRING,
        _MAY_RUN,
        _MAY_RUN.replace("ring.enabled and ", ""),
    ),
    mutant(
        "disable_ignored",
        "vhost.ring-disable",
        "SET_VRING_ENABLE 0 is acknowledged, and ignored.",
        BACKEND,
        "        ring.enabled = bool(state.num)\n",
        "        ring.enabled = True\n",
    ),
    mutant(
        "stays_disabled",
        "vhost.ring-enabled-without-bit-30",
        "Without protocol features, rings stay disabled.",
        BACKEND,
        "        if not (self._features or 0) & _PROTOCOL_FEATURES_BIT:\n            ring.enabled = True\n",
        "",
        Edit(BACKEND, "        if not bits & _PROTOCOL_FEATURES_BIT:\n", "        if False:\n"),
    ),
    mutant(
        "features_disable_rings",
        "vhost.features-keep-rings",
        "SET_FEATURES disables all rings.",
        BACKEND,
        _SET_FEATURES,
        "        for ring in self._rings:\n            ring.enabled = False\n            self._rings.update(ring)\n"
        f"{_SET_FEATURES}",
    ),
    mutant(
        "features_restart_rings",
        "vhost.features-keep-rings",
        "SET_FEATURES has all rings begin at index 0 again.",
        BACKEND,
        _SET_FEATURES,
        "        with self._rings.paused():\n            for ring in self._rings:\n                ring.base = 0\n"
        f"{_SET_FEATURES}",
    ),
    mutant(
        "starts_at_first_kick",
        "vhost.ring-starts-unkicked",
        "A started ring is not looked at before the first kick.",
        WORKER,
        "    vringh_notify_disable(vr)\n    deadline = clock_ns() + poll_ns\n",
        "    vringh_notify_enable(vr)\n"
        '    while load_acquire_i64(worker[0]["stop"]) == 0 and worker[0]["kicks"] == 0:\n'
        "        wait_for_kick(worker)\n    vringh_notify_disable(vr)\n    deadline = clock_ns() + poll_ns\n",
    ),
    mutant(
        "stop_stops_all",
        "vhost.rings-independent",
        "GET_VRING_BASE stops all rings.",
        BACKEND,
        "        self._rings.stop(ring)\n        return",
        "        for every in self._rings:\n            self._rings.stop(every)\n        return",
    ),
    mutant(
        "disable_disables_all",
        "vhost.rings-independent",
        "SET_VRING_ENABLE 0 disables the first ring too.",
        BACKEND,
        "        ring.enabled = bool(state.num)\n",
        "        ring.enabled = bool(state.num)\n        if not state.num:\n"
        "            self._rings[0].enabled = False\n            self._rings.update(self._rings[0])\n",
    ),
    mutant(
        "owner_reset_closes",
        "vhost.reset-owner",
        "RESET_OWNER ends the session.",
        BACKEND,
        '        """Deprecated; what is left of it is to disable all rings."""\n',
        '        raise ConnectionClosed("reset")\n',
    ),
    # GET_VRING_BASE.
    mutant(
        "base_not_stopping",
        "vhost.base-stops vhost.suspended",
        "GET_VRING_BASE does not stop the ring.",
        BACKEND,
        "        self._rings.stop(ring)\n        return message.encode_vring_state",
        "        self._rings.halt(ring)\n        self._rings.update(ring)\n        return message.encode_vring_state",
    ),
    mutant(
        "base_one_more",
        "vhost.base-value vhost.base-drains",
        "GET_VRING_BASE answers one more than the next available index.",
        BACKEND,
        _BASE_REPLY,
        _BASE_REPLY.replace("ring.base", "ring.base + 1 & 0xFFFF"),
    ),
    mutant(
        "base_zero",
        "vhost.base-value vhost.base-drains",
        "GET_VRING_BASE always answers 0.",
        BACKEND,
        _BASE_REPLY,
        _BASE_REPLY.replace("ring.base", "0"),
    ),
    mutant(
        "base_of_start",
        "vhost.base-value",
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
        "base_unwrapped",
        "vhost.base-value",
        "GET_VRING_BASE answers with more than 16 bits once the index has wrapped.",
        BACKEND,
        _BASE_REPLY,
        _BASE_REPLY.replace("ring.base", "ring.base + (0x10000 if ring.base < 5 else 0)"),
    ),
    mutant(
        "notifies_when_stopped",
        "vhost.suspended",
        "Shortly after a ring was stopped, its driver is notified once more.",
        BACKEND,
        "        self._rings.stop(ring)\n        return",
        "        self._rings.stop(ring)\n        if ring.call_fd >= 0:\n"
        "            threading.Timer(0.05, os.eventfd_write, (os.dup(ring.call_fd), 1)).start()\n        return",
        Edit(BACKEND, "import stat\n", "import stat\nimport threading\n"),
    ),
    mutant(
        "starts_once",
        "vhost.ring-restart vhost.ring-moved",
        "A ring that was stopped does not start again.",
        VRING,
        "        self.stop(ring)\n        ring.kick_fd = kick_fd\n        ring.started = True\n",
        "        self.stop(ring)\n        ring.kick_fd = kick_fd\n"
        "        ring.started = not hasattr(ring, 'was_started')\n        ring.was_started = True\n",
    ),
    mutant(
        "size_stays",
        "vhost.ring-moved",
        "A ring keeps the size that it was given first.",
        BACKEND,
        "        ring.num = state.num\n",
        "        ring.num = ring.num or state.num\n",
    ),
    # Descriptors.
    mutant(
        "kick_fd_needed",
        "vhost.kick-polled",
        "A ring without a kick descriptor sleeps until something else happens.",
        QUEUE,
        'worker["poll_ns"] = poll_ns if vring.kick_fd >= 0 else _POLL_FOREVER',
        'worker["poll_ns"] = poll_ns',
        Edit(WORKER, 'worker[0]["stop_fd"], WAIT_MS)', 'worker[0]["stop_fd"], 60000)'),
    ),
    mutant(
        "absent_fd_refused",
        "vhost.call-absent vhost.err-absent",
        "SET_VRING_CALL and SET_VRING_ERR without a descriptor are refused.",
        BACKEND,
        "        expected = 0 if value & uapi.VHOST_USER_VRING_NOFD_MASK else 1\n",
        "        expected = 1\n",
    ),
    mutant(
        "absent_call_fd_ignored",
        "vhost.call-absent",
        "SET_VRING_CALL without a descriptor leaves the one that was there.",
        BACKEND,
        "        self._rings.set_call(ring, _taken_fd(msg))\n",
        "        if msg.fds:\n            self._rings.set_call(ring, _taken_fd(msg))\n",
    ),
    mutant(
        "call_fd_change_ignored",
        "vhost.call-changed",
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
        "kick_fd_change_ignored",
        "vhost.kick-changed",
        "A new kick descriptor of a ring that runs is not listened to.",
        VRING,
        "        self.stop(ring)\n        ring.kick_fd = kick_fd\n        ring.started = True\n",
        "        if ring.running:\n            return close_fd(kick_fd)\n"
        "        self.stop(ring)\n        ring.kick_fd = kick_fd\n        ring.started = True\n",
        Edit(WORKER, 'worker[0]["stop_fd"], WAIT_MS)', 'worker[0]["stop_fd"], 60000)'),
    ),
    mutant(
        "missing_fd_taken",
        "vhost.ring-fd-missing",
        "SET_VRING_KICK, CALL and ERR without the flag for it need no descriptor.",
        BACKEND,
        "        if len(msg.fds) != expected:\n",
        "        if len(msg.fds) > expected:\n",
    ),
    # Bounds.
    mutant(
        "ring_index_unchecked",
        "vhost.ring-index-enable vhost.ring-index-base vhost.ring-index-num vhost.ring-index-addr "
        "vhost.ring-index-fd vhost.ring-index-get-base",
        "Numbers of rings are taken modulo the number of rings.",
        VRING,
        '            raise Refused(f"ring {index}, the device has {len(self._rings)}")\n',
        "            index %= len(self._rings)\n",
    ),
    mutant(
        "ring_size_unchecked",
        "vhost.ring-size-odd",
        "SET_VRING_NUM takes sizes that are no power of two.",
        BACKEND,
        "if not 1 <= state.num <= most or state.num & (state.num - 1):",
        "if not 1 <= state.num <= most:",
    ),
    mutant(
        "ring_size_0_taken",
        "vhost.ring-size-0",
        "SET_VRING_NUM takes 0.",
        BACKEND,
        "if not 1 <= state.num <= most or",
        "if not 0 <= state.num <= most or",
    ),
    mutant(
        "ring_size_huge_taken",
        "vhost.ring-size-huge",
        "SET_VRING_NUM takes any power of two.",
        BACKEND,
        "if not 1 <= state.num <= most or",
        "if not 1 <= state.num or",
    ),
    mutant(
        "ring_base_cut",
        "vhost.ring-base-huge",
        "SET_VRING_BASE cuts what it is told to 16 bits.",
        BACKEND,
        "        if state.num > 0xFFFF:\n",
        "        state = VringState(state.index, state.num & 0xFFFF)\n        if state.num > 0xFFFF:\n",
    ),
    mutant(
        "bad_ring_aborts",
        "vhost.ring-addr-outside vhost.ring-addr-top",
        "A ring that is not in guest memory ends the process.",
        VRING,
        _START,
        "            try:\n                self._device.start_queue(ring.index, ring)\n            except ValueError:\n"
        "                os._exit(1)\n",
    ),
    mutant(
        "unaligned_ring_aborts",
        "vhost.ring-addr-unaligned",
        "A ring that is not aligned ends the process.",
        BACKEND,
        "            if value % alignment:\n",
        "            if value % alignment:\n                os._exit(1)\n",
    ),
    mutant(
        "ring_before_memory_aborts",
        "vhost.ring-before-memory",
        "A ring that is started before there is memory ends the process.",
        VRING,
        "        self.stop(ring)\n        ring.kick_fd = kick_fd\n",
        "        if not self.have_memory:\n            os._exit(1)\n"
        "        self.stop(ring)\n        ring.kick_fd = kick_fd\n",
    ),
    mutant(
        "queue_num_0",
        "vhost.queue-num",
        "GET_QUEUE_NUM answers 0.",
        BACKEND,
        "return message.encode_u64(self._device.max_queues)",
        "return message.encode_u64(0)",
    ),
)
