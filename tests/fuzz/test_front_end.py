"""What the front end takes for a failure: fake devices that answer wrongly, not at all, or are gone."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.harness import server, until_closed
from virtblk.errors import OpenError, UsageError
from virtblk.fuzz import target as target_module
from virtblk.fuzz.attack import FrontEndAttack
from virtblk.fuzz.case import CRASH, HANG, WRONG, Case, DeviceFailed
from virtblk.fuzz.front_end import FrontEnd, ask_facts
from virtblk.fuzz.groups import FRONT_END, Coverage
from virtblk.fuzz.messages import FLOOD, HANG_UP, SECOND, Facts, Op
from virtblk.fuzz.target import Target, Usage
from waiting import PATIENCE

FACTS = Facts(features=1 << 32, protocol_features=0, queues=1, capacity=2048)
REPLY = struct.pack("<IIIQ", 1, 5, 8, 1 << 32)
GET_FEATURES = Op(request=1, ping=True)


#: For one that is silent: long enough, unless the machine is so busy that an answer before the silence is late too.
TIMEOUTS = (0.2, 2.0, 20.0)


def answering(*replies: bytes) -> Callable[[socket.socket], None]:
    """Answers message after message with these bytes, then reads and says nothing."""

    def serve(client: socket.socket) -> None:
        for reply in replies:
            if not client.recv(4096):
                return
            client.sendall(reply)
        until_closed(client)

    return serve


def failure(path: Path, serve: Callable[[socket.socket], None], *ops: Op, timeout: float = 20.0) -> DeviceFailed:
    raised: list[DeviceFailed] = []
    with server(path, serve), Target(str(path), None, timeout) as target, FrontEnd(target, Coverage()) as front:
        try:
            front.run(ops)
        except DeviceFailed as error:
            raised.append(error)
    (found,) = raised
    return found


def test_a_reply_that_is_none_is_wrong(tmp_path: Path) -> None:
    request = struct.pack("<IIIQ", 1, 1, 8, 0)
    found = failure(tmp_path / "s", answering(REPLY, request), GET_FEATURES)
    assert (found.kind, found.detail) == (WRONG, "a reply to request 1 has flags 0x1")


def test_a_reply_of_any_length_is_wrong(tmp_path: Path) -> None:
    found = failure(tmp_path / "s", answering(REPLY, struct.pack("<III", 1, 5, 1 << 31)), GET_FEATURES)
    assert (found.kind, found.detail) == (WRONG, f"a reply to request 1 announces {1 << 31} bytes")


def test_silence_is_a_hang(tmp_path: Path) -> None:
    for seconds in TIMEOUTS:
        found = failure(tmp_path / f"s{seconds:g}", answering(REPLY), GET_FEATURES, timeout=seconds)
        assert found.kind == HANG
        if "a new client" not in found.detail:
            break
    assert found.detail == f"GET_FEATURES is not answered within {seconds:g} s"


def test_silence_to_a_new_client_is_a_hang(tmp_path: Path) -> None:
    found = failure(tmp_path / "s", until_closed, GET_FEATURES, timeout=0.2)
    assert (found.kind, found.detail) == (HANG, "a new client is not answered within 0.2 s")


def test_hanging_up_on_every_client_is_a_hang(tmp_path: Path) -> None:
    for seconds in TIMEOUTS:
        found = failure(tmp_path / f"s{seconds:g}", lambda client: None, GET_FEATURES, timeout=seconds)
        assert found.kind == HANG
        if "a new client" not in found.detail:
            break
    assert found.detail == f"new clients are hung up on for {seconds:g} s"


def test_nobody_there_is_a_crash(tmp_path: Path) -> None:
    target = Target(str(tmp_path / "s"), None, 1.0)
    with FrontEnd(target, Coverage()) as front, pytest.raises(DeviceFailed, match="the device is gone") as raised:
        front.run([GET_FEATURES])
    assert raised.value.kind == CRASH


def test_silence_out_of_step_is_none(tmp_path: Path) -> None:
    """The device waits for the payload that was announced."""
    desync = Op(request=2, payload="00", announced=8, ping=True)
    glued = Op(request=2, payload="00", announced=8, glued=True)
    path = tmp_path / "s"
    with (
        server(path, answering(REPLY)),
        Target(str(path), None, PATIENCE) as target,
        FrontEnd(target, Coverage()) as front,
    ):
        front.run([desync, GET_FEATURES])
        front.run([glued, GET_FEATURES])
        assert front.messages == 4


def test_more_descriptors_than_one_write_takes(tmp_path: Path) -> None:
    """Glued messages go out in as many writes as their descriptors need."""
    many = Op(request=2, fds=["call"] * 253, glued=True)
    path = tmp_path / "s"
    with (
        server(path, answering(REPLY)),
        Target(str(path), None, PATIENCE) as target,
        FrontEnd(target, Coverage()) as front,
    ):
        desync = Op(request=2, payload="00", announced=8)
        front.run([many, many, many.copy(), desync])
        assert front.messages == 4


def test_sessions_are_parted_and_counted(tmp_path: Path) -> None:
    def serve(client: socket.socket) -> None:
        while client.recv(4096):
            client.sendall(REPLY)

    path, coverage = tmp_path / "s", Coverage()
    with server(path, serve), Target(str(path), None, 20.0) as target, FrontEnd(target, coverage) as front:
        front.run([GET_FEATURES, Op(HANG_UP, items=[70]), Op(FLOOD, value=3, items=[75]), Op(SECOND)])
        assert front.sessions == 2 + 3
        assert front.hang_ups == 0
    assert (coverage.counts[70], coverage.counts[75]) == (1, 1)


def test_a_case_of_nonsense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with server(path, answering(REPLY)), Target(str(path), None, PATIENCE) as target:
        attack = FrontEndAttack(target, FACTS, 1, Coverage())
        with pytest.raises(UsageError, match="no operation"):
            attack.run(Case(FRONT_END, [{"kind": "shout"}]))
        attack.close()


def test_what_is_no_block_device_is_not_attacked(tmp_path: Path) -> None:
    path = tmp_path / "s"
    target = Target(str(path), None, PATIENCE)
    with server(path, answering(REPLY, REPLY)), pytest.raises(OpenError, match="no vhost-user-blk device"):
        ask_facts(target)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [("serve it", "write {socket} where"), ("serve '{socket}", "No closing quotation"), ("", "write {socket} where")],
)
def test_commands_that_cannot_be(command: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Target(None, command, 1.0)


def test_a_leak_is_what_grows_beyond_the_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "_SETTLE_SECONDS", 0.05)

    class Leaking(Target):
        def usage(self) -> Usage:
            return Usage(50, 3, 400)

    with Leaking("/nowhere", None, 1.0) as target:
        target.check_usage(None)
        target.check_usage(Usage(45, 1, 380))
        with pytest.raises(DeviceFailed, match="fds of the device grew from 8 to 50"):
            target.check_usage(Usage(8, 3, 400))


def test_a_process_that_dies_is_a_crash(tmp_path: Path) -> None:
    listen = (
        "import socket, os, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "s.accept(); s.accept(); os.abort()"
    )
    with Target(None, f'python3 -c "{listen}" {{socket}}', 20.0) as target:
        target.start()
        assert target.usage() is not None
        with FrontEnd(target, Coverage()) as front, pytest.raises(DeviceFailed) as raised:
            front.run([GET_FEATURES])
        # Behind it stands how the connection found out, in brackets, where it was refused before the end was seen.
        assert raised.value.kind == CRASH
        assert raised.value.detail.startswith("the device died of SIGABRT")
        assert not os.path.exists(f"/proc/{target._process.pid}/exe")  # type: ignore[union-attr]
