"""The table of statuses: the kernel's mapping, the errnos of Disk and the texts are one."""

from __future__ import annotations

import errno
import os

import pytest

from virtblk.driver.completion import virtblk_result
from virtblk.errors import DeviceError, OpenError, UsageError, VirtblkError
from virtblk.status import BROKEN_TEXT, STATUS_SENTINEL, STATUS_TABLE, bio_to_os_errno, text_of
from virtblk.uapi import virtio_blk as uapi


def test_the_posting_s_mapping() -> None:
    """patch.md: OK -> 0, UNSUPP -> -ENOTTY, anything else -> -EIO; ours says EOPNOTSUPP to programs."""
    assert [(row.status, row.bio_errno, row.os_errno) for row in STATUS_TABLE] == [
        (uapi.VIRTIO_BLK_S_OK, 0, 0),
        (uapi.VIRTIO_BLK_S_IOERR, errno.EIO, errno.EIO),
        (uapi.VIRTIO_BLK_S_UNSUPP, errno.ENOTTY, errno.EOPNOTSUPP),
    ]


@pytest.mark.parametrize("status", range(256))
def test_the_kernel_maps_every_byte_as_the_table_does(status: int) -> None:
    table = {row.status: row.bio_errno for row in STATUS_TABLE}
    assert virtblk_result(status) == table.get(status, errno.EIO)


def test_the_sentinel_is_no_status() -> None:
    assert STATUS_SENTINEL not in {row.status for row in STATUS_TABLE}
    assert 0 < STATUS_SENTINEL < 256
    assert virtblk_result(STATUS_SENTINEL) == errno.EIO


def test_errnos_and_texts() -> None:
    for row in STATUS_TABLE:
        assert bio_to_os_errno(row.bio_errno) == row.os_errno
    assert bio_to_os_errno(errno.EINVAL) == errno.EINVAL
    assert text_of(errno.EIO) == "the device reported an I/O error"
    assert text_of(errno.EOPNOTSUPP) == "the device does not support this request"
    assert text_of(errno.EINVAL) == os.strerror(errno.EINVAL)
    for text in [*BROKEN_TEXT.values(), *(row.text for row in STATUS_TABLE)]:
        assert text
        assert "\n" not in text
        assert text[0].islower()


def test_the_exception_tree() -> None:
    assert issubclass(UsageError, VirtblkError)
    assert issubclass(UsageError, ValueError)
    assert not issubclass(UsageError, OSError)
    for kind in (OpenError, DeviceError):
        assert issubclass(kind, VirtblkError)
        assert issubclass(kind, OSError)
        error = kind(errno.ENODEV, "disk: gone")
        assert (error.errno, error.strerror, str(error)) == (errno.ENODEV, "disk: gone", "[Errno 19] disk: gone")
