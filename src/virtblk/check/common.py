"""Checks of what all virtio devices have in common: feature bits and their negotiation (virtio 1.2, 2.2 and 6)."""

from __future__ import annotations

from typing import Final

from virtblk.check.requirement import DEVICE, Failed, Level, Severity
from virtblk.check.runner import Tester
from virtblk.check.session import UNDERSTOOD
from virtblk.uapi import vhost_user as vhost
from virtblk.uapi import virtio_blk as blk
from virtblk.uapi.vhost_user import FrontendRequest, ProtocolFeature
from virtblk.uapi.virtio_config import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIF_CONFIG_DATA,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_SR_IOV,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
)

_LEAST: Final = 1 << VIRTIO_F_VERSION_1 | 1 << vhost.VHOST_USER_F_PROTOCOL_FEATURES
_ALL: Final = UNDERSTOOD | 1 << VIRTIO_RING_F_EVENT_IDX
_STATUS: Final = (ProtocolFeature.VHOST_USER_PROTOCOL_F_STATUS,)
#: Bits that no device of virtio 1.0 and later offers, or that mean nothing to a block device: 0 (BARRIER), 3, 7 (SCSI),
#: 8, 18 to 23 and 25, 31, 42 and up; 24 and 27 (NOTIFY_ON_EMPTY, ANY_LAYOUT) are legacy. 26 and 30 are vhost's own.
_DEFINED: Final = {
    *range(1, 3), *range(4, 7), *range(9, 18), 24, 26, 27, 28, 29, 30, *range(32, 42), 43,
}  # fmt: skip
#: What 2.2.2 and 5.2.3 demand: the first bit is not offered without the second.
_NEEDS: Final = {
    blk.VIRTIO_BLK_F_CONFIG_WCE: blk.VIRTIO_BLK_F_FLUSH,
    VIRTIO_F_NOTIF_CONFIG_DATA: VIRTIO_F_NOTIFICATION_DATA,
}


@DEVICE.must("common.version-1", "6.2", Severity.HIGH)
def version_1(t: Tester) -> None:
    """VIRTIO_F_VERSION_1 is offered."""
    if not t.facts.offers(VIRTIO_F_VERSION_1):
        raise Failed(f"GET_FEATURES answered {t.facts.features:#018x}, bit {VIRTIO_F_VERSION_1} is clear")


@DEVICE.must("common.defined-bits", "2.2.2", Severity.LOW)
def defined_bits(t: Tester) -> None:
    """No feature bit is offered that is undefined, or reserved for what a block device is not."""
    odd = [bit for bit in range(64) if t.facts.offers(bit) and bit not in _DEFINED]
    if odd:
        raise Failed(f"GET_FEATURES answered {t.facts.features:#018x}, with the bits {odd}")


@DEVICE.must("common.pci-only-bits", "6.2", Severity.LOW)
def pci_only_bits(t: Tester) -> None:
    """VIRTIO_F_SR_IOV, which only a PCI device can have, is not offered."""
    if t.facts.offers(VIRTIO_F_SR_IOV):
        raise Failed(f"GET_FEATURES answered {t.facts.features:#018x}, bit {VIRTIO_F_SR_IOV} is set")


@DEVICE.must("common.dependencies", "2.2.2", Severity.HIGH)
def dependencies(t: Tester) -> None:
    """No feature is offered without the one it needs."""
    for bit, needed in _NEEDS.items():
        if t.facts.offers(bit) and not t.facts.offers(needed):
            raise Failed(f"GET_FEATURES answered {t.facts.features:#018x}: bit {bit} without bit {needed}")


@DEVICE.must("common.same-offer", "2.2.2", Severity.HIGH)
def same_offer(t: Tester) -> None:
    """The same features are offered to each front end that connects, and accepted again after a reconnect."""
    for _ in range(3):
        session = t.session()
        offered = session.peer.get_features()
        if offered != t.facts.features:
            raise Failed(f"GET_FEATURES answered {offered:#018x}, and {t.facts.features:#018x} before")
        session.read(0, t.block_sectors)
        session.close()


@DEVICE.must("common.subset-each-alone", "2.2.2", Severity.HIGH)
def subset_each_alone(t: Tester) -> str:
    """Any valid subset of the features is accepted: VERSION_1 and one more feature alone, then a read."""
    return _each_subset(t, {bit: _LEAST | 1 << bit for bit in _optional(t)})


@DEVICE.must("common.subset-one-missing", "2.2.2", Severity.HIGH)
def subset_one_missing(t: Tester) -> str:
    """Any valid subset of the features is accepted: all but one, then a read."""
    return _each_subset(t, {bit: _ALL & ~(1 << bit) for bit in _optional(t)})


def _optional(t: Tester) -> list[int]:
    return [bit for bit in range(64) if _ALL & ~_LEAST & t.facts.features & 1 << bit]


def _each_subset(t: Tester, subsets: dict[int, int]) -> str:
    for features in (_LEAST, *subsets.values()):
        with t.session(features=features) as session:
            session.read(0, t.block_sectors)
    return f"{1 + len(subsets)} subsets"


@DEVICE.must("common.unoffered-refused", "2.2.2", Severity.LOW, same_as="T0037")
def unoffered_refused(t: Tester) -> str:
    """Features that were not offered are not accepted."""
    offered = t.facts.features
    bit = next(bit for bit in range(63, 0, -1) if not offered >> bit & 1)
    session = t.session(start=False)
    payload = vhost.U64.pack(session.features | 1 << bit)
    refusal = session.peer.refusal(FrontendRequest.VHOST_USER_SET_FEATURES, payload)
    if refusal is None:
        raise Failed(f"SET_FEATURES with bit {bit}, which is not in {offered:#018x}, was accepted")
    return refusal


@DEVICE.must("common.in-order", "2.7.9", Severity.HIGH, features=(VIRTIO_F_IN_ORDER,), same_as="T0085")
def in_order(t: Tester) -> None:
    """With IN_ORDER, buffers are used in the order in which they were made available."""
    session = t.session(plus=(VIRTIO_F_IN_ORDER,))
    ring = session.rings[0]
    for _ in range(8):
        requests = [session.prepare(blk.VIRTIO_BLK_T_IN, 0, room=512 * t.block_sectors) for _ in range(16)]
        ring.returned.clear()
        session.submit(*requests)
        session.wait(*requests)
        heads = [request.chain.head for request in requests]
        if ring.returned != heads:
            raise Failed(f"made available {heads}, used {ring.returned}")


for _id, _section, _text in (
    ("common.no-use-before-driver-ok", "2.1.2", "Before DRIVER_OK no buffer is consumed and no notification is sent."),
    ("common.needs-reset", "2.1.2", "After a fatal error DEVICE_NEEDS_RESET is set, and a config change is sent."),
    ("common.reset", "2.4.1", "After a reset the status is 0, and no queue is touched and no notification sent."),
):
    DEVICE.unbuilt(
        _id,
        _section,
        Level.SHOULD if _id == "common.needs-reset" else Level.MUST,
        _text,
        "not built yet: needs SET_STATUS and GET_STATUS in the raw front end",
        protocol=_STATUS,
    )
