"""The device under test: a socket that is there, or a command that is started, restarted and ended here.

Called by `runner` and the checks, on one thread. What the device is (features, configuration space, process) is asked
once, before the first check.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from virtblk.check.peer import Gone, Peer, Silent, Unreachable
from virtblk.check.requirement import Failed
from virtblk.errors import DeviceError, OpenError
from virtblk.socket_command import SocketCommand
from virtblk.uapi import vhost_user as uapi
from virtblk.uapi.vhost_user import ProtocolFeature
from virtblk.uapi.virtio_blk import BLK_CONFIG, BLK_CONFIG_1_1, BLK_CONFIG_SIZE_1_1, VIRTIO_BLK_F_MQ

#: Seconds for a command to listen on its socket; a device of ours may have to compile first.
START_TIMEOUT: Final = 300.0
#: Seconds for a command to end after SIGTERM, before it is killed.
STOP_TIMEOUT: Final = 10.0


@dataclass(frozen=True)
class Facts:
    """What the device says of itself."""

    features: int
    protocol_features: int
    queue_num: int  # what GET_QUEUE_NUM answered, 1 without MQ
    config: bytes  # as much of the configuration space as it has, up to 60 bytes
    pid: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def offers(self, bit: int) -> bool:
        return bool(self.features >> bit & 1)

    def speaks(self, bit: int) -> bool:
        return bool(self.protocol_features >> bit & 1)

    @property
    def capacity(self) -> int:
        """In sectors."""
        return int(self.fields["capacity"])

    @property
    def queues(self) -> int:
        """How many queues a driver may use."""
        if not self.offers(VIRTIO_BLK_F_MQ):
            return 1
        return max(1, min(self.queue_num, int(self.fields["num_queues"])))


class Target:
    """`path` is the socket; `command` what serves it, with {socket} for the path, or None where somebody else does."""

    def __init__(self, path: str | None, command: str | None, timeout: float) -> None:
        self.timeout = timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.keeps_data: bool | None = None  # whether the disk outlives the process; None: nobody looked yet
        self._command: list[str] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._log: IO[bytes] | None = None
        self._facts: Facts | None = None
        if command is not None:
            words = SocketCommand(command)
            self._directory = tempfile.TemporaryDirectory(prefix="virtblk-check-")
            path = str(Path(self._directory.name) / "device.sock")
            self._command = words.words(path)
            self._log = (Path(self._directory.name) / "log").open("w+b")
        assert path is not None
        self.path = path

    @property
    def command(self) -> list[str] | None:
        """What is run, with the socket's path filled in."""
        return self._command

    def start(self) -> None:
        """Run the command, if there is one, and wait until it listens. Raises OpenError if it does not."""
        if self._command is None:
            return
        Path(self.path).unlink(missing_ok=True)
        try:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
            )
        except OSError as error:
            raise OpenError(error.errno, f"--exec {self._command[0]!r}: {error.strerror}") from None
        deadline = time.monotonic() + START_TIMEOUT
        while not self._listens():
            if self.process.poll() is not None:
                raise OpenError(
                    5, f"--exec {self._command[0]!r} ended with status {self.process.returncode}{self.last_words()}"
                )
            if time.monotonic() > deadline:
                raise OpenError(110, f"--exec {self._command[0]!r} does not listen on {self.path}{self.last_words()}")
            time.sleep(0.01)

    def _listens(self) -> bool:
        try:
            self.connect().close()
        except Unreachable:
            return False
        return True

    def stop(self, signo: int = signal.SIGTERM) -> int | None:
        """End the command; its exit status, or None where it had to be killed (or there is none)."""
        process, self.process = self.process, None
        if process is None:
            return None
        try:
            if process.poll() is None:
                process.send_signal(signo)
            return process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            return None
        finally:
            kill_group(process)

    def restart(self) -> None:
        """A new device, for the one that is dead or hangs. Raises OpenError, and DeviceError without a command."""
        if self._command is None:
            raise DeviceError(5, "the device is gone, and there is no --exec to start it again")
        self.stop(signal.SIGKILL)
        self.start()

    def connect(self) -> Peer:
        """A new connection. Raises Unreachable, and OSError where this process cannot have one."""
        return Peer(self.path, self.timeout)

    def dead(self, wait: float = 0.0) -> str | None:
        """How the command ended, None while it runs (or there is none). It is given `wait` seconds to end."""
        if self.process is None:
            return None
        try:
            status = self.process.wait(wait)
        except subprocess.TimeoutExpired:
            return None
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"the device's process ended: {how}{self.last_words()}"

    def last_words(self) -> str:
        """The last line of the command's output, if there is one."""
        if self._log is None:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4096))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    @property
    def facts(self) -> Facts:
        """Asked once. Raises OpenError where the device does not even say what it is."""
        if self._facts is None:
            try:
                self._facts = self._ask()
            except (Gone, Silent, Failed) as error:
                raise OpenError(71, f"{self.path}: the device does not say what it is: {error}") from None
            except OSError as error:
                raise OpenError(error.errno or 5, f"{self.path}: {error.strerror or error}") from None
        return self._facts

    def _ask(self) -> Facts:
        with self.connect() as peer:
            features = peer.get_features()
            protocol = 0
            queue_num = 1
            if features >> uapi.VHOST_USER_F_PROTOCOL_FEATURES & 1:
                protocol = peer.get_protocol_features()
                peer.set_protocol_features(protocol & UNDERSTOOD_PROTOCOL)
                if protocol >> ProtocolFeature.VHOST_USER_PROTOCOL_F_MQ & 1:
                    queue_num = peer.get_u64(uapi.FrontendRequest.VHOST_USER_GET_QUEUE_NUM)
            if not protocol >> ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIG & 1:
                raise Failed("it does not offer VHOST_USER_PROTOCOL_F_CONFIG, without which no disk can be described")
            config = b""
            for size in (BLK_CONFIG_SIZE_1_1, BLK_CONFIG.itemsize):
                config = config or peer.get_config(0, size)
            if not config:
                raise Failed("GET_CONFIG of 36 bytes fails")
            pid = peer.conn.peer_pid()
        dtype = BLK_CONFIG_1_1 if len(config) == BLK_CONFIG_SIZE_1_1 else BLK_CONFIG
        record = np.frombuffer(config, dtype)[0]
        fields = {name: record[name].tolist() for name in dtype.names or ()}
        if not fields["capacity"]:
            raise Failed("its capacity is 0 sectors, and no request can be made")
        return Facts(features, protocol, queue_num, config, pid, fields)

    def close(self) -> None:
        """End the command and remove what belongs to it. Harmless when repeated."""
        self.stop()
        if self._log is not None:
            self._log.close()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None


#: The protocol features that the checks negotiate by default.
UNDERSTOOD_PROTOCOL: Final = sum(
    1 << bit
    for bit in (
        ProtocolFeature.VHOST_USER_PROTOCOL_F_MQ,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIG,
        ProtocolFeature.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    )
)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Whatever the command started goes with it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
