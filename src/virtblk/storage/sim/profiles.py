"""The parameters of `sim:` disks: what each key means, its default, its bounds; and the model that they make.

`docs/sim.md` says where the defaults come from; those that follow from the posting's figures are worked out anew by
`benchmarks/calibrate_sim.py`. Control context.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from virtblk.errors import UsageError
from virtblk.jit.table import Table
from virtblk.names import DiskName, parse_size, parse_time
from virtblk.storage.sim.state import (
    DIRTY_DTYPE,
    FUSION_IO_DTYPE,
    IDLE,
    MAX_QUEUES,
    PROFILE_FUSION_IO,
    PROFILE_SATA,
    QUEUE_OPS,
    SATA_DTYPE,
    SEGMENT_DTYPE,
    SIM_DTYPE,
    SIM_OP_DTYPE,
    SIM_QUEUE_DTYPE,
    SimModel,
    SimQueue,
)

SECTOR: Final = 512
_NS: Final = 1_000_000_000
_PS: Final = 1_000_000_000_000
_FLAGS: Final = {"on": 1, "off": 0}

#: Ranges of the write cache: of the smallest writes there may be, as many as a drive of that time kept track of.
DIRTY_RANGES: Final = 1024


@dataclass(frozen=True)
class Key:
    """One parameter: how its value is written (`size`, `time`, `count` or `flag`), and from where to where it may be.

    Sizes in bytes, times in nanoseconds.
    """

    kind: str
    default: str
    least: int
    most: int
    advice: str

    def parse(self, text: str, what: str) -> int:
        """The value of `text`. Raises UsageError that begins with `what`."""
        if self.kind == "size":
            value = parse_size(text, what)
        elif self.kind == "time":
            value = round(parse_time(text, what) * _NS)
        elif self.kind == "flag":
            if text not in _FLAGS:
                raise UsageError(f"{what} {text!r}: give {self.advice}")
            return _FLAGS[text]
        else:
            if not re.fullmatch(r"[0-9]{1,18}", text):
                raise UsageError(f"{what} {text!r}: give {self.advice}")
            value = int(text)
        if not self.least <= value <= self.most:
            raise UsageError(f"{what} {text!r}: give {self.advice}")
        return value


def _time(default: str, most: str = "1s") -> Key:
    return Key("time", default, 0, round(parse_time(most) * _NS), f"a time from 0us to {most}")


def _size(default: str, least: str, most: str) -> Key:
    advice = f"a size from {least} to {most}"
    return Key("size", default, parse_size(least), parse_size(most), advice)


def _count(default: str, least: int, most: int) -> Key:
    return Key("count", default, least, most, f"a whole number from {least} to {most}")


#: Of both profiles.
_SPEED: Final = _count("1", 1, 100)

SATA_KEYS: Final[dict[str, Key]] = {
    "size": _size("500g", "1m", "16t"),
    "speed": _SPEED,
    "rpm": _count("7200", 1000, 30_000),
    "rate": _size("61m", "1m", "4g"),
    "seek_min": _time("630us"),
    "seek_avg": _time("8500us"),
    "seek_max": _time("18ms"),
    "write_settle": _time("560us"),
    "overhead": _time("100us"),
    "link": _size("300m", "1m", "16g"),
    "read_ahead": _size("256k", "0", "1g"),
    "segments": _count("16", 1, 256),
    "segment": _size("512k", "512", "1g"),
    "write_cache": _size("0", "0", "1g"),
    "depth": _count("32", 1, 256),
    "max_skips": _count("64", 0, 1_000_000),
    "reorder": Key("flag", "on", 0, 1, "on or off"),
    "merge": _size("512k", "0", "16m"),
}

FUSION_IO_KEYS: Final[dict[str, Key]] = {
    "size": _size("16g", "1m", "16t"),
    "speed": _SPEED,
    "channels": _count("16", 1, 1024),
    "page": _size("4k", "512", "1m"),
    "read": _time("143us"),
    "program": _time("139us"),
    "overhead": _time("10us"),
    "write_buffer": _size("1m", "512", "1g"),
}

PROFILES: Final = {"sata": SATA_KEYS, "fusion-io": FUSION_IO_KEYS}


def parse_profile(name: DiskName) -> dict[str, int]:
    """All parameters of the disk that `name` describes, in bytes, nanoseconds and numbers. Raises UsageError."""
    keys = PROFILES.get(name.rest)
    if keys is None:
        raise UsageError(f"disk {name.text!r}: profile {name.rest!r} is unknown (known: {', '.join(PROFILES)})")
    name.refuse_other_keys(*keys, "block_size")
    values = {
        key: described.parse(name.keys.get(key, described.default), f"disk {name.text!r}: {key}")
        for key, described in keys.items()
    }
    if name.rest == "sata":
        try:
            seek_curve(values)
        except ValueError as error:
            raise UsageError(f"disk {name.text!r}: {error}") from None
        if values["read_ahead"] > values["segment"]:
            raise UsageError(
                f"disk {name.text!r}: read_ahead {values['read_ahead']} is more than a segment of the track cache "
                f"holds; give no more than segment, {values['segment']}"
            )
    for key in ("read_ahead", "segment", "write_cache", "merge", "page", "write_buffer"):
        if values.get(key, 0) % SECTOR:
            raise UsageError(f"disk {name.text!r}: {key} {values[key]}: give a multiple of {SECTOR}")
    if values.get("write_buffer", 0) < values.get("page", 0):
        raise UsageError(
            f"disk {name.text!r}: write_buffer {values['write_buffer']} holds no page; give {values['page']} or more"
        )
    return values


def seek_curve(values: Mapping[str, int]) -> tuple[float, float, float]:
    """(a, b, c) of a + b sqrt(x) + c x, which is `seek_avg` at a third of all tracks and `seek_max` at all of them.

    Raises ValueError where the three times lie on no such curve that rises all the way.
    """
    least, average, most = (float(values[key]) for key in ("seek_min", "seek_avg", "seek_max"))
    root = (average - least - (most - least) / 3) / (math.sqrt(1 / 3) - 1 / 3)
    linear = most - least - root
    if root < 0 or linear < 0:
        low = least + (most - least) / 3
        high = least + (most - least) * math.sqrt(1 / 3)
        raise ValueError(
            f"no arm seeks in {least / 1e6:g}, {average / 1e6:g} and {most / 1e6:g} ms at least, on average and at "
            f"most; give seek_avg from {low / 1e3:.0f}us to {high / 1e3:.0f}us, or other bounds"
        )
    return least, root, linear


def make_model(profile: str, values: Mapping[str, int]) -> SimModel:
    """A disk of these parameters at its time 0. Who shares it between queues sets `lock`, and `base_ns` for a clock."""
    sata = profile == "sata"
    ops = MAX_QUEUES * QUEUE_OPS if sata else 1
    places = 1 if sata else values["write_buffer"] // values["page"]
    model = SimModel(
        Table(1, SIM_DTYPE),
        Table(ops, SIM_OP_DTYPE),
        Table(ops),
        Table(1, SATA_DTYPE),
        Table(ops),
        Table(values["depth"] if sata else 1),
        Table(values["segments"] if sata else 1, SEGMENT_DTYPE),
        Table(DIRTY_RANGES, DIRTY_DTYPE),
        Table(1, FUSION_IO_DTYPE),
        Table(1 if sata else values["channels"]),
        Table(places),
    )
    model.state[0]["profile"] = PROFILE_SATA if sata else PROFILE_FUSION_IO
    model.state[0]["speed"] = values["speed"]
    if sata:
        _set_sata(model.sata[0], values)
    else:
        for key in ("channels", "page", "read", "program", "overhead"):
            model.fusion[0][key] = values[key]
        model.fusion[0]["places"] = places
    return model


def make_queue(number: int, slots: int = QUEUE_OPS) -> SimQueue:
    """Queue `number` of a disk, from 0; it has at most `slots` operations out."""
    queue = SimQueue(Table(1, SIM_QUEUE_DTYPE), Table(slots), Table(slots), Table(slots), Table(slots))
    queue.state[0]["number"] = number
    queue.state[0]["free"] = slots
    queue.free[:] = range(slots - 1, -1, -1)
    return queue


def _set_sata(state: Any, values: Mapping[str, int]) -> None:
    state["revolution"] = 60 * _NS // values["rpm"]
    state["sector_ps"] = SECTOR * _PS // values["rate"]
    state["track"] = max(1, int(state["revolution"]) * 1000 // int(state["sector_ps"]))
    state["tracks"] = -(-(values["size"] // SECTOR) // int(state["track"]))
    state["seek_min"], state["seek_root"], state["seek_linear"] = seek_curve(values)
    state["link_ps"] = SECTOR * _PS // values["link"]
    for key in ("read_ahead", "segment", "write_cache", "merge"):
        state[key] = values[key] // SECTOR
    for key in ("write_settle", "overhead", "segments", "depth", "reorder", "max_skips"):
        state[key] = values[key]
    state["ranges"] = DIRTY_RANGES
    state["current"] = IDLE
    state["reading"] = state["destaging"] = state["since"] = -1
