"""The driver's messages against scripted answers, right and wrong, and against a device that we did not write."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import peers
from vhost_user.fakes import PROTOCOL_FEATURES, eventfds, memfd, open_fds
from virtblk.uapi.vhost_user import FrontendRequest as R
from virtblk.uapi.vhost_user import ProtocolFeature
from virtblk.vhost_user.connection import Connection, ConnectionClosed
from virtblk.vhost_user.frontend import Frontend, Region, RequestRefused
from virtblk.vhost_user.message import ProtocolError, encode_header
from waiting import PATIENCE

REPLY_ACK = 1 << ProtocolFeature.VHOST_USER_PROTOCOL_F_REPLY_ACK


class Script:
    """The peer of a front end: what it answers is written before it is asked, so that no thread is needed."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.conn = Connection(sock)

    def answer(self, request: int, payload: bytes, flags: int = 5) -> None:
        self.conn.send(request, flags, payload)

    def ack(self, request: int, value: int = 0) -> None:
        self.answer(request, struct.pack("<Q", value))

    def asked(self) -> tuple[int, int, bytes, int]:
        """The next message of the front end: id, flags, payload, number of descriptors."""
        with self.conn.recv(PATIENCE) as msg:
            return msg.request, msg.flags, msg.payload, len(msg.fds)


@pytest.fixture
def ends() -> Iterator[tuple[Script, Frontend]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Script(theirs), Frontend(Connection(ours), 5)


@pytest.fixture
def script(ends: tuple[Script, Frontend]) -> Script:
    return ends[0]


@pytest.fixture
def frontend(ends: tuple[Script, Frontend]) -> Frontend:
    return ends[1]


@pytest.fixture
def acked(script: Script, frontend: Frontend) -> Frontend:
    """A front end that has negotiated REPLY_ACK."""
    frontend.set_protocol_features(REPLY_ACK)
    assert script.asked() == (R.VHOST_USER_SET_PROTOCOL_FEATURES, 1, struct.pack("<Q", REPLY_ACK), 0)
    return frontend


STATE = struct.Struct("<2I")
REGION = Region(0x1000, 0x2000, 0x7000_0000, 0x3000, 0)  # descriptor 0: any open one will do
REGION_BYTES = struct.pack("<4Q", 0x1000, 0x2000, 0x7000_0000, 0x3000)

#: A message without a reply of its own, what it sends, and how many descriptors.
TELLING: list[tuple[Callable[[Frontend], None], R, bytes, int]] = [
    (lambda f: f.set_owner(), R.VHOST_USER_SET_OWNER, b"", 0),
    (lambda f: f.set_features(0x140000000), R.VHOST_USER_SET_FEATURES, struct.pack("<Q", 0x140000000), 0),
    (lambda f: f.set_mem_table([REGION] * 2), R.VHOST_USER_SET_MEM_TABLE, STATE.pack(2, 0) + REGION_BYTES * 2, 2),
    (lambda f: f.add_mem_reg(REGION), R.VHOST_USER_ADD_MEM_REG, bytes(8) + REGION_BYTES, 1),
    (lambda f: f.rem_mem_reg(REGION), R.VHOST_USER_REM_MEM_REG, bytes(8) + REGION_BYTES, 0),
    (lambda f: f.set_config(32, b"\1"), R.VHOST_USER_SET_CONFIG, struct.pack("<3I", 32, 1, 0) + b"\1", 0),
    (lambda f: f.set_config(0, b"\1\2", 1), R.VHOST_USER_SET_CONFIG, struct.pack("<3I", 0, 2, 1) + b"\1\2", 0),
    (lambda f: f.set_vring_num(3, 128), R.VHOST_USER_SET_VRING_NUM, STATE.pack(3, 128), 0),
    (lambda f: f.set_vring_base(3, 9), R.VHOST_USER_SET_VRING_BASE, STATE.pack(3, 9), 0),
    (
        lambda f: f.set_vring_addr(3, desc=0x10, avail=0x20, used=0x30),
        R.VHOST_USER_SET_VRING_ADDR,
        struct.pack("<2I4Q", 3, 0, 0x10, 0x30, 0x20, 0),
        0,
    ),
    (lambda f: f.set_vring_kick(3, 0), R.VHOST_USER_SET_VRING_KICK, struct.pack("<Q", 3), 1),
    (lambda f: f.set_vring_kick(3, None), R.VHOST_USER_SET_VRING_KICK, struct.pack("<Q", 0x103), 0),
    (lambda f: f.set_vring_call(3, 0), R.VHOST_USER_SET_VRING_CALL, struct.pack("<Q", 3), 1),
    (lambda f: f.set_vring_call(3, -1), R.VHOST_USER_SET_VRING_CALL, struct.pack("<Q", 0x103), 0),
    (lambda f: f.set_vring_err(255, 0), R.VHOST_USER_SET_VRING_ERR, struct.pack("<Q", 255), 1),
    (lambda f: f.set_vring_enable(3, True), R.VHOST_USER_SET_VRING_ENABLE, STATE.pack(3, 1), 0),
    (lambda f: f.set_vring_enable(3, False), R.VHOST_USER_SET_VRING_ENABLE, STATE.pack(3, 0), 0),
]
TELLING_IDS = [f"{request.name}-{position}" for position, (_, request, _, _) in enumerate(TELLING)]

#: A message with a reply: what it sends, what is answered, what it returns.
ASKING: list[tuple[Callable[[Frontend], object], R, bytes, bytes, object]] = [
    (lambda f: f.get_features(), R.VHOST_USER_GET_FEATURES, b"", struct.pack("<Q", 2**63 + 5), 2**63 + 5),
    (lambda f: f.get_protocol_features(), R.VHOST_USER_GET_PROTOCOL_FEATURES, b"", struct.pack("<Q", 9), 9),
    (lambda f: f.get_queue_num(), R.VHOST_USER_GET_QUEUE_NUM, b"", struct.pack("<Q", 4), 4),
    (lambda f: f.get_max_mem_slots(), R.VHOST_USER_GET_MAX_MEM_SLOTS, b"", struct.pack("<Q", 32), 32),
    (
        lambda f: f.get_config(3),
        R.VHOST_USER_GET_CONFIG,
        struct.pack("<3I", 0, 3, 0) + bytes(3),
        struct.pack("<3I", 0, 3, 0) + b"abc",
        b"abc",
    ),
    (
        lambda f: f.get_vring_base(1),
        R.VHOST_USER_GET_VRING_BASE,
        STATE.pack(1, 0),
        STATE.pack(1, 65535),
        65535,
    ),
]
ASKING_IDS = [request.name for _, request, _, _, _ in ASKING]


@pytest.mark.parametrize(("tell", "request_id", "payload", "fds"), TELLING, ids=TELLING_IDS)
def test_without_reply_ack_a_message_is_only_sent(
    script: Script, frontend: Frontend, tell: Callable[[Frontend], None], request_id: R, payload: bytes, fds: int
) -> None:
    tell(frontend)
    assert script.asked() == (request_id, 1, payload, fds)


@pytest.mark.parametrize(("tell", "request_id", "payload", "fds"), TELLING, ids=TELLING_IDS)
def test_with_reply_ack_every_message_waits_for_its_acknowledgement(
    script: Script, acked: Frontend, tell: Callable[[Frontend], None], request_id: R, payload: bytes, fds: int
) -> None:
    script.ack(request_id)
    tell(acked)
    assert script.asked() == (request_id, 9, payload, fds)

    script.ack(request_id, 7)
    with pytest.raises(RequestRefused, match=f"{request_id.name} refused: the back end answered 7") as caught:
        tell(acked)
    assert (caught.value.request, caught.value.value) == (request_id.name, 7)
    assert not isinstance(caught.value, OSError)

    script.ack(request_id)  # a refusal does not end the session
    tell(acked)


@pytest.mark.parametrize(("ask", "request_id", "payload", "reply", "result"), ASKING, ids=ASKING_IDS)
def test_messages_with_a_reply_do_not_ask_for_an_acknowledgement(
    script: Script,
    acked: Frontend,
    ask: Callable[[Frontend], object],
    request_id: R,
    payload: bytes,
    reply: bytes,
    result: object,
) -> None:
    script.answer(request_id, reply)
    assert ask(acked) == result
    assert script.asked() == (request_id, 1, payload, 0)


@pytest.mark.parametrize(("ask", "request_id", "payload", "reply", "result"), ASKING, ids=ASKING_IDS)
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda request, reply: encode_header(40, 5, len(reply)) + reply, "got a reply of VHOST_USER_GET_STATUS"),
        (lambda request, reply: encode_header(request, 1, len(reply)) + reply, "expected a reply to .*, got a request"),
        (lambda request, reply: encode_header(request, 6, len(reply)) + reply, "version 2, expected 1"),
        (lambda request, reply: encode_header(request, 5, len(reply) - 1) + reply[:-1], "bytes, expected"),
        (lambda request, reply: encode_header(request, 5, len(reply) + 1) + reply + b"x", "bytes, expected"),
        (lambda request, reply: encode_header(request, 5, 2**32 - 1), "announces 4294967295 bytes"),
    ],
)
def test_a_wrong_reply_is_named_and_ends_the_session(
    script: Script,
    frontend: Frontend,
    ask: Callable[[Frontend], object],
    request_id: R,
    payload: bytes,
    reply: bytes,
    result: object,
    wrong: Callable[[int, bytes], bytes],
    text: str,
) -> None:
    script.sock.sendall(wrong(request_id, reply))
    with pytest.raises(ProtocolError, match=f"^{request_id.name}: .*{text}"):
        ask(frontend)
    script.answer(request_id, reply)
    with pytest.raises(ConnectionClosed, match="the session ended before"):
        ask(frontend)


def test_a_reply_with_descriptors_is_wrong_and_they_are_closed(script: Script, frontend: Frontend) -> None:
    before = open_fds()
    script.conn.send(R.VHOST_USER_GET_FEATURES, 5, bytes(8), [0, 0])
    with pytest.raises(ProtocolError, match="expected no file descriptors, got 2"):
        frontend.get_features()
    assert open_fds() == before


def test_the_config_is_asked_for_whole_and_may_be_refused(script: Script, frontend: Frontend) -> None:
    request = R.VHOST_USER_GET_CONFIG
    for empty in (b"", struct.pack("<3I", 0, 0, 0)):
        script.answer(request, empty)
        with pytest.raises(RequestRefused, match="no configuration came, 60 bytes") as caught:
            frontend.get_config(60)
        assert (caught.value.request, caught.value.value) == (request.name, 0)
    for size in (0, 257):
        with pytest.raises(ValueError, match=f"{size} bytes of configuration space"):
            frontend.get_config(size)
    script.answer(request, struct.pack("<3I", 0, 4, 0) + b"abcd")
    with pytest.raises(ProtocolError, match="expected 60 bytes of configuration, got 4"):
        frontend.get_config(60)


@pytest.mark.parametrize("reply", [STATE.pack(0, 5), STATE.pack(1, 65536)])
def test_a_base_of_another_ring_or_beyond_16_bits_is_wrong(script: Script, frontend: Frontend, reply: bytes) -> None:
    script.answer(R.VHOST_USER_GET_VRING_BASE, reply)
    with pytest.raises(ProtocolError, match="VHOST_USER_GET_VRING_BASE: expected an index of ring 1"):
        frontend.get_vring_base(1)


@pytest.mark.parametrize(("ask", "request_id", "payload", "reply", "result"), ASKING, ids=ASKING_IDS)
def test_a_peer_that_goes_away_is_named_with_the_request(
    script: Script,
    frontend: Frontend,
    ask: Callable[[Frontend], object],
    request_id: R,
    payload: bytes,
    reply: bytes,
    result: object,
) -> None:
    script.sock.sendall((encode_header(request_id, 5, len(reply)) + reply)[:-1])
    script.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionClosed, match=f"^{request_id.name}: the peer closed the connection after"):
        ask(frontend)
    script.sock.close()
    with pytest.raises(ConnectionClosed):
        ask(frontend)


def test_a_silent_peer_is_named_and_its_late_reply_is_not_believed(script: Script) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frontend = Frontend(Connection(ours), 0.05)
        with pytest.raises(TimeoutError, match=r"VHOST_USER_GET_FEATURES: no answer within 0\.05 s"):
            frontend.get_features()
        Script(theirs).answer(R.VHOST_USER_GET_FEATURES, bytes(8))
        with pytest.raises(ConnectionClosed, match=r"VHOST_USER_GET_FEATURES: the session ended .* no answer within"):
            frontend.get_features()


def test_an_interrupted_exchange_ends_the_session(
    script: Script, frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C in the middle, the next reply belongs to a question that nobody waits for any more."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "recv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            frontend.get_features()
    with pytest.raises(ConnectionClosed, match="KeyboardInterrupt"):
        frontend.get_features()


@pytest.mark.parametrize("count", [0, 9])
def test_a_wrong_number_of_regions_is_not_sent(script: Script, frontend: Frontend, count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} memory regions"):
        frontend.set_mem_table([REGION] * count)
    frontend.set_owner()
    assert script.asked()[0] == R.VHOST_USER_SET_OWNER


def test_a_ring_index_beyond_the_message_is_not_sent(frontend: Frontend) -> None:
    with pytest.raises(ValueError, match="ring 256"):
        frontend.set_vring_kick(256, None)


def test_a_closed_descriptor_is_the_callers_error_and_not_the_sessions(script: Script, frontend: Frontend) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        frontend.set_vring_kick(0, 10**6)
    script.answer(R.VHOST_USER_GET_FEATURES, struct.pack("<Q", 3))
    assert frontend.get_features() == 3


@pytest.mark.parametrize("features", [0, PROTOCOL_FEATURES])
def test_start_vring_kicks_last_and_enables_what_begins_disabled(
    script: Script, frontend: Frontend, features: int
) -> None:
    frontend.set_features(features)
    script.asked()
    frontend.start_vring(1, num=64, base=7, desc=0x10, avail=0x20, used=0x30, kick_fd=0, call_fd=None)
    expected = [
        (R.VHOST_USER_SET_VRING_NUM, 1, STATE.pack(1, 64), 0),
        (R.VHOST_USER_SET_VRING_BASE, 1, STATE.pack(1, 7), 0),
        (R.VHOST_USER_SET_VRING_ADDR, 1, struct.pack("<2I4Q", 1, 0, 0x10, 0x30, 0x20, 0), 0),
        (R.VHOST_USER_SET_VRING_CALL, 1, struct.pack("<Q", 0x101), 0),
        (R.VHOST_USER_SET_VRING_ERR, 1, struct.pack("<Q", 0x101), 0),
        (R.VHOST_USER_SET_VRING_KICK, 1, struct.pack("<Q", 1), 1),
    ]
    if features:
        expected.append((R.VHOST_USER_SET_VRING_ENABLE, 1, STATE.pack(1, 1), 0))
    assert [script.asked() for _ in expected] == expected
    script.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        script.sock.recv(1)


def test_two_threads_do_not_take_each_others_replies(script: Script, frontend: Frontend) -> None:
    rounds = 300

    def echo() -> None:
        for _ in range(2 * rounds):
            request = script.asked()[0]
            time.sleep(0)  # give the other thread its chance to come in between
            script.answer(request, struct.pack("<Q", request))

    answers: dict[str, set[int]] = {"features": set(), "queues": set()}

    def ask(name: str, question: Callable[[], int]) -> None:
        for _ in range(rounds):
            answers[name].add(question())

    threads = [
        threading.Thread(target=echo),
        threading.Thread(target=ask, args=("features", frontend.get_features)),
        threading.Thread(target=ask, args=("queues", frontend.get_queue_num)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == {"features": {R.VHOST_USER_GET_FEATURES}, "queues": {R.VHOST_USER_GET_QUEUE_NUM}}


@pytest.mark.peer
@pytest.mark.once
def test_handshake_with_qemu_storage_daemon(tmp_path: Path) -> None:
    image, path = tmp_path / "disk.img", tmp_path / "sock"
    image.touch()
    os.truncate(image, 64 << 20)
    command = [
        peers.qemu_storage_daemon(),
        *("--blockdev", f"driver=file,node-name=f0,filename={image}"),
        *("--export", f"type=vhost-user-blk,id=e0,node-name=f0,addr.type=unix,addr.path={path},writable=on"),
    ]
    with subprocess.Popen(command) as daemon:
        try:
            deadline = time.monotonic() + PATIENCE
            while not path.exists() and daemon.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            with Connection.connect(str(path), 10) as conn, memfd(1 << 20) as fd, eventfds(2) as (kick, call):
                assert conn.peer_pid() == daemon.pid
                frontend = Frontend(conn, PATIENCE)
                features = frontend.get_features()
                assert features & PROTOCOL_FEATURES
                ours = sum(1 << bit for bit in (0, 3, 9, 15))
                assert frontend.get_protocol_features() & ours == ours
                frontend.set_protocol_features(ours)
                frontend.set_owner()
                assert frontend.get_queue_num() == 1
                assert frontend.get_max_mem_slots() == 32
                assert int.from_bytes(frontend.get_config(60)[:8], "little") == (64 << 20) // 512
                frontend.set_features(features & (1 << 32 | PROTOCOL_FEATURES))
                for ring in (0x2000, 0x4000):  # empty: avail.idx and used.idx where the ring begins
                    os.pwrite(fd, struct.pack("<2H", 0, 65530), ring)
                frontend.set_mem_table([Region(0, 1 << 20, 0x7000_0000, 0, fd)])
                frontend.start_vring(0, 128, 65530, 0x7000_0000, 0x7000_2000, 0x7000_4000, kick, call)
                assert frontend.get_vring_base(0) == 65530
                frontend.add_mem_reg(Region(1 << 30, 1 << 20, 0x8000_0000, 0, fd))
                frontend.rem_mem_reg(Region(1 << 30, 1 << 20, 0x8000_0000, 0, fd))
                daemon.kill()
                daemon.wait()
                with pytest.raises(ConnectionClosed, match="VHOST_USER_GET_FEATURES"):
                    frontend.get_features()
        finally:
            daemon.kill()
