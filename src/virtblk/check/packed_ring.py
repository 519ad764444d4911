"""What a packed ring demands (virtio 1.2, 2.8): registered, not checked yet. Devices without one say so."""

from __future__ import annotations

from virtblk.check.requirement import DEVICE, Level
from virtblk.uapi.virtio_config import VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC

_EVENTS = (VIRTIO_RING_F_EVENT_IDX,)
_INDIRECT = (VIRTIO_RING_F_INDIRECT_DESC,)

for _id, _section, _text, _more in (
    ("ring-order", "2.8.12", "Descriptors are taken in ring order, used ones written in the order of completion.", ()),
    ("avail-first", "2.8.15", "A descriptor is used only once AVAIL has flipped, and not changed once it is used.", ()),
    ("chain-order", "2.8.18", "The buffers of a chain are used in their order.", ()),
    ("wrap-counter", "2.8.1", "In a used descriptor AVAIL and USED equal the wrap counter, over many wraps.", ()),
    ("one-used", "2.8.6", "A chain leads to one used descriptor with its id, and its other slots are skipped.", ()),
    ("used-length", "2.8.4", "WRITE and length of a used descriptor tell what was written.", ()),
    ("indirect", "2.8.7", "In an indirect table only WRITE counts; ids and other flags are ignored.", _INDIRECT),
    ("event-suppression", "2.8.10", "Notifications obey enable and disable in the driver's area.", ()),
    ("event-descriptor", "2.8.10", "Notifications obey the offset and wrap counter in the driver's area.", _EVENTS),
    ("any-size", "2.8.10.1", "The ring's size need be no power of two.", ()),
    ("mixed", "2.8.5", "Direct and indirect chains work side by side in a ring.", _INDIRECT),
):
    DEVICE.unbuilt(
        f"packed.{_id}",
        _section,
        Level.MUST,
        _text,
        "VIRTIO_F_RING_PACKED: this front end has no packed ring yet",
        features=(VIRTIO_F_RING_PACKED, *_more),
    )
