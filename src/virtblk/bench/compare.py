"""`virtblk bench --compare A.json B.json`: what changed from one run to another, cell by cell. Control context.

Two runs at two times are not paired: what the machine did in between is in the change and not in its interval, which
only knows how far the slices of each run lie apart. That is said with the result. Runs that were not asked for the
same are not compared at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from virtblk import __version__
from virtblk.bench.bootstrap import Estimate, ratio_of_medians
from virtblk.bench.comparison import METRICS, POSTED, changes_json, figures, with_posted
from virtblk.bench.report import Column, format_table
from virtblk.bench.stat import COLUMNS
from virtblk.bench.summary import NOISE, change_text
from virtblk.errors import UsageError
from virtblk.figures import si

#: What must be the same for two runs to be comparable: of their options, and of what they ran on.
FIXED_OPTIONS: Final = (
    "bs", "iodepth", "numjobs", "size", "slice", "iodepth_batch_submit", "rate_iops", "poll", "verify", "share_core",
)  # fmt: skip
FIXED_DEVICE: Final = ("size", "block_size", "queue_size", "queues", "cache_type", "completion", "queue")
DRIFT: Final = "drift of the machine between the two runs is outside of these intervals"

Cell = tuple[str, str, int]  # workload, path, arm


@dataclass(frozen=True)
class Compared:
    """The changes of every cell that both runs have."""

    names: tuple[str, str]
    confidence: float
    iops: dict[Cell, tuple[float, float]]
    changes: dict[Cell, dict[str, Estimate | None]]

    def as_json(self) -> dict[str, Any]:
        """What `--json` writes."""
        cells = []
        for (workload, path, arm), changes in self.changes.items():
            cells.append({"workload": workload, "path": path, "arm": arm} | changes_json(changes))
        return {
            "virtblk": __version__,
            "compared": list(self.names),
            "confidence": self.confidence,
            "note": DRIFT,
            "cells": cells,
        }


def read_run(name: str) -> dict[str, Any]:
    """A file that `--json` wrote. Raises UsageError for one that is not."""
    try:
        value = json.loads(Path(name).read_text())
    except OSError as error:
        raise UsageError(f"--compare {name!r}: {error.strerror}") from error
    except ValueError as error:  # of JSON or of UTF-8
        raise UsageError(f"--compare {name!r} is not JSON: {error}") from error
    foreign = f"--compare {name!r} is not what this version's bench --json writes"
    if not isinstance(value, dict):
        raise UsageError(f"{foreign}: it is no JSON object")
    try:
        cells = _cells(value)
        fixed = _fixed(value)
    except KeyError as error:
        raise UsageError(f"{foreign}: it has no {error.args[0]!r}") from error
    except (TypeError, AttributeError, IndexError) as error:
        raise UsageError(f"{foreign}: a value in it is of another kind") from error
    except ValueError as error:
        raise UsageError(f"{foreign}: {error}") from error
    if not cells or not fixed:
        raise UsageError(f"--compare {name!r} holds no run")
    return value


def _cells(value: dict[str, Any]) -> dict[Cell, dict[str, list[float | None]]]:
    cells = {}
    for run in value["runs"]:
        samples = run["slices"]
        lengths = {len(samples[column]) for column in COLUMNS}
        if len(lengths) != 1 or not all(_is_figure(x) for column in COLUMNS for x in samples[column]):
            raise ValueError("slices that do not fit together")
        cells[str(run["workload"]), str(run["path"]), int(run["arm"])] = samples
    return cells


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and 0 <= value < float("inf"))


def _fixed(value: dict[str, Any]) -> dict[str, Any]:
    """Fixed inputs by a name that a person knows."""
    options, device = value["options"], value["device"]
    found: dict[str, Any] = {f"--{key.replace('_', '-')}": options[key] for key in FIXED_OPTIONS}
    for key in FIXED_DEVICE:
        if isinstance(device[key], dict):
            found |= {f"{key}/{name}": text for name, text in device[key].items()}
        else:
            found[f"the disk's {key.replace('_', ' ')}"] = device[key]
    return found


def check_comparable(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str]) -> None:
    """Raise UsageError with the first difference in what was asked for."""
    a, b = _fixed(first), _fixed(second)
    for key in [*a, *(key for key in b if key not in a)]:
        if a.get(key) != b.get(key):
            raise UsageError(
                f"--compare: {key} is {_text(a.get(key))} in {names[0]} and {_text(b.get(key))} in {names[1]}"
            )
    only = set(_cells(first)) ^ set(_cells(second))
    if only:
        workload, path, arm = min(only)
        where = names[0] if (workload, path, arm) in _cells(first) else names[1]
        raise UsageError(f"--compare: only {where} has a run of {workload} on {path} (arm {arm})")


def _text(value: object) -> str:
    return "not given" if value is None else repr(value) if isinstance(value, str) else str(value)


def compare_files(first: str, second: str, confidence: float) -> Compared:
    """All changes from the run in file `first` to that in `second`. Raises UsageError where they do not compare."""
    if not 50 <= confidence < 100:
        raise UsageError(f"--confidence {confidence:g}: give per cent, from 50 to less than 100, such as 95")
    names = (first, second)
    a, b = read_run(first), read_run(second)
    check_comparable(a, b, names)
    before, after = _cells(a), _cells(b)
    iops, changes = {}, {}
    for cell, samples in before.items():
        found: dict[str, Estimate | None] = {}
        for metric in METRICS:
            pair = [[x for x in figures(one, metric) if x is not None] for one in (samples, after[cell])]
            found[metric] = ratio_of_medians(pair[0], pair[1], confidence)
        changes[cell] = with_posted(found)
        iops[cell] = (_median(samples["iops"]), _median(after[cell]["iops"]))
    return Compared(names, confidence, iops, changes)


def _median(values: list[float | None]) -> float:
    known = sorted(value for value in values if value is not None)
    if not known:
        return 0.0
    middle = len(known) // 2
    return known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2


def print_compared(compared: Compared, stream: TextIO) -> None:
    """A table, and what its intervals do not cover."""
    rows: list[list[Column]] = []
    for (workload, path, arm), changes in compared.changes.items():
        before, after = compared.iops[workload, path, arm]
        rows.append(
            [
                ("path", path),
                ("workload", workload),
                ("IOPS A", si(before)),
                ("IOPS B", si(after)),
                ("change", change_text(changes["iops"])),
                ("mean clat, B/A - 1", change_text(changes["latency"])),
                ("A/B - 1", change_text(changes[POSTED])),
                ("IOPS/driver-CPU", change_text(changes["iops_per_driver_cpu"])),
                ("IOPS/both-CPU", change_text(changes["iops_per_total_cpu"])),
                ("busy ns/IO", change_text(changes["busy_ns"])),
            ]
        )
    print(f"A: {compared.names[0]}\nB: {compared.names[1]}\n", file=stream)
    print(format_table(rows), file=stream)
    print(f"\nmedians of slices, [{compared.confidence:g} % interval]; {NOISE} within noise; {DRIFT}", file=stream)
