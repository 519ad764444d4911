"""How a disk name becomes a storage: one function per scheme. Control context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from virtblk.errors import UsageError
from virtblk.names import DiskName
from virtblk.storage.file import open_file
from virtblk.storage.nbd import open_nbd
from virtblk.storage.ram import MemoryStorage, NullStorage
from virtblk.storage.sim.disk import open_sim
from virtblk.storage.storage import Storage

_OPENERS: Final[dict[str, Callable[[DiskName], Storage]]] = {
    "ram": MemoryStorage,
    "null": NullStorage,
    "file": open_file,
    "nbd": open_nbd,
    "sim": open_sim,
}


def open_storage(name: DiskName) -> Storage:
    """Open the storage that `name` describes.

    Raises UsageError for a size or key that cannot work, OpenError for what is not there.
    """
    opener = _OPENERS.get(name.scheme)
    if opener is None:
        *most, last = (f"{scheme}:" for scheme in _OPENERS)
        raise UsageError(
            f"disk {name.text!r}: {name.scheme}: is no storage of this version; {', '.join(most)} and {last} are"
        )
    return opener(name)
