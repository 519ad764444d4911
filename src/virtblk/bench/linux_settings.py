"""A path as the settings of a Linux guest that come nearest to it. Control context; a pure function.

Linux has had no request_fn since 5.0 and no bio path in virtio-blk since 3.13: what they were for is set today by the
scheduler, by `nomerges` and by the number of queues. The values are those of the run: a figure that was measured with
128 requests says nothing about 256. Attributes: Documentation/ABI/stable/sysfs-block; `num_request_queues` is a
parameter of the module virtio_blk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

QUEUE: Final = "/sys/block/vdX/queue"
#: Schedulers of the time of request_fn, and what blk-mq has in their place.
TODAY: Final = {"noop": "none", "deadline": "mq-deadline"}


def selected(text: str) -> str:
    """The scheduler of an attribute as sysfs shows it: `noop [deadline]` is deadline."""
    return next((word.strip("[]") for word in text.split() if word.startswith("[")), text.strip())


def linux_settings(path: str, queue: Mapping[str, str], ring: int, queues: int, poll_queues: int = 0) -> list[str]:
    """Lines for a shell and for the kernel's command line; `#` begins what is for the reader.

    `queue` are the block layer's attributes of the run by their names below queue/, `ring` the entries of a virtqueue
    and `queues` the number of them, of which the last `poll_queues` were polled.
    """
    scheduler = selected(queue.get("scheduler", ""))
    scheduler = TODAY.get(scheduler, scheduler) or "none"
    requests = queue.get("nr_requests", "")
    merges = queue.get("nomerges", "0")
    if path == "bio":
        scheduler, merges, requests = "none", "2", ""
    elif path in ("mq", "auto") and scheduler == "none":
        requests = str(min(int(requests), ring)) if requests.isdigit() else ""
    lines = [f"echo {scheduler} > {QUEUE}/scheduler"]
    if merges != "0" or path == "bio":
        lines.append(f"echo {merges} > {QUEUE}/nomerges")
    if requests:
        lines.append(f"echo {requests} > {QUEUE}/nr_requests")
    lines.append(f"virtio_blk.num_request_queues={queues}")
    if poll_queues:
        lines.append(f"virtio_blk.poll_queues={poll_queues}")
        lines.append("# Linux polls there for I/O that asks for it: io_uring with IORING_SETUP_IOPOLL")
    note = _NOTES.get(path)
    return lines + ([f"# {note}"] if note else [])


_NOTES: Final = {
    "request": "one queue with a scheduler is what is left of the request path; see docs/matrix.md",
    "bio": "no scheduler and no merging is what is left of the bio path; see docs/matrix.md",
    "auto": "Linux does not choose by itself: these are the settings that the run ended with",
}
