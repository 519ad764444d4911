"""The disks that guests get: how each is made, served, and looked at from outside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving import Serving

SIZE = 64 << 20


@dataclass(frozen=True)
class Disk:
    """`kind` is ram or file; all are of SIZE bytes."""

    kind: str

    def create(self, directory: Path) -> str:
        """Make what is behind the disk; the disk's name for `virtblk serve`."""
        if self.kind == "ram":
            return f"ram:{SIZE}"
        path = directory / "disk.img"
        with path.open("wb") as file:
            file.truncate(SIZE)
        return f"file:{path}"

    def sha256(self, directory: Path, size: int) -> str | None:
        """The SHA-256 of the first `size` bytes as they lie outside; None where that cannot be seen."""
        if self.kind == "ram":
            return None
        with (directory / "disk.img").open("rb") as file:
            return hashlib.sha256(file.read(size)).hexdigest()


DISKS = [Disk("ram"), Disk("file")]


@contextmanager
def served(disk: Disk, directory: Path, *words: str) -> Iterator[tuple[Serving, Path]]:
    """`virtblk serve` on the disk, and its socket."""
    sock = directory / "disk.sock"
    words = ("--socket-path", str(sock), *words)
    with Serving(disk.create(directory), *words, log=directory / "serve.log") as serving:
        yield serving, sock
