"""What a mutant is, and how its defect gets into the device: one fragment of one module's source text is replaced
before the module is imported.

The fragment must occur exactly once, so that no mutant becomes a healthy device when the source moves. Mutants run
interpreted: nothing of them may reach the cache of compiled kernels.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final, NamedTuple

import virtblk

SOURCE: Final = Path(virtblk.__file__).parent

#: What a device serves, as words of `virtblk serve`; `{directory}` is one of the mutant's own, and stays over restarts.
RAM: Final = ("ram:16m",)
FILE: Final = ("file:{directory}/disk",)
VOLATILE: Final = ("file:{directory}/disk", "--filter", "volatile")
READ_ONLY: Final = ("ram:16m", "--read-only")
DISKS: Final = {"ram": RAM, "file": FILE, "volatile": VOLATILE, "read-only": READ_ONLY}
#: Bytes of a disk in a file.
DISK_SIZE: Final = 16 << 20


class Edit(NamedTuple):
    """In `file` (below src/virtblk), the one place that reads `old` is to read `new`; `extra` is added at the end."""

    file: str
    old: str
    new: str
    extra: str = ""

    @property
    def module(self) -> str:
        return "virtblk." + self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def apply(self, source: str) -> str:
        """`source` with the defect. ValueError unless the fragment is there exactly once."""
        found = source.count(self.old)
        if found != 1:
            raise ValueError(f"{self.file} holds {found} times, expected once: {self.old!r}")
        return source.replace(self.old, self.new) + self.extra


@dataclass(frozen=True)
class Mutant:
    """A device with one defect, in as many edits as that takes. `checks` are those that must notice it."""

    name: str
    checks: tuple[str, ...]
    text: str  # what is wrong with it, in one sentence
    edits: tuple[Edit, ...] = field(repr=False)
    disk: tuple[str, ...] = RAM


def mutant(
    name: str,
    checks: str,
    text: str,
    file: str,
    old: str,
    new: str,
    *more: Edit,
    extra: str = "",
    disk: tuple[str, ...] = RAM,
) -> Mutant:
    """A mutant of one edit, or more; `checks` are separated by blanks."""
    return Mutant(name, tuple(checks.split()), text, (Edit(file, old, new, extra), *more), disk)


def apply(edits: Sequence[Edit], source: str) -> str:
    """`source` with all of the edits of one file. ValueError unless each of them fits, once."""
    for edit in edits:
        source = edit.apply(source)
    return source


def infect(edits: Sequence[Edit], compiled: Mapping[str, CodeType] | None = None) -> None:
    """Have the modules that `edits` name come with their defects; none of them may have been imported yet.

    The others are loaded from `compiled`, by the path of their source, as far as they are there.
    """
    for edit in edits:
        if edit.module in sys.modules:
            raise RuntimeError(f"{edit.module} was imported before its defect could be put in")
    sys.meta_path.insert(0, _Finder(edits, compiled or {}))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, edits: Sequence[Edit], compiled: Mapping[str, CodeType]) -> None:
        self._edits, self._compiled = edits, compiled

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("virtblk."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        edits = [edit for edit in self._edits if edit.module == fullname]
        if spec is not None and spec.origin is not None and (edits or spec.origin in self._compiled):
            spec.loader = _Loader(fullname, spec.origin, edits, self._compiled)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the source with its defects, past the cache of byte code."""

    def __init__(self, fullname: str, path: str, edits: Sequence[Edit], compiled: Mapping[str, CodeType]) -> None:
        super().__init__(fullname, path)
        self._edits, self._compiled = edits, compiled

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        if not self._edits:
            return self._compiled[path]
        return compile(apply(self._edits, self.get_data(path).decode()), path, "exec", dont_inherit=True)


def serve(
    what: Mutant | None,
    socket: Sequence[str],
    directory: str,
    disk: Sequence[str] = RAM,
    compiled: Mapping[str, CodeType] | None = None,
) -> int:
    """Serve a mutant, or the healthy device on `disk`, until SIGTERM: `virtblk serve` with all its ways.

    `socket` are the options of `virtblk serve` that say where, and any others.
    """
    os.environ["NUMBA_DISABLE_JIT"] = "1"
    infect(what.edits if what is not None else (), compiled)
    if what is not None:
        disk = what.disk
    words = [word.format(directory=directory) for word in disk]
    if words[0].startswith("file:"):
        with open(words[0].removeprefix("file:"), "ab") as file:
            file.truncate(DISK_SIZE)
    from virtblk.cli import main

    # A worker that never spins is asleep whenever it can be: what is wrong with its waking shows.
    options = ["--queues", "2", "--poll-us", "0", "--log-level", "error"]
    return main(["serve", *words, *options, *socket])
