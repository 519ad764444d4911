"""All checks of a device, in the order in which they run: importing the modules registers them."""

from __future__ import annotations

from virtblk.check import common  # noqa: F401

from virtblk.check import blk_config, blk_request, blk_bounds  # noqa: F401 isort:skip
from virtblk.check import split_ring, notify, chain  # noqa: F401 isort:skip
from virtblk.check import vhost_message, vhost_config, vhost_memory, vhost_ring  # noqa: F401 isort:skip
from virtblk.check import vhost_fds, vhost_program  # noqa: F401 isort:skip
from virtblk.check import packed_ring, durability  # noqa: F401 isort:skip
from virtblk.check.requirement import DEVICE

__all__ = ["DEVICE"]
