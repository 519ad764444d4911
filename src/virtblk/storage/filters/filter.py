"""What all filters share: a disk that wraps another one, `lower`, and is like it in all that it does not change.

Linux: a device-mapper target; nbdkit: a filter. Made by `apply_filters`; `submit` is called by the dispatcher thread
of any queue, requests end on any thread. A filter holds no lock of its own while it calls `lower` or ends a request.
"""

from __future__ import annotations

from typing import ClassVar, Final

from virtblk.names import FilterName
from virtblk.storage.io_request import Request
from virtblk.storage.request import KIND_REQUESTS, OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES
from virtblk.storage.storage import Storage

#: The operations that reach a storage, as options, logs and statistics name them.
OP_NAMES: Final = {
    OP_READ: "read",
    OP_WRITE: "write",
    OP_FLUSH: "flush",
    OP_DISCARD: "discard",
    OP_WRITE_ZEROES: "zero",
}
#: Those that change the disk.
WRITING_OPS: Final = (OP_WRITE, OP_DISCARD, OP_WRITE_ZEROES)

_FORWARDED: Final = (
    "name",
    "size",
    "block_size",
    "physical_block_size",
    "min_io_size",
    "opt_io_size",
    "alignment_offset",
    "read_only",
    "can_flush",
    "can_fua",
    "can_discard",
    "can_write_zeroes",
    "can_unmap",
    "writeback",
    "writeback_settable",
)


class Filter(Storage):
    """All but `submit`. Subclasses refuse their wrong keys in __init__, with UsageError."""

    #: The name on the command line, and the first word of its counters.
    filter_name: ClassVar[str]

    def __init__(self, lower: Storage, name: FilterName) -> None:
        self.lower = lower
        self.kind = KIND_REQUESTS
        self.address = 0
        for attribute in _FORWARDED:
            setattr(self, attribute, getattr(lower, attribute))
        # Two filters of a kind in one stack: error_injected, and error_2_injected for the outer one.
        below = lower
        same = 1
        while isinstance(below, Filter):
            same += below.filter_name == self.filter_name
            below = below.lower
        self.prefix = self.filter_name if same == 1 else f"{self.filter_name}_{same}"

    def start(self) -> None:
        self.lower.start()

    def populate(self) -> None:
        self.lower.populate()

    def close(self) -> None:
        self.lower.close()

    def own_counters(self) -> dict[str, float]:
        """What this filter counted, without its prefix."""
        return {}

    def counters(self) -> dict[str, float]:
        """The counters of the whole stack: `error_injected` of the filter, `file_fsyncs` of a disk `file:...`."""
        found = {f"{self.prefix}_{key}": value for key, value in self.own_counters().items()}
        below = self.lower.counters()
        if not isinstance(self.lower, Filter):
            prefix = f"{self.lower.name.partition(':')[0]}_"
            below = {key if key.startswith(prefix) else prefix + key: value for key, value in below.items()}
        return found | below


def touched(request: Request) -> list[tuple[int, int]]:
    """The (offset, length) of all bytes that a request reads or changes; none for a flush."""
    if request.op in (OP_DISCARD, OP_WRITE_ZEROES):
        return list(request.ranges)
    return [(request.offset, request.length)] if request.length else []
