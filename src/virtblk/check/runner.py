"""Runs the checks one after the other, and makes verdicts of what they raise. `Tester` is what a check is given.

Whatever a check came to, the device has to serve the next front end: a new session, and one read. A device that does
not is WEDGED; with a command it is started again for the next check, without one the rest is skipped, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from virtblk.check.peer import Gone, Peer, Silent, Unreachable
from virtblk.check.requirement import Failed, Rejected, Requirement, Result, Skipped, Verdict
from virtblk.check.session import Session
from virtblk.check.target import Facts, Target
from virtblk.errors import DeviceError, OpenError
from virtblk.uapi.vhost_user import PROTOCOL_FEATURE_NAMES
from virtblk.uapi.virtio_blk import BLK_FEATURE_NAMES
from virtblk.uapi.virtio_config import RING_FEATURE_NAMES

#: Sectors of the disk that the checks use, from its beginning; the upper half is what they write.
AREA: Final = 2048
#: Seconds in which a device answers what it is going to answer at all, where silence is an answer too.
SETTLE: Final = 0.4
#: Seconds that a process may take to end after its connections did: it may have a core to dump.
DEATH: Final = 5.0

FEATURE_NAMES: Final = BLK_FEATURE_NAMES | RING_FEATURE_NAMES


class Tester:
    """What a check has to work with. Sessions and peers made here are accounted for and closed after it."""

    def __init__(self, target: Target, *, scratch: bool) -> None:
        self.target = target
        self.scratch = scratch
        self.timeout = target.timeout
        self.settle_time = min(SETTLE, target.timeout)
        self._open: list[Session | Peer] = []

    @property
    def facts(self) -> Facts:
        return self.target.facts

    def session(self, **options: Any) -> Session:
        """A new session; `options` are those of Session."""
        session = Session(self.target, **options)
        self._open.append(session)
        return session

    def peer(self) -> Peer:
        """A connection on which nothing was said yet."""
        peer = self.target.connect()
        self._open.append(peer)
        return peer

    @property
    def area(self) -> int:
        """Sectors that the checks use."""
        return min(AREA, self.facts.capacity)

    def scratch_sector(self, sectors: int = 1) -> int:
        """The first of so many sectors that may be written. Skipped where the disk is too small."""
        first = self.area // 2
        if first + sectors > self.area:
            raise Skipped(f"the disk has {self.facts.capacity} sectors, {2 * sectors} are needed")
        return first

    def lines_up(self, sectors: int) -> int:
        """As many sectors, rounded up to whole logical blocks."""
        block = self.block_sectors
        return -(-sectors // block) * block

    @property
    def block_sectors(self) -> int:
        """Sectors of a logical block."""
        return max(1, int(self.facts.fields.get("blk_size", 512) or 512) // 512)

    def account(self) -> None:
        """Failed where the device wrote or kept what it must not."""
        for opened in self._open:
            if isinstance(opened, Session) and not opened.closed:
                opened.account()

    def close(self) -> None:
        while self._open:
            self._open.pop().close()


def run(
    target: Target,
    requirements: Sequence[Requirement],
    *,
    scratch: bool,
    progress: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run them all. Raises OpenError where there is no device to begin with.

    OSError where a check cannot be run for want of something here, such as descriptors: that is no verdict on a device.
    """
    _ = target.facts
    results: list[Result] = []
    lost = ""
    for requirement in requirements:
        result = _run_one(target, requirement, scratch, lost)
        results.append(result)
        progress(result)
        if result.verdict is Verdict.WEDGED and not lost:
            try:
                target.restart()
            except (OpenError, DeviceError) as error:
                lost = f"not run: since {requirement.id}, {error.strerror}"
                if _probe(target) is None:
                    lost = ""
    return results


def _run_one(target: Target, requirement: Requirement, scratch: bool, lost: str) -> Result:
    why = lost or _why_not(target, requirement, scratch)
    if why:
        return Result(requirement, Verdict.SKIP, why)
    started = time.monotonic()
    try:
        verdict, detail = _verdict(Tester(target, scratch=scratch), requirement)
        trouble = None if verdict is Verdict.SKIP else _probe(target)
    except (OpenError, DeviceError):
        raise
    except OSError as error:
        raise OSError(error.errno, f"{requirement.id} cannot be run: {error.strerror or error}") from error
    if trouble is not None:
        detail = f"{detail}; then {trouble}" if detail else trouble
        verdict = Verdict.WEDGED
    return Result(requirement, verdict, detail, time.monotonic() - started)


def _why_not(target: Target, requirement: Requirement, scratch: bool) -> str:
    """Why a requirement cannot be checked on this device, or ""."""
    facts = target.facts
    names = [FEATURE_NAMES.get(bit, f"feature bit {bit}") for bit in requirement.features if not facts.offers(bit)]
    names += [PROTOCOL_FEATURE_NAMES[bit] for bit in requirement.protocol if not facts.speaks(bit)]
    if names:
        return f"the device does not offer {' and '.join(names)}"
    if requirement.check is None:
        return requirement.missing
    if requirement.scratch and not scratch:
        return "it writes to the disk, and --scratch was not given"
    return ""


def _verdict(tester: Tester, requirement: Requirement) -> tuple[Verdict, str]:
    assert requirement.check is not None
    try:
        try:
            detail = requirement.check(tester) or ""
        except Rejected as error:
            tester.account()
            return Verdict.REJECT, str(error)
        tester.account()
        return Verdict.PASS, detail
    except Skipped as error:
        return Verdict.SKIP, str(error)
    except Failed as error:
        return Verdict.FAIL, str(error)
    except Silent as error:
        return Verdict.WEDGED, str(error)
    except Gone as error:
        return Verdict.FAIL, str(error)
    except Unreachable as error:
        return Verdict.WEDGED, f"no connection: {error.strerror or error}"
    finally:
        tester.close()


def _probe(target: Target) -> str | None:
    """None where the device serves a new front end; else what is wrong."""
    dead = target.dead()
    if dead is not None:
        return dead
    tester = Tester(target, scratch=False)
    try:
        session = tester.session()
        session.read(0, tester.block_sectors)
    except (Silent, Failed) as error:
        return target.dead() or f"a new front end is not served: {error}"
    except Gone as error:
        return target.dead(DEATH) or f"a new front end is not served: {error}"
    except Unreachable as error:
        return target.dead(DEATH) or f"a new front end is not served: {error.strerror or error}"
    finally:
        tester.close()
    return None
