"""Devices with one deliberate defect each, forked off a process that has compiled everything (`fork_server`): a restart
takes milliseconds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from fork_server import ForkServer
from virtblk.fuzz.target import Target

#: Seconds that a device which hangs is busy.
HANGS = 300.0
SIZE = 1 << 20


class Nursery(ForkServer):
    """The process that devices are forked off."""

    def __init__(self) -> None:
        super().__init__("fuzz.nursery")


class Forked(Target):
    """A target whose device has this defect."""

    def __init__(self, nursery: Nursery, defect: str, timeout: float) -> None:
        super().__init__(None, f"{defect} {{socket}}", timeout)
        self._nursery = nursery
        self._defect = defect

    def _spawn(self) -> Any:
        return self._nursery.fork(self._defect, self.path)


# The process.


def _crash_on_ring_size_0() -> None:
    """Somebody divides by it."""
    from virtblk.vhost_user import backend

    number = 8  # SET_VRING_NUM
    sound = backend._HANDLERS[number]

    def broken(self: Any, msg: Any) -> bytes | None:
        if msg.payload[4:8] == bytes(4):
            os.kill(os.getpid(), signal.SIGFPE)
        return sound.serve(self, msg)

    backend._HANDLERS[number] = sound._replace(serve=broken)


def _hang_on_config_beyond() -> None:
    """A loop that never reaches the end of the space."""
    from virtblk.vhost_user import backend

    number = 24  # GET_CONFIG
    sound = backend._HANDLERS[number]

    def broken(self: Any, msg: Any) -> bytes | None:
        if int.from_bytes(msg.payload[:4], "little") > 1 << 16:
            time.sleep(HANGS)
        return sound.serve(self, msg)

    backend._HANDLERS[number] = sound._replace(serve=broken)


def _leak_call_descriptors() -> None:
    """The old one stays open."""
    from virtblk.vhost_user import vring

    sound = vring.Rings.set_call

    def broken(self: Any, ring: Any, fd: int) -> None:
        if ring.call_fd >= 0:
            os.dup(ring.call_fd)
        sound(self, ring, fd)

    vring.Rings.set_call = broken  # type: ignore[method-assign]


def _defective_storage(defect: str) -> Any:
    from virtblk.storage.request import OP_DISCARD, OP_READ, OP_WRITE, OP_WRITE_ZEROES
    from virtblk.storage.storage import Storage

    class Defective(Storage):
        name = "broken"
        size = SIZE
        can_discard = True
        can_write_zeroes = True

        def __init__(self) -> None:
            self._data = bytearray(SIZE)

        def submit(self, batch: Any) -> None:
            for request in batch:
                self._serve(request)

        def _serve(self, request: Any) -> None:
            at = request.offset
            for piece in request.pieces:
                if defect == "crash-on-one-byte" and len(piece) == 1:
                    os.abort()
                if request.op == OP_READ:
                    piece[:] = self._data[at : at + len(piece)]
                elif request.op == OP_WRITE:
                    self._data[at : at + len(piece)] = piece
                    if defect == "mirror-writes":
                        start = SIZE - at - len(piece)
                        self._data[start : start + len(piece)] = piece
                    if defect == "scribble-on-writes" and len(request.pieces) > 1:
                        piece[0] ^= 1
                at += len(piece)
            if request.op in (OP_DISCARD, OP_WRITE_ZEROES):
                for start, length in request.ranges:
                    self._data[start : start + length] = bytes(length)
            request.end()

    return Defective()


PATCHES = {
    "crash-on-ring-size-0": _crash_on_ring_size_0,
    "hang-on-config-beyond": _hang_on_config_beyond,
    "leak-call-descriptors": _leak_call_descriptors,
}


def prepare() -> Callable[..., int]:
    """Compile what a device runs: a forked child need not."""
    from virtblk.device.virtio_blk import VirtioBlkDevice
    from virtblk.mem.guest_memory import GuestMemory

    VirtioBlkDevice(_defective_storage(""), GuestMemory())
    return _serve


def _serve(defect: str, path: str) -> int:
    """In the child."""
    from virtblk.server import ServeOptions, Server

    if defect in PATCHES:
        PATCHES[defect]()
    with Server(_defective_storage(defect), ServeOptions(queues=2)) as server:
        server.listen(path)
        server.run()
    return 1
