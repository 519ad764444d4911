"""virtblk: virtio-blk in user space. The façade: names only, and no compiled code until one is used.

``open()`` gives a Disk, ``serve()`` a Server; everything else that programs hold is named here. The names resolve on
first use, so ``import virtblk`` costs milliseconds: it loads neither numba nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtblk.errors import DeviceError, OpenError, UsageError, VirtblkError

if TYPE_CHECKING:
    from virtblk.disk import Disk, open  # noqa: A004  (the façade's own verb, as in dbm.open)
    from virtblk.server import Server, serve

__version__ = "0.1.0"

__all__ = ["DeviceError", "Disk", "OpenError", "Server", "UsageError", "VirtblkError", "__version__", "open", "serve"]


def __getattr__(name: str) -> Any:
    if name in ("Disk", "open"):
        from virtblk import disk

        return getattr(disk, name)
    if name in ("Server", "serve"):
        from virtblk import server

        return getattr(server, name)
    raise AttributeError(f"module 'virtblk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
