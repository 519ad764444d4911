"""The proof that the fuzzer finds things: devices with one defect each are found, reproduced and minimised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.nursery import Forked, Nursery
from virtblk.fuzz import campaign, case
from virtblk.fuzz.campaign import Campaign, FuzzOptions, Report
from virtblk.fuzz.groups import FRONT_END, GUEST

#: Seconds within which a defect is found; it takes one or two.
RUNTIME = 120.0
TIMEOUT = 30.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as process:
        yield process


def hunt(nursery: Nursery, defect: str, attacker: str, tmp_path: Path, timeout: float = TIMEOUT) -> Report:
    with Forked(nursery, defect, timeout) as target:
        target.start()
        run = Campaign(target, FuzzOptions(seed=7, runtime=RUNTIME, attackers=(attacker,), save_in=str(tmp_path)))
        try:
            return run.run()
        finally:
            run.close()


def replayed(nursery: Nursery, defect: str, path: str) -> Report:
    with Forked(nursery, defect, TIMEOUT) as target:
        target.start()
        run = Campaign(target, FuzzOptions(attackers=()))
        try:
            return run.replay(*case.load(path))
        finally:
            run.close()


@pytest.mark.parametrize(
    ("defect", "attacker", "kind", "steps", "note"),
    [
        pytest.param("crash-on-ring-size-0", FRONT_END, case.CRASH, 1, "SET_VRING_NUM", marks=pytest.mark.covers),
        ("crash-on-one-byte", GUEST, case.CRASH, 1, "length 1,"),
        # Interpreted, to look through all that came before takes too long.
        pytest.param("mirror-writes", GUEST, case.WRONG, 1, "request", marks=pytest.mark.compiled),
        pytest.param("scribble-on-writes", GUEST, case.WRONG, 1, "request", marks=pytest.mark.compiled),
    ],
)
def test_a_defect_is_found_and_minimised(
    nursery: Nursery, defect: str, attacker: str, kind: str, steps: int, note: str, tmp_path: Path
) -> None:
    report = hunt(nursery, defect, attacker, tmp_path)
    assert [finding.kind for finding in report.findings] == [kind]
    (finding,) = report.findings
    assert finding.reproduced, finding.detail
    assert len(finding.case.steps) == steps <= finding.steps_before
    assert any(note in line for line in finding.notes), finding.notes
    again = replayed(nursery, defect, finding.path)
    assert [each.kind for each in again.findings] == [kind]
    assert replayed(nursery, "none", finding.path).findings == []


@pytest.mark.once
def test_a_leak_is_found(nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "minimise", lambda steps, fails, **_: steps)  # each attempt is two dozen sessions
    report = hunt(nursery, "leak-call-descriptors", FRONT_END, tmp_path)
    assert [finding.kind for finding in report.findings] == [case.LEAK]
    assert "fds" in report.findings[0].detail


@pytest.mark.once
def test_a_hang_is_found(nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "minimise", lambda steps, fails, **_: steps)  # each attempt waits in vain
    report = hunt(nursery, "hang-on-config-beyond", FRONT_END, tmp_path, timeout=3.0)
    assert [finding.kind for finding in report.findings] == [case.HANG]
    assert report.findings[0].reproduced
    assert any("GET_CONFIG" in line for line in report.findings[0].notes)
