"""Serve a disk: in this process over a socketpair (`ram:` for open() and tests), or in a child over a real socket.

There is no short cut past the ring: both ends are the ones that talk to strangers. `python -m virtblk.server NAME
--socket-path PATH` is the child that `virtblk bench` measures against; it lives no longer than its standard input.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from virtblk.device.virtio_blk import DEFAULT_POLL_US, VirtioBlkDevice
from virtblk.errors import OpenError, VirtblkError
from virtblk.jit.threads import start_thread
from virtblk.jit.warmup import progress
from virtblk.mem.guest_memory import GuestMemory
from virtblk.names import parse_name
from virtblk.storage.storage import Storage, open_storage
from virtblk.vhost_user.backend import Backend
from virtblk.vhost_user.connection import Connection
from virtblk.vhost_user.listener import Listener

#: Seconds for a child to start: it may have to compile everything first.
START_TIMEOUT = 300.0
STOP_TIMEOUT = 10.0


class LocalDevice:
    """A device in this process, on threads of its own; `client` is the front end's end of the socketpair."""

    def __init__(self, storage: Storage, *, serial: str = "", poll_us: int = DEFAULT_POLL_US, queues: int = 1) -> None:
        self._storage = storage
        memory = GuestMemory()
        self.device = VirtioBlkDevice(storage, memory, serial=serial, poll_us=poll_us, queues=queues)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            os.close(self._stop_fd)
            raise
        backend = Backend(Connection(server), self.device, memory)
        try:
            self._thread = start_thread(backend.run, self._stop_fd, name="virtblk-device")
        except OSError:
            client.close()
            server.close()
            os.close(self._stop_fd)
            raise
        self.client = Connection(client)

    def close(self) -> None:
        """End the session, free the storage. The client's end is the driver's to close."""
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        os.close(self._stop_fd)
        self._storage.close()


class ChildDevice:
    """A device process on a socket in a private directory; gone, with everything, after `close`."""

    def __init__(
        self, name: str, *, cpus: str = "", poll_us: int = DEFAULT_POLL_US, queues: int = 1, delay_ns: int = 0
    ) -> None:
        self._directory = tempfile.mkdtemp(prefix="virtblk-")
        self.path = str(Path(self._directory) / "disk.sock")
        command = [sys.executable, "-m", "virtblk.server", name, "--socket-path", self.path]
        command += ["--poll-us", str(poll_us), "--queues", str(queues)]
        command += ["--remove-directory"]  # nobody else does when this process is killed
        if cpus:
            command += ["--cpus", cpus]
        if delay_ns:
            command += ["--delay-ns", str(delay_ns)]
        try:
            # A process group of its own: Ctrl-C at the terminal is for the parent, which then ends the child.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, process_group=0
            )
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise

    @property
    def pid(self) -> int:
        """Process id of the device."""
        return self.process.pid

    def wait_ready(self) -> None:
        """Block until the device listens. Raises OpenError with its last word where it does not come up."""
        assert self.process.stdout is not None
        poller = select.poll()
        poller.register(self.process.stdout, select.POLLIN)
        if not poller.poll(START_TIMEOUT * 1000):
            self.process.kill()
            self.close()
            raise OpenError(errno.ETIMEDOUT, f"the device process did not start within {START_TIMEOUT:g} s")
        line = self.process.stdout.readline().decode(errors="replace").strip()
        if line != "ready":
            self.close()
            last = line or f"exit status {self.process.returncode}"
            raise OpenError(errno.ENODEV, f"the device process did not start: {last}")

    def close(self) -> None:
        """End the child: its standard input closes, and it goes; after STOP_TIMEOUT seconds it is killed."""
        try:
            if self.process.stdin is not None:
                self.process.stdin.close()
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()
            shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> ChildDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def local_device(name: str) -> LocalDevice:
    """A device in this process for `ram:` and `null:` names. Raises UsageError for the others."""
    storage = open_storage(parse_name(name))
    try:
        with progress():
            return LocalDevice(storage, serial=serial_of(name))
    except BaseException:
        storage.close()
        raise


def serial_of(name: str) -> str:
    """The serial of a disk of ours: its name, as far as 20 bytes go."""
    return name[:20]


def _parse_cpus(text: str) -> set[int]:
    return {int(part) for part in text.split(",")}


def main(arguments: list[str] | None = None) -> int:
    """The child: serve one disk on one socket until standard input ends or SIGTERM comes."""
    parser = argparse.ArgumentParser(prog="python -m virtblk.server", description=main.__doc__)
    parser.add_argument("name")
    parser.add_argument("--socket-path", required=True)
    parser.add_argument("--cpus", default="")
    parser.add_argument("--poll-us", type=int, default=DEFAULT_POLL_US)
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--delay-ns", type=int, default=0, help=argparse.SUPPRESS)  # a slow device, for tests
    parser.add_argument("--remove-directory", action="store_true", help="remove the socket's directory at the end")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="virtblk device: %(message)s", level=logging.WARNING)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)

    def stop(signo: int, frame: FrameType | None) -> None:
        os.write(write_end, b"x")

    signal.signal(signal.SIGTERM, stop)

    def follow_stdin() -> None:
        while os.read(0, 4096):
            pass
        os.write(write_end, b"x")

    def device_on(memory: GuestMemory) -> VirtioBlkDevice:
        serial = serial_of(options.name)
        return VirtioBlkDevice(
            storage,
            memory,
            serial=serial,
            poll_us=options.poll_us,
            queues=options.queues,
            delay_ns=options.delay_ns,
        )

    def session(connection: Connection) -> Backend:
        memory = GuestMemory()
        return Backend(connection, device_on(memory), memory)

    try:
        if options.cpus:
            os.sched_setaffinity(0, _parse_cpus(options.cpus))
        storage = open_storage(parse_name(options.name))
        storage.populate()
        with progress(who="virtblk device"):
            device_on(GuestMemory())  # options that cannot be show here, and all is compiled before anybody waits
        listener = Listener(options.socket_path)
    except (VirtblkError, OSError, ValueError) as error:
        print(error, flush=True)
        return 2
    threading.Thread(target=follow_stdin, daemon=True).start()
    with listener:
        print("ready", flush=True)
        listener.serve(session, read_end)
    storage.close()
    if options.remove_directory:
        with suppress(OSError):
            os.rmdir(os.path.dirname(options.socket_path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
