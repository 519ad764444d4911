"""benchmarks/ring.py: it runs, it ends, and its two arms leave one another's ring alone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from bench.harness import bench, disk
from benchmarks.harness import BENCHMARKS, load
from cli.harness import PATIENCE
from fake_device import HOLD
from naive.virtio_blk import FEATURES, IN, INDIRECT
from virtblk.errors import DeviceError, UsageError

pytestmark = [pytest.mark.once, pytest.mark.compiled]

RING = BENCHMARKS / "ring.py"
LINE = re.compile(r" *(\w+) QD (\d+) +bare +([\d.]+)k  bio +([\d.]+)k IOPS   bio/bare ([\d.]+) \[([\d.]+), ([\d.]+)\]")


ring = load("ring")


def run(*words: str, **given: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RING), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, **given)


# As a program.


@pytest.mark.parametrize("words", [("null:1g", "--rw", "randread,seq-write"), ("ram:1m", "--bs", "512")])
def test_a_line_per_workload_and_depth(words: tuple[str, ...]) -> None:
    result = run(*words, "--pairs", "6", "--slice", "0.02", "--iodepth", "1,8")
    assert result.returncode == 0, result.stderr
    lines = [match for line in result.stdout.splitlines() if (match := LINE.fullmatch(line))]
    workloads = ["randread", "write"] if "--rw" in words else ["randread"]
    assert [(match[1], match[2]) for match in lines] == [(word, depth) for word in workloads for depth in ("1", "8")]
    for match in lines:
        bare, bio, ratio, low, high = map(float, match.groups()[2:])
        assert bare > 0
        assert bio > 0
        assert low <= ratio <= high
    assert ("write writes to the disk" in result.stdout) == ("write" in workloads)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--iodepth", "1,x"], "--iodepth 'x'"),
        (["--iodepth", "0"], "--iodepth 0"),
        (["--iodepth", "256"], "--iodepth 256 does not fit a ring of 128"),
        (["--bs", "5"], "--bs 5"),
        (["--rw", "reed"], "--rw 'reed'"),
        (["--pairs", "5"], "--pairs 5"),
        (["--slice", "0"], "--slice 0"),
        (["--queue-size", "100"], "--queue-size 100"),
        (["floppy:1"], "disk 'floppy:1'"),
        (["vhost-user:/nowhere"], "vhost-user:/nowhere: cannot connect"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ring.py", *words])
    with pytest.raises((UsageError, ring.VirtblkError)) as caught:
        ring.main()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_the_program_are_a_line_and_a_status() -> None:
    result = run("ram:0")
    assert result.returncode == 2
    assert result.stderr.startswith("ring.py: disk 'ram:0': size 0")
    assert len(result.stderr.splitlines()) == 1


# The two arms on one session.


def arms(run: Any, workload: str = "randread") -> Any:
    return ring.Arms(run.session, run.job, workload)


def test_queue_accounting_is_the_same_after_each_arm() -> None:
    """The bare loop takes requests of the pool without asking: all of them are back afterwards."""
    with bench(disk(), poll=True, iodepth=8) as run:
        both = arms(run)
        d = run.session.device.view  # type: ignore[union-attr]
        both.bio(0.02)
        for arm in (both.bare, both.bare, both.bio, both.bare, both.bio):
            assert arm(0.02) > 0
            free = int(d.queue[0]["free_requests"])
            spare = [int(s) for s in d.submitters["spare"] if s >= 0]
            pool = sorted([*d.free[:free].tolist(), *spare])
            assert pool == list(range(len(d.requests)))
            assert d.vq.state[0]["num_free"] == run.job.queue_size
            assert d.queue[0]["error"] == 0


def test_both_arms_ask_for_the_same_blocks_of_the_range() -> None:
    with bench(disk(), poll=True, iodepth=4) as run:
        both = arms(run)
        for arm in (both.bare, both.bio):
            before = len(run.device.io)
            for _ in range(20):  # a busy machine may not get through 64 random blocks in the first
                arm(0.3)
                seen = Counter(request.brief for request in run.device.io[before:])
                if len({sector for _, sector, _ in seen}) == 64:
                    break
            assert {kind for kind, _, _ in seen} == {IN}
            assert {size for _, _, size in seen} == {512}
            assert {sector for _, sector, _ in seen} == set(range(64))


def test_a_run_with_verify_after_both_arms_finds_nothing_wrong() -> None:
    """On the same session: a slot that the bare loop kept, or a request given out twice, would show here."""
    with bench(disk(), poll=True, iodepth=8, verify="crc32c", workloads=("write", "randread")) as run:
        both = arms(run, "randwrite")
        for _ in range(3):
            both.bare(0.02)
            both.bio(0.02)
        results = run.run()
    assert [(result.ios, result.errors, result.notes) for result in results] == [(64, 0, []), (64, 0, [])]


def test_regression_more_requests_than_the_ring_holds_are_refused() -> None:
    """The bare loop does not wait for room: it lost what did not fit, and waited for it."""
    says = "--iodepth 43 does not fit a ring of 128"
    direct = {"features": FEATURES & ~INDIRECT}
    with bench(disk(**direct), poll=True, iodepth=43) as run, pytest.raises(UsageError, match=says):
        arms(run)
    with bench(disk(**direct), poll=True, iodepth=42) as run:
        assert arms(run).bare(0.02) > 0


def test_regression_a_silent_device_ends_the_bare_loop() -> None:
    """It knows no time-out of its own."""
    device = disk(lambda request: HOLD if request.type == IN else None)
    with bench(device, poll=True, timeout=0.3) as run, pytest.raises(DeviceError, match=r"did not answer .*0\.3 s"):
        arms(run).bare(0.02)


def test_regression_a_device_that_dies_ends_the_bare_loop() -> None:
    """It waited for its requests for ever: it looked at nothing but the ring."""
    device = disk(lambda request: device.hang_up() or HOLD if request.sector == 5 and request.type == IN else None)
    with bench(device, poll=True, timeout=60.0) as run, pytest.raises(DeviceError, match="closed the connection"):
        arms(run).bare(60.0)
