"""The driver's side of vhost-user: one method per message, each complete when it returns.

Answers to docs/interop/vhost-user.rst, "Front-end message types", "Ring states" and "VHOST_USER_PROTOCOL_F_REPLY_ACK".
`driver` calls it on the control thread; a lock around each exchange lets another thread ask for the configuration in
between.

With REPLY_ACK negotiated, every message without a reply of its own asks for an acknowledgement, so that a refusal
surfaces here, by name, and not as a ring that never moves. Without it these messages are only sent: call a method with
a reply to know that the back end has got so far.

A peer that does not answer, answers wrongly or goes away leaves no way to tell a late reply from the next one: after
TimeoutError, ProtocolError or ConnectionClosed the front end refuses further use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest, ProtocolFeature
from virtblk.vhost_user import message
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.message import Config, MemoryRegion, ProtocolError, VringAddr, VringState

_T = TypeVar("_T")


class RequestRefused(Exception):
    """The back end understood a message and said no. The session goes on.

    `request` is the message's name, `value` the acknowledgement that came: not 0, except for a configuration space
    that came empty.
    """

    def __init__(self, request: str, value: int, reason: str) -> None:
        super().__init__(f"{request} refused: {reason}")
        self.request = request
        self.value = value


class Region(NamedTuple):
    """Guest memory to share: addresses, size and offset in bytes; `fd` is the caller's and stays open."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    fd: int


class Frontend:
    """The message sequence of a driver on `conn`; `timeout` in seconds bounds each exchange, None waits for ever.

    Every method raises ConnectionClosed, TimeoutError and ProtocolError, each naming the request in progress, and
    RequestRefused for what the back end would not do. `conn` stays its maker's to close.
    """

    def __init__(self, conn: Connection, timeout: float | None) -> None:
        self.features = 0  # as of the last set_features
        self.protocol_features = 0  # as of the last set_protocol_features
        self._conn = conn
        self.timeout = timeout
        self._lock = threading.Lock()
        self._failed = ""  # the failure that ended the session

    # Negotiation.

    def get_features(self) -> int:
        """Feature bits of device and transport, bit 30 (VHOST_USER_F_PROTOCOL_FEATURES) among them."""
        return self._ask_u64(FrontendRequest.VHOST_USER_GET_FEATURES)

    def set_features(self, features: int) -> None:
        """Accept feature bits. With bit 30 among them rings begin disabled; without it they begin enabled."""
        self._tell(FrontendRequest.VHOST_USER_SET_FEATURES, message.encode_u64(features))
        self.features = features

    def get_protocol_features(self) -> int:
        """To be asked only if `get_features` has bit 30."""
        return self._ask_u64(FrontendRequest.VHOST_USER_GET_PROTOCOL_FEATURES)

    def set_protocol_features(self, features: int) -> None:
        """Accept protocol features. REPLY_ACK is in force from the next message on."""
        self._tell(FrontendRequest.VHOST_USER_SET_PROTOCOL_FEATURES, message.encode_u64(features))
        self.protocol_features = features

    def set_owner(self) -> None:
        """Begin the session."""
        self._tell(FrontendRequest.VHOST_USER_SET_OWNER)

    def get_queue_num(self) -> int:
        """How many rings the back end can serve. The device's num_queues may be smaller or larger: take the lesser."""
        return self._ask_u64(FrontendRequest.VHOST_USER_GET_QUEUE_NUM)

    # Memory.

    def get_max_mem_slots(self) -> int:
        """How many regions `add_mem_reg` can add. Needs CONFIGURE_MEM_SLOTS."""
        return self._ask_u64(FrontendRequest.VHOST_USER_GET_MAX_MEM_SLOTS)

    def set_mem_table(self, regions: Sequence[Region]) -> None:
        """Share these 1 to 8 regions, and none that was shared before. ValueError for another number of them."""
        payload = message.encode_memory([_without_fd(region) for region in regions])
        self._tell(FrontendRequest.VHOST_USER_SET_MEM_TABLE, payload, [region.fd for region in regions])

    def add_mem_reg(self, region: Region) -> None:
        """Share one more region. Needs CONFIGURE_MEM_SLOTS."""
        payload = message.encode_mem_reg(_without_fd(region))
        self._tell(FrontendRequest.VHOST_USER_ADD_MEM_REG, payload, [region.fd])

    def rem_mem_reg(self, region: Region) -> None:
        """Take one region back, known by its addresses and size. Its descriptor is not sent."""
        self._tell(FrontendRequest.VHOST_USER_REM_MEM_REG, message.encode_mem_reg(_without_fd(region)))

    # Configuration space.

    def get_config(self, size: int) -> bytes:
        """The first `size` bytes, 1 to 256, of the configuration space. Needs CONFIG.

        There is no offset on purpose: QEMU's and SPDK's back ends ignore it and answer with the beginning.
        RequestRefused if the back end answers with an empty payload, which is how it reports an error.
        """
        request = FrontendRequest.VHOST_USER_GET_CONFIG

        def decode(payload: bytes) -> bytes:
            # An error is an empty message; some back ends keep the header and empty only the space behind it.
            if not payload or (len(payload) == uapi.CONFIG_HEADER.size and payload[4:8] == bytes(4)):
                raise RequestRefused(request.name, 0, f"no configuration came, {size} bytes of it were asked for")
            data = message.decode_config(payload).data
            if len(data) != size:
                raise ProtocolError(f"expected {size} bytes of configuration, got {len(data)}")
            return data

        config = Config(0, uapi.VHOST_USER_CONFIG_F_WRITABLE, bytes(size))
        return self._ask(request, message.encode_config(config), decode)

    def set_config(self, offset: int, data: bytes, flags: int = uapi.VHOST_USER_CONFIG_F_WRITABLE) -> None:
        """Write 1 to 256 bytes of the configuration space at `offset`. Needs CONFIG."""
        self._tell(FrontendRequest.VHOST_USER_SET_CONFIG, message.encode_config(Config(offset, flags, data)))

    # Rings.

    def set_vring_num(self, index: int, num: int) -> None:
        """How many descriptors the ring has."""
        self._tell(FrontendRequest.VHOST_USER_SET_VRING_NUM, message.encode_vring_state(VringState(index, num)))

    def set_vring_base(self, index: int, base: int) -> None:
        """The available index that the back end looks at first, modulo 65536."""
        self._tell(FrontendRequest.VHOST_USER_SET_VRING_BASE, message.encode_vring_state(VringState(index, base)))

    def set_vring_addr(self, index: int, desc: int, avail: int, used: int) -> None:
        """Where the ring lies, in user addresses of the regions shared."""
        payload = message.encode_vring_addr(VringAddr(index, 0, desc, used, avail))
        self._tell(FrontendRequest.VHOST_USER_SET_VRING_ADDR, payload)

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """The descriptor that the driver kicks with; None or -1 makes the back end poll the ring. Starts the ring."""
        self._set_vring_fd(FrontendRequest.VHOST_USER_SET_VRING_KICK, index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """The descriptor that the back end interrupts with; None or -1 for a driver that polls."""
        self._set_vring_fd(FrontendRequest.VHOST_USER_SET_VRING_CALL, index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """The descriptor that the back end writes to when the ring is broken; None or -1 for none."""
        self._set_vring_fd(FrontendRequest.VHOST_USER_SET_VRING_ERR, index, fd)

    def set_vring_enable(self, index: int, enable: bool) -> None:
        """Only for a session that negotiated bit 30; all other rings are always enabled."""
        state = VringState(index, int(enable))
        self._tell(FrontendRequest.VHOST_USER_SET_VRING_ENABLE, message.encode_vring_state(state))

    def get_vring_base(self, index: int) -> int:
        """Stop the ring. Returns, all I/O done, the available index that the back end would have looked at next."""

        def decode(payload: bytes) -> int:
            state = message.decode_vring_state(payload)
            if state.index != index or state.num > 0xFFFF:
                raise ProtocolError(f"expected an index of ring {index}, got {state.num} of ring {state.index}")
            return state.num

        request = FrontendRequest.VHOST_USER_GET_VRING_BASE
        return self._ask(request, message.encode_vring_state(VringState(index, 0)), decode)

    def start_vring(
        self,
        index: int,
        num: int,
        base: int,
        desc: int,
        avail: int,
        used: int,
        kick_fd: int | None,
        call_fd: int | None,
        err_fd: int | None = None,
    ) -> None:
        """All that a ring needs, in an order that every back end takes: the kick, which starts it, comes last.

        Write to the kick descriptor once afterwards: by the specification's older text a ring starts on its first kick.
        """
        self.set_vring_num(index, num)
        self.set_vring_base(index, base)
        self.set_vring_addr(index, desc, avail, used)
        self.set_vring_call(index, call_fd)
        self.set_vring_err(index, err_fd)
        self.set_vring_kick(index, kick_fd)
        if self.features >> uapi.VHOST_USER_F_PROTOCOL_FEATURES & 1:
            self.set_vring_enable(index, True)

    # Exchanges.

    def _set_vring_fd(self, request: FrontendRequest, index: int, fd: int | None) -> None:
        if not 0 <= index <= uapi.VHOST_USER_VRING_IDX_MASK:
            raise ValueError(f"ring {index}: {request.name} has room for 0 to {uapi.VHOST_USER_VRING_IDX_MASK}")
        if fd is None or fd < 0:
            self._tell(request, message.encode_u64(index | uapi.VHOST_USER_VRING_NOFD_MASK))
        else:
            self._tell(request, message.encode_u64(index), [fd])

    def _tell(self, request: FrontendRequest, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """A message without a reply of its own: acknowledged if REPLY_ACK is in force."""
        with self._exchange(request):
            if not self.protocol_features >> ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK & 1:
                self._conn.send(request, uapi.VHOST_USER_VERSION, payload, fds, self.timeout)
                return
            flags = uapi.VHOST_USER_VERSION | uapi.VHOST_USER_NEED_REPLY_MASK
            self._conn.send(request, flags, payload, fds, self.timeout)
            value = message.decode_u64(self._recv_reply(request))
            if value:
                raise RequestRefused(request.name, value, f"the back end answered {value}")

    def _ask(self, request: FrontendRequest, payload: bytes, decode: Callable[[bytes], _T]) -> _T:
        """A message with a reply of its own, which `decode` turns into the result."""
        with self._exchange(request):
            self._conn.send(request, uapi.VHOST_USER_VERSION, payload, (), self.timeout)
            return decode(self._recv_reply(request))

    def _ask_u64(self, request: FrontendRequest) -> int:
        return self._ask(request, b"", message.decode_u64)

    def _recv_reply(self, request: FrontendRequest) -> bytes:
        """The payload of the next message, which has to be the reply to `request`."""
        with self._conn.recv(self.timeout) as reply:
            if not reply.is_reply or reply.request != request:
                kind = "a reply" if reply.is_reply else "a request"
                raise ProtocolError(f"expected a reply to {request.name}, got {kind} of {reply.name}")
            if reply.fds:
                raise ProtocolError(f"expected no file descriptors, got {len(reply.fds) + reply.surplus_fds}")
            return reply.payload

    @contextmanager
    def _exchange(self, request: FrontendRequest) -> Iterator[None]:
        """One exchange at a time; what ends the session is remembered, and raised with the request's name."""
        with self._lock:
            if self._failed:
                raise ConnectionClosed(f"{request.name}: the session ended before, with {self._failed}")
            try:
                yield
            except ConnectionClosed as error:
                self._failed = f"{request.name}: {error}"
                raise ConnectionClosed(self._failed) from None
            except TimeoutError:
                self._failed = f"{request.name}: no answer within {self.timeout:g} s"
                raise TimeoutError(self._failed) from None
            except ProtocolError as error:
                self._failed = f"{request.name}: {error}"
                raise ProtocolError(self._failed) from None
            except (RequestRefused, ValueError, OSError):
                raise  # the exchange is complete, or never began: ValueError and EBADF come before the first byte
            except BaseException as error:
                self._failed = f"{request.name}: {type(error).__name__}"  # Ctrl-C: the reply is still to come
                raise


def _without_fd(region: Region) -> MemoryRegion:
    return MemoryRegion(*region[:4])
