"""`readonly`: says so, and refuses what comes all the same."""

from __future__ import annotations

import errno

from storage.filters.harness import Call, LowerDisk, filtered, read_call, run, write_call
from virtblk.storage.request import OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE_ZEROES


def test_a_disk_that_cannot_be_changed() -> None:
    lower = LowerDisk()
    disk = filtered(lower, "readonly")
    assert disk.read_only
    assert (disk.can_discard, disk.can_write_zeroes, disk.can_unmap) == (False, False, False)
    errors = run(
        disk,
        write_call(0, bytes(512)),
        read_call(0, 512),
        Call(OP_DISCARD, ranges=[(0, 512)]),
        Call(OP_WRITE_ZEROES, ranges=[(0, 512)]),
        Call(OP_FLUSH),
    )
    assert errors == [errno.EROFS, 0, errno.EROFS, errno.EROFS, 0]
    assert lower.ops() == [OP_READ, OP_FLUSH]
    disk.close()
