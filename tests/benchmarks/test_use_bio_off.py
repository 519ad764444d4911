"""benchmarks/use_bio_off.py: it runs, it ends, both arms take the request path, and wrong usage is a line."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import BENCHMARKS, load
from cli.harness import PATIENCE
from driver.harness import driver
from fake_device import HOLD, FakeDevice
from naive.virtio_blk import GET_ID, IN, IOERR
from virtblk.driver.virtblk_req import RequestPathOnly
from virtblk.errors import DeviceError, UsageError

pytestmark = [pytest.mark.once, pytest.mark.compiled]

SCRIPT = BENCHMARKS / "use_bio_off.py"
RATIO = r"([\d.]+) \[([\d.]+), ([\d.]+)\]"
LINE = re.compile(rf"QD (\d+) +IOPS ([\d.]+)k / ([\d.]+)k  {RATIO}  busy ([\d.]+) / ([\d.]+) ns  {RATIO}")


use_bio_off = load("use_bio_off")


@pytest.mark.parametrize("paths", list(use_bio_off.ARMS.values()))
def test_every_read_takes_the_request_path(paths: Any) -> None:
    options = {"path": "request", "paths": paths(), "poll_us": None, "bios_each": 4, "segments_each": 1}
    with FakeDevice() as device, driver(device, **options, data_bytes=4 * 512) as opened:
        arm = use_bio_off.Arm(opened, 4, 512)
        for _ in range(2):
            iops, busy = arm.run(0.05)
            assert iops > 0
            assert busy > 0
        assert {kind for kind, _, _ in device.seen} == {IN}
        assert opened.view.q.state[0]["dispatched"] == len(device.requests)
        assert opened.view.q.state[0]["in_use"] == 0


@pytest.mark.parametrize(
    ("answer", "says"), [(HOLD, r"did not answer .*0\.3 s"), (IOERR, "a read failed")], ids=["silent", "errors"]
)
def test_a_device_that_fails_ends_it(answer: object, says: str) -> None:
    timeout = 0.3 if answer is HOLD else PATIENCE
    options = {"path": "request", "paths": RequestPathOnly(), "poll_us": None, "timeout": timeout}
    with (
        FakeDevice(lambda request: None if request.type == GET_ID else answer) as device,
        driver(device, **options, segments_each=1) as opened,
        pytest.raises(DeviceError, match=says),
    ):
        use_bio_off.Arm(opened, 1, 512).run(0.02)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--iodepth", "1,x"], "--iodepth 'x'"),
        (["--iodepth", "129"], "--iodepth 129"),
        (["--bs", "5"], "--bs 5"),
        (["--turns", "10"], "--turns 10"),
        (["--turns", "15"], "--turns 15"),
        (["--pairs", "0"], "--pairs 0"),
        (["--slice", "0"], "--slice 0"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["use_bio_off.py", *words])
    with pytest.raises(UsageError) as caught:
        use_bio_off.main()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_device_makes_does_not_count_for_an_arm() -> None:
    """One device is 10 % faster, and the arms change devices every turn; the second arm is 3 % faster."""
    rng = np.random.default_rng(1)
    arms, devices = np.array([1.0, 1.03]), np.array([1.1, 1.0])
    figures = np.array([arms * np.roll(devices, turn) * rng.uniform(0.999, 1.001, (5, 2)) for turn in range(20)])
    ratio, low, high = use_bio_off.ratio_of_arms(figures)
    assert low <= ratio <= high
    assert abs(ratio - 1 / 1.03) < 0.002
    assert high - low < 0.004


def test_a_line_per_depth() -> None:
    """Last: the tests before it compile most of what the program runs, which has its own limit of time."""
    words = ["null:1m", "--turns", "12", "--pairs", "1", "--slice", "0.02", "--iodepth", "1,8"]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stderr
    lines = [match for line in result.stdout.splitlines() if (match := LINE.fullmatch(line))]
    assert [match[1] for match in lines] == ["1", "8"]
    for match in lines:
        figures = [float(text) for text in match.groups()[1:]]
        assert all(figure > 0 for figure in figures)
        for ratio, low, high in (figures[2:5], figures[7:10]):
            assert low <= ratio <= high
