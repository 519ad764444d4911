"""The command line: `virtblk bench | check | fuzz | info | serve | warmup`. One short file per command, imported when
it is asked for.

Exit status: 0 fine; 1 the run found errors or lost its peer; 2 wrong usage or input, or no session came about; 130
interrupted; 143 terminated. No traceback reaches a user unless VIRTBLK_TRACEBACK=1 asks for it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from virtblk import __version__
from virtblk.cli.interrupts import Interrupts
from virtblk.errors import DeviceError, OpenError, UsageError

COMMANDS: Final = {
    "bench": "load a disk and measure it: IOPS, latency, CPU of both sides",
    "check": "check a vhost-user-blk device against the specifications",
    "fuzz": "attack a vhost-user device with sound and broken input",
    "info": "connect to a disk and say what it is",
    "serve": "serve a disk to a virtual machine, or to any other vhost-user client",
    "warmup": "compile everything now, so that the next start is quick",
}

#: Exit status after Ctrl-C and SIGTERM, as of a shell.
INTERRUPTED: Final = 130
TERMINATED: Final = 143
#: Commands that end what they started (--exec, a device of our own, a temporary disk) before SIGTERM ends them.
WITH_CHILDREN: Final = ("bench", "check", "fuzz")

DISKS: Final = """disks:
  vhost-user:/path/to/socket   a vhost-user-blk device that listens there
  ram:512m                     a disk of our own in memory
  null:1g                      a disk of our own that does nothing: what all the rest costs
  ram:512m?block_size=4k       with a block size
  file:disk.img                a file or a block device; ?cache=writeback|writethrough|none|unsafe
  sim:sata, sim:fusion-io      memory that takes the time of a disk or of a flash card
  nbd:nbd://localhost          an NBD export: all after the first colon is its URI"""


class Parser(argparse.ArgumentParser):
    """argparse with errors in our form: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser(command: str | None) -> Parser:
    """The parser; only the options of `command` are filled in, so that the others' modules need no import."""
    parser = Parser(
        prog="virtblk",
        description="virtio-blk in user space: open, measure and check vhost-user-blk disks.",
        epilog=f"{DISKS}\n\nexit status: 0 fine; 1 errors found or peer lost; 2 wrong usage or input,\n"
        "or no session came about; 130 interrupted (Ctrl-C); 143 terminated (SIGTERM; serve: 0)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"virtblk {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == command:
            importlib.import_module(f"virtblk.cli.{name}").add_arguments(sub)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="virtblk: %(message)s", level=logging.WARNING)
    interrupts = Interrupts(terminable=any(word in WITH_CHILDREN for word in words))
    try:
        with interrupts:
            status = _main(words)
    except KeyboardInterrupt:  # while an error was told, or so late that nothing was left to end
        status = INTERRUPTED
    # CPython notes that an interrupt left a string of code that was executed (dataclasses and Numba make functions of
    # strings), and at exit kills itself with SIGINT for it, though it was handled, until another string ends well.
    exec("")
    return TERMINATED if interrupts.terminated else status


def _main(words: list[str]) -> int:
    try:
        command = next((word for word in words if word in COMMANDS), None)
        parser = build_parser(command)
        options, rest = parser.parse_known_args(words)
        if rest:  # said here, since argparse would point to the help that does not list the command's options
            prog = "virtblk" if options.command is None else f"virtblk {options.command}"
            raise UsageError(f"unknown argument {rest[0]!r} (see {prog} --help)")
        if options.command is None:
            parser.print_help(sys.stderr)
            return 2
        status = int(importlib.import_module(f"virtblk.cli.{options.command}").run(options))
        sys.stdout.flush()  # here, where a reader that has gone is no traceback
        return status
    except (UsageError, OpenError) as error:
        return _complain(error, 2)
    except DeviceError as error:
        return _complain(error, 1)
    except BrokenPipeError:
        # Whoever read our output has gone; leave no second complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError) as error:
        return _complain(error, 1)


def _complain(error: BaseException, status: int) -> int:
    if os.environ.get("VIRTBLK_TRACEBACK") == "1":
        raise error
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    print(f"virtblk: {text or type(error).__name__}", file=sys.stderr)
    return status
