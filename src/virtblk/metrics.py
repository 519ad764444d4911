"""Metrics as Prometheus reads them: families of samples, and their text (exposition format 0.0.4).

`server` says what there is to count, `exporter` serves the text. Counters are read where workers write them, without
a lock: they are int64, and only ever grow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from virtblk.errors import UsageError


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[::1]:PORT`, or `PORT` alone, which is on loopback. Raises UsageError."""
    match = re.fullmatch(r"(?:(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):)?([0-9]{1,5})", text)
    if match is None or int(match[2]) > 65535:
        raise UsageError(f"--metrics {text!r}: give PORT or HOST:PORT such as 127.0.0.1:9100, PORT from 0 to 65535")
    return (match[1] or "127.0.0.1").strip("[]"), int(match[2])


@dataclass
class Family:
    """One metric: its samples differ in their labels. `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    text: str
    samples: list[tuple[str, Mapping[str, object], float]] = field(default_factory=list)

    def add(self, value: float, **labels: object) -> None:
        """One sample."""
        self.samples.append((self.name, labels, value))

    def add_histogram(self, bounds: Iterable[float], counts: Iterable[int], total: float, **labels: object) -> None:
        """Cumulative buckets of `counts`, of which the last has no upper bound; `total` is the sum of all values."""
        seen = 0
        for bound, count in zip([*bounds, float("inf")], counts, strict=True):
            seen += count
            self.samples.append((f"{self.name}_bucket", {**labels, "le": _number(bound)}, seen))
        self.samples.append((f"{self.name}_sum", labels, total))
        self.samples.append((f"{self.name}_count", labels, seen))


def render(families: Iterable[Family]) -> str:
    """The text. A family without samples is left out."""
    lines = []
    for family in families:
        if family.samples:
            lines.append(f"# HELP {family.name} {_escape(family.text)}")
            lines.append(f"# TYPE {family.name} {family.kind}")
            lines += [f"{name}{_labels(labels)} {_number(value)}" for name, labels, value in family.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, object]) -> str:
    if not labels:
        return ""
    pairs = ",".join(f'{key}="{_escape(str(value), quote=True)}"' for key, value in labels.items())
    return "{" + pairs + "}"


def _escape(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
