"""`readonly`: the disk cannot be changed (nbdkit: the -r option). No keys.

The guest is told (VIRTIO_BLK_F_RO); writes, discards and write zeroes that come all the same end with EROFS.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import ClassVar

from virtblk.names import FilterName
from virtblk.storage.filters.filter import WRITING_OPS, Filter
from virtblk.storage.io_request import Request
from virtblk.storage.storage import Storage


class ReadOnly(Filter):
    filter_name: ClassVar[str] = "readonly"

    def __init__(self, lower: Storage, name: FilterName) -> None:
        super().__init__(lower, name)
        name.refuse_other_keys()
        self.read_only = True
        self.can_discard = self.can_write_zeroes = self.can_unmap = False

    def submit(self, batch: Sequence[Request]) -> None:
        below = []
        for request in batch:
            if request.op in WRITING_OPS:
                request.end(errno.EROFS)
            else:
                below.append(request)
        if below:
            self.lower.submit(below)
