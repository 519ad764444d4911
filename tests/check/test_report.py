"""The table, JSON and JUnit of results that were made up: each finding comes with its clause and what showed it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from virtblk.check.report import device_facts, json_value, line_text, list_text, summary_text, write_junit
from virtblk.check.requirement import Level, Requirement, Result, Severity, Verdict
from virtblk.check.target import Facts
from virtblk.errors import UsageError


def requirement(name: str, severity: Severity = Severity.HIGH, **fields: object) -> Requirement:
    text = "The status is exactly one byte."
    return Requirement(name, "5.2.6", Level.MUST, severity, text, lambda t: "", **fields)  # type: ignore[arg-type]


PASSED = Result(requirement("blk.read"), Verdict.PASS, "512 bytes", 0.25)
FAILED = Result(requirement("blk.status", Severity.CRITICAL), Verdict.FAIL, "3 bytes behind it: 00 \x01 00", 0.5)
DEVIATES = Result(requirement("split.framing", Severity.DEVIATION), Verdict.FAIL, "status 1")
WEDGED = Result(requirement("chain.loop", Severity.LOW), Verdict.WEDGED, "no reply")
REFUSED = Result(requirement("chain.head"), Verdict.REJECT, "the session was closed")
SKIPPED = Result(requirement("blk.erase"), Verdict.SKIP, "the device does not offer VIRTIO_BLK_F_SECURE_ERASE")
ALL = [PASSED, FAILED, DEVIATES, WEDGED, REFUSED, SKIPPED]


def test_what_fails_is_shown_with_its_clause_and_the_bytes() -> None:
    assert line_text(FAILED, 12).splitlines() == [
        "FAIL    blk.status    5.2.6  MUST, CRITICAL",
        "        clause: The status is exactly one byte.",
        "        shown by: 3 bytes behind it: 00 \x01 00",
    ]
    assert line_text(DEVIATES, 0).splitlines()[0] == "FAIL    split.framing  5.2.6  MUST, common deviation"
    assert line_text(WEDGED, 0).splitlines()[0] == "WEDGED  chain.loop  5.2.6  MUST, CRITICAL"  # whatever the check is


def test_what_does_not_takes_one_line() -> None:
    assert line_text(PASSED, 0) == "PASS    blk.read  5.2.6  (512 bytes)"
    assert line_text(REFUSED, 0) == "REJECT  chain.head  5.2.6  (the session was closed)"
    assert line_text(SKIPPED, 0).endswith("(the device does not offer VIRTIO_BLK_F_SECURE_ERASE)")
    assert summary_text(ALL, 1.25) == "6 requirements in 1.2 s: 1 PASS, 2 FAIL, 1 REJECT, 1 WEDGED, 1 SKIP"


def test_the_list() -> None:
    unbuilt = Requirement("blk.power", "5.2.6.2", Level.SHOULD, Severity.LOW, "It lasts.", None, missing="a power cut")
    writes = requirement("blk.write", scratch=True, same_as="blk_write_1")
    assert list_text([writes, unbuilt]).splitlines() == [
        "blk.write  [5.2.6]  MUST, HIGH, writes, virtio-villain blk_write_1",
        "        The status is exactly one byte.",
        "blk.power  [5.2.6.2]  SHOULD, LOW, not built",
        "        It lasts.",
        "2 requirements",
    ]


@pytest.mark.parametrize(
    ("threshold", "failing"),
    [
        (Severity.DEVIATION, [FAILED, DEVIATES, WEDGED]),
        (Severity.LOW, [FAILED, WEDGED]),
        (Severity.CRITICAL, [FAILED, WEDGED]),
    ],
)
def test_what_fails_a_run(threshold: Severity, failing: list[Result]) -> None:
    assert [result for result in ALL if result.fails(threshold)] == failing


def test_json() -> None:
    facts = Facts(1 << 32 | 1 << 9 | 1 << 60, 1 << 9, 4, b"", 77, {"capacity": 8})
    device = device_facts(facts, "vhost-user:/s")
    assert device["features"] == ["VIRTIO_BLK_F_FLUSH", "VIRTIO_F_VERSION_1", "bit 60"]
    assert device["protocol_features"] == ["VHOST_USER_PROTOCOL_F_CONFIG"]
    value = json_value(device, ALL, 1.5)
    assert value["device"]["config"] == {"capacity": 8}
    assert value["counts"] == {"PASS": 1, "FAIL": 2, "REJECT": 1, "WEDGED": 1, "SKIP": 1}
    assert value["results"][1] == {
        "id": "blk.status",
        "section": "5.2.6",
        "level": "MUST",
        "verdict": "FAIL",
        "severity": "critical",
        "text": "The status is exactly one byte.",
        "detail": "3 bytes behind it: 00 \x01 00",
        "same_as": "",
        "seconds": 0.5,
    }
    assert value["results"][2]["severity"] == "common deviation"


def test_junit(tmp_path: Path) -> None:
    path = tmp_path / "r.xml"
    write_junit(str(path), ALL, [FAILED, WEDGED], 1.5)
    suite = ElementTree.parse(path).getroot()
    assert {key: suite.get(key) for key in ("name", "tests", "failures", "errors", "skipped")} == {
        "name": "virtblk check",
        "tests": "6",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    cases = {case.get("name"): case for case in suite}
    assert cases["blk.status"].get("classname") == "virtblk.check.blk"
    failure = cases["blk.status"].find("failure")
    assert failure is not None
    assert failure.get("message") == "MUST, CRITICAL: 3 bytes behind it: 00 ? 00"  # XML knows no \x01
    assert failure.text == "5.2.6: The status is exactly one byte."
    assert cases["chain.loop"].find("error") is not None
    assert cases["split.framing"].findtext("system-out") == "FAIL: status 1"  # below the threshold
    assert cases["blk.erase"].find("skipped") is not None
    assert cases["blk.read"].findtext("system-out") == "PASS: 512 bytes"


def test_junit_nowhere() -> None:
    with pytest.raises(UsageError, match=r"--junit '/nowhere/r.xml': No such file or directory"):
        write_junit("/nowhere/r.xml", ALL, [], 1.0)
