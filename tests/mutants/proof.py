"""Has a mutant checked by `virtblk check`, in this process: what a check says of it is the proof that it can fail."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fork_server import ROOT
from virtblk.check import runner
from virtblk.check.checks import DEVICE
from virtblk.check.requirement import Requirement, Result, Verdict
from virtblk.check.target import START_TIMEOUT, Target
from virtblk.errors import OpenError

from .mutant import Mutant
from .nursery import Nursery

#: Verdicts that are a catch.
CAUGHT: Final = (Verdict.FAIL, Verdict.WEDGED)
#: A race that a defect loses can be won by luck, on a busy machine: a mutant that was missed is tried again.
TRIES: Final = 3
#: Seconds for an answer of a mutant; many of them never answer. And of the healthy device, on a busy machine.
MUTANT_TIMEOUT: Final = 1.5
HEALTHY_TIMEOUT: Final = 30.0


class NurseryTarget(Target):
    """A device out of the nursery, started, restarted and ended as `--exec` does it."""

    def __init__(self, nursery: Nursery, name: str, disk: str, timeout: float) -> None:
        self._files = tempfile.TemporaryDirectory(prefix="virtblk-mutant-")
        self._nursery, self._name, self._disk = nursery, name, disk
        super().__init__(str(Path(self._files.name) / "device.sock"), None, timeout)
        self._command = ["env", "-C", str(ROOT), sys.executable, "-m", "tests.mutants", name]
        self._command += ["--disk", disk] if disk else []
        self._command += ["--directory", self._files.name, f"--socket-path={self.path}"]
        self._log_path = Path(self._files.name) / "log"
        self._log_path.touch()
        self._log = self._log_path.open("rb")

    def start(self) -> None:
        Path(self.path).unlink(missing_ok=True)
        directory = self._files.name
        device: Any = self._nursery.start(self._name, self.path, directory, self._disk, str(self._log_path))
        self.process = device
        deadline = time.monotonic() + START_TIMEOUT
        while not self._listens():
            if device.poll() is not None or time.monotonic() > deadline:
                raise OpenError(5, f"mutant {self._name} does not listen{self.last_words()}")
            time.sleep(0.002)

    def close(self) -> None:
        """At once: it has nothing to lose."""
        self.stop(signal.SIGKILL)
        super().close()
        self._files.cleanup()


def prove(nursery: Nursery, mutant: Mutant) -> list[Result]:
    """What the checks that a mutant claims say of it.

    The runner demands besides that the device serves the next client after each check. A mutant that never serves any
    would be caught by whatever check comes first; so that counts here only where the device did serve before the check.
    """
    with _started(nursery, mutant.name, "", HEALTHY_TIMEOUT) as target:
        assert target.facts  # which every mutant tells
        target.timeout = MUTANT_TIMEOUT
        return [_prove(target, requirement) for requirement in DEVICE.select(mutant.checks)]


def _prove(target: Target, requirement: Requirement) -> Result:
    reason = runner._why_not(target, requirement, True)
    if reason:
        return Result(requirement, Verdict.SKIP, reason)
    for _ in range(TRIES):
        verdict, detail = runner._verdict(runner.Tester(target, scratch=True), requirement)
        trouble = None if verdict in CAUGHT else runner._probe(target)
        if trouble is not None:
            target.restart()
            if runner._probe(target) is None:
                verdict, detail = Verdict.WEDGED, trouble
        elif verdict is Verdict.WEDGED:
            target.restart()
        if verdict in CAUGHT:
            break
    return Result(requirement, verdict, detail)


def check_healthy(nursery: Nursery, disk: str, checks: Sequence[str] = ()) -> list[Result]:
    """What the checks named (all, without any) say of the device without a defect."""
    with _started(nursery, "healthy", disk, HEALTHY_TIMEOUT) as target:
        return runner.run(target, DEVICE.select(checks), scratch=True)


@contextmanager
def _started(nursery: Nursery, name: str, disk: str, timeout: float) -> Iterator[NurseryTarget]:
    target = NurseryTarget(nursery, name, disk, timeout)
    try:
        target.start()
        yield target
    finally:
        target.close()
