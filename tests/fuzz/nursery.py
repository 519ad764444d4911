"""Devices with one deliberate defect each, forked off a process that has compiled everything: a restart takes
milliseconds. `Nursery` and `Forked` are the tests' side; the file run as a script is that process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from virtblk.fuzz.target import Target

#: Seconds for the process to be ready; it may have to compile first.
PATIENCE = 300.0
SIZE = 1 << 20


class Nursery:
    """The process that devices are forked off."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, *words: object) -> str:
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Child:
    """As much of a Popen as a Target needs."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        if self.returncode is None:
            answer = self._nursery.ask("poll", self.pid)
            self.returncode = int(answer) if answer != "runs" else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (PATIENCE if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("device", timeout or PATIENCE)
            time.sleep(0.005)
        return code


class Forked(Target):
    """A target whose device has this defect."""

    def __init__(self, nursery: Nursery, defect: str, timeout: float) -> None:
        super().__init__(None, f"{defect} {{socket}}", timeout)
        self._nursery = nursery
        self._defect = defect

    def _spawn(self) -> Any:
        return _Child(self._nursery, int(self._nursery.ask("start", self._defect, self.path)))


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
            time.sleep(PATIENCE)
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


def _serve(defect: str, path: str) -> None:
    """In the child; never returns."""
    from virtblk.server import ServeOptions, Server

    os.setsid()
    for fd in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    if defect in PATCHES:
        PATCHES[defect]()
    with Server(_defective_storage(defect), ServeOptions(queues=2)) as server:
        server.listen(path)
        server.run()


def _main() -> None:
    from virtblk.device.virtio_blk import VirtioBlkDevice
    from virtblk.mem.guest_memory import GuestMemory

    VirtioBlkDevice(_defective_storage(""), GuestMemory())  # compiles; a forked child need not
    print("ready", flush=True)
    pids: set[int] = set()
    for line in sys.stdin:
        match line.split():
            case ["start", defect, path]:
                pid = os.fork()
                if pid == 0:
                    try:
                        _serve(defect, path)
                    finally:
                        os._exit(1)
                pids.add(pid)
                print(pid, flush=True)
            case ["poll", pid_text]:
                ended, status = os.waitpid(int(pid_text), os.WNOHANG)
                pids.discard(ended)
                print(os.waitstatus_to_exitcode(status) if ended else "runs", flush=True)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _main()
