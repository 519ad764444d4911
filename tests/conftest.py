"""Which tests belong to this run, how hard properties are tried, and the check that no test leaves anything behind."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
COVERAGE = os.environ.get("COVERAGE_RUN", "") == "true"  # what `coverage run` says of itself
CHECKING = os.environ.get("VIRTBLK_CHECKING", "0") not in ("", "0")

# No deadline: the first example of a kernel compiles it.
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=100,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("interpreted", settings.get_profile("ci"), max_examples=25)
settings.register_profile("soak", settings.get_profile("ci"), max_examples=5000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("interpreted" if INTERPRETED else "ci"))

# What a shell starts in the background ignores SIGINT, and so would every process of ours that a test sends it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    kernels = "interpreted" if INTERPRETED else "compiled"
    return f"virtblk: kernels {kernels}{', checking guest memory' if CHECKING else ''}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects, not skips, what has nothing to say in this run: a skip is something that a reader could repair."""
    foreign = {"compiled"} if INTERPRETED else set()
    if INTERPRETED or CHECKING:
        foreign.add("once")
    covers = "covers" if INTERPRETED and COVERAGE else ""
    deselected = [
        item
        for item in items
        if any(item.get_closest_marker(name) for name in foreign - ({"once"} if _marked(item, covers) else set()))
    ]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]


def _marked(item: pytest.Item, name: str) -> bool:
    return bool(name) and item.get_closest_marker(name) is not None


@pytest.fixture(params=["bio", "request", "mq"])
def both_paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on each path: `driver.harness` opens its drivers on this one."""
    from driver import harness

    monkeypatch.setitem(harness.DEFAULTS, "path", request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a file descriptor or a child process behind, unless it is marked `leaky`."""
    before = _held()
    yield
    if request.node.get_closest_marker("leaky"):
        return
    left = _held() - before
    for attempt in range(600):  # what a thread or a dying child is about to give back is no leak: half a minute
        if not left:
            return
        if attempt == 0:
            gc.collect()
        else:
            time.sleep(0.05)
        left = _held() - before
    pytest.fail("left behind: " + ", ".join(sorted(left)), pytrace=False)


def _held() -> set[str]:
    """Every open file descriptor and every child of this process, zombies included."""
    held = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            held.add(f"fd {fd.name} -> {fd.readlink()}")
        except OSError:  # the descriptor that listed the directory, or a thread just closed it
            continue
    for children in Path("/proc/self/task").glob("*/children"):
        try:
            held.update(f"child {pid}" for pid in children.read_text().split())
        except OSError:
            continue
    return held
