"""Where a command's result goes: a file, or `-` for standard output (`--json PATH|-`). Control context."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from virtblk.errors import UsageError


def _refusal(option: str, target: str, error: OSError) -> UsageError:
    """Why `target` cannot be written: a directory that is not there is named, since the file need not be there."""
    why = error.strerror
    parent = Path(target).parent
    if isinstance(error, FileNotFoundError) and target and not parent.is_dir():
        why = f"there is no directory {str(parent)!r}; make it first"
    return UsageError(f"{option} {target!r}: {why}")


def check_writable(option: str, target: str) -> None:
    """Raise UsageError, naming `option`, where `target` cannot be written. Called before a run, not to lose its result.

    Leaves the file as it is, and none where there was none.
    """
    if target == "-":
        return
    if not target:
        raise UsageError(f"{option} '': give the path of a file")
    path = Path(target)
    existed = path.exists()
    try:
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise _refusal(option, target, error) from error


def check_json(target: str) -> None:
    """Raise UsageError where `write_json` would."""
    check_writable("--json", target)


def write_text(option: str, target: str, text: str) -> None:
    """Write to a file as UTF-8; what cannot be said in it is escaped. Raises UsageError where it cannot be written."""
    try:
        Path(target).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise _refusal(option, target, error) from error


def write_json(target: str, value: dict[str, Any]) -> None:
    """Write to a file, or to standard output for `-`. Raises UsageError where the file cannot be written."""
    text = json.dumps(value, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text)
    except OSError as error:
        raise _refusal("--json", target, error) from error
