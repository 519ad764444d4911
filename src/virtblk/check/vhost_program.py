"""Checks of the back-end program, which is the command of --exec: how it is started, what it says, how it ends.

docs/interop/vhost-user.rst, "Backend program conventions". That it stays in the foreground is what --exec itself needs.
The conventions are "a good idea", so that nothing here is more than LOW but the end. While a program of another check
serves the disk, the device under test does not: a disk may be locked.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from virtblk.check.peer import Gone, Peer, Silent
from virtblk.check.requirement import DEVICE, Failed, Level, Severity, Skipped
from virtblk.check.runner import Tester
from virtblk.check.target import START_TIMEOUT, Target
from virtblk.errors import OpenError
from virtblk.uapi.vhost_user import FrontendRequest
from virtblk.uapi.virtio_blk import VIRTIO_BLK_F_RO

_CONVENTIONS: Final = "Backend program conventions"
_SOCKET_PATH: Final = "--socket-path"
#: What docs/interop/vhost-user.json has for block devices.
_TYPE: Final = "block"
_FEATURES: Final = {"read-only", "blk-file"}
#: Seconds for a program that has little to do.
_SHORT: Final = 30.0


def command(t: Tester) -> list[str]:
    """The words of --exec, with another socket in them."""
    words = t.target.command
    if words is None:
        raise Skipped("the program can be started with --exec only")
    return [word.replace(t.target.path, t.target.path + ".2") for word in words]


def ran(words: Sequence[str], seconds: float, pass_fds: Sequence[int] = ()) -> subprocess.CompletedProcess[bytes]:
    """The program's output and status. Failed if it does not end by itself."""
    try:
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, pass_fds=pass_fds, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"it still runs after {seconds:g} s: {shlex.join(words)}") from None


def without_socket_path(words: Sequence[str]) -> list[str]:
    """The command without --socket-path. Skipped where it does not have that."""
    for position, word in enumerate(words):
        if word == _SOCKET_PATH:
            return [*words[:position], *words[position + 2 :]]
        if word.startswith(f"{_SOCKET_PATH}="):
            return [*words[:position], *words[position + 1 :]]
    raise Skipped(f"the command does not say {_SOCKET_PATH}")


def last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return f" ({lines[-1]})" if lines else ""


def capabilities(t: Tester) -> dict[str, object]:
    """What --print-capabilities prints. Failed where that is nothing of use."""
    result = ran([*command(t), "--print-capabilities"], _SHORT)
    if result.returncode:
        raise Failed(f"--print-capabilities ends with status {result.returncode}{last_line(result.stderr)}")
    try:
        value = json.loads(result.stdout)
    except ValueError as error:
        raise Failed(f"--print-capabilities printed {result.stdout[:200]!r}: {error}") from None
    if not isinstance(value, dict):
        raise Failed(f"--print-capabilities printed {value!r}, expected an object")
    return value


@DEVICE.should("vhost.program-capabilities", _CONVENTIONS, Severity.LOW)
def program_capabilities(t: Tester) -> str:
    """--print-capabilities prints the type and the features as JSON, whatever else was said, and ends with status 0."""
    value = capabilities(t)
    features = value.get("features")
    if value.get("type") != _TYPE or not isinstance(features, list) or not set(features) <= _FEATURES:
        known = ", ".join(sorted(_FEATURES))
        raise Failed(f"it printed {json.dumps(value)}, expected the type {_TYPE!r} and features of {known}")
    return json.dumps(value)


@DEVICE.should("vhost.program-fd", _CONVENTIONS, Severity.LOW)
def program_fd(t: Tester) -> None:
    """--fd names a descriptor on which a front end is connected."""
    words = without_socket_path(command(t))
    t.target.stop()
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [*words, f"--fd={theirs.fileno()}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    try:
        _is_served(t, ours, process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        t.target.start()


def _is_served(t: Tester, ours: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """One question, for which the program may have to compile first."""
    deadline = time.monotonic() + START_TIMEOUT
    with Peer.on(ours, t.timeout) as peer:
        try:
            peer.send(FrontendRequest.VHOST_USER_GET_FEATURES)
            while not _answers(peer):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"no answer on the socket that --fd names (status {process.poll()})")
        except Gone:
            raise Failed("the program closed the socket that --fd names, and did not answer") from None


def _answers(peer: Peer) -> bool:
    try:
        peer.recv(0.1).close_fds()
    except Silent:
        return False
    return True


@DEVICE.should("vhost.program-fd-or-path", _CONVENTIONS, Severity.LOW)
def program_fd_or_path(t: Tester) -> str:
    """--fd and --socket-path together are refused, with a status other than 0."""
    words = command(t)
    without_socket_path(words)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        result = ran([*words, f"--fd={theirs.fileno()}"], _SHORT, (theirs.fileno(),))
    if not result.returncode:
        raise Failed(f"it ends with status 0: {shlex.join(result.args)}")
    return f"status {result.returncode}{last_line(result.stderr)}"


@DEVICE.should("vhost.program-read-only", _CONVENTIONS, Severity.LOW)
def program_read_only(t: Tester) -> None:
    """--read-only has the device offer VIRTIO_BLK_F_RO, where the capabilities name it."""
    words = t.target.command
    try:
        features = capabilities(t).get("features")
    except Failed as error:
        raise Skipped(str(error)) from None
    if words is None or not isinstance(features, list) or "read-only" not in features:
        raise Skipped("the capabilities do not name read-only")
    text = shlex.join([*words, "--read-only"]).replace(t.target.path, "{socket}")
    t.target.stop()
    target = Target(None, text, t.timeout)
    try:
        target.start()
        if not target.facts.offers(VIRTIO_BLK_F_RO):
            raise Failed(f"with --read-only GET_FEATURES answered {target.facts.features:#018x}, bit 5 is clear")
    except OpenError as error:
        raise Failed(f"with --read-only: {error}") from None
    finally:
        target.close()
        t.target.start()


@DEVICE.must("vhost.program-sigterm", _CONVENTIONS, Severity.HIGH)
def program_sigterm(t: Tester) -> str:
    """SIGTERM ends the program, though a front end is connected and a ring runs."""
    process = t.target.process
    if process is None:
        raise Skipped("the program can be started and ended with --exec only")
    session = t.session()
    session.read(0, t.block_sectors)
    try:
        process.send_signal(signal.SIGTERM)
        status = process.wait(t.timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"it still runs {t.timeout:g} s after SIGTERM") from None
    finally:
        session.close()
        t.target.restart()
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


DEVICE.unbuilt(
    "vhost.program-blk-file",
    _CONVENTIONS,
    Level.SHOULD,
    "--blk-file names the file or block device to serve, where the capabilities name it.",
    "not built: which words of the command name the disk is unknown",
)
