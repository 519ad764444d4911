"""`virtblk check` on qemu-storage-daemon, a device that we did not write: it completes, and docs/findings.md explains
what it finds."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import peers
from virtblk.check.checks import DEVICE
from virtblk.cli import main

FINDINGS = Path(__file__).parent.parent.parent / "docs" / "findings.md"
#: 65536 requests, one after the other: a fifth of the whole run, for one check.
TAKES_LONG = "split.wrap-65536"


def explained() -> set[str]:
    """The ids in the first column of the page's tables."""
    rows = re.findall(r"^\| (`[^|]*`) \|", FINDINGS.read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_findings_name_checks_that_exist() -> None:
    assert explained() <= set(DEVICE.requirements)
    assert explained()


def checked(tmp_path: Path, skip: list[str]) -> list[dict[str, Any]]:
    """The results of all checks but those."""
    image, results = tmp_path / "disk.img", tmp_path / "results.json"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    command = [peers.qemu_storage_daemon(), "--blockdev", f"driver=file,filename={image},node-name=disk", "--export"]
    command.append("type=vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path={socket}")
    words = ["--exec", shlex.join(command), "--scratch", "--json", str(results)]
    assert main(["check", *words, *(word for name in skip for word in ("--skip", name))]) in (0, 1)
    value = json.loads(results.read_text())
    assert [result["id"] for result in value["results"]] == [r.id for r in DEVICE.select(skip=skip)]
    return list(value["results"])


@pytest.mark.peer
@pytest.mark.once
def test_each_finding_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for messages: those that break the protocol are its owners' first."""
    results = checked(tmp_path, [TAKES_LONG, "vhost"])
    out = capsys.readouterr().out
    assert sum(result["verdict"] == "PASS" for result in results) >= 50, out
    found = {result["id"] for result in results if result["verdict"] in ("FAIL", "WEDGED")}
    assert not found - explained(), out


@pytest.mark.peer
@pytest.mark.slow
def test_all_of_it_completes(tmp_path: Path) -> None:
    assert {result["verdict"] for result in checked(tmp_path, [])} >= {"PASS", "FAIL"}
