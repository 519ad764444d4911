"""What `virtblk check` prints: the list of checks, a table with a line for each finding, JSON, and JUnit XML.

JSON: {"device": {...}, "results": [{"id", "section", "level", "verdict", "severity", "detail", ...}], "counts": {...}}
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from virtblk import __version__
from virtblk.check.requirement import Requirement, Result, Verdict
from virtblk.check.target import Facts
from virtblk.errors import UsageError
from virtblk.uapi.vhost_user import PROTOCOL_FEATURE_NAMES
from virtblk.uapi.virtio_blk import BLK_FEATURE_NAMES
from virtblk.uapi.virtio_config import RING_FEATURE_NAMES

_NAMES: Final = BLK_FEATURE_NAMES | RING_FEATURE_NAMES
_INDENT: Final = " " * 8


def list_text(requirements: Sequence[Requirement]) -> str:
    """One paragraph for each: id, section, word, severity of a failure, what is demanded."""
    lines = []
    for requirement in requirements:
        marks = [requirement.level.value, str(requirement.severity)]
        marks += ["writes"] if requirement.scratch else []
        marks += ["not built"] if requirement.check is None else []
        marks += [f"virtio-villain {requirement.same_as}"] if requirement.same_as else []
        lines.append(f"{requirement.id}  [{requirement.section}]  {', '.join(marks)}")
        lines += textwrap.wrap(requirement.text, 112, initial_indent=_INDENT, subsequent_indent=_INDENT)
    lines.append(f"{len(requirements)} requirements")
    return "\n".join(lines)


def line_text(result: Result, width: int) -> str:
    """One line of the table, with more below it where there is something to say."""
    requirement = result.requirement
    line = f"{result.verdict.value:<6}  {requirement.id:<{width}}  {requirement.section}"
    if result.verdict in (Verdict.FAIL, Verdict.WEDGED):
        line += f"  {requirement.level.value}, {result.severity}"
        lines = textwrap.wrap(f"clause: {requirement.text}", 112, initial_indent=_INDENT, subsequent_indent=_INDENT)
        lines += textwrap.wrap(f"shown by: {result.detail}", 112, initial_indent=_INDENT, subsequent_indent=_INDENT)
        return "\n".join([line, *lines])
    return f"{line}  ({result.detail})" if result.detail else line


def summary_text(results: Sequence[Result], seconds: float) -> str:
    """How many of each verdict, in how much time."""
    counts = Counter(result.verdict for result in results)
    parts = [f"{counts[verdict]} {verdict.value}" for verdict in Verdict]
    return f"{len(results)} requirements in {seconds:.1f} s: {', '.join(parts)}"


def device_facts(facts: Facts, name: str) -> dict[str, Any]:
    """What the device says of itself, for people and for JSON."""
    return {
        "name": name,
        "pid": facts.pid,
        "features": _names(facts.features, _NAMES),
        "protocol_features": _names(facts.protocol_features, PROTOCOL_FEATURE_NAMES),
        "queue_num": facts.queue_num,
        "config": facts.fields,
    }


def _names(bits: int, names: dict[int, str]) -> list[str]:
    return [names.get(bit, f"bit {bit}") for bit in range(64) if bits >> bit & 1]


def json_value(device: dict[str, Any], results: Sequence[Result], seconds: float) -> dict[str, Any]:
    """The whole run."""
    counts = Counter(result.verdict for result in results)
    return {
        "virtblk": __version__,
        "device": device,
        "counts": {verdict.value: counts[verdict] for verdict in Verdict},
        "seconds": round(seconds, 3),
        "results": [
            {
                "id": result.requirement.id,
                "section": result.requirement.section,
                "level": result.requirement.level.value,
                "verdict": result.verdict.value,
                "severity": str(result.severity).lower(),
                "text": result.requirement.text,
                "detail": result.detail,
                "same_as": result.requirement.same_as,
                "seconds": round(result.seconds, 3),
            }
            for result in results
        ],
    }


def write_json(target: str, value: dict[str, Any]) -> None:
    """To a file, or to standard output for `-`. UsageError where the file cannot be written."""
    text = json.dumps(value, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text)
    except OSError as error:
        raise UsageError(f"--json {target!r}: {error.strerror}") from error


def write_junit(target: str, results: Sequence[Result], failing: Sequence[Result], seconds: float) -> None:
    """JUnit XML: a class for each group; failures are those that fail the run. UsageError if it cannot be written."""
    suite = ElementTree.Element("testsuite", name="virtblk check", time=f"{seconds:.3f}")
    counts = {"tests": len(results), "failures": 0, "errors": 0, "skipped": 0}
    for result in results:
        requirement = result.requirement
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"virtblk.check.{requirement.group}",
            name=requirement.id,
            time=f"{result.seconds:.3f}",
        )
        if result in failing:
            kind = "error" if result.verdict is Verdict.WEDGED else "failure"
            counts["errors" if kind == "error" else "failures"] += 1
            message = f"{requirement.level.value}, {result.severity}: {result.detail}"
            node = ElementTree.SubElement(case, kind, message=_xml(message), type=result.verdict.value)
            node.text = f"{requirement.section}: {requirement.text}"
        elif result.verdict is Verdict.SKIP:
            counts["skipped"] += 1
            ElementTree.SubElement(case, "skipped", message=_xml(result.detail))
        elif result.detail:
            ElementTree.SubElement(case, "system-out").text = _xml(f"{result.verdict.value}: {result.detail}")
    suite.attrib.update({key: str(value) for key, value in counts.items()})
    try:
        with Path(target).open("wb") as file:
            ElementTree.ElementTree(suite).write(file, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise UsageError(f"--junit {target!r}: {error.strerror}") from error


def _xml(text: str) -> str:
    """Without the control characters that XML has no way to write."""
    return "".join(c if c >= " " or c in "\t\n" else "?" for c in text)
