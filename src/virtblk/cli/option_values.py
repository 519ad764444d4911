"""Values of command-line options, as `type` and `action` of argparse: mistakes told in our words. Main thread."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from virtblk.errors import UsageError
from virtblk.names import parse_size


def whole_number(text: str) -> int:
    """`128`, `4k`. Raises ArgumentTypeError."""
    try:
        return parse_size(text, "number")
    except UsageError:  # a ValueError, whose text argparse would replace by the name of this function
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def seconds(text: str) -> float:
    """`0.5`: seconds, 0 or more. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if value != value or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give seconds, 0 or more")
    return value


class Once(argparse.Action):
    """Store the value of an option that is refused where it is given again: to take either would be a guess."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        earlier = getattr(namespace, self.dest)
        if earlier is not None:
            parser.error(f"{option_string} is given twice ({earlier!r} and {values!r}); give one")
        setattr(namespace, self.dest, values)
