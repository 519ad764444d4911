"""Verdicts: what a check raises, and what the device does after it, is told apart from what this process lacks."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from virtblk.check import runner
from virtblk.check.checks import DEVICE
from virtblk.check.requirement import Failed, Registry, Rejected, Result, Severity, Skipped, Verdict
from virtblk.check.target import Target
from virtblk.server import ChildDevice

pytestmark = [pytest.mark.once, pytest.mark.covers]

#: Seconds; the device is sound, and the machine busy.
TIMEOUT = 30.0


@pytest.fixture(scope="module")
def device() -> Iterator[str]:
    with ChildDevice("ram:4m", queues=2) as child:
        child.wait_ready()
        yield str(child.path)


def judge(path: str, *checks: Callable[[runner.Tester], str | None], **keywords: Any) -> list[Result]:
    """Run checks that are registered nowhere else."""
    registry = Registry()
    for number, check in enumerate(checks):
        check.__doc__ = "It holds."
        registry.must(f"own.check-{number}", "0", Severity.LOW, **keywords)(check)
    target = Target(path, None, TIMEOUT)
    return runner.run(target, registry.select(), scratch=False)


def raises(error: Exception) -> Callable[[runner.Tester], str]:
    def check(t: runner.Tester) -> str:
        raise error

    return check


def reads(t: runner.Tester) -> str:
    return f"{len(t.session().read(0))} bytes"


@pytest.mark.parametrize(
    ("check", "verdict", "detail"),
    [
        (reads, Verdict.PASS, "512 bytes"),
        (raises(Failed("one is two")), Verdict.FAIL, "one is two"),
        (raises(Rejected("the ring stopped")), Verdict.REJECT, "the ring stopped"),
        (raises(Skipped("no such disk")), Verdict.SKIP, "no such disk"),
    ],
)
def test_verdicts(device: str, check: Callable[[runner.Tester], str], verdict: Verdict, detail: str) -> None:
    (result,) = judge(device, check)
    assert (result.verdict, result.detail) == (verdict, detail)


def test_what_this_process_lacks_is_no_verdict(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors, say: a device must not be called dead for it."""

    def no_more(*arguments: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    def check(t: runner.Tester) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", no_more)
            t.session()
        return ""

    with pytest.raises(OSError, match=r"own\.check-0 cannot be run: Too many open files") as caught:
        judge(device, check)
    assert caught.value.errno == errno.EMFILE


def test_nobody_listens_any_more(device: str, tmp_path: Path) -> None:
    """Without a command there is no other device: what is left is not run, and the reason is given."""
    path = tmp_path / "device.sock"
    path.symlink_to(device)

    def check(t: runner.Tester) -> str:
        path.unlink()
        t.session()
        return ""

    wedged, after = judge(str(path), check, reads)
    assert wedged.verdict is Verdict.WEDGED
    assert wedged.detail.startswith("no connection: No such file or directory; then a new front end is not served")
    assert after.verdict is Verdict.SKIP
    assert after.detail == ("not run: since own.check-0, the device is gone, and there is no --exec to start it again")


def test_broken_addresses_cost_no_descriptor(device: str) -> None:
    """The memory of a check goes with it: what is left behind fails any test."""
    target = Target(device, None, TIMEOUT)
    results = runner.run(target, DEVICE.select(["chain.address-*"]), scratch=False)
    assert {r.verdict for r in results} <= {Verdict.PASS, Verdict.REJECT}, results
