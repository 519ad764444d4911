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
#: What a hostile front end can do to a device. What these find in devices of others goes to their owners first.
WITHHELD = ("vhost.memory-*", "vhost.ring-index-*", "vhost.ring-size-*", "vhost.ring-addr-*", "vhost.fds-*")


def explained() -> set[str]:
    """The ids in the first column of the page's tables."""
    cells = re.findall(r"^\| (`[a-z0-9.-]+`(?:, `[a-z0-9.-]+`)*) \|", FINDINGS.read_text(), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([a-z0-9.-]+)`", cell)}


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
    words = ["--exec", shlex.join(command), "--scratch", "--json", str(results)]
    skipped = [word for name in (TAKES_LONG, *WITHHELD) for word in ("--skip", name)]
    assert main(["check", *words, *skipped]) in (0, 1)
    out = capsys.readouterr().out
    value = json.loads(results.read_text())
    assert [result["id"] for result in value["results"]] == [r.id for r in DEVICE.select(skip=(TAKES_LONG, *WITHHELD))]
    assert value["counts"]["PASS"] >= 50, out
    found = {result["id"] for result in value["results"] if result["verdict"] in ("FAIL", "WEDGED")}
    assert not found - explained(), out
