"""Disk and filter names, sizes and times, parsed once, here: `SCHEME:REST[?key=value&key=value]`, sizes as fio's.

`ram:512m`, `null:1g?block_size=4k`, `vhost-user:/run/disk.sock`; filters have no colon: `delay?all=10ms`. `,` is
accepted for `&`. What follows `nbd:` is a URI to its end, `?` included. Imports nothing but errors.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from virtblk.errors import UsageError

#: Every scheme that virtblk will ever take; those of this version are in KNOWN.
SCHEMES: Final = ("ram", "null", "file", "sim", "nbd", "python", "vhost-user")
KNOWN: Final = ("ram", "null", "file", "sim", "nbd", "vhost-user")

#: What a name needs after its colon, where that is no size.
_REST: Final = {
    "file": "a path",
    "sim": "a profile, sata or fusion-io,",
    "nbd": "a URI such as nbd://localhost or nbd+unix:///?socket=/run/nbd.sock",
    "vhost-user": "a socket's path",
}

_SIZE = re.compile(r"^\s*(\d{1,40})\s*(?:([kmgtp])i?b?|b?)\s*$", re.IGNORECASE | re.ASCII)
_SHIFT: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_LARGEST: Final = 1 << 62

_TIME = re.compile(r"^\s*(\d{1,15}(?:\.\d{1,15})?)\s*(ns|us|ms|s|m)\s*$", re.ASCII)
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_LONGEST: Final = 86400.0
_RATE = re.compile(r"^\s*(\d{1,15}(?:\.\d{1,15})?)\s*(%?)\s*$", re.ASCII)


def parse_size(text: str, what: str = "size") -> int:
    """Bytes of `512`, `4k`, `1g`, `1GiB`: powers of 1024, as fio's default. Raises UsageError naming `what`."""
    match = _SIZE.match(text)
    if match is None:
        raise UsageError(f"{what} {text!r}: give bytes or a size such as 4k, 512m, 1g")
    value = int(match[1]) << _SHIFT[(match[2] or "").lower()]
    if value > _LARGEST:
        raise UsageError(f"{what} {text!r} is too large")
    return value


def parse_time(text: str, what: str = "time") -> float:
    """Seconds of `10ms`, `200us`, `1.5s`, `2m`, at most a day. Raises UsageError naming `what`."""
    match = _TIME.match(text)
    if match is None:
        raise UsageError(f"{what} {text!r}: give a time with its unit, such as 200us, 10ms, 1.5s")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > _LONGEST:
        raise UsageError(f"{what} {text!r} is longer than a day")
    return seconds


def parse_fraction(text: str, what: str = "rate") -> float:
    """A number from 0 to 1, or a percentage: `0.1`, `10%`. Raises UsageError naming `what`."""
    match = _RATE.match(text)
    value = -1.0 if match is None else float(match[1]) / (100 if match[2] else 1)
    if not 0 <= value <= 1:
        raise UsageError(f"{what} {text!r}: give a number from 0 to 1, or a percentage such as 10%")
    return value


def format_size(value: int) -> str:
    """The shortest exact way to write `value` bytes: 512m, 4k, 513."""
    for unit in ("p", "t", "g", "m", "k"):
        if value and value % (1 << _SHIFT[unit]) == 0:
            return f"{value >> _SHIFT[unit]}{unit}"
    return str(value)


@dataclass(frozen=True)
class DiskName:
    """A parsed name. `rest` is what follows the scheme, without the keys; of `nbd:`, which has none, all of it."""

    text: str
    scheme: str
    rest: str
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """`rest` as a size in bytes (ram:, null:)."""
        return parse_size(self.rest, f"disk {self.text!r}: size")

    def size_key(self, key: str, default: int) -> int:
        """A key's value as a size in bytes."""
        return parse_size(self.keys[key], f"disk {self.text!r}: {key}") if key in self.keys else default

    def refuse_other_keys(self, *known: str) -> None:
        """Raise UsageError for a key that is none of `known`."""
        for key in self.keys:
            if key not in known:
                allowed = ", ".join(known) if known else "none"
                raise UsageError(f"disk {self.text!r}: unknown key {key!r} (known: {allowed})")


def parse_name(text: str) -> DiskName:
    """Parse a disk name. Raises UsageError with the name and what to give instead."""
    scheme, colon, rest = text.partition(":")
    if not colon:
        raise UsageError(
            f"disk {text!r} has no scheme: write ram:512m, null:1g, file:/path/to/file or vhost-user:/path/to/socket"
        )
    if scheme not in KNOWN:
        later = "is for a later version" if scheme in SCHEMES else "is unknown"
        raise UsageError(f"disk {text!r}: scheme {scheme!r} {later} (this version knows {', '.join(KNOWN)})")
    keys: dict[str, str] = {}
    if scheme != "nbd":  # a URI has a `?` of its own
        rest, keys = _parse_keys(rest, f"disk {text!r}")
    if not rest:
        raise UsageError(f"disk {text!r}: give {_REST.get(scheme, 'a size such as 512m')} after the colon")
    return DiskName(text, scheme, rest, keys)


@dataclass(frozen=True)
class FilterName:
    """A parsed filter: `name`, and the keys with their values as text."""

    text: str
    name: str
    keys: dict[str, str] = field(default_factory=dict)

    def what(self, key: str) -> str:
        """How a complaint about the value of `key` begins."""
        return f"filter {self.text!r}: {key}"

    def refuse(self, key: str, advice: str) -> UsageError:
        """The error for a value that cannot work."""
        return UsageError(f"{self.what(key)} {self.keys[key]!r}: {advice}")

    def size_key(self, key: str) -> int | None:
        """A key's value as a size in bytes."""
        return parse_size(self.keys[key], self.what(key)) if key in self.keys else None

    def time_key(self, key: str, default: float) -> float:
        """A key's value as a time in seconds."""
        return parse_time(self.keys[key], self.what(key)) if key in self.keys else default

    def fraction_key(self, key: str, default: float) -> float:
        """A key's value as a number from 0 to 1."""
        return parse_fraction(self.keys[key], self.what(key)) if key in self.keys else default

    def integer_key(self, key: str) -> int | None:
        """A key's value as a whole number."""
        text = self.keys.get(key)
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise self.refuse(key, "give a whole number")
        return int(text)

    def path_key(self, key: str) -> str | None:
        """A key's value as a file's path."""
        path = self.keys.get(key)
        if path is not None and (not path or "\0" in path):
            raise self.refuse(key, "give the path of a file")
        return path

    def refuse_other_keys(self, *known: str) -> None:
        """Raise UsageError for a key that is none of `known`."""
        for key in self.keys:
            if key not in known:
                allowed = ", ".join(known) if known else "none"
                raise UsageError(f"filter {self.text!r}: unknown key {key!r} (known: {allowed})")


def parse_filter(text: str, known: Collection[str]) -> FilterName:
    """Parse a filter, `NAME[?key=value&key=value]`, its name one of `known`. Raises UsageError."""
    name, keys = _parse_keys(text, f"filter {text!r}")
    if name not in known:
        raise UsageError(f"filter {text!r}: {name!r} is unknown (known: {', '.join(known)})")
    return FilterName(text, name, keys)


def _parse_keys(text: str, what: str) -> tuple[str, dict[str, str]]:
    """What stands before the question mark, and the keys after it."""
    rest, question, query = text.partition("?")
    keys: dict[str, str] = {}
    if question:
        for item in re.split("[&,]", query):
            key, equals, value = item.partition("=")
            if not equals or not key:
                raise UsageError(f"{what}: {item!r} is not key=value")
            if key in keys:
                raise UsageError(f"{what}: key {key!r} is given twice")
            keys[key] = value
    return rest, keys
