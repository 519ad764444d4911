"""Disk names and sizes, parsed once, here: `SCHEME:REST[?key=value&key=value]`, sizes as fio writes them.

`ram:512m`, `null:1g?block_size=4k`, `file:/var/disk.img`, `vhost-user:/run/disk.sock`. `,` is accepted for `&`. What
follows `nbd:` is a URI to its end, `?` included: `nbd:nbd+unix:///?socket=/run/nbd.sock`. Imports nothing but errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from virtblk.errors import UsageError

#: Every scheme that virtblk will ever take; those of this version are in KNOWN.
SCHEMES: Final = ("ram", "null", "file", "sim", "nbd", "python", "vhost-user")
KNOWN: Final = ("ram", "null", "file", "nbd", "vhost-user")

#: What a name needs after its colon, where that is no size.
_REST: Final = {
    "file": "the path of a file or block device",
    "nbd": "a URI such as nbd://localhost or nbd+unix:///?socket=/run/nbd.sock",
    "vhost-user": "a socket's path",
}

_SIZE = re.compile(r"^\s*(\d{1,40})\s*(?:([kmgtp])i?b?|b?)\s*$", re.IGNORECASE | re.ASCII)
_SHIFT: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_LARGEST: Final = 1 << 62


def parse_size(text: str, what: str = "size") -> int:
    """Bytes of `512`, `4k`, `1g`, `1GiB`: powers of 1024, as fio's default. Raises UsageError naming `what`."""
    match = _SIZE.match(text)
    if match is None:
        raise UsageError(f"{what} {text!r}: give bytes or a size such as 4k, 512m, 1g")
    value = int(match[1]) << _SHIFT[(match[2] or "").lower()]
    if value > _LARGEST:
        raise UsageError(f"{what} {text!r} is too large")
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
            f"disk {text!r} has no scheme: write ram:512m, file:/path/to/image or vhost-user:/path/to/socket"
        )
    if scheme not in KNOWN:
        later = "is for a later version" if scheme in SCHEMES else "is unknown"
        raise UsageError(f"disk {text!r}: scheme {scheme!r} {later} (this version knows {', '.join(KNOWN)})")
    question, query = "", ""
    if scheme != "nbd":  # a URI has a `?` of its own
        rest, question, query = rest.partition("?")
    keys: dict[str, str] = {}
    if question:
        for item in re.split("[&,]", query):
            key, equals, value = item.partition("=")
            if not equals or not key:
                raise UsageError(f"disk {text!r}: {item!r} is not key=value")
            if key in keys:
                raise UsageError(f"disk {text!r}: key {key!r} is given twice")
            keys[key] = value
    if not rest:
        raise UsageError(f"disk {text!r}: give {_REST.get(scheme, 'a size such as 512m')} after the colon")
    return DiskName(text, scheme, rest, keys)
