"""One driver against one device that misbehaves: who connects, what came of it, and what a sound driver does.

A driver is a `FrontEnd`: a command that is run anew for each trial (its exit status and its words are what it reports),
a function on a thread (our own driver, in tests), or whoever connects to a socket, of whom only the connection is seen.
A check is given a `Trial`, plays one misbehaviour, and asks of the `Story` what it demands. Control context only; the
device runs on a thread of its own, and every wait ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from virtblk.check.driver_device import CAPACITY, Device, Plan, Request
from virtblk.check.requirement import Failed, Registry, Skipped
from virtblk.errors import OpenError, UsageError
from virtblk.socket_command import SocketCommand
from virtblk.uapi import virtio_blk as blk
from virtblk.uapi.vhost_user import FrontendRequest
from virtblk.vhost_user.connection import Connection, check_socket_path
from virtblk.vhost_user.message import Message, request_name

#: Seconds for a driver to connect; one that is run from the command line may have to compile first.
CONNECT_TIMEOUT: Final = 300.0
#: Seconds for a device's thread to end once it is told to.
DEVICE_TIMEOUT: Final = 10.0

#: What `virtblk check --driver` demands of a driver.
DRIVER: Final = Registry()


class NeverConnected(Failed):
    """The driver ended before there was a session: most likely it is not what its user meant to run."""


class Hung(Exception):
    """The driver died of a signal, or did not end in time."""


@dataclass(frozen=True)
class Outcome:
    """What a driver reported. `status` 0 is success, negative the signal it died of, None: nobody knows."""

    status: int | None
    text: str = ""
    whole: str = ""

    @property
    def words(self) -> str:
        status = "" if self.status is None else f"status {self.status}"
        return ": ".join(part for part in (status, self.text) if part)


#: Of a front end that only its connection is known of: it hung up, or is there still.
CLOSED: Final = Outcome(None, "closed the connection")
CONNECTED: Final = Outcome(None, "is still connected")


class Attempt(Protocol):
    """A driver that was started."""

    def wait(self, seconds: float) -> Outcome | None:
        """What came of it, or None if it still runs after so long."""

    def ended(self) -> bool:
        """True once nobody will connect any more."""

    def stop(self) -> None:
        """End it, whatever it does."""


class FrontEnd(Protocol):
    """What can be started on a socket."""

    reports: bool  # its outcome has a status

    def start(self, path: str) -> Attempt: ...


class Command:
    """A command line with {socket} in it."""

    reports = True

    def __init__(self, command: str) -> None:
        self._command = SocketCommand(command)

    def start(self, path: str) -> Attempt:
        return _Process(self._command.words(path))


class _Process:
    def __init__(self, words: list[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
            )
        except OSError as error:
            self._log.close()
            raise OpenError(error.errno, f"--exec {words[0]!r}: {error.strerror}") from None

    def wait(self, seconds: float) -> Outcome | None:
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 16384))
        whole = self._log.read().decode(errors="replace").strip()
        return Outcome(status, whole.splitlines()[-1] if whole else "", whole)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


class Function:
    """A function that is called with the socket's path, on a thread, and returns an Outcome."""

    reports = True

    def __init__(self, function: Callable[[str], Outcome]) -> None:
        self.function = function

    def start(self, path: str) -> Attempt:
        return _Call(self.function, path)


class _Call:
    def __init__(self, function: Callable[[str], Outcome], path: str) -> None:
        self._outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._run, args=(function, path), name="driver under test", daemon=True)
        self._thread.start()

    def _run(self, function: Callable[[str], Outcome], path: str) -> None:
        try:
            self._outcome = function(path)
        except Exception as error:  # what a program would show as a traceback
            self._outcome = Outcome(1, f"Traceback (most recent call last): {type(error).__name__}: {error}")

    def wait(self, seconds: float) -> Outcome | None:
        self._thread.join(seconds)
        return self._outcome

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        """A thread cannot be ended; it is left alone."""


class Anybody:
    """Whoever connects: a virtual machine that is started by hand, for instance."""

    reports = False

    def start(self, path: str) -> Attempt:
        return _Somebody()


class _Somebody:
    def wait(self, seconds: float) -> Outcome | None:
        return CONNECTED

    def ended(self) -> bool:
        return False

    def stop(self) -> None:
        """Not ours to end."""


OnMessage = Callable[[Device, Message], None]
OnRequest = Callable[[Device, Request], None]


class Spoilt(Plan):
    """The honest device, but for what is given.

    `messages`: what to do with a message instead; `request`: what to do with the first request that `of` chooses.
    """

    def __init__(
        self,
        *,
        messages: Mapping[int, OnMessage] | None = None,
        request: OnRequest | None = None,
        of: Callable[[Request], bool] = lambda request: request.is_io,
        start: Callable[[Device], None] | None = None,
        every: bool = False,
        **facts: Any,
    ) -> None:
        self._messages = messages or {}
        self._request, self._of, self._start, self._every = request, of, start, every
        self._done = False
        for name, value in facts.items():
            setattr(self, name, value)

    def on_message(self, device: Device, msg: Message) -> None:
        action = self._messages.get(msg.request)
        if action is None:
            super().on_message(device, msg)
            return
        device.spoil(f"{request_name(msg.request)}")
        action(device, msg)

    def on_request(self, device: Device, request: Request) -> None:
        if self._request is None or not self._of(request) or (self._done and not self._every):
            super().on_request(device, request)
            return
        self._done = True
        device.spoil(f"request {request.type} at sector {request.sector}")
        self._request(device, request)

    def on_start(self, device: Device) -> None:
        if self._start is not None:
            self._start(device)


@dataclass
class Story:
    """What happened in one trial, and what may be demanded of it. Each demand returns what happened, in words."""

    outcome: Outcome
    device: Device

    def _told(self) -> str:
        return f"{self.device.spoilt or 'an honest device'}; the driver: {self.outcome.words or 'no word'}"

    def demand_sound(self) -> None:
        """What holds in every trial: no signal, no traceback, nothing that no device could serve."""
        status = self.outcome.status
        if status is not None and status < 0:
            raise Hung(f"the driver died of {signal.Signals(-status).name} after {self._told()}")
        if "Traceback (most recent call last)" in (self.outcome.whole or self.outcome.text):
            raise Failed(f"a traceback instead of a word to the user after {self._told()}")
        if self.device.complaints:
            raise Failed(f"{self.device.complaints[0]}; after {self._told()}")

    def goes_on(self) -> str:
        """The driver is not disturbed: it reports success."""
        self.demand_sound()
        self._came_up()
        if self.outcome.status:
            raise Failed(f"the driver gave up, though it lost nothing: {self._told()}")
        if self.outcome == CLOSED:
            raise Skipped(f"only a driver that is run with --exec says whether it succeeded: {self._told()}")
        return self._told()

    def fails(self) -> str:
        """The driver reports that something went wrong."""
        self.demand_sound()
        self._came_up()
        if self.outcome.status == 0:
            raise Failed(f"the driver reported success: {self._told()}")
        if self.outcome == CONNECTED:
            raise Skipped(f"only a driver that is run with --exec says whether it failed: {self._told()}")
        return self._told()

    def survives(self) -> str:
        """Either will do, as long as the driver is alive and says which."""
        self.demand_sound()
        self._came_up()
        return self._told()

    def refuses(self) -> str:
        """The driver reports failure, and never started the ring."""
        told = self.fails()
        if self.device.requests:
            raise Failed(f"the driver used the ring all the same: {told}")
        return told

    def _came_up(self) -> None:
        if not self.device.spoilt:
            raise Skipped(f"it never came to it: the driver sent {self.device.requests} requests; {self._told()}")


@dataclass
class Trial:
    """What a check has to work with. `timeout`: seconds within which a driver has to notice whatever it is."""

    front_end: FrontEnd
    path: str
    timeout: float
    disk: bytearray = field(default_factory=lambda: bytearray(CAPACITY * blk.SECTOR_SIZE))
    connect_timeout: float = CONNECT_TIMEOUT

    def play(self, **spoils: Any) -> Story:
        """Run the driver once against a device that is honest but for `spoils` (see Spoilt)."""
        return self.run(Spoilt(**spoils))

    def run(self, plan: Plan) -> Story:
        """Run the driver once. Raises Hung where it does not end in time, OpenError where nobody connects."""
        listener = listen(self.path)
        attempt: Attempt | None = None
        stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            attempt = self.front_end.start(self.path)
            sock = self._accept(listener, attempt)
            if sock is None:
                words = (attempt.wait(0) or Outcome(None)).words
                raise NeverConnected(f"the driver ended without connecting: {words}")
            device = Device(plan, Connection(sock), self.disk, stop_fd)
            thread = threading.Thread(target=device.run, name="misbehaving device", daemon=True)
            thread.start()
            outcome = self._watch(attempt, device, thread)
            os.eventfd_write(stop_fd, 1)
            thread.join(DEVICE_TIMEOUT)
            if outcome is None:
                raise Hung(
                    f"the driver still waits {self.timeout:g} s after {device.spoilt or 'the last request'}"
                    f" ({device.requests} requests came)"
                )
            return Story(outcome, device)
        finally:
            os.eventfd_write(stop_fd, 1)
            if attempt is not None:
                attempt.stop()
            listener.close()
            Path(self.path).unlink(missing_ok=True)
            os.close(stop_fd)

    def _accept(self, listener: socket.socket, attempt: Attempt) -> socket.socket | None:
        """The driver's connection, or None where it ended without one."""
        listener.settimeout(0.05)
        deadline = time.monotonic() + self.connect_timeout
        while True:
            try:
                return listener.accept()[0]
            except TimeoutError:
                if attempt.ended():
                    return None
                if time.monotonic() > deadline:
                    raise OpenError(110, f"{self.path}: no driver connects") from None

    def _watch(self, attempt: Attempt, device: Device, thread: threading.Thread) -> Outcome | None:
        """Wait for the driver. It may work as long as it likes; the time-out runs from the last sign of life, or from
        the lie where nobody reports what came of it."""
        last, seen = time.monotonic(), (-1, -1)
        while True:
            now = device.requests, len(device.messages)
            if now != seen and not (device.spoilt and not self.front_end.reports):
                last, seen = time.monotonic(), now
            if self.front_end.reports:
                outcome = attempt.wait(0.02)
                if outcome is not None:
                    return outcome
            else:
                thread.join(0.05)
                if not thread.is_alive():
                    return CLOSED
            if time.monotonic() - last > self.timeout:
                return None if self.front_end.reports else CONNECTED


def listen(path: str) -> socket.socket:
    """A listening socket. Raises UsageError for a path that cannot be one, OpenError where it cannot be made."""
    try:
        check_socket_path(path)
    except ValueError as error:
        raise UsageError(str(error)) from None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(1)
    except OSError as error:
        sock.close()
        raise OpenError(error.errno, f"{path}: cannot listen: {error.strerror}") from None
    return sock


def kind(*types: int) -> Callable[[Request], bool]:
    """Chooses requests of these types."""
    return lambda request: request.type in types


READ: Final = kind(blk.VIRTIO_BLK_T_IN)
WRITE: Final = kind(blk.VIRTIO_BLK_T_OUT)
FLUSH: Final = kind(blk.VIRTIO_BLK_T_FLUSH)
R = FrontendRequest
