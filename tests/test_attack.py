"""The step `attack` of scripts/test by itself: it fails over a finding, and leaves what runs it again."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest

import attack

SEED = 7


class Parts:
    """In place of `virtblk check` and `virtblk fuzz`: what each was asked for, and what it is to return."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fuzzed: list[list[str]] = []
        self.statuses = {"check": 0, "driver": 0, "fuzz": 0}
        monkeypatch.setattr(attack, "check", lambda disks, save_in: dict.fromkeys(disks, self.statuses["check"]))
        monkeypatch.setattr(attack, "drive", lambda seconds, seed, save_in: self.statuses["driver"])
        monkeypatch.setattr(attack, "command_line", self._fuzz)

    def _fuzz(self, words: list[str]) -> int:
        self.fuzzed.append(words)
        return self.statuses["fuzz"]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    return Parts(monkeypatch)


def run(tmp_path: Path) -> int:
    return attack.main(["--seconds", "100", "--seed", str(SEED), "--save-in", str(tmp_path / "found")])


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_nothing_found(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 0
    assert [option(words, "--exec").split()[4].partition(":")[0] for words in parts.fuzzed] == ["file", "ram"]
    seconds = sum(float(option(words, "--runtime")) for words in parts.fuzzed)
    assert seconds == pytest.approx(100 * (1 - attack.DRIVER_SHARE), rel=0.5)
    assert {option(words, "--save-in") for words in parts.fuzzed} == {str(tmp_path / "found")}
    assert [option(words, "--seed") for words in parts.fuzzed] == [str(SEED), str(SEED + 1)]
    assert f"seed {SEED}" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["check", "driver", "fuzz"])
def test_a_finding_fails_the_step_when_all_has_run(
    part: str, parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts.statuses[part] = 1
    assert run(tmp_path) == 1
    assert len(parts.fuzzed) == 2
    assert f"failed: {part}" in capsys.readouterr().out


def test_an_interrupt_ends_it(parts: Parts, tmp_path: Path) -> None:
    parts.statuses["fuzz"] = 130
    assert run(tmp_path) == 130
    assert len(parts.fuzzed) == 1


def test_a_driver_that_fails_is_told_with_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an error that no driver may end in."""

    def fail(hammer: attack.Hammer, *arguments: Any) -> None:
        raise OSError(errno.EBADF, "not ours")

    monkeypatch.setattr(attack.Hammer, "_one", fail)
    assert attack.main(["--connection", str(SEED), "--save-in", str(tmp_path)]) == 1
    saved = tmp_path / f"driver-{SEED}.txt"
    assert f"--connection {SEED}" in saved.read_text()
    assert str(saved) in capsys.readouterr().out


def test_the_checks_are_told_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here of devices that do not come up: a status that is not 0, and the last line of each."""
    disks = {"none": f"file:{tmp_path}/none", "unknown": "tape:0"}
    assert attack.check(disks, tmp_path, "--only", "blk") == {"none": 2, "unknown": 2}
    out = capsys.readouterr().out
    assert "No such file" in out
    assert "tape" in out
    assert sys.executable in attack.serve("ram:1m")
