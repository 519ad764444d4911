"""Checks of notifications in both directions (virtio 1.2, 2.7.7 and 2.7.10): those that must come, and should not."""

from __future__ import annotations

import threading
import time
from typing import Final

from virtblk.check.requirement import DEVICE, Failed, Severity
from virtblk.check.runner import Tester
from virtblk.check.session import Session
from virtblk.uapi import virtio_blk as blk
from virtblk.uapi.virtio_config import VIRTIO_RING_F_EVENT_IDX
from virtblk.uapi.virtio_ring import VRING_AVAIL_F_NO_INTERRUPT

IN: Final = blk.VIRTIO_BLK_T_IN
_EVENT_IDX: Final = (VIRTIO_RING_F_EVENT_IDX,)


def one(t: Tester, session: Session) -> None:
    """One request, done."""
    session.read(0, t.block_sectors)


def quiet(t: Tester, session: Session, what: str) -> None:
    """Failed if a notification comes that is not wanted. What had to come came before GET_VRING_BASE was answered."""
    session.stop_ring(session.rings[0])
    if session.calls():
        raise Failed(f"a notification came {what}")


@DEVICE.must("split.call-flags-0", "2.7.7.2", Severity.CRITICAL)
def call_flags_0(t: Tester) -> None:
    """Without EVENT_IDX, and with 0 in the available ring's flags, the device notifies of each used buffer."""
    session = t.session()
    for _ in range(6):
        session.calls()
        one(t, session)
        session.wait_call()


@DEVICE.should("split.call-flags-1", "2.7.7.2", Severity.LOW, same_as="T0093")
def call_flags_1(t: Tester) -> None:
    """Without EVENT_IDX, and with 1 in the available ring's flags, the device does not notify."""
    session = t.session()
    one(t, session)
    session.wait_call()
    session.rings[0].set_avail_flags(VRING_AVAIL_F_NO_INTERRUPT)
    for _ in range(4):
        one(t, session)
    quiet(t, session, "though the available ring's flags are 1")


@DEVICE.must("split.call-ignores-used-event", "2.7.7.2", Severity.HIGH)
def call_ignores_used_event(t: Tester) -> None:
    """Without EVENT_IDX the `used_event` field means nothing."""
    session = t.session(num=16)
    for event in (0x4000, 0xFFFF, 0):
        session.rings[0].set_used_event(event)
        session.calls()
        one(t, session)
        session.wait_call()


@DEVICE.must("split.call-event", "2.7.7.2", Severity.CRITICAL, features=_EVENT_IDX)
def call_event(t: Tester) -> None:
    """With EVENT_IDX the device notifies when the used index passes `used_event`."""
    session = t.session(plus=_EVENT_IDX)
    ring = session.rings[0]
    for ahead in (0, 0, 1, 3, 0):
        session.calls()
        ring.set_used_event((ring.seen + ahead) & 0xFFFF)
        for _ in range(ahead + 1):
            one(t, session)
        session.wait_call()


@DEVICE.must("split.call-event-ignores-flags", "2.7.7.2", Severity.CRITICAL, features=_EVENT_IDX)
def call_event_ignores_flags(t: Tester) -> None:
    """With EVENT_IDX the available ring's flags mean nothing."""
    session = t.session(plus=_EVENT_IDX)
    ring = session.rings[0]
    ring.set_avail_flags(VRING_AVAIL_F_NO_INTERRUPT)
    for _ in range(3):
        ring.set_used_event(ring.seen)
        one(t, session)
        session.wait_call()


@DEVICE.should("split.call-event-not-before", "2.7.7.2", Severity.LOW, features=_EVENT_IDX)
def call_event_not_before(t: Tester) -> None:
    """With EVENT_IDX the device does not notify while the used index has not passed `used_event`."""
    session = t.session(plus=_EVENT_IDX)
    ring = session.rings[0]
    ring.set_used_event(ring.seen)
    one(t, session)
    session.wait_call()
    event = ring.seen + 4
    ring.set_used_event(event)
    session.calls()
    for _ in range(4):
        one(t, session)
    quiet(t, session, f"at used index {ring.used_idx}, used_event is {event}")


@DEVICE.should("split.call-event-not-after", "2.7.7.2", Severity.LOW, features=_EVENT_IDX)
def call_event_not_after(t: Tester) -> None:
    """With EVENT_IDX the device does not notify again after the used index has passed `used_event`."""
    session = t.session(plus=_EVENT_IDX)
    ring = session.rings[0]
    ring.set_used_event(ring.seen)
    one(t, session)
    session.wait_call()
    for _ in range(5):
        one(t, session)
    quiet(t, session, f"at used index {ring.used_idx}, used_event is 0")


@DEVICE.must("split.call-event-wrap", "2.7.7.2", Severity.CRITICAL, features=_EVENT_IDX)
def call_event_wrap(t: Tester) -> None:
    """With EVENT_IDX the device notifies across index 65535 too."""
    session = t.session(plus=_EVENT_IDX, base=65530)
    ring = session.rings[0]
    for ahead in (3, 1, 2, 4, 0):  # the second one is 65535
        session.calls()
        ring.set_used_event((ring.seen + ahead) & 0xFFFF)
        for _ in range(ahead + 1):
            one(t, session)
        session.wait_call()


@DEVICE.must("split.call-event-batch", "2.7.7.2", Severity.CRITICAL, features=_EVENT_IDX)
def call_event_batch(t: Tester) -> None:
    """With EVENT_IDX a batch of used buffers that passes `used_event` anywhere leads to a notification."""
    session = t.session(plus=_EVENT_IDX, num=64)
    ring = session.rings[0]
    for ahead in (0, 5, 9):
        session.calls()
        ring.set_used_event((ring.seen + ahead) & 0xFFFF)
        requests = [session.prepare(IN, 0, room=512 * t.block_sectors) for _ in range(10)]
        session.submit(*requests)
        session.wait(*requests)
        session.wait_call()


@DEVICE.must("split.spurious-kicks", "2.7.10.2", Severity.HIGH, same_as="T0068")
def spurious_kicks(t: Tester) -> None:
    """Kicks without anything to do are tolerated."""
    session = t.session()
    for _ in range(3):
        for n in range(20):
            session.kick()
            time.sleep(0.002 * (n % 2))  # so that some of them find the device asleep
        if session.rings[0].used_idx != session.rings[0].seen:
            raise Failed(f"used index {session.rings[0].used_idx} after {session.rings[0].seen} requests")
        one(t, session)
    if session.rings[0].used_idx != 3:
        raise Failed(f"used index {session.rings[0].used_idx} after three requests")


@DEVICE.must("split.kick-flags", "2.7.10", Severity.CRITICAL)
def kick_flags(t: Tester) -> str:
    """A driver that kicks only while the used ring's flags are 0 loses nothing."""
    session = t.session()
    ring = session.rings[0]
    return _kick_when_asked(t, session, lambda idx: not ring.used_flags & 1)


@DEVICE.must("split.kick-event", "2.7.10.1", Severity.CRITICAL, features=_EVENT_IDX)
def kick_event(t: Tester) -> str:
    """With EVENT_IDX, a driver that kicks only when the available index passes `avail_event` loses nothing."""
    session = t.session(plus=_EVENT_IDX)
    ring = session.rings[0]
    return _kick_when_asked(t, session, lambda idx: ring.avail_event == idx)


@DEVICE.must("split.kick-event-wrap", "2.7.10.1", Severity.CRITICAL, features=_EVENT_IDX)
def kick_event_wrap(t: Tester) -> str:
    """The same across index 65535."""
    session = t.session(plus=_EVENT_IDX, base=65500)
    ring = session.rings[0]
    return _kick_when_asked(t, session, lambda idx: ring.avail_event == idx)


_fence = threading.Lock()


def _kick_when_asked(t: Tester, session: Session, asked: object) -> str:
    """A hundred requests, one by one, with pauses of different lengths, so that the device goes to sleep at times."""
    assert callable(asked)
    kicks = 0
    ring = session.rings[0]
    for n in range(100):
        request = session.prepare(IN, 0, room=512 * t.block_sectors)
        idx = (ring.avail_idx - 1) & 0xFFFF
        session.submit(request, kick=False)
        with _fence:  # the index is stored before the device's wish is read: a locked instruction in between
            pass
        if asked(idx):
            session.kick()
            kicks += 1
        session.wait(request)
        request.ok()
        time.sleep((n % 5) * 0.0002)
    return f"{kicks} kicks for 100 requests"
