"""All mutants by name, and the checks that no mutant of ours can prove, each with the reason."""

from __future__ import annotations

from typing import Final

from . import (
    block_mutants,
    bounds_mutants,
    durability_mutants,
    fd_mutants,
    memory_mutants,
    message_mutants,
    program_mutants,
    ring_mutants,
    ring_state_mutants,
)
from .mutant import Mutant

_ALL: Final = (
    *block_mutants.MUTANTS,
    *bounds_mutants.MUTANTS,
    *durability_mutants.MUTANTS,
    *ring_mutants.MUTANTS,
    *message_mutants.MUTANTS,
    *ring_state_mutants.MUTANTS,
    *memory_mutants.MUTANTS,
    *fd_mutants.MUTANTS,
    *program_mutants.MUTANTS,
)
MUTANTS: Final[dict[str, Mutant]] = {mutant.name: mutant for mutant in _ALL}
if len(MUTANTS) != len(_ALL):
    raise ValueError("two mutants have one name")

#: Checks that our device runs, and that no defect of one or a few lines makes fail.
UNPROVEN: Final[dict[str, str]] = {}
