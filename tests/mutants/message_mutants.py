"""Defects of the device's side of vhost-user: its messages."""

from __future__ import annotations

from typing import Final

from .mutant import Mutant, mutant

BACKEND: Final = "vhost_user/backend.py"

MUTANTS: Final[tuple[Mutant, ...]] = (
    mutant(
        "features_unoffered",
        "common.unoffered-refused",
        "SET_FEATURES takes bits that were not offered.",
        BACKEND,
        "        if unoffered:",
        "        if False:",
    ),
)
