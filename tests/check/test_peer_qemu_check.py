"""`virtblk check` on qemu-storage-daemon, a device that we did not write: it completes, and docs/findings.md explains
what it finds."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import peers
from virtblk.check.checks import DEVICE
from virtblk.cli import main

FINDINGS = Path(__file__).parent.parent.parent / "docs" / "findings.md"
#: 65536 requests, one after the other: a fifth of the whole run, for one check.
TAKES_LONG = "split.wrap-65536"


def explained() -> set[str]:
    """The ids in the first column of the page's tables."""
    return set(re.findall(r"^\| `([a-z0-9.-]+)` \|", FINDINGS.read_text(), re.MULTILINE))


def test_findings_name_checks_that_exist() -> None:
    assert explained() <= set(DEVICE.requirements)
    assert explained()


@pytest.mark.peer
@pytest.mark.once
def test_each_finding_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, results = tmp_path / "disk.img", tmp_path / "results.json"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    command = [peers.qemu_storage_daemon(), "--blockdev", f"driver=file,filename={image},node-name=disk", "--export"]
    command.append("type=vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path={socket}")
    words = ["--exec", shlex.join(command), "--scratch", "--skip", TAKES_LONG, "--json", str(results)]
    assert main(["check", *words]) in (0, 1)
    out = capsys.readouterr().out
    value = json.loads(results.read_text())
    assert [result["id"] for result in value["results"]] == [r for r in DEVICE.requirements if r != TAKES_LONG]
    assert value["counts"]["PASS"] >= 50, out
    found = {result["id"] for result in value["results"] if result["verdict"] in ("FAIL", "WEDGED")}
    assert not found - explained(), out
