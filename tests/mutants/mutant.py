"""What a mutant is, and how its defect gets into the device: one fragment of one module's source text is replaced
before the module is imported.

The fragment must occur exactly once, so that no mutant becomes a healthy device when the source moves. Mutants run
interpreted: nothing of them may reach the cache of compiled kernels.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
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


def check_edits(edits: Sequence[Edit]) -> None:
    """ValueError if one of them does not fit the source, or does not compile."""
    for edit in edits:
        compile(edit.apply((SOURCE / edit.file).read_text()), edit.file, "exec")


def infect(edits: Sequence[Edit]) -> None:
    """Have the modules that `edits` name come with their defects; none of them may have been imported yet."""
    by_module: dict[str, list[Edit]] = {}
    for edit in edits:
        if edit.module in sys.modules:
            raise RuntimeError(f"{edit.module} was imported before its defect could be put in")
        by_module.setdefault(edit.module, []).append(edit)
    sys.meta_path.insert(0, _Finder(by_module))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, edits: dict[str, list[Edit]]) -> None:
        self._edits = edits

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._edits:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self._edits[fullname])
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the source with its defects, past the cache of byte code."""

    def __init__(self, fullname: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(fullname, path)
        self._edits = edits

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path).decode()
        for edit in self._edits:
            source = edit.apply(source)
        return compile(source, path, "exec", dont_inherit=True)


def serve(what: Mutant | None, socket: str, directory: str, disk: Sequence[str] = RAM) -> int:
    """Serve a mutant, or the healthy device, until SIGTERM: `virtblk serve` with all its ways."""
    os.environ["NUMBA_DISABLE_JIT"] = "1"
    if what is not None:
        infect(what.edits)
        disk = what.disk
    words = [word.format(directory=directory) for word in disk]
    if words[0].startswith("file:"):
        with open(words[0].removeprefix("file:"), "ab") as file:
            file.truncate(DISK_SIZE)
    from virtblk.cli import main

    return main(["serve", *words, "--queues", "2", "--log-level", "error", "--socket-path", socket])
