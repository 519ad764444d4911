"""A campaign by itself, with attackers that do as they are told: when it ends, and what becomes of a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from virtblk.fuzz import campaign as campaign_module
from virtblk.fuzz import case
from virtblk.fuzz.campaign import Campaign, FuzzOptions, Report
from virtblk.fuzz.case import Case, DeviceFailed
from virtblk.fuzz.groups import FRONT_END, GUEST
from virtblk.fuzz.messages import Facts
from virtblk.fuzz.report import Progress, print_report


class FakeTarget:
    """A device that is asked nothing."""

    path = "/run/disk.sock"

    def __init__(self, can_restart: bool = True) -> None:
        self.can_restart = can_restart
        self.restarts = 0

    def start(self) -> None:
        self.restarts += 1

    def last_words(self) -> list[str]:
        return ["virtblk: last words"]


class FakeAttack:
    """Ten inputs a turn; fails in turn `fails_in`, and again with each case that has all of `guilty` in it."""

    def __init__(
        self, name: str, *, fails_in: int = 0, kind: str = case.CRASH, guilty: tuple[int, ...] = (3, 5)
    ) -> None:
        self.name, self.kind = name, kind
        self.inputs = self.turns = self.probes = self.restarts = 0
        self.fails_in, self.guilty = fails_in, set(guilty)
        self.probe_fails = self.closed = False
        self.asked: list[int] = []

    def attack(self, deadline: float, count: int) -> None:
        self.asked.append(count)
        self.turns += 1
        self.inputs += 10
        if self.turns == self.fails_in:
            raise DeviceFailed(self.kind, "as it was told")

    def probe(self) -> None:
        self.probes += 1
        if self.probe_fails:
            raise DeviceFailed(self.kind, "in the end")

    def suspects(self) -> list[Case]:
        return [Case(self.name, [9], 7), Case(self.name, [*range(8)], 7)]

    def run(self, case: Case) -> None:
        if self.guilty <= set(case.steps):
            raise DeviceFailed(self.kind, "again")

    def notes(self, case: Case) -> list[str]:
        return [f"step {step}" for step in case.steps]

    def restarted(self) -> None:
        self.restarts += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Campaign]:
    """A campaign of these attacks."""
    monkeypatch.setattr(campaign_module, "ask_facts", lambda target: Facts(1 << 32, 7, 2, 2048))

    def made(*attacks: FakeAttack, target: FakeTarget | None = None, **options: Any) -> Campaign:
        by_name = {attack.name: attack for attack in attacks}
        monkeypatch.setattr(Campaign, "_attack", lambda self, name, facts: by_name[name])
        wanted = FuzzOptions(attackers=tuple(by_name), save_in=str(tmp_path), **options)
        return Campaign(target or FakeTarget(), wanted)  # type: ignore[arg-type]

    return made


def saved(tmp_path: Path) -> dict[str, Any]:
    (path,) = tmp_path.iterdir()
    return dict(json.loads(path.read_text()))


def test_it_ends_with_its_count_and_a_last_look(make: Callable[..., Campaign], tmp_path: Path) -> None:
    front, guest = FakeAttack(FRONT_END), FakeAttack(GUEST)
    report = make(front, guest, count=45).run()
    assert report.inputs == {FRONT_END: 30, GUEST: 20}
    assert (front.asked, guest.asked) == ([45, 25, 5], [35, 15])
    assert (front.probes, guest.probes) == (1, 1)
    assert report.findings == []
    assert list(tmp_path.iterdir()) == []


def test_it_ends_with_its_time(make: Callable[..., Campaign], monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            self.now += 1
            return self.now

    monkeypatch.setattr(campaign_module, "time", Clock())
    guest = FakeAttack(GUEST)
    report = make(guest, runtime=30.0).run()
    assert 3 < guest.turns < 30
    assert report.seconds > 30
    assert report.as_dict()["rate"] == round(10 * guest.turns / report.seconds, 1)


def test_a_failure_is_run_again_made_shorter_and_saved(make: Callable[..., Campaign], tmp_path: Path) -> None:
    guest, target = FakeAttack(GUEST, fails_in=2), FakeTarget()
    front = FakeAttack(FRONT_END)
    report = make(front, guest, target=target).run()
    (finding,) = report.findings
    assert (finding.kind, finding.detail, finding.reproduced) == (case.CRASH, "as it was told", True)
    assert (finding.case.steps, finding.steps_before) == ([3, 5], 8)
    assert finding.notes == ["step 3", "step 5", "device: virtblk: last words"]
    assert target.restarts == guest.restarts > 3, "each time on a fresh device"
    assert front.turns == 2, "nothing goes on after the first failure"
    value = saved(tmp_path)
    assert finding.path.endswith("fuzz-crash-guest-7.json")
    assert (value["steps"], value["finding"]["reproduced"]) == ([3, 5], True)
    loaded, kind = case.load(finding.path)
    assert (loaded, kind) == (finding.case, case.CRASH)


def test_a_failure_of_another_kind_is_another_failure(make: Callable[..., Campaign], tmp_path: Path) -> None:
    guest = FakeAttack(GUEST, fails_in=1)
    run = make(guest)
    guest.run = lambda each: (_ for _ in ()).throw(DeviceFailed(case.HANG, "now it hangs"))  # type: ignore[method-assign]
    (finding,) = run.run().findings
    assert not finding.reproduced
    assert finding.steps_before == 1, "the first suspect, as it was"
    assert saved(tmp_path)["finding"]["reproduced"] is False


@pytest.mark.parametrize(("kind", "reproduced"), [(case.CRASH, False), (case.HANG, False), (case.WRONG, True)])
def test_a_device_that_cannot_be_started_again_is_asked_only_while_it_lives(
    make: Callable[..., Campaign], kind: str, reproduced: bool
) -> None:
    guest = FakeAttack(GUEST, fails_in=1, kind=kind)
    (finding,) = make(guest, target=FakeTarget(can_restart=False)).run().findings
    assert finding.reproduced is reproduced
    assert finding.case.steps == ([3, 5] if reproduced else [*range(8)])


def test_a_failure_in_the_last_look_counts(make: Callable[..., Campaign], tmp_path: Path) -> None:
    guest = FakeAttack(GUEST)
    guest.probe_fails = True
    (finding,) = make(guest, count=10).run().findings
    assert finding.detail == "in the end"
    assert saved(tmp_path)["steps"] == [3, 5]


def test_ctrl_c_while_a_case_is_made_shorter_leaves_what_there_is(
    make: Callable[..., Campaign], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(steps: list[Any], fails: Callable[[list[Any]], bool], progress: Any) -> None:
        assert fails([2, 3, 5])
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign_module, "minimise", interrupted)
    report = make(FakeAttack(GUEST, fails_in=1)).run()
    assert report.interrupted
    assert saved(tmp_path)["steps"] == [2, 3, 5]


def test_attacks_are_closed_when_one_cannot_begin(
    make: Callable[..., Campaign], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FakeAttack(FRONT_END)
    make(first)

    def begin(self: Campaign, name: str, facts: Facts) -> FakeAttack:
        if name == GUEST:
            raise OSError("no memory to share")
        return first

    monkeypatch.setattr(Campaign, "_attack", begin)
    with pytest.raises(OSError, match="no memory to share"):
        Campaign(FakeTarget(), FuzzOptions())  # type: ignore[arg-type]
    assert first.closed


def test_a_finding_is_told_with_what_to_do_next(make: Callable[..., Campaign]) -> None:
    out = StringIO()
    run = make(FakeAttack(GUEST, fails_in=1))
    report = run.run()
    print_report(report, FuzzOptions(attackers=(GUEST,)), out)
    text = out.getvalue()
    assert "CRASH: as it was told (guest, reproduced)\n    step 3\n    step 5\n" in text
    assert f"2 of 8 steps saved; --replay {report.findings[0].path}" in text
    assert "nothing found" not in text
    assert report.as_dict()["findings"][0]["steps"] == 2


def test_progress_tells_how_far_a_campaign_and_a_case_are() -> None:
    class Due(Progress):
        def due(self) -> bool:
            return True

    stream = StringIO()
    report = Report({}, 1, inputs={GUEST: 1_500_000})
    Due(stream, FuzzOptions(runtime=60.0)).campaign(15.0, report)
    Due(stream, FuzzOptions(runtime=0.0, count=10)).campaign(0.0, report)
    Due(stream, FuzzOptions()).minimising(12, 34)
    first, second, third = stream.getvalue().splitlines()
    assert first.startswith("fuzz: 15 of 60 s, 1.50M inputs, 100k/s, 0 of ")
    assert second.startswith("fuzz: 0 s, 1.50M inputs, 0/s, ")
    assert third == "fuzz: minimising, 34 steps left after 12 runs"
