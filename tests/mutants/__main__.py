"""`python -m tests.mutants NAME SOCKET`: serve one mutant, until SIGTERM. `--list`, `--table`: see the package.

Without SOCKET, the options of `virtblk serve` say where; it is given all that are unknown here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

os.environ["NUMBA_DISABLE_JIT"] = "1"  # before anybody imports numba

from .catalogue import MUTANTS
from .mutant import DISKS, serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("name", nargs="?", help="a mutant, or `healthy`")
    parser.add_argument("socket", nargs="?")
    parser.add_argument("--disk", choices=DISKS, default="ram", help="what the healthy device serves")
    parser.add_argument("--directory", help="where the disks of mutants that need files are (default: a new one)")
    parser.add_argument("--list", action="store_true", help="name all mutants")
    parser.add_argument("--table", action="store_true", help="print docs/mutants.md")
    options, more = parser.parse_known_args()
    if options.list:
        for mutant in MUTANTS.values():
            print(f"{mutant.name:36} {' '.join(mutant.checks):40} {mutant.text}")
        return 0
    if options.table:
        from .table import table

        print(table(), end="")
        return 0
    where = ["--socket-path", options.socket] if options.socket is not None else []
    if not where + more or options.name not in {*MUTANTS, "healthy"}:
        parser.error("give the NAME of a mutant (see --list) and a SOCKET")
    directory = options.directory or tempfile.mkdtemp(prefix="virtblk-mutant-")
    return serve(MUTANTS.get(options.name), where + more, directory, DISKS[options.disk])


sys.exit(main())
