"""What a requirement is, what its check can come to, and the registries that hold them.

A check is a small function whose docstring paraphrases the clause it is about. It returns when the clause holds (a text
it returns is shown), and raises `Failed`, `Rejected` or `Skipped` otherwise. That a peer is silent or gone is raised by
the raw front end (`peer`), and turned into a verdict by `runner`. Registries are filled on import; nothing here runs.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, Final

from virtblk.errors import UsageError

Check = Callable[[Any], str | None]


class Level(Enum):
    """The word of the clause."""

    MUST = "MUST"
    SHOULD = "SHOULD"


class Verdict(Enum):
    """What came of a check."""

    PASS = "PASS"  # the clause holds
    FAIL = "FAIL"  # it does not
    REJECT = "REJECT"  # the peer refused cleanly, which is safe, though it might have answered
    WEDGED = "WEDGED"  # the peer died, hung, or serves nobody any more
    SKIP = "SKIP"  # not run, and why


class Severity(IntEnum):
    """How bad a failure is, in rising order; `--fail-on` compares them."""

    DEVIATION = 0  # most real devices do it, and drivers live with it
    LOW = 1  # untidy: a driver would hardly notice
    HIGH = 2  # a driver that keeps the rules can go wrong
    CRITICAL = 3  # data or memory is lost, changed or leaked

    def __str__(self) -> str:
        return "common deviation" if self is Severity.DEVIATION else self.name


class Failed(Exception):
    """The clause does not hold; the text holds the bytes or numbers that show it."""


class Rejected(Exception):
    """The peer refused; the text says how."""


class Skipped(Exception):
    """The check cannot say anything about this peer; the text says why."""


@dataclass(frozen=True)
class Requirement:
    """One statement about a peer. `check` is None for what is not built; `missing` says then what it would take."""

    id: str
    section: str  # of virtio 1.2, or a heading of vhost-user.rst
    level: Level
    severity: Severity  # of a failure
    text: str  # our paraphrase
    check: Check | None
    features: tuple[int, ...] = ()  # virtio feature bits that the peer has to offer
    protocol: tuple[int, ...] = ()  # vhost-user protocol feature bits, likewise
    scratch: bool = False  # it writes
    missing: str = ""
    same_as: str = ""  # the id of virtio-villain's test of the same, where there is one

    @property
    def group(self) -> str:
        return self.id.partition(".")[0]


@dataclass(frozen=True)
class Result:
    """A verdict on one requirement. `severity` is that of the failure, or of the requirement where there was none."""

    requirement: Requirement
    verdict: Verdict
    detail: str = ""
    seconds: float = 0.0

    @property
    def severity(self) -> Severity:
        return Severity.CRITICAL if self.verdict is Verdict.WEDGED else self.requirement.severity

    def fails(self, threshold: Severity) -> bool:
        """Whether the run fails over it."""
        return self.verdict in (Verdict.FAIL, Verdict.WEDGED) and self.severity >= threshold


@dataclass
class Registry:
    """Requirements in the order in which they run."""

    requirements: dict[str, Requirement] = field(default_factory=dict)

    def must(self, name: str, section: str, severity: Severity, **keywords: Any) -> Callable[[Check], Check]:
        """Decorate a check of a MUST or MUST NOT. Keywords are the fields of Requirement."""
        return self._register(name, section, Level.MUST, severity, keywords)

    def should(self, name: str, section: str, severity: Severity, **keywords: Any) -> Callable[[Check], Check]:
        """The same for SHOULD and SHOULD NOT."""
        return self._register(name, section, Level.SHOULD, severity, keywords)

    def unbuilt(self, name: str, section: str, level: Level, text: str, missing: str, **keywords: Any) -> None:
        """Register a statement that has no check; `missing` says what one would take."""
        self._add(Requirement(name, section, level, Severity.HIGH, text, None, missing=missing, **keywords))

    def _register(
        self, name: str, section: str, level: Level, severity: Severity, keywords: dict[str, Any]
    ) -> Callable[[Check], Check]:
        def register(check: Check) -> Check:
            text = " ".join((check.__doc__ or "").split())
            self._add(Requirement(name, section, level, severity, text, check, **keywords))
            return check

        return register

    def _add(self, requirement: Requirement) -> None:
        if requirement.id in self.requirements or not requirement.text or "." not in requirement.id:
            raise ValueError(f"{requirement.id}: taken, without a group, or without a text")
        self.requirements[requirement.id] = requirement

    def __iter__(self) -> Iterator[Requirement]:
        return iter(self.requirements.values())

    def __len__(self) -> int:
        return len(self.requirements)

    def select(self, only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Requirement]:
        """Those that `only` names (all, if it is empty), without those that `skip` names.

        A name is an id, a group, or a pattern such as `split.event-*`. UsageError for one that names nothing.
        """
        wanted = self._named("--only", only) if only else set(self.requirements)
        wanted -= self._named("--skip", skip)
        return [requirement for requirement in self if requirement.id in wanted]

    def _named(self, option: str, names: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for name in names:
            here = {r.id for r in self if name in (r.id, r.group) or fnmatch.fnmatchcase(r.id, name)}
            if not here:
                groups = ", ".join(sorted({r.group for r in self}))
                raise UsageError(f"{option} {name!r}: no such check; groups are {groups}, and --list shows all checks")
            found |= here
        return found


#: What `virtblk check` demands of a device.
DEVICE: Final = Registry()
