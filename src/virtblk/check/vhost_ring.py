"""Checks of vhost-user's rings: their states, GET_VRING_BASE, their descriptors, and what SET_VRING_* may say.

docs/interop/vhost-user.rst, "Ring states", "Suspended device state" and the messages of rings. That a ring works once
it is described, started and enabled is what all other checks show.
"""

from __future__ import annotations

import time
from typing import Final

from virtblk.check.peer import Gone
from virtblk.check.refusals import Refusals
from virtblk.check.requirement import DEVICE, Failed, Rejected, Severity, Skipped
from virtblk.check.ring import Ring
from virtblk.check.runner import Tester
from virtblk.check.session import Request, Session
from virtblk.check.vhost_message import questions
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest, ProtocolFeature
from virtblk.uapi.virtio_blk import VIRTIO_BLK_F_MQ, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_IN

_STATES: Final = "Ring states"
_BASE: Final = "GET_VRING_BASE"
_MQ: Final = (ProtocolFeature.VHOST_USER_PROTOCOL_F_MQ,)
_PROTOCOL: Final = (uapi.VHOST_USER_F_PROTOCOL_FEATURES,)

SET_VRING_NUM: Final = FrontendRequest.VHOST_USER_SET_VRING_NUM
SET_VRING_BASE: Final = FrontendRequest.VHOST_USER_SET_VRING_BASE
SET_VRING_ADDR: Final = FrontendRequest.VHOST_USER_SET_VRING_ADDR
SET_VRING_ENABLE: Final = FrontendRequest.VHOST_USER_SET_VRING_ENABLE
SET_VRING_KICK: Final = FrontendRequest.VHOST_USER_SET_VRING_KICK
SET_VRING_CALL: Final = FrontendRequest.VHOST_USER_SET_VRING_CALL
SET_VRING_ERR: Final = FrontendRequest.VHOST_USER_SET_VRING_ERR


def described(t: Tester, **options: object) -> tuple[Session, Ring]:
    """A session with memory, and a ring that the device knows and was not told to start."""
    session = t.session(start=False, **options)
    session.set_mem_table()
    ring = session.make_ring(0)
    session.describe_ring(ring)
    return session, ring


def a_read(t: Tester, session: Session) -> Request:
    """A read in the first ring, where the device can see it, and no kick."""
    request = session.prepare(VIRTIO_BLK_T_IN, 0, room=512 * t.block_sectors)
    session.submit(request, kick=False)
    return request


def restart(session: Session, ring: Ring, base: int) -> None:
    """Start a ring again that GET_VRING_BASE stopped. With another call descriptor: some devices close the old one."""
    session.peer.set_vring(SET_VRING_BASE, ring.index, base)
    session.set_call(ring)
    session.set_kick(ring)
    session.kick(ring)


def stands_still(t: Tester, ring: Ring, what: str) -> None:
    """Failed if the device uses anything of the ring that it must not process."""
    deadline = time.monotonic() + t.settle_time
    while time.monotonic() < deadline:
        if ring.used_idx != ring.seen:
            head, length = ring.used_elem(ring.seen)
            raise Failed(f"{what}: head {head} came back with length {length}")
        time.sleep(0.002)


# States.


@DEVICE.must("vhost.ring-stopped", _STATES, Severity.HIGH, features=_PROTOCOL)
def ring_stopped(t: Tester) -> None:
    """A ring begins stopped: it is not processed before SET_VRING_KICK, though it is described and enabled."""
    session, ring = described(t)
    request = a_read(t, session)
    session.enable(ring)
    stands_still(t, ring, "a ring that was never started")
    session.set_kick(ring)
    session.kick(ring)
    request.ok()


@DEVICE.must("vhost.ring-disabled", _STATES, Severity.LOW, features=_PROTOCOL)
def ring_disabled(t: Tester) -> None:
    """With protocol features a ring begins disabled: its requests have no effect before SET_VRING_ENABLE 1."""
    session, ring = described(t)
    request = a_read(t, session)
    session.set_kick(ring)
    session.kick(ring)
    _has_no_effect(t, ring, request)
    session.enable(ring)
    session.kick(ring)
    request.ok()


@DEVICE.must("vhost.ring-disable", _STATES, Severity.LOW, features=_PROTOCOL)
def ring_disable(t: Tester) -> None:
    """After SET_VRING_ENABLE 0 the requests of a ring have no effect, and after SET_VRING_ENABLE 1 they have."""
    session = t.session()
    ring = session.rings[0]
    session.read(0, t.block_sectors)
    session.enable(ring, False)
    request = a_read(t, session)
    session.kick(ring)
    _has_no_effect(t, ring, request)
    session.enable(ring)
    session.kick(ring)
    request.ok()


def _has_no_effect(t: Tester, ring: Ring, request: Request) -> None:
    """Rejected where the device returns it with an error, for "process without side effects" may mean that."""
    try:
        stands_still(t, ring, "a disabled ring")
    except Failed:
        ring.reap()
        if request.status == VIRTIO_BLK_S_OK:
            raise
        raise Rejected(f"a request in a disabled ring came back with status {request.status}") from None


@DEVICE.must("vhost.ring-enabled-without-bit-30", _STATES, Severity.HIGH, features=_PROTOCOL)
def ring_enabled_without_bit_30(t: Tester) -> None:
    """Where SET_FEATURES does not accept bit 30, rings are enabled at once."""
    session = t.session(without=_PROTOCOL)
    session.read(0, t.block_sectors)


@DEVICE.must("vhost.features-keep-rings", _STATES, Severity.HIGH)
def features_keep_rings(t: Tester) -> None:
    """SET_FEATURES neither disables a ring that runs nor starts it anew, also if it only switches logging."""
    session = t.session()
    logging = t.facts.features & 1 << uapi.VHOST_F_LOG_ALL
    for bits in (session.features, session.features | logging, session.features):
        session.read(0, t.block_sectors)
        session.peer.set_features(bits)
        session.read(0, t.block_sectors)


@DEVICE.should("vhost.ring-starts-unkicked", _STATES, Severity.DEVIATION)
def ring_starts_unkicked(t: Tester) -> None:
    """A ring starts with SET_VRING_KICK: what is available by then is served, without a first kick."""
    session, ring = described(t)
    request = a_read(t, session)
    session.set_kick(ring)
    if session.features & 1 << uapi.VHOST_USER_F_PROTOCOL_FEATURES:
        session.enable(ring)
    deadline = time.monotonic() + t.timeout / 2
    while not request.done:
        if time.monotonic() > deadline:
            raise Failed(f"nothing came back within {t.timeout / 2:g} s, before the first kick")
        ring.reap()
        time.sleep(0.002)
    request.ok()


@DEVICE.must("vhost.rings-independent", _STATES, Severity.HIGH, features=(VIRTIO_BLK_F_MQ, *_PROTOCOL))
def rings_independent(t: Tester) -> None:
    """The states of a ring are its own: stopping or disabling another one does not touch it."""
    if t.facts.queues < 2:
        raise Skipped("the device offers VIRTIO_BLK_F_MQ, and has one queue")
    session = t.session(queues=2)
    first, second = session.rings
    session.enable(second, False)
    session.read(0, t.block_sectors)
    session.enable(second)
    session.stop_ring(second)
    session.read(0, t.block_sectors)
    restart(session, second, second.seen)
    session.stop_ring(first)
    request = session.prepare(VIRTIO_BLK_T_IN, 0, room=512 * t.block_sectors, ring=second)
    session.submit(request)
    request.ok()


@DEVICE.should("vhost.reset-owner", "RESET_OWNER", Severity.LOW)
def reset_owner(t: Tester) -> None:
    """RESET_OWNER is ignored, or disables all rings; the session goes on, and so do rings that are enabled again."""
    session = t.session()
    session.read(0, t.block_sectors)
    session.peer.tell(FrontendRequest.VHOST_USER_RESET_OWNER)
    if session.features & 1 << uapi.VHOST_USER_F_PROTOCOL_FEATURES:
        session.enable(session.rings[0])
    session.read(0, t.block_sectors)


# GET_VRING_BASE.


@DEVICE.must("vhost.base-stops", _BASE, Severity.CRITICAL)
def base_stops(t: Tester) -> None:
    """GET_VRING_BASE stops the ring: what is made available after it stays untouched, until it is started again."""
    session = t.session()
    ring = session.rings[0]
    session.read(0, t.block_sectors)
    base = session.stop_ring(ring)
    request = a_read(t, session)
    session.kick(ring)
    stands_still(t, ring, "a stopped ring")
    restart(session, ring, base)
    request.ok()


@DEVICE.must("vhost.base-value", _BASE, Severity.CRITICAL)
def base_value(t: Tester) -> None:
    """GET_VRING_BASE answers the available index that comes next, in 16 bits."""
    for begin in (0, 65533):
        with t.session(base=begin) as session:
            for _ in range(5):
                session.read(0, t.block_sectors)
            base, expected = session.stop_ring(session.rings[0]), begin + 5 & 0xFFFF
        if base != expected:
            raise Failed(f"after 5 requests from index {begin} on it is {base}, expected {expected}")


@DEVICE.must("vhost.base-drains", _BASE, Severity.CRITICAL)
def base_drains(t: Tester) -> str:
    """When GET_VRING_BASE is answered, all that was taken is done; what was not is done after the next start, once."""
    session = t.session(num=128)
    ring = session.rings[0]
    taken = []
    for _ in range(4):
        requests = [session.prepare(VIRTIO_BLK_T_IN, 0, room=512 * t.block_sectors) for _ in range(32)]
        before = ring.seen
        session.submit(*requests)
        base = session.stop_ring(ring)
        ring.reap()
        if ring.seen != base:
            raise Failed(f"the base is {base}, and the used index {ring.seen}: {base - ring.seen & 0xFFFF} are missing")
        taken.append(base - before & 0xFFFF)
        restart(session, ring, base)
        session.wait(*requests)
    return f"{' '.join(map(str, taken))} of 32 were taken each time"


@DEVICE.must("vhost.suspended", "Suspended device state", Severity.HIGH)
def suspended(t: Tester) -> None:
    """While all rings are stopped, the device writes to no guest memory, notifies nobody, and answers messages."""
    session = t.session(queues=min(2, t.facts.queues))
    for ring in session.rings:
        request = session.prepare(VIRTIO_BLK_T_IN, 0, room=512 * t.block_sectors, ring=ring)
        session.submit(request)
        request.ok()
    for ring in session.rings:
        session.stop_ring(ring)
    for ring in session.rings:
        session.calls(ring)
        ring.lost = True
        session.prepare(VIRTIO_BLK_T_IN, 0, room=512 * t.block_sectors, ring=ring)
    session.submit()
    stands_still(t, session.rings[0], "a suspended device")
    for ring in session.rings:
        if ring.used_idx != ring.seen or session.calls(ring):
            raise Failed(f"ring {ring.index} was used, or its driver notified, while all rings were stopped")
    for request_id, payload, _ in questions(t):
        session.peer.ask(request_id, payload)


@DEVICE.must("vhost.ring-restart", _STATES, Severity.HIGH)
def ring_restart(t: Tester) -> None:
    """A ring can be stopped and started any number of times."""
    session = t.session()
    ring = session.rings[0]
    for _ in range(8):
        session.read(0, t.block_sectors)
        restart(session, ring, session.stop_ring(ring))


@DEVICE.must("vhost.ring-moved", _STATES, Severity.HIGH)
def ring_moved(t: Tester) -> None:
    """A stopped ring can be started with another size and other addresses, from index 0 again."""
    session = t.session(num=64)
    session.read(0, t.block_sectors)
    for num in (16, 128):
        session.stop_ring(session.rings[0])
        session.rings.clear()
        session.start_ring(session.make_ring(0, num))
        for _ in range(40):
            session.read(0, t.block_sectors)


# Descriptors.


@DEVICE.should("vhost.kick-polled", "SET_VRING_KICK", Severity.LOW)
def kick_polled(t: Tester) -> None:
    """With bit 8 and no descriptor, SET_VRING_KICK has the device poll the ring."""
    session, ring = described(t)
    session.peer.tell(SET_VRING_KICK, uapi.U64.pack(ring.index | uapi.VHOST_USER_VRING_NOFD_MASK))
    if session.features & 1 << uapi.VHOST_USER_F_PROTOCOL_FEATURES:
        session.enable(ring)
    for _ in range(3):
        request = a_read(t, session)
        deadline = time.monotonic() + t.timeout / 2
        while not request.done:
            if time.monotonic() > deadline:
                ring.lost = True
                raise Failed(f"nothing came back within {t.timeout / 2:g} s")
            ring.reap()
            time.sleep(0.002)
        time.sleep(0.02)  # so that a device that sleeps is asleep


@DEVICE.must("vhost.call-absent", "SET_VRING_CALL", Severity.LOW)
def call_absent(t: Tester) -> None:
    """With bit 8 and no descriptor, SET_VRING_CALL has the device notify nobody; requests are served all the same."""
    session = t.session()
    session.read(0, t.block_sectors)
    session.peer.tell(SET_VRING_CALL, uapi.U64.pack(uapi.VHOST_USER_VRING_NOFD_MASK))
    session.calls()
    for _ in range(3):
        session.read(0, t.block_sectors)
    session.stop_ring(session.rings[0])
    if session.calls():
        raise Failed("a notification came through the descriptor that was taken back")


@DEVICE.must("vhost.err-absent", "SET_VRING_ERR", Severity.LOW)
def err_absent(t: Tester) -> None:
    """With bit 8 and no descriptor, SET_VRING_ERR is taken; requests are served all the same."""
    session = t.session()
    session.peer.tell(SET_VRING_ERR, uapi.U64.pack(uapi.VHOST_USER_VRING_NOFD_MASK))
    session.read(0, t.block_sectors)


@DEVICE.must("vhost.call-changed", "SET_VRING_CALL", Severity.HIGH)
def call_changed(t: Tester) -> None:
    """While a ring runs it can be given another call descriptor, and uses it from then on."""
    session = t.session()
    for _ in range(3):
        session.set_call(session.rings[0])
        session.calls()  # a device may greet it
        session.read(0, t.block_sectors)
        session.wait_call()


@DEVICE.must("vhost.kick-changed", "SET_VRING_KICK", Severity.HIGH)
def kick_changed(t: Tester) -> None:
    """While a ring runs it can be given another kick descriptor, and listens to it from then on."""
    session = t.session()
    for _ in range(3):
        session.read(0, t.block_sectors)
        session.set_kick(session.rings[0])


@DEVICE.should("vhost.ring-fd-missing", "SET_VRING_KICK", Severity.LOW)
def ring_fd_missing(t: Tester) -> None:
    """SET_VRING_KICK, CALL and ERR without bit 8 and without a descriptor are refused."""
    unsound = Refusals(t)
    for request in (SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK):
        unsound.send(f"{request.name} without a descriptor", request, uapi.U64.pack(0))
    unsound.end()


# Bounds.


def beyond(t: Tester) -> list[int]:
    """Numbers of rings that the device does not have."""
    first = max(t.facts.queue_num, t.facts.queues)
    return [index for index in (first, 128, 255, 256, 65535, 1 << 31, (1 << 32) - 1) if index >= first]


@DEVICE.must("vhost.ring-index-enable", "SET_VRING_ENABLE", Severity.CRITICAL)
def ring_index_enable(t: Tester) -> None:
    """SET_VRING_ENABLE for a ring that does not exist is refused."""
    _indices_refused(t, SET_VRING_ENABLE, 1)


@DEVICE.must("vhost.ring-index-base", "SET_VRING_BASE", Severity.CRITICAL)
def ring_index_base(t: Tester) -> None:
    """SET_VRING_BASE for a ring that does not exist is refused."""
    _indices_refused(t, SET_VRING_BASE, 0)


@DEVICE.must("vhost.ring-index-num", "SET_VRING_NUM", Severity.CRITICAL)
def ring_index_num(t: Tester) -> None:
    """SET_VRING_NUM for a ring that does not exist is refused."""
    _indices_refused(t, SET_VRING_NUM, 64)


def _indices_refused(t: Tester, request: FrontendRequest, num: int) -> None:
    unsound = Refusals(t, start=False)
    for index in beyond(t):
        unsound.send(f"{request.name} of ring {index}", request, uapi.VRING_STATE.pack(index, num))
    unsound.end()


@DEVICE.must("vhost.ring-index-addr", "Vring address description", Severity.CRITICAL)
def ring_index_addr(t: Tester) -> None:
    """Addresses for a ring that does not exist are refused."""
    unsound = Refusals(t)
    for index in beyond(t):
        session = unsound.session
        own = session.addresses(session.rings[0])
        payload = index.to_bytes(4, "little") + own[4:]
        unsound.send(f"SET_VRING_ADDR of ring {index}", SET_VRING_ADDR, payload)
    unsound.end()


@DEVICE.must("vhost.ring-index-fd", "SET_VRING_KICK", Severity.CRITICAL)
def ring_index_fd(t: Tester) -> None:
    """Descriptors for a ring that does not exist are refused."""
    unsound = Refusals(t)
    for request in (SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK):
        for index in beyond(t):
            if index <= uapi.VHOST_USER_VRING_IDX_MASK:
                fd = unsound.session.event_fd()
                unsound.send(f"{request.name} of ring {index}", request, uapi.U64.pack(index), [fd])
    unsound.end()


@DEVICE.must("vhost.ring-index-get-base", _BASE, Severity.CRITICAL)
def ring_index_get_base(t: Tester) -> None:
    """GET_VRING_BASE of a ring that does not exist is refused."""
    for index in beyond(t):
        peer = t.session().peer
        try:
            answer = peer.ask(FrontendRequest.VHOST_USER_GET_VRING_BASE, uapi.VRING_STATE.pack(index, 0))
        except Gone:
            answer = b""
        peer.close()
        if answer:
            raise Failed(f"ring {index} was answered for: {answer.hex(' ')}")
    raise Rejected("the session was closed, or the reply is empty")


@DEVICE.must("vhost.ring-size-0", "SET_VRING_NUM", Severity.LOW)
def ring_size_0(t: Tester) -> None:
    """A ring of no descriptors is refused."""
    _sizes_refused(t, 0)


@DEVICE.must("vhost.ring-size-odd", "SET_VRING_NUM", Severity.LOW)
def ring_size_odd(t: Tester) -> None:
    """A split ring whose size is no power of two is refused."""
    _sizes_refused(t, 3, 48, 255, 32767)


@DEVICE.must("vhost.ring-size-huge", "SET_VRING_NUM", Severity.HIGH)
def ring_size_huge(t: Tester) -> None:
    """A ring of more than 32768 descriptors is refused."""
    _sizes_refused(t, 1 << 16, 1 << 20, 1 << 31)


def _sizes_refused(t: Tester, *sizes: int) -> None:
    unsound = Refusals(t, start=False)
    for num in sizes:
        unsound.send(f"a ring of {num} descriptors", SET_VRING_NUM, uapi.VRING_STATE.pack(0, num))
    unsound.end()


@DEVICE.must("vhost.ring-base-huge", "SET_VRING_BASE", Severity.LOW)
def ring_base_huge(t: Tester) -> None:
    """A split ring's base of more than 16 bits is refused."""
    unsound = Refusals(t, start=False)
    for base in (1 << 16, 1 << 31):
        unsound.send(f"base {base:#x}", SET_VRING_BASE, uapi.VRING_STATE.pack(0, base))
    unsound.end()


@DEVICE.must("vhost.ring-addr-outside", "SET_VRING_ADDR", Severity.CRITICAL)
def ring_addr_outside(t: Tester) -> str:
    """A ring that lies outside of the memory regions, wholly or in part, is not served, and harms nobody."""
    session = t.session(start=False)
    region = session.memory.regions[0]
    session.close()
    return _unusable(t, 0x1000, region.user_addr - 16, region.user_addr + region.size - 16)


@DEVICE.must("vhost.ring-addr-top", "SET_VRING_ADDR", Severity.CRITICAL)
def ring_addr_top(t: Tester) -> str:
    """A ring whose addresses wrap at 2^64 is not served, and harms nobody."""
    return _unusable(t, (1 << 64) - 16, (1 << 63) - 16, 1 << 63)


@DEVICE.must("vhost.ring-addr-unaligned", "SET_VRING_ADDR", Severity.LOW)
def ring_addr_unaligned(t: Tester) -> str:
    """A ring whose parts are not aligned as 2.7 demands is refused, or served all the same."""
    session = t.session(start=False)
    region = session.memory.regions[0]
    session.close()
    return _unusable(t, region.user_addr + 0x1001, region.user_addr + 0x1008)


def _unusable(t: Tester, *tables: int) -> str:
    """Start a ring with each of these addresses of the descriptor table. Rejected where the device refuses all."""
    ways = []
    for table in tables:
        session = t.session(start=False)
        session.set_mem_table()
        ring = session.make_ring(0)
        ring.lost = True
        session.describe_ring(ring)
        user = session.memory.user
        payload = uapi.VRING_ADDR.pack(0, 0, table, user(ring.used), user(ring.avail), 0)
        peer, fd = session.peer, session.event_fd()
        way = peer.refusal(SET_VRING_ADDR, payload)
        way = way or peer.refusal(SET_VRING_KICK, uapi.U64.pack(0), [fd])
        way = way or peer.refusal(SET_VRING_ENABLE, uapi.VRING_STATE.pack(0, 1))
        session.close()
        ways.append(way)
    if all(ways):
        raise Rejected("; ".join(dict.fromkeys(way for way in ways if way)))
    return "acknowledged"


@DEVICE.must("vhost.ring-before-memory", "SET_VRING_ADDR", Severity.LOW)
def ring_before_memory(t: Tester) -> None:
    """A ring that is described and started before there is memory is refused, or runs when memory comes."""
    session = t.session(start=False)
    ring = session.make_ring(0)
    try:
        session.describe_ring(ring)
        session.set_kick(ring)
        if session.features & 1 << uapi.VHOST_USER_F_PROTOCOL_FEATURES:
            session.enable(ring)
        session.set_mem_table()
    except (Failed, Gone) as error:
        raise Rejected(str(error)) from None
    session.kick(ring)
    session.read(0, t.block_sectors)


@DEVICE.should("vhost.queue-num", "GET_QUEUE_NUM", Severity.HIGH, features=(VIRTIO_BLK_F_MQ,), protocol=_MQ)
def queue_num(t: Tester) -> str:
    """GET_QUEUE_NUM answers at least 1, and at least as many queues as `num_queues` has the driver use."""
    offered = int(t.facts.fields["num_queues"])
    if t.facts.queue_num < max(1, offered):
        raise Failed(f"GET_QUEUE_NUM answered {t.facts.queue_num}, num_queues is {offered}")
    return f"{t.facts.queue_num}, num_queues is {offered}"
