"""Checks of the block device's features and configuration space (virtio 1.2, 5.2.3 to 5.2.5)."""

from __future__ import annotations

from virtblk.check.requirement import DEVICE, Failed, Severity
from virtblk.check.runner import Tester
from virtblk.check.session import UNDERSTOOD
from virtblk.check.target import UNDERSTOOD_PROTOCOL
from virtblk.uapi import virtio_blk as blk
from virtblk.uapi.vhost_user import FrontendRequest

_WCE = (blk.VIRTIO_BLK_F_CONFIG_WCE,)
_WRITEBACK = blk.BLK_CONFIG_WRITEBACK


@DEVICE.should("blk.flush-offered", "5.2.5.2", Severity.LOW)
def flush_offered(t: Tester) -> None:
    """VIRTIO_BLK_F_FLUSH is offered."""
    if not t.facts.offers(blk.VIRTIO_BLK_F_FLUSH):
        raise Failed(f"GET_FEATURES answered {t.facts.features:#018x}, bit {blk.VIRTIO_BLK_F_FLUSH} is clear")


@DEVICE.must("blk.wce-needs-flush", "5.2.5.2", Severity.HIGH, features=_WCE)
def wce_needs_flush(t: Tester) -> None:
    """A device that offers CONFIG_WCE offers FLUSH too."""
    if not t.facts.offers(blk.VIRTIO_BLK_F_FLUSH):
        raise Failed(f"GET_FEATURES answered {t.facts.features:#018x}: bit 11 without bit 9")


@DEVICE.must("blk.wce-without-flush", "5.2.5.2", Severity.HIGH, features=_WCE)
def wce_without_flush(t: Tester) -> None:
    """With CONFIG_WCE and without FLUSH negotiated, `writeback` starts as 0."""
    session = t.session(without=(blk.VIRTIO_BLK_F_FLUSH,))
    writeback = session.peer.get_config(0, _WRITEBACK + 1)[_WRITEBACK]
    if writeback:
        raise Failed(f"writeback is {writeback}")


@DEVICE.must("blk.unused-zero", "5.2.5.2", Severity.LOW)
def unused_zero(t: Tester) -> None:
    """The unused bytes of the configuration space are 0."""
    fields = t.facts.fields
    for name in ("unused0", "unused1"):
        value = fields.get(name, 0)
        if value not in (0, [0, 0, 0]):
            raise Failed(f"{name} is {value}")


@DEVICE.should("blk.zoned-offered", "5.2.5.2", Severity.LOW)
def zoned_offered(t: Tester) -> None:
    """A device without zones does not offer ZONED."""
    if not t.facts.offers(blk.VIRTIO_BLK_F_ZONED):
        return
    session = t.session()
    space = session.peer.get_config(0, 97)
    if not space or space[92] == 0:
        raise Failed(
            "ZONED is offered, and the zoned model is 0 (none)" if space else "ZONED is offered without its fields"
        )


@DEVICE.must("blk.config-before-features", "2.5.2", Severity.HIGH)
def config_before_features(t: Tester) -> None:
    """The fields of offered features can be read before features are accepted."""
    size = len(t.facts.config)
    peer = t.peer()
    peer.get_features()
    peer.get_protocol_features()
    peer.set_protocol_features(t.facts.protocol_features & UNDERSTOOD_PROTOCOL)
    before = peer.get_config(0, size)
    peer.set_features(UNDERSTOOD & t.facts.features)
    after = peer.get_config(0, size)
    for at in range(size):
        if before[at : at + 1] != after[at : at + 1] and at != _WRITEBACK:
            was, now = before[at : at + 8].hex(" "), after[at : at + 8].hex(" ")
            raise Failed(f"from byte {at} on it reads {was or 'nothing'} before SET_FEATURES, {now or 'nothing'} after")


@DEVICE.must("blk.config-stable", "2.5.3", Severity.HIGH)
def config_stable(t: Tester) -> None:
    """The configuration space reads the same again while nothing has changed."""
    session = t.session()
    first, again = (session.peer.get_config(0, len(t.facts.config)) for _ in range(2))
    if first != again:
        raise Failed(f"first {first.hex(' ')}, then {again.hex(' ')}")


@DEVICE.must("blk.num-queues", "5.2.4", Severity.HIGH, features=(blk.VIRTIO_BLK_F_MQ,))
def num_queues(t: Tester) -> str:
    """With MQ, `num_queues` is at least 1."""
    queues = t.facts.fields["num_queues"]
    if queues < 1:
        raise Failed(f"num_queues is {queues}")
    return f"num_queues is {queues}"


@DEVICE.must("blk.each-queue-works", "5.2.2", Severity.HIGH)
def each_queue_works(t: Tester) -> str:
    """Each of the queues serves requests, all of them at once."""
    queues = min(t.facts.queues, 64)
    session = t.session(queues=queues, num=16)
    requests = [
        session.prepare(blk.VIRTIO_BLK_T_IN, 0, room=512 * t.block_sectors, ring=ring) for ring in session.rings
    ]
    session.submit(*requests)
    for request in requests:
        request.ok()
    return f"{queues} queues"


@DEVICE.must("blk.block-size", "5.2.4", Severity.HIGH, features=(blk.VIRTIO_BLK_F_BLK_SIZE,))
def block_size(t: Tester) -> str:
    """With BLK_SIZE, `blk_size` is a power of two of at least 512 that divides the disk."""
    size = t.facts.fields["blk_size"]
    if size < 512 or size & (size - 1) or t.facts.capacity * 512 % size:
        raise Failed(f"blk_size is {size}, the capacity {t.facts.capacity} sectors")
    return f"blk_size is {size}"


@DEVICE.must("blk.seg-max-set", "5.2.4", Severity.HIGH, features=(blk.VIRTIO_BLK_F_SEG_MAX,))
def seg_max_set(t: Tester) -> str:
    """With SEG_MAX, `seg_max` is at least 1: a request that may have no segment is none."""
    seg_max = t.facts.fields["seg_max"]
    if seg_max < 1:
        raise Failed(f"seg_max is {seg_max}")
    return f"seg_max is {seg_max}"


@DEVICE.must("blk.discard-limits", "5.2.5.2", Severity.HIGH, features=(blk.VIRTIO_BLK_F_DISCARD,))
def discard_limits(t: Tester) -> str:
    """With DISCARD, at least one segment of at least one sector is possible."""
    return _limits(t, "max_discard_seg", "max_discard_sectors")


@DEVICE.must("blk.write-zeroes-limits", "5.2.5.2", Severity.HIGH, features=(blk.VIRTIO_BLK_F_WRITE_ZEROES,))
def write_zeroes_limits(t: Tester) -> str:
    """With WRITE_ZEROES, at least one segment of at least one sector is possible, and `write_zeroes_may_unmap` is 0
    or 1."""
    may_unmap = t.facts.fields.get("write_zeroes_may_unmap", 0)
    if may_unmap > 1:
        raise Failed(f"write_zeroes_may_unmap is {may_unmap}")
    return _limits(t, "max_write_zeroes_seg", "max_write_zeroes_sectors")


def _limits(t: Tester, *names: str) -> str:
    values = {name: t.facts.fields.get(name, 0) for name in names}
    text = ", ".join(f"{name} {value}" for name, value in values.items())
    if not all(values.values()):
        raise Failed(text)
    return text


@DEVICE.must(
    "blk.writeback-switch", "5.2.6.1", Severity.HIGH, features=(*_WCE, blk.VIRTIO_BLK_F_FLUSH), same_as="B0053"
)
def writeback_switch(t: Tester) -> None:
    """With CONFIG_WCE, a driver switches the cache mode by writing `writeback`, and reads back what it wrote."""
    session = t.session()
    peer = session.peer
    before = peer.get_config(0, _WRITEBACK + 1)[_WRITEBACK]
    for value in (1 - before, before):
        peer.tell(FrontendRequest.VHOST_USER_SET_CONFIG, peer.config_message(_WRITEBACK, bytes([value])))
        now = peer.get_config(0, _WRITEBACK + 1)[_WRITEBACK]
        if now != value:
            raise Failed(f"wrote writeback {value}, read {now}")
        session.read(0, t.block_sectors)


@DEVICE.should("blk.writeback-unnegotiated", "5.2.5.1", Severity.LOW, features=_WCE)
def writeback_unnegotiated(t: Tester) -> str:
    """Without CONFIG_WCE accepted, `writeback` is no field that a driver may write."""
    session = t.session(features=UNDERSTOOD & ~(1 << blk.VIRTIO_BLK_F_CONFIG_WCE))
    peer = session.peer
    before = peer.get_config(0, _WRITEBACK + 1)[_WRITEBACK]
    message = peer.config_message(_WRITEBACK, bytes([1 - before]))
    refusal = peer.refusal(FrontendRequest.VHOST_USER_SET_CONFIG, message)
    if refusal is not None:
        return refusal
    now = peer.get_config(0, _WRITEBACK + 1)[_WRITEBACK]
    if now != before:
        raise Failed(f"writeback went from {before} to {now}")
    return "ignored"
