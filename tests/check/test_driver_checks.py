"""`virtblk check --driver` on our own driver: each misbehaviour once, and each check shown to be able to fail."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import virtblk
from check.our_driver import driver, work
from virtblk.check.driver_device import Plan
from virtblk.check.driver_runner import DRIVER, run, verdict_of
from virtblk.check.driver_trial import Outcome, Story, Trial
from virtblk.check.requirement import Level, Verdict
from virtblk.errors import OpenError

#: Seconds without a sign of life: far more than our driver's own time-out.
PATIENCE = 60.0
#: What our driver does not do: it looks at the status alone, as Linux does.
DEVIATIONS = {"used.length-short"}
#: Where the device says nothing, our driver waits for as long as it is told to: in vain, so not for long, unless the
#: machine is so busy that it gives up before it comes to the silence. Elsewhere it has all the time it wants.
SILENT = ("silent.", "lost.", "reply.runt", "reply.half")
TIMEOUTS = (0.3, 3.0, 20.0)
#: Checks in which a driver may succeed or fail, as long as it lives.
EITHER = {
    *("reply.fds", "stop.bad-base", "stop.hangup", "stop.silent", "features.no-version-1", "features.all"),
    *("features.least", "queue-num.0", "queue-num.huge", "notify.missing", "notify.stolen"),
    *("memory.scribbled-avail", "memory.truncated"),
    *(name for name in DRIVER.requirements if name.startswith("config.") and name != "config.refused"),
}


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Before anything is timed out."""
    with virtblk.open("ram:1m") as disk:
        disk.pread(512, 0)


class Recorder(Trial):
    """Keeps the story that it returns."""

    story: Story | None = None

    def run(self, plan: Plan) -> Story:
        self.story = super().run(plan)
        return self.story


class Replayed(Trial):
    """Tells a story again, as of a driver that reported something else."""

    def __init__(self, story: Story, outcome: Outcome) -> None:
        self.timeout = PATIENCE
        self._story = replace(story, outcome=outcome)

    def run(self, plan: Plan) -> Story:
        return self._story


def played(name: str, path: str) -> tuple[Recorder, Verdict, str]:
    """One misbehaviour against our driver."""
    for seconds in TIMEOUTS if name.startswith(SILENT) else [30.0]:
        trial = Recorder(driver(partial(work, timeout=seconds)), path, PATIENCE)
        verdict, detail = verdict_of(trial, DRIVER.requirements[name])
        if verdict is not Verdict.SKIP:
            break
    return trial, verdict, detail


@pytest.mark.parametrize("name", DRIVER.requirements)
def test_our_driver_is_sound_and_the_check_can_fail(name: str, tmp_path: Path) -> None:
    requirement = DRIVER.requirements[name]
    trial, verdict, detail = played(name, str(tmp_path / "s"))
    if verdict is Verdict.SKIP:
        assert name.endswith("set-mem-table"), detail  # our driver has a newer message for it
        return
    assert verdict is (Verdict.FAIL if name in DEVIATIONS else Verdict.PASS), detail
    assert trial.story is not None
    said = trial.story.outcome
    # The same story of drivers that are not sound.
    other = Outcome(0, "done") if said.status or name in DEVIATIONS else Outcome(1, "I/O error")
    assert verdict_of(Replayed(trial.story, other), requirement)[0] is (
        Verdict.PASS if name in EITHER else Verdict.FAIL
    )
    assert verdict_of(Replayed(trial.story, Outcome(-11)), requirement)[0] is Verdict.WEDGED
    words = "Traceback (most recent call last)\nKeyError: 5"
    assert verdict_of(Replayed(trial.story, Outcome(1, "KeyError: 5", words)), requirement)[0] is Verdict.FAIL
    trial.story.device.complaints.append("a request of no bytes")
    assert verdict_of(Replayed(trial.story, said), requirement)[0] is Verdict.FAIL


def test_enough_is_registered() -> None:
    assert len(DRIVER) >= 40
    assert {requirement.level for requirement in DRIVER} == {Level.MUST, Level.SHOULD}


def test_a_driver_that_waits_for_ever_is_wedged(tmp_path: Path) -> None:
    """And let go in the end, when the device hangs up."""
    [result] = run(
        driver(partial(work, timeout=30)), str(tmp_path / "s"), DRIVER.select(["lost.all-silent"]), timeout=0.3
    )
    assert result.verdict is Verdict.WEDGED
    assert "still waits 0.3 s" in result.detail


def test_a_driver_that_never_connects(tmp_path: Path) -> None:
    with pytest.raises(OpenError, match="the driver ended without connecting: status 2: no such disk"):
        run(driver(lambda path: Outcome(2, "no such disk")), str(tmp_path / "s"), DRIVER.select(), timeout=5)


def test_a_driver_that_sends_nothing_is_skipped(tmp_path: Path) -> None:
    def look(path: str) -> Outcome:
        with virtblk.open(f"vhost-user:{path}"):
            return Outcome(0)

    [result] = run(driver(look), str(tmp_path / "s"), DRIVER.select(["status.read-error"]), timeout=PATIENCE)
    assert result.verdict is Verdict.SKIP
    assert "it never came to it: the driver sent 1 requests" in result.detail
