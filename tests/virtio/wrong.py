"""Mistakes that a proof has to find: kernels with one in them, as Python, and comparisons that are off."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any, NamedTuple

from virtio.interleavings import plain


class Mistake(NamedTuple):
    """`old`, which stands once in the source of kernel `function`, becomes `new`."""

    function: str
    old: str
    new: str


def with_mistake(module: ModuleType, mistake: Mistake) -> dict[str, Any]:
    """The names of `module` with the mistake made; its kernels are plain Python and call each other."""
    right = inspect.getsource(plain(getattr(module, mistake.function)))
    assert right.count(mistake.old) == 1
    source = inspect.getsource(module)
    assert source.count(right) == 1
    scope: dict[str, Any] = {"__name__": module.__name__}
    exec(source.replace(right, right.replace(mistake.old, mistake.new)).replace("@kernel\n", ""), scope)
    return scope


def need_event_without_wrap(event: int, new: int, old: int) -> bool:
    return old <= event < new


def need_event_one_late(event: int, new: int, old: int) -> bool:
    return (new - event - 2) & 0xFFFF < (new - old - 1) & 0xFFFF


def need_event_one_early(event: int, new: int, old: int) -> bool:
    return (new - event) & 0xFFFF < (new - old) & 0xFFFF
