"""The device under attack: a socket, and with `--exec` the process behind it, which can be restarted and looked into.

Control thread. A process is asked nothing: that it lives, its exit status, and how many descriptors, threads and
mappings it has (/proc) are all that a fuzzer needs to know of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from virtblk.errors import OpenError, UsageError
from virtblk.fuzz.case import CRASH, HANG, LEAK, DeviceFailed
from virtblk.socket_command import SocketCommand
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import FrontendRequest
from virtblk.vhost_user.connection import Connection

#: Seconds for a device to listen once it is started; it may have to compile everything first.
START_TIMEOUT: Final = 600.0
#: Seconds to end by itself when told to.
_STOP_TIMEOUT: Final = 10.0
_RETRY_SECONDS: Final = 0.02
#: Seconds for a process whose socket is gone to end: a core dump takes its time.
_DYING_SECONDS: Final = 2.0
_GREET_SECONDS: Final = 0.001
_GET_FEATURES: Final = uapi.HEADER.pack(FrontendRequest.VHOST_USER_GET_FEATURES, uapi.VHOST_USER_VERSION, 0)
#: Seconds for what a session held to be given back.
_SETTLE_SECONDS: Final = 5.0
#: How much of the process's own output a report quotes.
_TAIL_LINES: Final = 8
_TAIL_BYTES: Final = 16384


class Usage(NamedTuple):
    """What a process holds."""

    fds: int
    threads: int
    maps: int


#: How far a process may be above what it held at first: allocators and pools have their ways.
SLACK: Final = Usage(6, 4, 48)


class Target:
    """A device that listens at `path`, or is started by `command`, whose `{socket}` is replaced by a path of ours.

    `timeout` in seconds bounds everything that it is asked. Raises UsageError for a command without `{socket}`.
    """

    def __init__(self, path: str | None, command: str | None, timeout: float) -> None:
        self.timeout = timeout
        self.restarts = -1  # the first start is none
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: str | None = None
        if command is None:
            assert path is not None
            self.path = path
            return
        of_socket = SocketCommand(command)
        self._directory = tempfile.mkdtemp(prefix="virtblk-fuzz-")
        self.path = str(Path(self._directory) / "device.sock")
        self._words = of_socket.words(self.path)
        self._log = Path(self._directory) / "device.log"

    @property
    def can_restart(self) -> bool:
        return self._command is not None

    def start(self) -> None:
        """Start the process, if it is ours to start, and wait until it listens. OpenError where it does not."""
        if self._command is None:
            try:
                self._connect().close()
            except (OSError, ValueError) as error:
                text = getattr(error, "strerror", None) or str(error)
                raise OpenError(getattr(error, "errno", None) or 0, f"socket {self.path}: {text}") from None
            return
        self._end()
        self.restarts += 1
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        try:
            self._process = self._spawn()
        except OSError as error:
            raise UsageError(f"--exec {self._command!r}: {error.strerror}") from None
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self._connect().close()
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    last = "\n".join(self.last_words()[-1:]) or self.exit_text() or str(error)
                    raise OpenError(error.errno or 0, f"--exec {self._command!r} does not serve: {last}") from None
            time.sleep(_RETRY_SECONDS)

    def _spawn(self) -> subprocess.Popen[bytes]:
        """The process, in a group of its own."""
        with self._log.open("wb") as log:
            return subprocess.Popen(self._words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)

    def _connect(self) -> socket.socket:
        """As `Connection.connect`, but a plain socket: what is sent on it need not be sound."""
        connection = Connection.connect(self.path, self.timeout)
        sock = socket.socket(fileno=os.dup(connection.fileno()))
        connection.close()
        sock.settimeout(self.timeout)
        return sock

    def connect(self) -> socket.socket:
        """A connection. Raises DeviceFailed where there is none to be had: a crash, or nobody that accepts."""
        try:
            return self._connect()
        except TimeoutError:
            raise DeviceFailed(HANG, f"no connection is accepted within {self.timeout:g} s") from None
        except OSError as error:
            raise DeviceFailed(CRASH, f"{self.exit_text() or 'the device is gone'} ({error.strerror})") from None

    def greet(self) -> socket.socket:
        """A connection on which GET_FEATURES was answered. Raises DeviceFailed.

        A device that serves one client at a time may hang up on another: it is tried again, for it may not have noticed
        yet that the client before has gone.
        """
        deadline = time.monotonic() + self.timeout
        while True:
            sock = self.connect()
            try:
                sock.sendall(_GET_FEATURES, socket.MSG_NOSIGNAL)
                missing = uapi.HEADER.size + uapi.U64.size
                while missing and (data := sock.recv(missing)):
                    missing -= len(data)
                if not missing:
                    return sock
            except TimeoutError:
                sock.close()
                raise DeviceFailed(HANG, f"a new client is not answered within {self.timeout:g} s") from None
            except ConnectionError:
                pass
            except BaseException:
                sock.close()
                raise
            sock.close()
            self.check_alive()
            if time.monotonic() > deadline:
                raise DeviceFailed(HANG, f"new clients are hung up on for {self.timeout:g} s")
            time.sleep(_GREET_SECONDS)

    def check_alive(self) -> None:
        """DeviceFailed if the process that we started has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise DeviceFailed(CRASH, self.exit_text())

    def exit_text(self) -> str:
        """How the process ended, or nothing while it runs or is not ours."""
        if self._process is None:
            return ""
        if self._process.poll() is None:
            with suppress(subprocess.TimeoutExpired):  # its socket may be gone some time before itself
                self._process.wait(_DYING_SECONDS)
        code = self._process.returncode
        if code is None:
            return ""
        if code >= 0:
            return f"the device exited with status {code}"
        with suppress(ValueError):
            return f"the device died of {signal.Signals(-code).name}"
        return f"the device died of signal {-code}"

    def last_words(self) -> list[str]:
        """The end of what the process wrote."""
        if self._command is None:
            return []
        with suppress(OSError), self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        return []

    def usage(self) -> Usage | None:
        """What the process holds, None for one that is not ours."""
        if self._process is None:
            return None
        proc = Path("/proc") / str(self._process.pid)
        try:
            return Usage(
                len(list((proc / "fd").iterdir())),
                len(list((proc / "task").iterdir())),
                (proc / "maps").read_text().count("\n"),
            )
        except OSError:
            return None

    def settled_usage(self, bound: Usage | None) -> Usage | None:
        """`usage` once it lies within `bound`, or after a while: sessions give things back a little later."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            usage = self.usage()
            if usage is None or bound is None or _within(usage, bound) or time.monotonic() > deadline:
                return usage
            time.sleep(_RETRY_SECONDS)

    def check_usage(self, baseline: Usage | None) -> None:
        """DeviceFailed if the process holds clearly more than `baseline`, which it held before, with no session."""
        if baseline is None:
            return
        usage = self.settled_usage(Usage(*(value + slack for value, slack in zip(baseline, SLACK, strict=True))))
        if usage is None:
            return
        for name, before, now, slack in zip(Usage._fields, baseline, usage, SLACK, strict=True):
            if now > before + slack:
                raise DeviceFailed(LEAK, f"{name} of the device grew from {before} to {now}")

    def _end(self) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(min(self.timeout, _STOP_TIMEOUT))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def close(self) -> None:
        """End the process if it is ours. Repeatable."""
        self._end()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _within(usage: Usage, bound: Usage) -> bool:
    return all(value <= most for value, most in zip(usage, bound, strict=True))
