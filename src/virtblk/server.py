"""Serve a disk: to whoever connects (`serve`, `virtblk serve`), to this process over a socketpair (`ram:` for open()
and tests), or in a child over a real socket.

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
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType

from virtblk.device.virtio_blk import DEFAULT_POLL_US, HINTS, VirtioBlkDevice
from virtblk.errors import OpenError, UsageError, VirtblkError
from virtblk.jit.threads import start_thread
from virtblk.jit.warmup import progress
from virtblk.mem.guest_memory import GuestMemory
from virtblk.names import DiskName, parse_name
from virtblk.server_metrics import Accounts, CountedDevice
from virtblk.storage.filters import apply_filters, only_read
from virtblk.storage.open import open_storage
from virtblk.storage.storage import Storage
from virtblk.uapi.virtio_ring import VRING_MAX_NUM
from virtblk.vhost_user.backend import Backend
from virtblk.vhost_user.connection import Connection
from virtblk.vhost_user.listener import Listener, inherited_socket

log = logging.getLogger("virtblk.server")

#: Seconds for a child to start: it may have to compile everything first.
START_TIMEOUT = 600.0
STOP_TIMEOUT = 10.0


@dataclass(frozen=True)
class ServeOptions:
    """How a disk is served. Raises UsageError for a value that can never work."""

    queues: int = 1  # virtqueues offered
    queue_size: int = VRING_MAX_NUM  # the largest ring accepted; the front end chooses
    serial: str | None = None  # None: after the disk's name
    poll_us: int = DEFAULT_POLL_US  # microseconds that an idle queue spins before it sleeps
    socket_mode: int = 0o600
    timed: bool = False  # measure latencies and tell of them in the metrics
    hint: str = "none"  # what drivers are asked for (docs/auto.md): none, or sort

    def __post_init__(self) -> None:
        if not 1 <= self.queues <= 256:
            raise UsageError(f"{self.queues} queues: give 1 to 256", "queues")
        if not 1 <= self.queue_size <= VRING_MAX_NUM or self.queue_size & (self.queue_size - 1):
            raise UsageError(f"queue size {self.queue_size}: give a power of two up to {VRING_MAX_NUM}", "queue_size")
        if not 0 <= self.poll_us <= 10_000_000:
            raise UsageError(f"poll_us {self.poll_us}: give microseconds from 0 to 10000000", "poll_us")
        if not 0 <= self.socket_mode <= 0o777:
            raise UsageError(f"socket mode {self.socket_mode:o}: give octal permissions such as 660", "socket_mode")
        if self.hint not in HINTS:
            raise UsageError(f"hint {self.hint!r}: give one of {', '.join(HINTS)}", "hint")


class Server:
    """A disk that is served to one vhost-user client after the other; `virtblk.serve` makes it.

    A context manager: leaving it ends the session there is, removes the socket and, if `owned`, closes the storage.
    """

    def __init__(self, storage: Storage, options: ServeOptions | None = None, *, owned: bool = False) -> None:
        """Compile what serves a ring, so that no client waits for that. Raises UsageError for a serial too long."""
        self.options = options or ServeOptions()
        self.storage = storage
        self._owned = owned
        self._thread: threading.Thread | None = None
        self._listener: Listener | None = None
        self._only: Connection | None = None
        self.violations = 0  # accesses outside of guest memory, which only a checking build sees
        self.accounts = Accounts(storage, self.options.queues, timed=self.options.timed)
        self._device_on(GuestMemory())
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def listen(self, path: str) -> None:
        """Make the socket `path`. Raises UsageError for a path too long, OpenError where there can be no socket."""
        try:
            self._listener = Listener(path, self.options.socket_mode)
        except ValueError as error:
            raise UsageError(str(error)) from None
        except OSError as error:
            raise OpenError(error.errno or errno.EIO, f"socket {path}: {error.strerror}") from None

    def inherit(self, fd: int) -> None:
        """Use the descriptor of a socket that listens, or of one that is connected: then there is a single session.

        Raises UsageError for anything else.
        """
        try:
            sock, listening = inherited_socket(fd)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if listening:
            self._listener = Listener.on(sock)
        else:
            self._only = Connection(sock)

    @property
    def path(self) -> str | None:
        """The socket's file, absolute; None where the socket was inherited."""
        return self._listener.path if self._listener is not None else None

    def run(self) -> None:
        """Serve until `stop`, on this thread; with an inherited connection until its end."""
        if self._listener is not None:
            self._listener.serve(self._session, self._stop_fd)
        elif self._only is not None:
            reason = self._session(self._only).run(self._stop_fd)
            log.info("session ended: %s", reason, extra={"event": "session_end", "reason": reason})

    def start(self) -> Server:
        """Serve on a thread of its own until `close`. Raises OSError where there is no thread to be had."""
        self._thread = start_thread(self.run, name="virtblk-server")
        return self

    def stop(self) -> None:
        """Have `run` return once what was begun is finished. From any thread, and from a signal handler."""
        with suppress(BlockingIOError):  # asked 2**64 - 2 times before
            os.eventfd_write(self._stop_fd, 1)

    def violated(self, count: int) -> None:
        """A checking build saw its own workers reach for bytes outside of guest memory: it serves nobody any more."""
        self.violations += count
        text = "%d accesses outside of guest memory: a bug of this device"
        log.critical(text, count, extra={"event": "outside_memory", "count": count})
        self.stop()

    def close(self) -> None:
        """End the session, remove the socket, close the storage if it is ours. Harmless when repeated."""
        if self._stop_fd < 0:
            return
        self.stop()
        with ExitStack() as stack:  # in reverse
            if self._owned:
                stack.callback(self.storage.close)
            stack.callback(self._forget_stop_fd)
            for end in (self._listener, self._only):
                if end is not None:
                    stack.callback(end.close)
            if self._thread is not None:
                stack.callback(self._thread.join)

    def _forget_stop_fd(self) -> None:
        fd, self._stop_fd = self._stop_fd, -1
        os.close(fd)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def metrics(self) -> str:
        """What was counted so far, as Prometheus reads it: per queue, and over all sessions."""
        return self.accounts.render()

    def _device_on(self, memory: GuestMemory) -> CountedDevice:
        serial = self.options.serial
        device = CountedDevice(
            self.storage,
            memory,
            queues=self.options.queues,
            serial=serial_of(self.storage.name) if serial is None else serial,
            poll_us=self.options.poll_us,
            timed=self.options.timed,
            hint=self.options.hint,
        )
        device.accounts = self.accounts
        return device

    def _session(self, connection: Connection) -> _Session:
        memory = GuestMemory()
        device = self._device_on(memory)
        return _Session(self, Backend(connection, device, memory, max_queue_size=self.options.queue_size), memory)


class _Session:
    """One client, counted."""

    def __init__(self, server: Server, backend: Backend, memory: GuestMemory) -> None:
        self._server = server
        self._backend = backend
        self._memory = memory

    def run(self, stop_fd: int) -> str:
        self._server.accounts.session_begins()
        try:
            return self._backend.run(stop_fd)
        finally:
            if self._memory.violations:
                self._server.violated(self._memory.violations)
            self._server.accounts.session_ends()  # last: who sees it ended sees what came of it


def serve(
    disk: str | Storage,
    path: str | os.PathLike[str],
    *,
    queues: int = 1,
    queue_size: int = VRING_MAX_NUM,
    serial: str | None = None,
    read_only: bool = False,
    poll_us: int = DEFAULT_POLL_US,
    socket_mode: int = 0o600,
    filters: Sequence[str] = (),
    hint: str = "none",
) -> Server:
    """Serve `disk` at the Unix socket `path`, on threads of its own, until the Server that is returned is closed.

    `disk` is a name (`ram:1g`, `file:/path`), opened and closed here, or an open Storage, which is the caller's to
    start before and to close after. `queues` is how many virtqueues are offered, `queue_size` the largest ring
    accepted, `serial` at most 20 bytes (default: after the name), `poll_us` how long an idle queue spins before it
    sleeps, `socket_mode` who may connect. `filters` (`["error?rate=10%"]`) change what a disk opened by name does; the
    first is the outermost. `hint` is what drivers are asked for, experimentally: `sort` says that nothing behind this
    device merges and sorts (docs/auto.md).

    Raises UsageError for values that cannot work, OpenError where the disk cannot be opened or the socket not made.
    """
    options = ServeOptions(queues, queue_size, serial, poll_us, socket_mode, hint=hint)
    owned = isinstance(disk, str)
    if isinstance(disk, str):
        storage = open_served(parse_name(disk), read_only=read_only, filters=filters)
    elif filters:
        raise UsageError("filters go with a disk's name; wrap an open storage by storage.filters.apply_filters")
    else:
        storage = disk
        storage.read_only = storage.read_only or read_only
    try:
        if owned:
            storage.start()
        with progress():
            server = Server(storage, options, owned=owned)
    except BaseException:
        if owned:
            storage.close()
        raise
    try:
        server.listen(os.fspath(path))
        return server.start()
    except BaseException:
        server.close()
        raise


def open_served(name: DiskName, *, read_only: bool = False, filters: Sequence[str] = ()) -> Storage:
    """Open a disk under filters, the first outermost; a file that nobody is going to write, for reading only.

    Raises UsageError for a name, key or filter that cannot work, OpenError for what cannot be opened.
    """
    never_written = only_read(filters) or read_only
    if name.scheme == "file" and never_written and "read_only" not in name.keys:
        name = replace(name, keys=name.keys | {"read_only": "on"})
    storage = apply_filters(open_storage(name), filters)
    storage.read_only = storage.read_only or read_only
    return storage


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


def local_device(name: str, *, queues: int = 1) -> LocalDevice:
    """A device in this process for `ram:` and `null:` names. Raises UsageError for the others."""
    storage = open_storage(parse_name(name))
    try:
        storage.start()
        with progress():
            return LocalDevice(storage, serial=serial_of(name), queues=queues)
    except BaseException:
        storage.close()
        raise


def serial_of(name: str) -> str:
    """The serial of a disk of ours, 20 bytes at most: its name, or of one with a path the end of it."""
    scheme, _, rest = name.partition(":")
    if scheme in ("file", "nbd"):
        return rest.partition("?")[0].rstrip("/").rpartition("/")[2][-20:]
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
        storage.start()
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
