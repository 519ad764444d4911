"""Make a failing case shorter: Zeller's delta debugging (ddmin) over a list of steps.

Called by `fuzz.campaign` with a predicate that runs the steps against a fresh device; it is the only thing that costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def minimise(
    steps: Sequence[_T],
    fails: Callable[[list[_T]], bool],
    *,
    progress: Callable[[int, int], None] = lambda tried, left: None,
    attempts: int = 400,
) -> list[_T]:
    """A part of `steps`, in order, that still fails. 1-minimal (leaving out any single step makes it pass) unless
    `attempts` runs of `fails` were not enough. `steps` itself is known to fail. `progress(tried, steps left)`."""
    current = list(steps)
    tried = 0
    parts = 2
    while len(current) >= 2 and tried < attempts:
        size = -(-len(current) // parts)
        chunks = [current[at : at + size] for at in range(0, len(current), size)]
        for index in range(len(chunks)):
            rest = [step for other, chunk in enumerate(chunks) if other != index for step in chunk]
            tried += 1
            progress(tried, len(current))
            if fails(rest):
                current = rest
                parts = max(parts - 1, 2)
                break
            if tried >= attempts:
                return current
        else:
            if size == 1:
                return current
            parts = min(2 * parts, len(current))
    return current
