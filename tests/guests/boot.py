"""Boot a guest with a kernel of its own, bounded in time, and hear what it says.

A guest's script says things in lines `guest: key=value` on its console, `say KEY VALUE` in the shells of `uml` and
`qemu`; the last is `guest: done=1`. Everything that the console showed belongs into the message of a failing assertion:
`assert guest["files"] == "2000", guest`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

#: Seconds for a guest, which needs 5 to 15 on an idle machine.
PATIENCE: float = 300.0

_SAID = re.compile(r"^guest: (\w+)=(.*?)\r?$", re.MULTILINE)

#: Shell functions for a guest's script. `step NAME COMMAND...` says the command's exit status under a name.
SHELL = """
say() { echo; echo "guest: $1=$2"; }
step() { name=$1; shift; "$@"; say $name $?; }
"""


class Guest:
    """What a guest said, by key, and all that its console showed."""

    def __init__(self, console: str, status: int | None) -> None:
        self.console = console
        self.status = status
        self.said = dict(_SAID.findall(console))

    def __getitem__(self, key: str) -> str:
        assert key in self.said, f"the guest did not say {key!r}: {self}"
        return self.said[key]

    def __str__(self) -> str:
        ended = "was given up" if self.status is None else f"ended with status {self.status}"
        return f"the guest {ended}; its console:\n{self.console}"

    __repr__ = __str__


def boot(command: Sequence[str | Path], directory: Path) -> Guest:
    """Run a guest to its end; an AssertionError with its console if that does not come in time, or before its script's.

    Its processes are a group of their own, all of which is gone afterwards.
    """
    file = directory / "console"
    with file.open("wb") as console:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=os.environ | {"HOME": str(directory)},
            start_new_session=True,
        )
    status: int | None = None
    try:
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    guest = Guest(file.read_text(errors="replace"), status)
    assert "done" in guest.said, guest
    return guest
