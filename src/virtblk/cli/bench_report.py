"""`virtblk bench --report FILE`: its option, what must be right before the run, and the file after it."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING

from virtblk.errors import UsageError
from virtblk.result_file import check_writable, write_text

if TYPE_CHECKING:
    from virtblk.bench.matrix import Matrix

OPTION = "--report"
EXAMPLES = """  virtblk bench null:1g --report out.html                         figures to look at, in one file"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The option."""
    parser.add_argument(
        OPTION, metavar="FILE", help="write figures and tables as one HTML page that needs nothing else"
    )


def check_report(options: argparse.Namespace) -> None:
    """Raise UsageError, before the run, for what would lose the report after it. Nothing without `--report`."""
    target = options.report
    if target is None:
        return
    if target == "-":
        raise UsageError(f"{OPTION} -: give a file, such as report.html")
    if options.json not in (None, "-") and os.path.realpath(options.json) == os.path.realpath(target):
        raise UsageError(f"{OPTION} {target!r}: --json writes to the same file; give another")
    check_writable(OPTION, target)
    try:
        import virtblk.bench.html_report  # noqa: F401
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "virtblk":
            raise
        what = f"{error.name} is missing" if error.name else str(error)
        raise UsageError(f"{OPTION} draws with matplotlib: {what}; pip install 'virtblk[report]'") from error


def write_report(options: argparse.Namespace, matrix: Matrix) -> None:
    """Write the file, if one was asked for. Raises UsageError where it cannot be written."""
    if options.report is None:
        return
    from virtblk.bench.html_report import report_html

    print(f"drawing {options.report}", file=sys.stderr)  # many figures take some seconds
    write_text(OPTION, options.report, report_html(matrix, datetime.now().astimezone()))
