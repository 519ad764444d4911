"""Where devices under test come from quickly: a process that has imported numba and compiled virtblk, but holds nothing
of it, forks one after the other (`fork_server`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import CodeType

from fork_server import Child, ForkServer

from .catalogue import MUTANTS
from .mutant import DISKS, RAM, SOURCE, serve


class Nursery(ForkServer):
    """The process; its devices go with it."""

    def __init__(self) -> None:
        super().__init__("mutants.nursery", NUMBA_DISABLE_JIT="1")

    def start(self, name: str, socket: str, directory: str, disk: str = "ram", log: str = os.devnull) -> Child:
        """The mutant `name`, or `healthy` with one of `mutant.DISKS`; it may not listen yet."""
        return self.fork(name, socket, directory, disk, log=log)


# The process.


def prepare() -> Callable[..., int]:
    """Compile all of virtblk, and import all that it imports; of itself nothing stays."""
    import virtblk.cli.serve
    import virtblk.server  # noqa: F401

    for name in [name for name in sys.modules if name.partition(".")[0] == "virtblk"]:
        del sys.modules[name]
    compiled: dict[str, CodeType] = {  # by path of the source
        str(path): compile(path.read_bytes(), path, "exec", dont_inherit=True) for path in SOURCE.rglob("*.py")
    }

    def device(name: str, socket: str, directory: str, disk: str) -> int:
        where = ("--socket-path", socket)
        return serve(None if name == "healthy" else MUTANTS[name], where, directory, DISKS.get(disk, RAM), compiled)

    return device
