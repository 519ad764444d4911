"""Finds an I/O that the device has had for longer than the time-out, even while others come back.

The control thread looks in, some ten times a second, while job threads go on. Whoever waits sees for itself what does
not come; a job that always finds something else done never waits.
"""

from __future__ import annotations

import numpy as np

from virtblk.driver.virtio_blk import VirtioBlk


class Overdue:
    """The looks at one device, `timeout` in seconds.

    An I/O's time runs from the look that first saw it in a ring: it may have waited for room long before, which says
    nothing about the device. It is overdue where two looks in a row find its time over: between them the job threads
    ran, and would have reaped what had ended already when this thread, or the machine, stood still.
    """

    def __init__(self, device: VirtioBlk, timeout: float) -> None:
        self._device = device
        self._timeout_ns = timeout * 1e9
        self._seen = device.in_flight()
        self._since = np.zeros(len(self._seen), np.int64)
        self._late = np.zeros(len(self._seen), bool)

    def look(self, now_ns: int) -> bool:
        """Whether an I/O is overdue; `now_ns` is CLOCK_MONOTONIC's."""
        seen = self._device.in_flight()
        changed = (seen != self._seen).any(axis=1)
        self._since[changed] = now_ns
        late = (seen[:, 1] > 0) & (now_ns - self._since > self._timeout_ns)
        overdue = bool((late & self._late).any())
        self._seen, self._late = seen, late
        return overdue
