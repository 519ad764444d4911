"""`virtblk serve DISK --socket-path PATH`: the back-end program of vhost-user's conventions, for a block device.

docs/interop/vhost-user.rst, "Backend program conventions". It stays in the foreground, logs to standard error, and
ends on SIGTERM (exit status 0) or SIGINT (130), when what was begun is finished.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any, Final, TextIO, cast

from virtblk.bench.job import parse_cpus
from virtblk.errors import UsageError
from virtblk.log import FORMATS, LEVELS, configure
from virtblk.metrics import parse_address
from virtblk.names import DiskName, parse_name

CAPABILITIES: Final = {"type": "block", "features": ["read-only", "blk-file"]}
#: sd_listen_fds(3): where the descriptors begin that a socket unit passes.
SD_LISTEN_FDS_START: Final = 3

EXAMPLES: Final = """examples:
  virtblk serve ram:1g --socket-path /run/disk.sock                in memory, gone with the process
  virtblk serve --blk-file disk.img --socket-path /run/disk.sock   a file or block device, any name
  qemu-system-x86_64 -m 1g -object memory-backend-memfd,id=m,size=1g,share=on -numa node,memdev=m \\
      -chardev socket,id=c,path=/run/disk.sock -device vhost-user-blk-pci,chardev=c ...

SIGTERM and Ctrl-C end it cleanly. Without --socket-path and --fd, it takes systemd's socket."""

log = logging.getLogger("virtblk.serve")


class _PrintCapabilities(argparse.Action):
    """Print and exit, whatever else was said."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(json.dumps(CAPABILITIES))
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `virtblk serve`."""
    parser.description = "Serve a disk to one vhost-user client after the other, until SIGTERM."
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("disk", nargs="?", metavar="DISK", help="what to serve: ram:SIZE, null:SIZE, file:PATH, ...")
    add("--blk-file", metavar="PATH", help="the same as file:PATH, with any characters in PATH")
    add("--socket-path", "--socket", metavar="PATH", help="listen on a Unix socket, made here and removed at the end")
    add("--fd", type=int, metavar="N", help="use this inherited Unix socket, listening or connected")
    add("--socket-mode", default="600", metavar="OCTAL", help="who may connect (default 600: this user)")
    add("--queues", type=int, default=1, metavar="N", help="virtqueues offered (default 1)")
    add("--queue-size", type=int, default=32768, metavar="N", help="the largest ring accepted (default 32768)")
    add("--read-only", action="store_true", help="refuse writes, and say so to the guest")
    add(
        "--filter",
        action="append",
        default=[],
        metavar="NAME[?k=v]",
        help="change what the disk does; repeatable, the first is the outermost: cow, delay, error, log, rate, ...",
    )
    add("--serial", metavar="TEXT", help="up to 20 characters (default: after the disk's name)")
    add("--poll-us", type=int, metavar="N", help="an idle queue spins this long before it sleeps (default 32)")
    add("--hint", choices=("none", "sort"), default="none", help="experimental: ask drivers to sort (default none)")
    add("--cpus", metavar="LIST", help="run on these CPUs, such as 0,2-3")
    add("--metrics", metavar="[HOST:]PORT", help="answer Prometheus on http there (HOST: loopback; PORT 0: any)")
    add("--log-format", choices=FORMATS, default="logfmt", help="lines on standard error (default logfmt)")
    add("--log-level", choices=LEVELS, default="info", help="what is worth a line (default info)")
    add("--print-capabilities", nargs=0, action=_PrintCapabilities, help="print the capabilities as JSON and exit")


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; returns the exit status."""
    name = _disk(options)
    source = _source(options)
    mode = _mode(options.socket_mode)
    metrics = parse_address(options.metrics) if options.metrics is not None else None
    if options.cpus is not None:
        os.sched_setaffinity(0, parse_cpus("--cpus", options.cpus))
    stopping = _Stopping()
    configure(options.log_format, options.log_level)

    # numba and all that, only once the options are known to be right
    from virtblk.exporter import Exporter
    from virtblk.jit.warmup import progress
    from virtblk.server import ServeOptions, Server, open_served

    try:
        wanted = ServeOptions(
            queues=options.queues,
            queue_size=options.queue_size,
            serial=options.serial,
            poll_us=ServeOptions.poll_us if options.poll_us is None else options.poll_us,
            socket_mode=mode,
            timed=metrics is not None,
            hint=options.hint,
        )
    except UsageError as error:
        if error.field is None:
            raise
        option, advice = error.field.replace("_", "-"), str(error).partition(": ")[2]
        raise UsageError(f"--{option} {getattr(options, error.field)}: {advice}") from error
    storage = open_served(name, read_only=options.read_only, filters=options.filter)
    try:
        storage.start()
        with progress(cast(TextIO, _LogStream())):
            server = Server(storage, wanted)
        with server, ExitStack() as stack:
            stopping.begin(server.stop)
            if metrics is not None:
                exporter = stack.enter_context(Exporter(*metrics, server.metrics).start())
                address = exporter.address
                log.info("metrics on http://%s/metrics", address, extra={"event": "metrics", "address": address})
            if isinstance(source, int):
                server.inherit(source)
            else:
                server.listen(source)
            where = server.path or f"fd {source}"
            log.info(
                "%s is served on %s",
                name.text,
                where,
                extra={"event": "ready", "disk": name.text, "size": storage.size, "socket": where, "pid": os.getpid()},
            )
            server.run()
            violations = server.violations
    finally:
        storage.close()
    log.info("stopped", extra={"event": "stopped"})
    return 1 if violations else stopping.status


def _disk(options: argparse.Namespace) -> DiskName:
    """The disk that was named, once."""
    if options.disk is not None and options.blk_file is not None:
        raise UsageError(f"both a disk ({options.disk!r}) and --blk-file {options.blk_file!r}: give one of them")
    if options.blk_file is not None:
        if not options.blk_file:
            raise UsageError("--blk-file '': give the path of a file or block device")
        return DiskName(f"file:{options.blk_file}", "file", options.blk_file)
    if options.disk is None:
        raise UsageError("no disk to serve: give ram:512m, --blk-file PATH or the like (see virtblk serve --help)")
    name = parse_name(options.disk)
    if name.scheme == "vhost-user":
        raise UsageError(f"disk {name.text!r}: a vhost-user device is served already, by whoever listens there")
    return name


def _source(options: argparse.Namespace) -> str | int:
    """The path of a socket to make, or the number of an inherited one."""
    if options.socket_path is not None and options.fd is not None:
        raise UsageError(f"both --socket-path {options.socket_path!r} and --fd {options.fd}: give one of them")
    if options.socket_path is not None:
        return str(options.socket_path)
    if options.fd is not None:
        return int(options.fd)
    passed = _listen_fds()
    if passed == 0:
        raise UsageError("nowhere to listen: give --socket-path PATH or --fd N")
    if passed != 1:
        raise UsageError(f"LISTEN_FDS={passed}: one disk takes one socket")
    return SD_LISTEN_FDS_START


def _listen_fds() -> int:
    """How many sockets systemd passed to this very process; the variables are not for its children."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        return 0
    if not re.fullmatch(r"[0-9]{1,9}", count):
        raise UsageError(f"LISTEN_FDS={count!r} is no number")
    return int(count)


def _mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise UsageError(f"--socket-mode {text!r}: give octal permissions such as 660")
    return int(text, 8)


class _Stopping:
    """SIGTERM and SIGINT: before the socket is there, the end of the process; then, what `begin` is given."""

    def __init__(self) -> None:
        self.status = 0
        self._stop = self._at_once
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def begin(self, stop: Any) -> None:
        self._stop = stop

    def _on_signal(self, signo: int, frame: FrameType | None) -> None:
        self.status = 128 + signo if signo == signal.SIGINT else 0
        self._stop()

    def _at_once(self) -> None:
        """Nothing is begun, so there is nothing to undo; an exception could be lost in a callback of the compiler."""
        os._exit(self.status)


class _LogStream:
    """What `progress` says, as log lines."""

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        log.info("%s", text.strip().removeprefix("virtblk: "), extra={"event": "compiling"})
        return len(text)

    def flush(self) -> None:
        pass
