"""The device's side of vhost-user: what each message of the front end does, and what is answered.

Answers to docs/interop/vhost-user.rst, "Front-end message types" and "VHOST_USER_PROTOCOL_F_REPLY_ACK"; the states of
the rings are `vring`'s. A session of `server` (or a test) runs it on its control thread.

Nothing the peer sends is trusted. What is wrong in a message is refused: with an acknowledgement of 1 if the peer asked
for one, and the session goes on. Without, the peer could only wait or go wrong later, so the session ends, with one
line that says why. Two refusals leave a mark: a memory table that cannot be mapped leaves none, and a ring that the
device cannot start is stopped. Descriptors belong to the message until a handler takes them, so that no way out of a
handler can leak one.

Messages of protocol features that were offered are served even if the peer forgot to negotiate them; only an
acknowledgement that was not negotiated must not be sent, since the peer would take it for the reply to something else.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, NamedTuple, Protocol

from virtblk.uapi import vhost_user as uapi
from virtblk.uapi import virtio_ring
from virtblk.uapi.vhost_user import FrontendRequest, ProtocolFeature
from virtblk.vhost_user import message
from virtblk.vhost_user.connection import Connection, ConnectionClosed, Stopped
from virtblk.vhost_user.message import Config, MemoryRegion, Message, ProtocolError, VringState
from virtblk.vhost_user.vring import Device, Refused, Rings, Vring, close_fd, refusing

__all__ = ["MAX_MEM_SLOTS", "PROTOCOL_FEATURES", "Backend", "Device", "Memory", "Vring"]

log = logging.getLogger("virtblk.vhost_user")

#: What GET_PROTOCOL_FEATURES answers.
PROTOCOL_FEATURES: Final = sum(
    1 << bit
    for bit in (
        ProtocolFeature.VHOST_USER_PROTOCOL_F_MQ,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_BACKEND_REQ,  # User-Mode Linux has no interrupts without it
        ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIG,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    )
)
MAX_MEM_SLOTS: Final = 32
#: Seconds that the peer may leave a reply unread.
REPLY_TIMEOUT: Final = 10.0
#: A peer can have messages refused as fast as it can send them: say so this often, then once more.
MAX_WARNINGS: Final = 20

_PROTOCOL_FEATURES_BIT: Final = 1 << uapi.VHOST_USER_F_PROTOCOL_FEATURES


class Memory(Protocol):
    """Where guest memory is mapped. No ring runs while it changes. Addresses, sizes and offsets in bytes."""

    def map(self, guest_addr: int, size: int, user_addr: int, mmap_offset: int, fd: int) -> None:
        """Map one region; `fd` stays the caller's. ValueError or OSError if it cannot be mapped."""

    def unmap(self, guest_addr: int, size: int, user_addr: int) -> None:
        """Forget one region. ValueError for one that is not mapped."""

    def clear(self) -> None:
        """Forget all regions."""


class _Handler(NamedTuple):
    serve: Callable[[Backend, Message], bytes | None]
    max_fds: int = 0
    replies: bool = False  # the message has a reply of its own, so no acknowledgement can report an error


class Backend:
    """Serves one peer on `conn`, which it closes at the end of `run`."""

    def __init__(
        self, conn: Connection, device: Device, memory: Memory, *, max_queue_size: int = virtio_ring.VRING_MAX_NUM
    ) -> None:
        if not 1 <= device.max_queues <= uapi.VHOST_USER_VRING_IDX_MASK + 1:
            raise ValueError(f"{device.max_queues} queues: vhost-user has room for 1 to 256")
        self._conn = conn
        self._device = device
        self._memory = memory
        self._max_queue_size = max_queue_size
        self._features: int | None = None  # None: SET_FEATURES has not come yet
        self._protocol_features = 0
        self._regions: list[MemoryRegion] = []
        self._rings = Rings(device, self._warn)
        self._backend_req_fd = -1
        self._warnings = 0

    def run(self, stop_fd: int) -> str:
        """Serve until the peer goes away, breaks the rules, or `stop_fd` becomes readable. Returns why, in one line.

        Whatever happens, all rings are stopped, all memory is unmapped and all descriptors are closed on return.
        """
        try:
            while True:
                with self._conn.recv(stop_fd=stop_fd) as msg:
                    self._serve(msg, stop_fd)
        except ConnectionClosed as error:
            return str(error)
        except Stopped:
            return "stopped"
        except ProtocolError as error:
            log.warning("session closed: %s", error, extra={"event": "session_closed", "reason": str(error)})
            return f"closed: {error}"
        finally:
            with ExitStack() as stack:  # in reverse, and each one even if another fails
                stack.callback(self._conn.close)
                stack.callback(self._replace_backend_req_fd, -1)
                stack.callback(self._clear_memory)
                stack.callback(self._rings.close)

    def _serve(self, msg: Message, stop_fd: int) -> None:
        """Handle one message and answer it. ProtocolError if the session cannot go on after it."""
        if msg.is_reply:
            raise ProtocolError(f"{msg.name} came with the reply flag, expected a request (flags {msg.flags:#x})")
        handler = _HANDLERS.get(msg.request)
        acked = msg.needs_reply and self._reply_ack()
        reply: bytes | None
        try:
            if handler is None:
                raise Refused("not supported")
            if msg.surplus_fds or len(msg.fds) > handler.max_fds:
                raise Refused(f"{len(msg.fds) + msg.surplus_fds} file descriptors, expected {handler.max_fds}")
            reply = handler.serve(self, msg)
        except (Refused, ProtocolError) as error:
            if msg.request == FrontendRequest.VHOST_USER_GET_CONFIG:
                reply = b""  # this one has an error reply of its own: no payload
            elif acked and not (handler and handler.replies):
                reply = message.encode_u64(1)
            else:
                raise ProtocolError(f"{msg.name}: {error}") from None
            self._warn(f"{msg.name} refused: {error}")
        else:
            if reply is None and (acked or (msg.needs_reply and self._reply_ack())):  # SET_PROTOCOL_FEATURES: either
                reply = message.encode_u64(0)
        msg.close_fds()  # before the peer hears of it, and can look
        if reply is not None:
            flags = uapi.VHOST_USER_VERSION | uapi.VHOST_USER_REPLY_MASK
            try:
                self._conn.send(msg.request, flags, reply, timeout=REPLY_TIMEOUT, stop_fd=stop_fd)
            except TimeoutError:
                raise ProtocolError(f"{msg.name}: the peer left its reply unread for {REPLY_TIMEOUT:g} s") from None

    def _reply_ack(self) -> bool:
        return bool(self._protocol_features >> ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK & 1)

    def _warn(self, text: str) -> None:
        self._warnings += 1
        if self._warnings <= MAX_WARNINGS:
            last = "; further ones are not logged" if self._warnings == MAX_WARNINGS else ""
            log.warning("%s%s", text, last, extra={"event": "message_refused"})

    # Negotiation.

    def _get_features(self, msg: Message) -> bytes:
        message.decode_empty(msg.payload)
        return message.encode_u64(self._device.features | _PROTOCOL_FEATURES_BIT)

    def _set_features(self, msg: Message) -> None:
        bits = message.decode_u64(msg.payload)
        unoffered = bits & ~(self._device.features | _PROTOCOL_FEATURES_BIT)
        if unoffered:
            raise Refused(f"feature bits {unoffered:#x} were not offered")
        if bits != self._features:
            with self._rings.paused(), refusing(f"features {bits:#x}"):
                self._device.set_features(bits & ~_PROTOCOL_FEATURES_BIT)
                self._features = bits
        if not bits & _PROTOCOL_FEATURES_BIT:
            # "the back-end must enable all rings immediately". The opposite is not true: bit 30 disables nothing.
            for ring in self._rings:
                ring.enabled = True
                self._rings.update(ring)

    def _set_owner(self, msg: Message) -> None:
        message.decode_empty(msg.payload)

    def _reset_owner(self, msg: Message) -> None:
        """Deprecated; what is left of it is to disable all rings."""
        message.decode_empty(msg.payload)
        for ring in self._rings:
            ring.enabled = False
            self._rings.update(ring)

    def _get_protocol_features(self, msg: Message) -> bytes:
        message.decode_empty(msg.payload)
        return message.encode_u64(PROTOCOL_FEATURES)

    def _set_protocol_features(self, msg: Message) -> None:
        bits = message.decode_u64(msg.payload)
        if bits & ~PROTOCOL_FEATURES:
            raise Refused(f"protocol feature bits {bits & ~PROTOCOL_FEATURES:#x} were not offered")
        self._protocol_features = bits

    def _get_queue_num(self, msg: Message) -> bytes:
        message.decode_empty(msg.payload)
        return message.encode_u64(self._device.max_queues)

    def _set_backend_req_fd(self, msg: Message) -> None:
        """The channel for requests of our own. We make none yet, so nothing is lost where it cannot be kept open; but
        front ends are happier if it is."""
        message.decode_empty(msg.payload)
        if len(msg.fds) != 1:
            raise Refused(f"{len(msg.fds)} file descriptors, expected exactly 1")
        mode = os.fstat(msg.fds[0]).st_mode
        if not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
            raise Refused(f"file descriptor of mode {mode:#o} is neither a socket nor a pipe")
        kept = stat.S_ISFIFO(mode) or _is_harmless_socket(msg.fds[0], self._conn)
        self._replace_backend_req_fd(msg.take_fd(0) if kept else -1)

    def _replace_backend_req_fd(self, fd: int) -> None:
        old, self._backend_req_fd = self._backend_req_fd, fd
        close_fd(old)

    # Memory.

    def _get_max_mem_slots(self, msg: Message) -> bytes:
        message.decode_empty(msg.payload)
        return message.encode_u64(MAX_MEM_SLOTS)

    def _set_mem_table(self, msg: Message) -> None:
        """Everything that can be judged is judged first: once the old table is gone there is no way back to it."""
        regions = message.decode_memory(msg.payload)
        if len(msg.fds) != len(regions):
            raise Refused(f"{len(msg.fds)} file descriptors for {len(regions)} memory regions")
        for position, region in enumerate(regions):
            _check_region(region, regions[:position])
        with self._rings.paused():
            self._clear_memory()
            try:
                for region, fd in zip(regions, msg.fds, strict=True):
                    self._map(region, fd)
            except Refused:
                self._clear_memory()
                raise

    def _add_mem_reg(self, msg: Message) -> None:
        region = message.decode_mem_reg(msg.payload)
        if len(msg.fds) != 1:
            raise Refused(f"{len(msg.fds)} file descriptors, expected exactly 1")
        if len(self._regions) >= MAX_MEM_SLOTS:
            raise Refused(f"{region}: all {MAX_MEM_SLOTS} memory slots are taken")
        _check_region(region, self._regions)
        with self._rings.paused():
            self._map(region, msg.fds[0])

    def _rem_mem_reg(self, msg: Message) -> None:
        """A descriptor should not come with this, but may: it is closed with the message."""
        wanted = message.decode_mem_reg(msg.payload)
        for region in self._regions:
            if region[:3] == wanted[:3]:  # the mmap offset is ignored
                break
        else:
            raise Refused(f"{wanted}: no such region")
        with self._rings.paused(), refusing(f"{region}"):
            self._memory.unmap(region.guest_addr, region.size, region.user_addr)
            self._regions.remove(region)
            self._rings.have_memory = bool(self._regions)

    def _map(self, region: MemoryRegion, fd: int) -> None:
        with refusing(f"{region}"):
            self._memory.map(*region, fd)
        self._regions.append(region)
        self._rings.have_memory = True

    def _clear_memory(self) -> None:
        self._regions.clear()
        self._rings.have_memory = False
        self._memory.clear()

    # Configuration space.

    def _get_config(self, msg: Message) -> bytes:
        asked = message.decode_config(msg.payload)
        return message.encode_config(Config(asked.offset, asked.flags, self._config_space(asked)))

    def _set_config(self, msg: Message) -> None:
        config = message.decode_config(msg.payload)
        if config.flags not in (uapi.VHOST_USER_CONFIG_F_WRITABLE, uapi.VHOST_USER_CONFIG_F_MIGRATION):
            raise Refused(f"config flags {config.flags:#x}, expected 0 or 1")
        self._config_space(config)
        with refusing(f"config of {len(config.data)} bytes at offset {config.offset}"):
            self._device.set_config(config.offset, config.data, config.flags)

    def _config_space(self, config: Config) -> bytes:
        """The part of the space that the message is about, all of which has to exist."""
        space = self._device.get_config()
        end = config.offset + len(config.data)
        if end > len(space):
            raise Refused(f"config bytes {config.offset} to {end}, the configuration space has {len(space)}")
        return space[config.offset : end]

    # Rings.

    def _set_vring_num(self, msg: Message) -> None:
        state, ring = self._state_and_ring(msg)
        most = self._max_queue_size
        if not 1 <= state.num <= most or state.num & (state.num - 1):
            raise Refused(f"ring {ring.index} of {state.num} descriptors, expected a power of two up to {most}")
        if ring.running:
            raise Refused(f"ring {ring.index} is running: its size cannot change to {state.num}")
        ring.num = state.num
        ring.num_set = True
        self._rings.update(ring)

    def _set_vring_addr(self, msg: Message) -> None:
        addr = message.decode_vring_addr(msg.payload)
        ring = self._rings[addr.index]
        for name, value, alignment in (
            ("descriptor table", addr.desc, virtio_ring.VRING_DESC_ALIGN_SIZE),
            ("available ring", addr.avail, virtio_ring.VRING_AVAIL_ALIGN_SIZE),
            ("used ring", addr.used, virtio_ring.VRING_USED_ALIGN_SIZE),
        ):
            if value % alignment:
                raise Refused(f"ring {ring.index}: {name} at {value:#x}, expected a multiple of {alignment}")
        if (addr.desc, addr.avail, addr.used) == (ring.desc, ring.avail, ring.used) and ring.addr_set:
            return  # only the flags or the log address changed, and logging is not offered
        self._rings.halt(ring)
        ring.desc, ring.avail, ring.used = addr.desc, addr.avail, addr.used
        ring.addr_set = True
        self._rings.update(ring)

    def _set_vring_base(self, msg: Message) -> None:
        state, ring = self._state_and_ring(msg)
        if state.num > 0xFFFF:
            raise Refused(f"ring {ring.index}: base {state.num}, expected at most 65535")
        if ring.running:
            raise Refused(f"ring {ring.index} is running: its base cannot change to {state.num}")
        ring.base = state.num

    def _get_vring_base(self, msg: Message) -> bytes:
        """Stops the ring. What the peer sends as `num` means nothing."""
        _state, ring = self._state_and_ring(msg)
        self._rings.stop(ring)
        return message.encode_vring_state(VringState(ring.index, ring.base))

    def _set_vring_kick(self, msg: Message) -> None:
        ring = self._ring_for_fd(msg, os.O_RDONLY)
        if not (self._features or 0) & _PROTOCOL_FEATURES_BIT:
            ring.enabled = True
        self._rings.start(ring, _taken_fd(msg))

    def _set_vring_call(self, msg: Message) -> None:
        ring = self._ring_for_fd(msg, os.O_WRONLY)
        self._rings.set_call(ring, _taken_fd(msg))

    def _set_vring_err(self, msg: Message) -> None:
        ring = self._ring_for_fd(msg, os.O_WRONLY)
        self._rings.set_err(ring, _taken_fd(msg))

    def _set_vring_enable(self, msg: Message) -> None:
        state, ring = self._state_and_ring(msg)
        if state.num > 1:
            raise Refused(f"ring {ring.index}: enable {state.num}, expected 0 or 1")
        ring.enabled = bool(state.num)
        self._rings.update(ring)

    def _state_and_ring(self, msg: Message) -> tuple[VringState, Vring]:
        state = message.decode_vring_state(msg.payload)
        return state, self._rings[state.index]

    def _ring_for_fd(self, msg: Message, access: int) -> Vring:
        """The ring that a KICK, CALL or ERR message means; its descriptor is there and fit, or rightly absent."""
        value = message.decode_u64(msg.payload)
        if value & ~(uapi.VHOST_USER_VRING_NOFD_MASK | uapi.VHOST_USER_VRING_IDX_MASK):
            raise Refused(f"unknown bits in {value:#x}")
        ring = self._rings[value & uapi.VHOST_USER_VRING_IDX_MASK]
        expected = 0 if value & uapi.VHOST_USER_VRING_NOFD_MASK else 1
        if len(msg.fds) != expected:
            raise Refused(f"ring {ring.index}: {len(msg.fds)} file descriptors, expected {expected} (u64 {value:#x})")
        if msg.fds:
            _check_event_fd(msg.fds[0], access, self._conn)
        return ring


def _check_region(region: MemoryRegion, others: list[MemoryRegion]) -> None:
    if region.size == 0:
        raise Refused(f"{region}: it is empty")
    for name, start in (("guest", region.guest_addr), ("user", region.user_addr), ("mmap", region.mmap_offset)):
        if start + region.size > 1 << 64:
            raise Refused(f"{region}, mmap offset {region.mmap_offset:#x}: {name} addresses pass 2^64")
    for other in others:
        if region.guest_addr < other.guest_addr + other.size and other.guest_addr < region.guest_addr + region.size:
            raise Refused(f"{region} overlaps the {other}")


def _check_event_fd(fd: int, access: int, conn: Connection) -> None:
    """An eventfd or a pipe will do, and to write to, an end of a harmless socketpair: User-Mode Linux sends those."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_PATH or flags & os.O_ACCMODE not in (access, os.O_RDWR):
        raise Refused(f"file descriptor cannot be {'read' if access == os.O_RDONLY else 'written'} (flags {flags:#x})")
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]":
        return
    if access == os.O_WRONLY and stat.S_ISSOCK(mode) and _is_harmless_socket(fd, conn):
        return
    raise Refused(f"file descriptor of mode {mode:#o} is neither an eventfd nor a pipe")


def _is_harmless_socket(fd: int, conn: Connection) -> bool:
    """Whether a socket of the peer may stay open here.

    It could be the peer's own end of `conn`: while we hold that, nobody notices that the peer died, and no other client
    is served. But that end has the name of our listening socket for its peer's, and what passes here has no names at
    all; where our end has none either, nothing passes. Such an end could also lie among what was sent to the socket: so
    nothing stays there, and nothing more can come. We only ever write to it.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError:  # O_PATH
        return False
    try:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM or not conn.is_named():
            return False
        if sock.getpeername() or sock.getsockname():
            return False
        sock.shutdown(socket.SHUT_RD)
        while sock.recv(1 << 16, socket.MSG_DONTWAIT):
            pass
        return True
    except OSError:  # it is not connected
        return False
    finally:
        sock.detach()


def _taken_fd(msg: Message) -> int:
    """The descriptor of a checked KICK, CALL or ERR message, whose owner is now the caller; -1 without one."""
    return msg.take_fd(0) if msg.fds else -1


_HANDLERS: Final[dict[int, _Handler]] = {
    FrontendRequest.VHOST_USER_GET_FEATURES: _Handler(Backend._get_features, replies=True),
    FrontendRequest.VHOST_USER_SET_FEATURES: _Handler(Backend._set_features),
    FrontendRequest.VHOST_USER_SET_OWNER: _Handler(Backend._set_owner),
    FrontendRequest.VHOST_USER_RESET_OWNER: _Handler(Backend._reset_owner),
    FrontendRequest.VHOST_USER_GET_PROTOCOL_FEATURES: _Handler(Backend._get_protocol_features, replies=True),
    FrontendRequest.VHOST_USER_SET_PROTOCOL_FEATURES: _Handler(Backend._set_protocol_features),
    FrontendRequest.VHOST_USER_GET_QUEUE_NUM: _Handler(Backend._get_queue_num, replies=True),
    FrontendRequest.VHOST_USER_SET_BACKEND_REQ_FD: _Handler(Backend._set_backend_req_fd, 1),
    FrontendRequest.VHOST_USER_GET_MAX_MEM_SLOTS: _Handler(Backend._get_max_mem_slots, replies=True),
    FrontendRequest.VHOST_USER_SET_MEM_TABLE: _Handler(Backend._set_mem_table, uapi.VHOST_USER_MAX_FDS),
    FrontendRequest.VHOST_USER_ADD_MEM_REG: _Handler(Backend._add_mem_reg, 1),
    FrontendRequest.VHOST_USER_REM_MEM_REG: _Handler(Backend._rem_mem_reg, 1),
    FrontendRequest.VHOST_USER_GET_CONFIG: _Handler(Backend._get_config, replies=True),
    FrontendRequest.VHOST_USER_SET_CONFIG: _Handler(Backend._set_config),
    FrontendRequest.VHOST_USER_SET_VRING_NUM: _Handler(Backend._set_vring_num),
    FrontendRequest.VHOST_USER_SET_VRING_ADDR: _Handler(Backend._set_vring_addr),
    FrontendRequest.VHOST_USER_SET_VRING_BASE: _Handler(Backend._set_vring_base),
    FrontendRequest.VHOST_USER_GET_VRING_BASE: _Handler(Backend._get_vring_base, replies=True),
    FrontendRequest.VHOST_USER_SET_VRING_KICK: _Handler(Backend._set_vring_kick, 1),
    FrontendRequest.VHOST_USER_SET_VRING_CALL: _Handler(Backend._set_vring_call, 1),
    FrontendRequest.VHOST_USER_SET_VRING_ERR: _Handler(Backend._set_vring_err, 1),
    FrontendRequest.VHOST_USER_SET_VRING_ENABLE: _Handler(Backend._set_vring_enable),
}
