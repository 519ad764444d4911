"""Finds an I/O that the device has had for longer than the time-out, even while others come back.

The control thread looks in, some ten times a second, while job threads go on. Whoever waits sees for itself what does
not come; a job that always finds something else done never waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from virtblk.driver.virtio_blk import VirtioBlk


def in_flight(views: Sequence[Any]) -> np.ndarray:
    """What the device has, by its head in the rings of `views`: [heads of all of them, 2], the bio (-1 where there is
    none) and when it was submitted, or its request started (CLOCK_MONOTONIC, 0 where the head is free).

    From outside, without a lock: a row that just changes may be a mixture, and is another one at the next look.
    """
    found = []
    for d in views:
        token = np.array(d.vq.token)
        req = np.where(token >= 0, token, 0)
        bio, rq = d.requests["bio"][req], d.requests["rq"][req]
        straight = d.bios["submitted_ns"][np.where(bio >= 0, bio, 0)]
        since = np.where(rq >= 0, d.q.rq["start_ns"][np.where(rq >= 0, rq, 0)], straight)
        found.append(np.where(token >= 0, (bio, since), ((-1,), (0,))).T)
    return np.concatenate(found)


class Overdue:
    """The looks at one device, `timeout` in seconds.

    An I/O's time runs from the look that first saw it in a ring: it may have waited for room long before, which says
    nothing about the device. It is overdue where two looks in a row find its time over: between them the job threads
    ran, and would have reaped what had ended already when this thread, or the machine, stood still.
    """

    def __init__(self, device: VirtioBlk, timeout: float) -> None:
        self._views = device.views
        self._timeout_ns = timeout * 1e9
        self._seen = in_flight(self._views)
        self._since = np.zeros(len(self._seen), np.int64)
        self._late = np.zeros(len(self._seen), bool)

    def look(self, now_ns: int) -> bool:
        """Whether an I/O is overdue; `now_ns` is CLOCK_MONOTONIC's."""
        seen = in_flight(self._views)
        changed = (seen != self._seen).any(axis=1)
        self._since[changed] = now_ns
        late = (seen[:, 1] > 0) & (now_ns - self._since > self._timeout_ns)
        overdue = bool((late & self._late).any())
        self._seen, self._late = seen, late
        return overdue
