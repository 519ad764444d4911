"""Runs the checks of a driver, one trial after the other, and makes verdicts of what they raise.

Called by `virtblk check --driver` and by tests. Control context.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence

from virtblk.check import driver_messages, driver_ring
from virtblk.check.driver_trial import DRIVER, FrontEnd, Hung, NeverConnected, Trial
from virtblk.check.requirement import Failed, Requirement, Result, Skipped, Verdict
from virtblk.errors import OpenError

__all__ = ["DRIVER", "driver_messages", "driver_ring", "run"]


def run(
    front_end: FrontEnd,
    path: str,
    requirements: Sequence[Requirement],
    *,
    timeout: float,
    progress: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Play each misbehaviour once. `timeout`: seconds without a sign of life after which a driver hangs.

    Raises OpenError where no driver connects, or none can be started.
    """
    results: list[Result] = []
    for requirement in requirements:
        try:
            result = _run_one(Trial(front_end, path, timeout), requirement)
        except NeverConnected as error:
            if not results:
                raise OpenError(errno.ECONNREFUSED, str(error)) from None
            result = Result(requirement, Verdict.FAIL, str(error))
        results.append(result)
        progress(result)
    return results


def _run_one(trial: Trial, requirement: Requirement) -> Result:
    if requirement.check is None:
        return Result(requirement, Verdict.SKIP, requirement.missing)
    started = time.monotonic()
    verdict, detail = verdict_of(trial, requirement)
    return Result(requirement, verdict, detail, time.monotonic() - started)


def verdict_of(trial: Trial, requirement: Requirement) -> tuple[Verdict, str]:
    """What the check of a requirement comes to, and what showed it."""
    assert requirement.check is not None
    try:
        return Verdict.PASS, requirement.check(trial) or ""
    except Skipped as error:
        return Verdict.SKIP, str(error)
    except NeverConnected:
        raise
    except Failed as error:
        return Verdict.FAIL, str(error)
    except Hung as error:
        return Verdict.WEDGED, str(error)
