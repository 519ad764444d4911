"""Brings an NBD disk's next connection after one was lost: one thread, which tries again and again, ever more rarely.

Apart from the I/O thread because connecting may block where nothing can bound it (libnbd resolves a host's name with
getaddrinfo): requests must end in time meanwhile. Started and ended by `storage.nbd`.
"""

from __future__ import annotations

import logging
import math
import os
import select
import threading
import time
from collections.abc import Callable

from virtblk.errors import VirtblkError
from virtblk.jit.threads import start_thread
from virtblk.storage.nbd_connection import Connection, connect

log = logging.getLogger("virtblk.storage")


class Connector:
    """Calls `deliver(connection)` on its own thread, once for each `want()`; the receiver owns the connection.

    The first attempt is made at once, the next after `delays[0]` seconds, then after twice as long each time, up to
    `delays[1]`. A connection that did not last that long is one more failed attempt: a server that hangs up on
    everybody is not run down. One attempt takes `seconds` at most.
    """

    def __init__(
        self, disk: str, uri: str, seconds: float, delays: tuple[float, float], deliver: Callable[[Connection], None]
    ) -> None:
        self._disk, self._uri, self._seconds, self._delays, self._deliver = disk, uri, seconds, delays, deliver
        self._changed = threading.Condition()
        self._wanted = False
        self._closing = False
        self._delay = 0.0  # before the next attempt
        self._delivered = -math.inf  # when the last connection came about
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._thread = start_thread(self._run, name="virtblk-nbd-connect")
        except OSError:
            os.close(self._stop_fd)
            raise

    def want(self) -> None:
        """The connection is lost: bring another. Never blocks."""
        with self._changed:
            self._wanted = True
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """End the thread, within `seconds`; where a resolver holds it for longer, it ends itself later."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("disk %r: the thread that connects does not end yet", self._disk)
        else:
            os.close(self._stop_fd)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closing)
                if self._closing:
                    return
                self._wanted = False
            connection = self._connect()
            if connection is not None:
                self._deliver(connection)

    def _connect(self) -> Connection | None:
        """The next connection; None when the disk is being closed."""
        poller = select.poll()
        poller.register(self._stop_fd, select.POLLIN)
        first, longest = self._delays
        if time.monotonic() - self._delivered > longest:
            self._delay = 0.0
        failed = ""
        while not self._closing:
            poller.poll(self._delay * 1000)
            self._delay = min(max(self._delay * 2, first), longest)
            try:
                connection = connect(self._disk, self._uri, self._seconds, self._stop_fd)
                self._delivered = time.monotonic()
                return connection
            except VirtblkError as error:
                text = getattr(error, "strerror", None) or str(error)
                if text != failed and not self._closing:  # once, not at every attempt
                    log.warning("%s; trying again", text, extra={"event": "nbd_unreachable", "disk": self._disk})
                failed = text
        return None
