"""Which virtqueue a submitter uses (Linux: blk_mq_map_queues, struct blk_mq_hw_ctx).

Where Linux maps CPUs to hardware queues, we map submitters, which are as many as there are threads that submit: number
`s` uses virtqueue `s` modulo their count, and is number `s // count` among those of that virtqueue. So nobody has to
look where a thread runs, and submitters that are as many as the virtqueues have one each, alone. Control context.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: The paths that use all virtqueues; the others are those of 2012, when a disk had one, and use the first.
MQ_PATHS: Final = ("mq", "auto")


class MappedSubmitter(NamedTuple):
    """Where a submitter of the disk is: its virtqueue, and its number among that one's (Linux: ctx->index_hw)."""

    queue: int
    number: int


def map_queue(submitter: int, queues: int) -> MappedSubmitter:
    """The place of `submitter` on a disk that uses `queues` virtqueues."""
    return MappedSubmitter(submitter % queues, submitter // queues)


def mapped_submitters(queue: int, submitters: int, queues: int) -> range:
    """Those of a disk's `submitters` that use virtqueue `queue`, in their order there."""
    return range(queue, submitters, queues)
