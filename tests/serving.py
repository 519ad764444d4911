"""`virtblk serve` as a process of its own: started, waited for, ended, and what it wrote to its log."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from waiting import wait_until

#: Seconds for a process to come up; it may have to compile everything first.
START: float = 300.0
#: Seconds to end, once told to.
END: float = 60.0

_PAIR = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|\S+)')


def parse_logfmt(line: str) -> dict[str, str]:
    """The keys of one line; quotes stay, since tests look for words inside."""
    return dict(_PAIR.findall(line))


def scrape(address: str) -> dict[str, float]:
    """What an exporter says, by sample."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 20) as sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b""
        while piece := sock.recv(1 << 16):
            text += piece
    head, _, body = text.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK"), head
    lines = [line for line in body.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


class Serving:
    """The process. Its log goes to `log`; leaving the context ends it, and fails if it does not end well."""

    def __init__(
        self,
        *words: str,
        log: Path,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        self._log = log
        self.log_file = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "virtblk", "serve", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log_file,
            pass_fds=pass_fds,
            env=environment,
            process_group=0,
        )
        if wait:
            try:
                self.wait_for("ready")
            except BaseException:
                self.kill()
                raise

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def events(self, name: str) -> list[dict[str, str]]:
        """All lines so far of one event."""
        found = [parse_logfmt(line) for line in self.log.splitlines()]
        return [event for event in found if event.get("event") == name]

    def wait_for(self, name: str, count: int = 1) -> dict[str, str]:
        """Wait for an event; an AssertionError with the whole log if the process ends before."""
        wait_until(lambda: len(self.events(name)) >= count or self.process.poll() is not None, START)
        found = self.events(name)
        assert len(found) >= count, f"no {name} in: {self.log}"
        return found[count - 1]

    def end(self, signo: int = signal.SIGTERM) -> int:
        """Ask it to end; its exit status."""
        self.process.send_signal(signo)
        return self.process.wait(END)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log_file.close()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None and kind is None:
            try:
                assert self.end() == 0, self.log
            finally:
                self.kill()
        else:
            self.kill()
