"""`virtblk check` from the command line: what it prints, writes and returns, and what it refuses."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cli.harness import complaint
from virtblk.check.checks import DEVICE
from virtblk.cli import main
from virtblk.server import ChildDevice

pytestmark = [pytest.mark.once, pytest.mark.covers]

ROOT = Path(__file__).parent.parent.parent
#: Seconds; a sound device on a busy machine.
TIMEOUT = ("--timeout", "30")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A device, and the file behind it."""
    image = tmp_path_factory.mktemp("check") / "disk.img"
    image.write_bytes(bytes(range(256)) * (4 << 12))
    with ChildDevice(f"file:{image}") as child:
        child.wait_ready()
        yield f"vhost-user:{child.path}", image


def mutant(name: str, directory: Path) -> str:
    """The command of a device with one defect."""
    words = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.mutants", "--directory", str(directory)]
    return shlex.join([*words, name, "{socket}"])


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(DEVICE)} requirements"
    assert {name.split()[0] for name in lines[:-1] if not name.startswith(" ")} == set(DEVICE.requirements)
    assert main(["check", "--list", "--only", "blk", "--skip", "blk.read*", "--skip", "blk.zoned-*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "blk.get-id  [5.2.6]  MUST, LOW" in lines
    assert not [line for line in lines if line.startswith(("common.", "split.", "blk.read", "blk.zoned-"))]


def test_the_table(device: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    disk, _ = device
    assert main(["check", *TIMEOUT, "--only", "blk.block-size", "--only", "blk.zoned-c*", disk]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [
        "PASS    blk.block-size    5.2.4  (blk_size is 512)",
        "SKIP    blk.zoned-config  5.2.5.2  (the device does not offer VIRTIO_BLK_F_ZONED)",
    ]
    assert last.startswith("2 requirements in ")
    assert last.endswith(" s: 1 PASS, 0 FAIL, 0 REJECT, 0 WEDGED, 1 SKIP")


def test_a_disk_is_written_to_only_when_that_is_allowed(
    device: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk, image = device
    before = image.read_bytes()
    words = ["--only", "blk.write-in-place", "--only", "blk.discard", "--only", "blk.read"]
    assert main(["check", *TIMEOUT, *words, disk]) == 0
    out = capsys.readouterr().out
    assert out.count("(it writes to the disk, and --scratch was not given)") == 2
    assert image.read_bytes() == before
    assert main(["check", *TIMEOUT, *words, "--scratch", disk]) == 0
    assert "3 PASS" in capsys.readouterr().out
    after = image.read_bytes()
    assert after != before
    assert after[1 << 20 :] == before[1 << 20 :]


def test_json_and_junit(device: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk, _ = device
    path, junit = tmp_path / "r.json", tmp_path / "r.xml"
    words = [*TIMEOUT, "--only", "common", "--junit", str(junit)]
    assert main(["check", *words, "--json", str(path), disk]) == 0
    assert capsys.readouterr().out.startswith("PASS    common.version-1")
    value = json.loads(path.read_text())
    assert main(["check", *words, "--json", "-", disk]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["results"][0].keys() == value["results"][0].keys()  # nothing else is there
    assert captured.err.startswith("PASS    common.version-1")
    assert value["device"]["name"] == disk
    assert "VIRTIO_BLK_F_FLUSH" in value["device"]["features"]
    assert value["device"]["config"]["capacity"] == (4 << 20) // 512
    wanted = [requirement.id for requirement in DEVICE if requirement.group == "common"]
    assert [result["id"] for result in value["results"]] == wanted
    assert sum(value["counts"].values()) == len(wanted)
    suite = ElementTree.parse(junit).getroot()
    assert [case.get("name") for case in suite] == wanted


def test_a_failure_counts_from_its_severity_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = mutant("id_padded_with_spaces", tmp_path)
    words = ["check", "--timeout", "30", "--exec", command, "--only", "blk.get-id"]
    junit = tmp_path / "r.xml"
    assert main([*words, "--junit", str(junit)]) == 0  # LOW is below what fails by default
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "FAIL    blk.get-id  5.2.6  MUST, LOW"
    assert lines[1].strip() == "clause: GET_ID returns 20 bytes of ASCII, padded with NULs."
    assert lines[2].strip().startswith("shown by: it is ")
    assert lines[2].strip().endswith(" 20 20 20 20")  # the bytes
    assert 'failures="0"' in junit.read_text()
    assert main([*words, "--fail-on", "low", "--junit", str(junit)]) == 1
    assert 'failures="1"' in junit.read_text()
    capsys.readouterr()


def test_a_device_that_dies_is_started_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = mutant("broken_chain_aborts", tmp_path)
    words = ["--only", "chain.self-loop", "--only", "chain.two-loop", "--skip", "blk"]
    assert main(["check", "--timeout", "30", "--exec", command, *words]) == 1
    out = capsys.readouterr().out
    assert out.count("the device's process ended: signal SIGABRT") == 2  # the second was there to be killed
    assert "2 WEDGED" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no device to check: give vhost-user:SOCKET or --exec 'COMMAND {socket}'"),
        (["--exec", "true"], "--exec 'true': write {socket} where the socket's path belongs"),
        (["--exec", "'{socket}"], '--exec "\'{socket}": No closing quotation'),
        (["vhost-user:/x", "--exec", "a {socket}"], "both a disk ('vhost-user:/x') and --exec 'a {socket}': give one"),
        (["ram:1m"], "disk 'ram:1m': give vhost-user:SOCKET, or --exec 'virtblk serve ram:1m --socket-path {socket}'"),
        (["vhost-user:/nowhere/s"], "/nowhere/s: No such file or directory"),
        (["vhost-user:/x", "--timeout", "0"], "--timeout 0: give 0.1 to 600 seconds"),
        (["vhost-user:/x", "--only", "nothing"], "--only 'nothing': no such check; groups are "),
        (["vhost-user:/x", "--skip", "blk.no*"], "--skip 'blk.no*': no such check; groups are "),
        (["vhost-user:/x", "--junit", "-"], "--junit -: give a path"),
        (["vhost-user:/x", "--json", "/nowhere/r"], "--json '/nowhere/r': there is no directory '/nowhere'"),
        (["vhost-user:/x", "--junit", "/nowhere/r"], "--junit '/nowhere/r': there is no directory '/nowhere'"),
        (["vhost-user:/x", "--fail-on", "worst"], "argument --fail-on: invalid choice: 'worst'"),
        (["--exec", "/nowhere/device {socket}"], "--exec '/nowhere/device': No such file or directory"),
        (["--exec", "false {socket}"], "--exec 'false' ended with status 1"),
        (["--exec", "sh -c 'echo no disk; exit 3' {socket}"], "--exec 'sh' ended with status 3: no disk"),
    ],
)
def test_wrong_usage(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in complaint(capsys, "check", *words)
