"""Choices that a type makes at compile time: what is fixed for a queue's life costs nothing in its loops.

`by_type({A: 1, B: 0})` is a function of one NamedTuple: interpreted it looks the type up, compiled it is the constant
of that type, and the branch that the constant rules out is not compiled at all. The classes must be importable, so that
the choice caches across processes. Used at import only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import overload


def by_type(choices: dict[type, int]) -> Callable[[Any], int]:
    """A function that maps an instance of each class to the class's integer."""

    def choose(marker: Any) -> int:
        return choices[type(marker)]

    def compile_choice(marker):  # Numba compares its signature with that of what it returns
        value = choices[marker.instance_class]
        return lambda marker: value

    overload(choose)(compile_choice)
    return choose
