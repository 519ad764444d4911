"""The disks that guests get: how each is made, served, and looked at from outside."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peers import libnbd, qemu_img, qemu_nbd
from serving import Serving
from waiting import wait_until

SIZE = 64 << 20


@dataclass(frozen=True)
class Disk:
    """`kind` is ram, file or nbd (a qcow2 behind qemu-nbd); all are of SIZE bytes."""

    kind: str

    @contextmanager
    def name(self, directory: Path) -> Iterator[str]:
        """The disk's name for `virtblk serve`, and what is behind it while the context lasts."""
        if self.kind == "ram":
            yield f"ram:{SIZE}"
        elif self.kind == "file":
            path = directory / "disk.img"
            with path.open("wb") as file:
                file.truncate(SIZE)
            yield f"file:{path}"
        else:
            libnbd()
            image, sock = directory / "disk.qcow2", directory / "nbd.sock"
            subprocess.run([qemu_img(), "create", "-q", "-f", "qcow2", str(image), str(SIZE)], check=True, timeout=60)
            process = subprocess.Popen([qemu_nbd(), "-f", "qcow2", "-k", str(sock), "-t", "-e", "16", str(image)])
            try:
                wait_until(lambda: sock.exists() or process.poll() is not None)
                yield f"nbd:nbd+unix:///?socket={sock}"
            finally:
                process.terminate()
                process.wait(60)

    def sha256(self, directory: Path, size: int) -> str | None:
        """The SHA-256 of the first `size` bytes as they lie outside; None where that cannot be seen."""
        if self.kind != "file":
            return None
        with (directory / "disk.img").open("rb") as file:
            return hashlib.sha256(file.read(size)).hexdigest()


DISKS = [Disk("ram"), Disk("file"), Disk("nbd")]


@contextmanager
def served(disk: Disk, directory: Path, *words: str) -> Iterator[tuple[Serving, Path]]:
    """`virtblk serve` on the disk, and its socket."""
    sock = directory / "disk.sock"
    words = ("--socket-path", str(sock), *words)
    with (
        disk.name(directory) as name,
        Serving(name, *words, log=directory / "serve.log") as serving,
    ):
        yield serving, sock
