"""A job file on a disk that a test controls: everything that its jobs did is in `device.io`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from bench.harness import connect, disk
from fake_device import FakeDevice
from virtblk.bench.fio_options import JobFile, parse_jobs
from virtblk.bench.fio_plan import FileOptions
from virtblk.bench.fio_runner import FioRunner, Outcome, compile_fio_jobs
from virtblk.bench.job import JobOptions
from virtblk.bench.session import Session
from virtblk.cli import main


@dataclass
class FioBench:
    """An open session, and the runner of one job file on it."""

    device: FakeDevice
    session: Session
    file: JobFile
    runner: FioRunner

    def run(self) -> list[Outcome]:
        """What each job did, in the file's order."""
        return [outcome for wave in self.runner.run() for outcome in wave.outcomes]


@contextmanager
def fio_bench(text: str, device: FakeDevice | None = None, path: str = "bio", **given: Any) -> Iterator[FioBench]:
    """The job file `text` on `device` (an honest disk of 64 blocks of 512 bytes). `given` are job options."""
    device = device or disk()
    with ExitStack() as stack:
        stack.callback(device.close)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("virtblk.bench.session.connect", partial(connect, device))
        file = parse_jobs(text, "a.fio")
        options = FileOptions.of(file, JobOptions(**{"timeout": 20.0} | given))
        session = stack.enter_context(Session("vhost-user:fake", options, compile_fio_jobs))
        runner = FioRunner(session, file, path)
        stack.callback(runner.close)
        yield FioBench(device, session, file, runner)


def job_json(capsys: pytest.CaptureFixture[str], disk_name: str, path: str, *words: str, status: int = 0) -> Any:
    """The JSON of `virtblk bench DISK --job PATH`, run in this process, which is quicker than another."""
    capsys.readouterr()
    formats = () if "--output-format" in words else ("--output-format", "json")
    assert main(["bench", disk_name, "--job", path, *formats, *words]) == status
    return json.loads(capsys.readouterr().out)
