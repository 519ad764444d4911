"""The rings of a device as its front end describes them, and when they run.

Answers to docs/interop/vhost-user.rst, "Ring states". `backend` calls it with what the messages say, on the control
thread of its session; what it starts and stops is a `Device`, whose workers run elsewhere.

    ring       stopped --SET_VRING_KICK--> started --GET_VRING_BASE--> stopped
               disabled <--SET_VRING_ENABLE--> enabled      (enabled by SET_FEATURES or the kick without bit 30)
    runs       iff started, enabled, and its size, its addresses and some memory are set, in whatever order they came
    pauses     while memory or features change; it goes on from the index where it was

A ring starts with SET_VRING_KICK, not with the first kick: the device looks at the ring when it is started, so that
front ends of the older rule, which kick, and of the newer one, which need not, are both served.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol


class Refused(Exception):
    """A message asks for what cannot be done; the text is the reason. `backend` turns it into the peer's answer."""


@dataclass
class Vring:
    """One ring. Addresses are the front end's user addresses; a descriptor of -1 means that there is none."""

    index: int
    num: int = 0  # descriptors
    base: int = 0  # available index to begin at, 0 to 65535
    desc: int = 0
    avail: int = 0
    used: int = 0
    kick_fd: int = -1  # -1: poll the ring
    call_fd: int = -1
    err_fd: int = -1
    num_set: bool = False
    addr_set: bool = False
    enabled: bool = False
    started: bool = False
    running: bool = False  # the device has it


class Device(Protocol):
    """What the messages are about. All calls come from the thread in `Backend.run`."""

    @property
    def features(self) -> int:
        """Device feature bits offered, VERSION_1 among them; the back end adds bit 30, which is its own."""

    @property
    def max_queues(self) -> int:
        """1 to 256."""

    def set_features(self, bits: int) -> None:
        """The bits accepted, without bit 30. ValueError for a combination that cannot be. No ring is running."""

    def get_config(self) -> bytes:
        """The whole configuration space."""

    def set_config(self, offset: int, data: bytes, flags: int) -> None:
        """Write within the space; ValueError for fields that are read-only, unless `flags` is 1 (migration)."""

    def start_queue(self, index: int, vring: Vring) -> None:
        """Begin at `vring.base`, looking at the ring at once. ValueError or OSError if that is impossible.

        Copy what is needed: `vring` changes later. Its descriptors stay open until `stop_queue` returns.
        """

    def stop_queue(self, index: int) -> int:
        """Finish what was begun and stop. Returns the available index (16 bits) that comes next. Must not raise."""

    def set_call(self, index: int, fd: int) -> None:
        """Let a running ring use another call descriptor, -1 for none. Must not raise; the old one is closed then."""


class Rings:
    """All rings of one session. Methods raise Refused when the device will not start a ring."""

    def __init__(self, device: Device, warn: Callable[[str], None]) -> None:
        self.have_memory = False  # kept by `backend`: rings mean nothing without
        self._device = device
        self._warn = warn
        self._rings = [Vring(index) for index in range(device.max_queues)]

    def __iter__(self) -> Iterator[Vring]:
        return iter(self._rings)

    def __getitem__(self, index: int) -> Vring:
        if index >= len(self._rings):
            raise Refused(f"ring {index}, the device has {len(self._rings)}")
        return self._rings[index]

    def update(self, ring: Vring) -> None:
        """Make a ring run, or not, as its state demands. If it cannot start it is stopped, until another kick."""
        if not self._may_run(ring):
            self.halt(ring)
        elif not ring.running:
            try:
                self._start(ring)
            except Refused:
                self.stop(ring)
                raise

    def halt(self, ring: Vring) -> None:
        """Take the ring from the device, if it has it; `base` says where to go on."""
        if ring.running:
            ring.running = False
            ring.base = self._device.stop_queue(ring.index) & 0xFFFF

    def start(self, ring: Vring, kick_fd: int) -> None:
        """Enter the started state; the ring owns `kick_fd` from now on."""
        self.stop(ring)
        ring.kick_fd = kick_fd
        ring.started = True
        self.update(ring)

    def stop(self, ring: Vring) -> None:
        """Enter the stopped state. Only the kick descriptor goes: a new one will come with the next start."""
        self.halt(ring)
        ring.started = False
        close_fd(ring.kick_fd)
        ring.kick_fd = -1

    def set_call(self, ring: Vring, fd: int) -> None:
        """Replace the call descriptor; the device may pause the ring for it. The ring owns `fd` from now on."""
        old, ring.call_fd = ring.call_fd, fd
        try:
            if ring.running:
                self._device.set_call(ring.index, fd)
        finally:
            close_fd(old)

    def set_err(self, ring: Vring, fd: int) -> None:
        """Replace the error descriptor, with a pause: it is rare. The ring owns `fd` from now on."""
        old, ring.err_fd = ring.err_fd, fd
        try:
            self.halt(ring)
        finally:
            close_fd(old)
        self.update(ring)

    def close(self) -> None:
        """Stop all rings and close all their descriptors, the rest of them even if stopping one fails."""
        with ExitStack() as stack:
            for ring in self._rings:
                stack.callback(self.set_err, ring, -1)
                stack.callback(self.set_call, ring, -1)
                stack.callback(self.stop, ring)  # the first of the three to run

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No ring runs inside. After it, those that ran go on, and those run that waited for what has changed."""
        for ring in self._rings:
            self.halt(ring)
        try:
            yield
        except Refused:
            self._resume()
            raise
        self._resume()

    def _resume(self) -> None:
        """A ring that no longer finds its memory stays started: a peer may remove a region, then add it larger."""
        for ring in self._rings:
            if self._may_run(ring):
                try:
                    self._start(ring)
                except Refused as error:
                    self._warn(f"{error}; it waits for another change of memory")

    def _may_run(self, ring: Vring) -> bool:
        return ring.started and ring.enabled and ring.num_set and ring.addr_set and self.have_memory

    def _start(self, ring: Vring) -> None:
        with refusing(f"ring {ring.index} cannot start"):
            self._device.start_queue(ring.index, ring)
        ring.running = True


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """What device or memory reject is the peer's doing: their ValueError and OSError become Refused."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise Refused(f"{what}: {error}") from None


def close_fd(fd: int) -> None:
    """Close a descriptor unless it is -1."""
    if fd >= 0:
        os.close(fd)
