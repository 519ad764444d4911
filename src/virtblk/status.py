"""One table: virtio-blk status byte <-> errno <-> text (virtio 1.2, 5.2.6; Linux's blk_errors[]).

The driver's `virtblk_result` is this table compiled; Disk and the command line turn errnos into texts here.
Status 2 (UNSUPP) is ENOTTY at the bio, as in the posting, and EOPNOTSUPP where a program sees it.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple


class StatusRow(NamedTuple):
    status: int  # the byte the device writes
    bio_errno: int  # what the bio ends with
    os_errno: int  # what the caller of Disk gets
    text: str


STATUS_TABLE: Final = (
    StatusRow(0, 0, 0, "ok"),
    StatusRow(1, errno.EIO, errno.EIO, "the device reported an I/O error"),
    StatusRow(2, errno.ENOTTY, errno.EOPNOTSUPP, "the device does not support this request"),
)

#: What the driver writes into a status byte before it offers the request; no device writes it. A request that is
#: used and still carries it failed (peers.md, quirk 4: most devices leave the byte untouched on malformed requests).
STATUS_SENTINEL: Final = 0xF5

#: Why a disk is over, by the errno its queue was broken with: the rest of a sentence that begins with the disk's name.
BROKEN_TEXT: Final = {
    errno.ENODEV: "the device closed the connection",
    errno.ETIMEDOUT: "the device did not answer in time",
    errno.EPROTO: "the device broke the rules of the used ring",
    errno.ESHUTDOWN: "the disk was closed",
}


def bio_to_os_errno(bio_errno: int) -> int:
    """The errno that a program sees for a bio that ended with `bio_errno` (both positive)."""
    for row in STATUS_TABLE:
        if row.bio_errno == bio_errno:
            return row.os_errno
    return bio_errno


def text_of(os_errno: int) -> str:
    """One line for an errno of a failed I/O."""
    for row in STATUS_TABLE:
        if row.os_errno == os_errno and os_errno:
            return row.text
    return os.strerror(os_errno)
