"""`--sweep OPTION=VALUES`: the same run once per value of one of fio's numbers. Control context.

`iodepth=1,2,4,...,128`: `...` goes on as the three values before it do, by steps or by factors, to the value after it,
which must be one of the series. Everything is checked before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from virtblk.bench.job import JobOptions
from virtblk.errors import UsageError
from virtblk.names import format_size, parse_size

#: What can be swept, under fio's names, and what it is called in JobOptions.
OPTIONS: Final = {
    "iodepth": "iodepth",
    "bs": "bs",
    "numjobs": "numjobs",
    "iodepth_batch_submit": "batch_submit",
    "rate_iops": "rate_iops",
    "queue_size": "queue_size",
}
#: Those that are sizes, and printed as such.
SIZES: Final = ("bs",)
GOES_ON: Final = "..."
MAX_VALUES: Final = 64


@dataclass(frozen=True)
class Sweep:
    """One option and its values, in the order in which they run."""

    option: str
    values: tuple[int, ...]

    def job(self, job: JobOptions, value: int) -> JobOptions:
        """`job` with the option at `value`. Raises UsageError where the two do not go together."""
        changed: dict[str, Any] = {OPTIONS[self.option]: value}
        return replace(job, **changed)

    def text(self, value: int) -> str:
        """A value as a user would write it."""
        return format_size(value) if self.option in SIZES else str(value)

    def label(self, value: int) -> str:
        """`iodepth=4`."""
        return f"{self.option}={self.text(value)}"

    def as_json(self) -> dict[str, Any]:
        """Its object in `--json`."""
        return {"option": self.option, "values": list(self.values)}


def parse_sweep(text: str) -> Sweep:
    """`iodepth=1,2,4,...,128`. Raises UsageError with what to give instead."""
    name, equals, rest = text.partition("=")
    option = name.strip().lstrip("-").replace("-", "_")
    what = f"--sweep {text!r}"
    if not equals or not rest:
        raise UsageError(f"{what}: give OPTION=VALUES, such as iodepth=1,2,4,...,128")
    if option not in OPTIONS:
        raise UsageError(f"{what}: {name!r} cannot be swept; give one of {', '.join(OPTIONS)}")
    values: list[int] = []
    words = [word.strip() for word in rest.split(",")]
    for index, word in enumerate(words):
        if word != GOES_ON:
            values.append(_value(option, word, what))
        elif index + 2 != len(words):
            raise UsageError(f"{what}: {GOES_ON} stands before the last value, as in iodepth=1,2,4,...,128")
        else:
            values += _between(values, _value(option, words[-1], what), what)
        if len(values) > MAX_VALUES:
            raise UsageError(f"{what}: give at most {MAX_VALUES} values")
    if len(values) != len(set(values)):
        twice = next(value for value in values if values.count(value) > 1)
        raise UsageError(f"{what}: {twice} is there twice")
    return Sweep(option, tuple(values))


def _value(option: str, word: str, what: str) -> int:
    try:
        return parse_size(word, f"{what}: value")
    except UsageError:
        if option in SIZES:
            raise
        raise UsageError(f"{what}: value {word!r}: give a whole number such as 32") from None


def _between(values: Sequence[int], last: int, what: str) -> list[int]:
    """What `...` stands for."""
    if len(values) < 3:
        raise UsageError(f"{what}: give three values before {GOES_ON}, as in 1,2,4,...,128 or 16,32,48,...,128")
    first, second, third = values[-3:]
    if third - second == second - first > 0:
        step, factor = second - first, 1
    elif 0 < first < second and second % first == 0 and third * first == second * second:
        step, factor = 0, second // first
    else:
        raise UsageError(f"{what}: {first},{second},{third} grow neither by equal steps nor by an equal whole factor")
    found: list[int] = []
    value = third * factor + step
    while value < last:
        found.append(value)
        value = value * factor + step
        if len(found) > MAX_VALUES:
            raise UsageError(f"{what}: give at most {MAX_VALUES} values")
    if value != last:
        raise UsageError(f"{what}: {last} is not in the series that {first},{second},{third} begin")
    return found
