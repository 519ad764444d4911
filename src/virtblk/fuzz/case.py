"""A case: what was sent when something went wrong, in a file that `virtblk fuzz --replay` takes.

A front end's case is a list of operations (`fuzz.messages.Op`), each with the bytes that go over the socket. A guest's
is a list of batches of request seeds: a request is a function of its seed alone (`fuzz.guest.generate`), so any part of
the list is a case too. Both are what `minimise` makes shorter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from virtblk.errors import UsageError
from virtblk.fuzz.groups import FRONT_END, GUEST

VERSION: Final = 1

CRASH: Final = "crash"  # the connection went, and nobody accepts another
HANG: Final = "hang"  # a sound request was not answered in time
LEAK: Final = "leak"  # descriptors, threads or mappings of the device grow with each run of the case
WRONG: Final = "wrong data"  # an answer, a byte of memory or a sector of the disk that cannot be


class DeviceFailed(Exception):
    """The device did what no device may do; `kind` is one of the above."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass
class Case:
    """`steps` are operations of the front end, or requests of the guest: (batch, seed)."""

    attacker: str
    steps: list[Any]
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def with_steps(self, steps: list[Any]) -> Case:
        return Case(self.attacker, steps, self.seed, self.settings)


@dataclass
class Finding:
    """What went wrong, and the case that showed it; `notes` are lines for a reader."""

    kind: str
    detail: str
    case: Case
    reproduced: bool = False
    steps_before: int = 0  # of the case, before it was minimised
    path: str = ""
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "attacker": self.case.attacker,
            "detail": self.detail,
            "reproduced": self.reproduced,
            "steps": len(self.case.steps),
            "steps_before": self.steps_before,
            "path": self.path,
            "notes": self.notes,
        }


def save(finding: Finding, path: Path) -> None:
    """Write the file. OSError where it cannot be written."""
    case = finding.case
    value = {
        "virtblk-fuzz": VERSION,
        "finding": {"kind": finding.kind, "detail": finding.detail, "reproduced": finding.reproduced},
        "attacker": case.attacker,
        "seed": case.seed,
        "settings": case.settings,
        "notes": finding.notes,
        "steps": case.steps,
    }
    path.write_text(json.dumps(value, indent=1) + "\n")
    finding.path = str(path)


def load(path: str) -> tuple[Case, str]:
    """The case in a file, and the kind of its finding. Raises UsageError for anything else."""
    try:
        value = json.loads(Path(path).read_text())
    except OSError as error:
        raise UsageError(f"--replay {path!r}: {error.strerror}") from None
    except ValueError:
        raise UsageError(f"--replay {path!r}: this is no file of virtblk fuzz") from None
    if not isinstance(value, dict) or value.get("virtblk-fuzz") != VERSION:
        raise UsageError(f"--replay {path!r}: this is no file of virtblk fuzz, version {VERSION}")
    try:
        attacker, steps = value["attacker"], list(value["steps"])
        case = Case(attacker, steps, int(value["seed"]), dict(value["settings"]))
        if attacker not in (GUEST, FRONT_END):
            raise ValueError(attacker)
        return case, str(value["finding"]["kind"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"--replay {path!r}: wrong or missing field ({error})") from None
