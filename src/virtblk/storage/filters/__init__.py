"""Filters: disks that wrap another disk and change one thing about it. One file each; its docstring lists its keys.

On a command line `--filter NAME[?key=value&key=value]`, repeated; the first is the outermost, which a request meets
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from virtblk.names import parse_filter
from virtblk.storage.filters.cow import CopyOnWrite
from virtblk.storage.filters.delay import Delay
from virtblk.storage.filters.error import Error
from virtblk.storage.filters.filter import Filter
from virtblk.storage.filters.log import Log
from virtblk.storage.filters.rate import Rate
from virtblk.storage.filters.readonly import ReadOnly
from virtblk.storage.filters.stats import Stats
from virtblk.storage.filters.volatile import Volatile
from virtblk.storage.storage import Storage

_CLASSES: Final[tuple[type[Filter], ...]] = (CopyOnWrite, Delay, Error, Log, Rate, ReadOnly, Stats, Volatile)
#: The filters by the name on the command line.
FILTERS: Final[dict[str, type[Filter]]] = {kind.filter_name: kind for kind in _CLASSES}


def apply_filters(storage: Storage, filters: Sequence[str]) -> Storage:
    """`storage` under all the filters; the first is the outermost. Closing what is returned closes all of them.

    Raises UsageError for a filter, key or value that cannot work, OpenError for a file that cannot be opened; `storage`
    is closed then.
    """
    try:
        for name in reversed([parse_filter(text, FILTERS) for text in filters]):
            storage = FILTERS[name.name](storage, name)
    except BaseException:
        storage.close()
        raise
    return storage


def only_read(filters: Sequence[str]) -> bool:
    """Whether the disk below these filters is never written, so that it should be opened for reading only.

    Raises UsageError for an unknown filter.
    """
    return not {parse_filter(text, FILTERS).name for text in filters}.isdisjoint(("cow", "readonly"))
