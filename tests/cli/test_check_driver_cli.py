"""`virtblk check --driver` from the command line: what it prints, writes and returns, and what it refuses."""

from __future__ import annotations

import json
import shlex
import socket
import struct
import sys
from pathlib import Path

import pytest

from cli.harness import complaint
from virtblk.check.driver_messages import HANDSHAKE
from virtblk.cli import main
from waiting import PATIENCE, Background, wait_until

TINY = Path(__file__).parent / "tiny_driver.py"


def tiny(status: int) -> str:
    """A driver that asks for features, and ends with this status when it is told them."""
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(TINY))} {{socket}} {status}"


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--driver", "--list", "--only", "hangup"]) == 0
    out = capsys.readouterr().out
    assert "hangup.get-features  [vhost-user: Communication]  MUST, HIGH" in out
    assert len(HANDSHAKE) <= int(out.splitlines()[-1].split()[0])


def test_a_driver_that_notices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--driver", "--exec", tiny(0), "--only", "hangup.get-features"]) == 0
    out = capsys.readouterr().out
    assert "PASS    hangup.get-features" in out
    assert "1 PASS, 0 FAIL" in out


def test_a_driver_that_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes any twenty bytes for an answer."""
    results, junit = tmp_path / "r.json", tmp_path / "r.xml"
    words = ["--json", str(results), "--junit", str(junit), "--only", "reply.version", "--only", "reply.empty"]
    assert main(["check", "--driver", "--exec", tiny(0), *words]) == 1
    out = capsys.readouterr().out
    assert "FAIL    reply.version" in out
    assert "the driver reported success: VHOST_USER_GET_FEATURES; the driver: status 0: got 20 bytes" in out
    assert "PASS    reply.empty" in out
    found = json.loads(results.read_text())
    assert {r["id"]: r["verdict"] for r in found["results"]} == {"reply.version": "FAIL", "reply.empty": "PASS"}
    assert 'failures="1"' in junit.read_text()
    assert main(["check", "--driver", "--exec", tiny(0), "--only", "reply.version", "--fail-on", "critical"]) == 0


def test_lies_at_random(capsys: pytest.CaptureFixture[str]) -> None:
    """A driver that sends no requests meets lies in the handshake only."""
    assert main(["check", "--driver", "--exec", tiny(0), "--seed", "5", "--count", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("seed 5\n")
    assert "1 misbehaviours on " in out.splitlines()[-1]
    assert main(["check", "--driver", "--exec", tiny(0), "--seed", "5", "--count", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == out.splitlines()[:-1]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("hangup.get-features", "PASS    hangup.get-features"),
        ("reply.byte-by-byte", "only a driver that is run with --exec says whether it succeeded"),
    ],
)
def test_whoever_connects(name: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a front end that was not started here only the connection is seen."""
    path = tmp_path / "s"

    def front_end() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as device:
            wait_until(lambda: device.connect_ex(str(path)) == 0)
            device.settimeout(PATIENCE)
            device.sendall(struct.pack("<III", 1, 1, 0))
            device.recv(4096)

    connecting = Background(front_end)
    assert main(["check", "--driver", f"vhost-user:{path}", "--only", name]) == 0
    connecting.result()
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no driver to check: give --exec 'COMMAND {socket}', or vhost-user:SOCKET to wait for one"),
        (["--exec", "true"], "--exec 'true': write {socket} where the socket's path belongs"),
        (["--exec", "'{socket}"], "--exec \"'{socket}\": No closing quotation"),
        (["ram:1m"], "disk 'ram:1m': give vhost-user:SOCKET, on which drivers are waited for"),
        (["vhost-user:/dev/null"], "/dev/null exists: --driver makes the socket itself, and drivers connect to it"),
        (["vhost-user:/x", "--exec", "{socket}"], "both a socket ('vhost-user:/x') and --exec '{socket}': give one"),
        (["vhost-user:/nowhere/s"], "/nowhere/s: cannot listen: No such file or directory"),
        (["--exec", "{socket}", "--count", "0"], "--count 0: give the number of misbehaviours, at least 1"),
        (["--exec", "{socket}", "--timeout", "0"], "--timeout 0: give 0.1 to 600 seconds"),
        (["--exec", "/nowhere/driver {socket}"], "--exec '/nowhere/driver': No such file or directory"),
        (["--exec", "false {socket}"], "the driver ended without connecting: status 1"),
        (["--exec", "false {socket}", "--count", "9"], "the driver ended without connecting: status 1"),
        (["--exec", "{socket}", "--only", "nothing"], "--only 'nothing': no such check"),
    ],
)
def test_wrong_usage(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in complaint(capsys, "check", "--driver", *words)


@pytest.mark.parametrize("option", ["--seed", "--count"])
def test_options_of_drivers_only(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{option} 3: it is for --driver" in complaint(capsys, "check", option, "3", "vhost-user:/x")
