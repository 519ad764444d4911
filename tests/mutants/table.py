"""docs/mutants.md: which mutants prove which check, and why the others are unproven."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from virtblk.check.checks import DEVICE
from virtblk.check.requirement import Requirement
from virtblk.check.runner import FEATURE_NAMES
from virtblk.device.virtio_blk import VirtioBlkDevice
from virtblk.mem.guest_memory import GuestMemory
from virtblk.names import parse_name
from virtblk.storage.filters import apply_filters
from virtblk.storage.open import open_storage
from virtblk.uapi.vhost_user import PROTOCOL_FEATURE_NAMES, VHOST_USER_F_PROTOCOL_FEATURES
from virtblk.vhost_user.backend import PROTOCOL_FEATURES

from .catalogue import MUTANTS, UNPROVEN
from .mutant import Mutant

HEAD: Final = """# Mutants: how each check is proven

<!-- Written by `python -m tests.mutants --table`; do not edit. -->

A check that cannot fail says nothing. So for each check of `virtblk check` there are mutants: devices of ours with one
deliberate defect each, which the check must notice. `tests/mutants/` holds them; `tests/check/test_mutants.py` has
every one of them caught by each check that claims it, and holds that nothing fails on the device without a defect.

`python -m tests.mutants NAME SOCKET` serves one, for `virtblk check vhost-user:SOCKET` or any other front end.
"""


def table() -> str:
    """The whole page."""
    proven = {requirement.id: mutants_of(requirement.id) for requirement in DEVICE}
    count = sum(1 for mutants in proven.values() if mutants)
    lines = [HEAD, f"{len(MUTANTS)} mutants prove {count} of {len(DEVICE)} checks.\n", "## Proven\n"]
    lines += ["| check | section | mutant | what is wrong with it |", "|---|---|---|---|"]
    for requirement in DEVICE:
        for mutant in proven[requirement.id]:
            lines.append(
                f"| `{requirement.id}` | {_cell(requirement.section)} | `{mutant.name}` | {_cell(mutant.text)} |"
            )
    lines += ["\n## Unproven\n", "| check | section | why |", "|---|---|---|"]
    for requirement in DEVICE:
        if not proven[requirement.id]:
            why = why_unproven(requirement) or "no mutant yet"
            lines.append(f"| `{requirement.id}` | {_cell(requirement.section)} | {_cell(why)} |")
    return "\n".join(lines) + "\n"


def mutants_of(check: str) -> list[Mutant]:
    """Those that a check claims to notice."""
    return [mutant for mutant in MUTANTS.values() if check in mutant.checks]


def why_unproven(requirement: Requirement) -> str | None:
    """Why there is no mutant for it; None where there should be one."""
    if requirement.check is None:
        return f"not checked: {requirement.missing}"
    lacking = list(_lacking(requirement))
    if lacking:
        return f"our device does not offer {' and '.join(lacking)}"
    return UNPROVEN.get(requirement.id)


def _lacking(requirement: Requirement) -> Iterator[str]:
    offered = _offered()
    for bit in requirement.features:
        if not offered >> bit & 1:
            yield FEATURE_NAMES.get(bit, f"feature bit {bit}")
    for bit in requirement.protocol:
        if not PROTOCOL_FEATURES >> bit & 1:
            yield PROTOCOL_FEATURE_NAMES[bit]


def _offered() -> int:
    """Every feature bit that our device can offer, with the right disk."""
    bits = 1 << VHOST_USER_F_PROTOCOL_FEATURES
    for read_only in (False, True):
        storage = apply_filters(open_storage(parse_name("ram:1m")), ["volatile"])
        storage.read_only = read_only
        try:
            bits |= VirtioBlkDevice(storage, GuestMemory()).features
        finally:
            storage.close()
    return bits


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
