"""The gate of the matrix: do `mq` and `auto` keep up with `request` and `bio`, and does `mq` pay in batches?

    .venv/bin/python benchmarks/matrix_gate.py                                      runs all, some 25 minutes
    .venv/bin/python benchmarks/matrix_gate.py matrix-1.json matrix-2.json matrix-3.json batches.json

The first question takes files of `virtblk bench --matrix --json FILE`, three of them. A cell is a disk's workload in
one run; it fails where the interval of IOPS over those of the better of `request` and `bio` lies wholly below 0.98.
The second takes runs of 4 KiB in batches of 32 without polling, `--iodepth-batch-submit 32`: `mq` against `bio` on the
sequential workloads, of which `null:` counts. Each file answers what it has cells for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtblk.errors import UsageError, VirtblkError

OLD = ("request", "bio")
NEW = ("mq", "auto")
#: A path is not below another where it may have this much of its IOPS,
LEAST = 0.98
#: in so many of the cells,
SHARE = 0.95
#: over so many runs.
RUNS = 3
#: In batches, sequentially, on a disk that does nothing, mq is to have so many times the IOPS of bio.
GAIN = 1.5
BATCH, BLOCK = 32, 4096
SEQUENTIAL = ("read", "write")


@dataclass(frozen=True)
class Ratio:
    """IOPS of one path over another's. The interval is None where there were too few slices."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "[?]" if self.low is None or self.high is None else f"[{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f} {interval}"

    def inverse(self) -> Ratio:
        if self.low is None or self.high is None or self.low <= 0:
            return Ratio(1 / self.value, None, None)
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low)


@dataclass(frozen=True)
class Cell:
    """A workload of a disk in one run, at one value of a sweep if there is one."""

    file: str
    point: dict[str, Any]
    workload: str

    @property
    def name(self) -> str:
        option = self.point["option"]
        value = f" {option}={self.point['value']}" if option else ""
        return f"{self.file}: {self.point['disk']} {self.workload}{value}"

    @property
    def batches(self) -> bool:
        """Whether it is of the second question's load."""
        options = self.point["options"]
        load = (options["iodepth_batch_submit"], options["bs"], options["poll"])
        return self.workload in SEQUENTIAL and load == (BATCH, BLOCK, False)

    @property
    def is_null(self) -> bool:
        return str(self.point["disk"]).startswith("null:")

    def ratio(self, path: str, base: str) -> Ratio | None:
        """IOPS of `path` over those of `base`; None where the two were not compared."""
        for pair in self.point["pairs"]:
            if pair["workload"] == self.workload and {pair["path"], pair["base"]} == {path, base}:
                if pair["iops_pct"] is None:
                    return None
                low, high = [1 + end / 100 for end in pair["iops_ci"]] if pair["iops_ci"] else (None, None)
                found = Ratio(1 + pair["iops_pct"] / 100, low, high)
                return found if pair["path"] == path else found.inverse()
        return None

    def better(self) -> str | None:
        """Which of `request` and `bio` has more IOPS here."""
        change = self.ratio("bio", "request")
        return None if change is None else "bio" if change.value > 1 else "request"


def read_cells(path: str) -> list[Cell]:
    """All cells of a file. Raises UsageError for what is no matrix, or for a matrix in which I/Os failed."""
    try:
        value = json.loads(Path(path).read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path}: is no JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("points"), list):
        raise UsageError(f"{path}: is no file of virtblk bench --matrix --json")
    if value.get("interrupted"):
        raise UsageError(f"{path}: the run was interrupted")
    cells = []
    try:
        for point in value["points"]:
            if point["failure"]:
                raise UsageError(f"{path}: {point['disk']}: {point['failure']}")
            if any(run["errors"] for run in point["runs"]):
                raise UsageError(f"{path}: {point['disk']}: I/Os failed")
            workloads = dict.fromkeys(run["workload"] for run in point["runs"])
            cells += [Cell(path, point, workload) for workload in workloads]
        for cell in cells:  # what is wrong with the file is said now, and not in the middle of the verdict
            _ = cell.name, cell.batches, cell.ratio("mq", "bio")
    except (KeyError, TypeError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{path}: is no file of virtblk bench --matrix --json: {told}") from error
    return cells


def keeps_up(cells: Sequence[Cell]) -> Iterator[tuple[Cell, str, str, Ratio, bool]]:
    """(cell, path, the better of the old paths, ratio, whether it passes) of all that can be judged.

    One without an interval fails: nothing is known of it.
    """
    for cell in cells:
        base = cell.better()
        for path in NEW:
            ratio = cell.ratio(path, base) if base else None
            if base is not None and ratio is not None:
                yield cell, path, base, ratio, ratio.high is not None and ratio.high >= LEAST


def print_keeps_up(cells: Sequence[Cell]) -> bool:
    """The first question: shares, and the cells that fail. Returns whether the gate is passed."""
    judged = list(keeps_up(cells))
    if not judged:
        print(f"no cell has {' and '.join(OLD)} and one of {', '.join(NEW)}")
        return False
    files = len({cell.file for cell, *_ in judged})
    print(f"IOPS not below {LEAST} of the better of {' and '.join(OLD)}, over {files} of {RUNS} runs")
    for path in NEW:
        mine = [passes for _, one, _, _, passes in judged if one == path]
        if mine:
            print(f"  {path:>4}: {sum(mine)} of {len(mine)} cells, {sum(mine) / len(mine):.1%}")
    verdicts: dict[str, bool] = {}
    for cell, _, _, _, passes in judged:
        verdicts[cell.name] = verdicts.get(cell.name, True) and passes
    share = sum(verdicts.values()) / len(verdicts)
    passed = share >= SHARE and files >= RUNS
    print(f"  both: {sum(verdicts.values())} of {len(verdicts)} cells, {share:.1%}; wanted {SHARE:.0%}")
    for cell, path, base, ratio, passes in judged:
        if not passes:
            print(f"  fails: {cell.name}: {path} / {base} {ratio}")
    if files < RUNS:
        print(f"  give {RUNS} runs for a verdict")
    return passed


def print_batches(cells: Sequence[Cell]) -> bool:
    """The second question. Returns whether the gate is passed."""
    found = [(cell, ratio) for cell in cells if cell.batches and (ratio := cell.ratio("mq", "bio")) is not None]
    print(f"\nmq / bio, sequential {BLOCK // 1024} KiB in batches of {BATCH}, no polling; wanted {GAIN} on null:")
    for cell, ratio in sorted(found, key=lambda one: not one[0].is_null):
        print(f"  {cell.name}: {ratio}{'' if not cell.is_null else '' if ratio.value >= GAIN else '  fails'}")
    of_null = [ratio.value >= GAIN for cell, ratio in found if cell.is_null]
    if not of_null:
        print(f"  none of null: is there; run virtblk bench --matrix --iodepth-batch-submit {BATCH} --bs 4k")
    return bool(of_null) and all(of_null)


def run_all(directory: Path, more: Sequence[str]) -> list[str]:
    """Three matrices and one in batches; returns their files. Raises UsageError where a run failed."""
    batches = f"--rw {','.join(SEQUENTIAL)} --path bio,mq --bs {BLOCK} --iodepth-batch-submit {BATCH}".split()
    plans = [(f"matrix-{number}.json", ["--randseed", str(number)]) for number in range(1, RUNS + 1)]
    files = []
    for name, words in [*plans, ("batches.json", batches)]:
        target = directory / name
        command = [sys.executable, "-m", "virtblk", "bench", "--matrix", *words, *more, "--json", str(target)]
        print(f"{name}: virtblk {' '.join(command[3:])}", flush=True)
        status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        if status:
            raise UsageError(f"{name}: the run ended with {status}")
        files.append(str(target))
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="files of virtblk bench --matrix --json (default: run them)")
    add("--directory", default=".", metavar="DIR", help="where the runs write their files (default here)")
    add("--disks", metavar="LIST", help="as for --matrix (default all)")
    add("--runtime", metavar="S", help="seconds per workload and path (default that of bench)")
    options = parser.parse_args()
    given = {"--disks": options.disks, "--runtime": options.runtime}
    more = [word for name, value in given.items() if value is not None for word in (name, value)]
    if options.files and more:
        raise UsageError(f"{more[0]} {more[1]}: is for runs; leave it out, or the files")
    files = options.files or run_all(Path(options.directory), more)
    if len(files) != len(set(files)):
        raise UsageError("a file is there twice")
    cells = [cell for file in files for cell in read_cells(file)]
    keeps = print_keeps_up(cells)
    pays = print_batches(cells)
    print(f"\n{'passed' if keeps and pays else 'NOT passed'}")
    return 0 if keeps and pays else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VirtblkError as error:
        print(f"matrix_gate.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
