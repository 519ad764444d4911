"""The text of a job file: sections, assignments, comments (fio: init.c, __parse_jobs_ini).

Control context. A line is `[section]`, `name=value`, a bare name, or nothing; `;` and `#` begin a comment anywhere in
it. `[global]` sets defaults for the sections below it, and there may be several. What the names mean is
`bench.fio_options`'. Every complaint is a UsageError that begins with file and line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from virtblk.errors import UsageError

GLOBAL: Final = "global"
#: A file that is longer is no job file: nobody wrote it by hand.
MAX_BYTES: Final = 1 << 20
_SECTION = re.compile(r"\[(.*)\]")
_COMMENT = re.compile(r"[;#].*")


@dataclass(frozen=True)
class Assignment:
    """`name=value`, or a bare name, whose value is None. `where` is `file:line`."""

    name: str
    value: str | None
    where: str

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value}"

    def refuse(self, advice: str) -> UsageError:
        """The error for an assignment that cannot work."""
        return UsageError(f"{self.where}: {self}: {advice}")


@dataclass
class Section:
    """One job section: its own assignments, and before them those of the global sections above it."""

    name: str
    where: str
    inherited: list[Assignment]
    own: list[Assignment] = field(default_factory=list)


def read_job_file(path: str) -> str:
    """The text of a job file. Raises UsageError where it cannot be read or is no text."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UsageError(f"--job {path!r}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"--job {path!r}: more than {MAX_BYTES >> 20} MiB: no job file")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: no text: byte {data[error.start]:#04x} is not UTF-8") from error
    if "\0" in text:
        raise UsageError(f"{path}:{text.count(chr(10), 0, text.index(chr(0))) + 1}: no text: a NUL byte")
    return text


def parse_sections(text: str, path: str) -> list[Section]:
    """The job sections of a file's text, in its order. Raises UsageError for what is no section and no assignment."""
    sections: list[Section] = []
    defaults: list[Assignment] = []
    current: list[Assignment] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path}:{number}"
        stripped = _COMMENT.sub("", line).strip()
        if not stripped:
            continue
        if stripped.startswith("["):
            current = _begin(stripped, where, sections, defaults)
            continue
        if current is None:
            raise UsageError(f"{where}: {stripped}: comes before any section; begin with [global] or [a-name]")
        current.append(_assignment(stripped, where))
    if not sections:
        raise UsageError(f"{path}: no job in it: give a section such as [a-name]")
    return sections


def _begin(line: str, where: str, sections: list[Section], defaults: list[Assignment]) -> list[Assignment]:
    """Where the assignments below a section's head go."""
    match = _SECTION.fullmatch(line)
    name = match[1].strip() if match else ""
    if not name:
        raise UsageError(f"{where}: {line}: give a section as [a-name]")
    if name == GLOBAL:
        return defaults
    sections.append(Section(name, where, list(defaults)))
    return sections[-1].own


def _assignment(line: str, where: str) -> Assignment:
    name, equals, value = line.partition("=")
    name, value = name.strip(), value.strip()
    if not name or (" " in name and equals):
        raise UsageError(f"{where}: {line}: give name=value")
    one = Assignment(name, value if equals else None, where)
    if equals and not value:
        raise one.refuse("give a value")
    if "$" in value:
        raise one.refuse("variables are not expanded; give the value itself")
    return one
