"""The figures of the posting this project starts from, to be printed beside ours. Control context.

`evaluation_2012.json` holds them as posted: fio in an eight-CPU guest, on a ramdisk and others, request path and bio
path. What is derived from them is computed here. The guest's CPU is what our driver's process is; the posting has no
figure of the host's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from virtblk.bench.job import ALIASES

RAMDISK: Final = "ramdisk"
FUSION_IO: Final = "fusion-io"
SATA: Final = "sata-image"


@dataclass(frozen=True)
class Preset:
    """A load of the posting's, and the set of its figures that belongs to it.

    `options` are those of `virtblk bench`, by their names in Python. What is `inferred` the posting does not name.
    """

    disk: str
    vmm: str
    title: str
    options: Mapping[str, Any]
    inferred: str


#: `--preset NAME`. Block sizes, from bandwidth and IOPS, and the paths are the posting's. Jobs and depth follow from
#: IOPS times mean latency, which gives some 14000 I/Os in flight on ramdisk and card, and 250 on SATA. kvm tool's ring
#: has 256 entries. On SATA the range is what the posted random runs moved; on the card addresses do not matter, and
#: a small one is soon in memory. Slices are long where what is in flight at their end takes long.
PRESETS: Final[dict[str, Preset]] = {
    "posting-ramdisk": Preset(
        RAMDISK,
        "kvm tool",
        "ramdisk",
        {"disk": "ram:512m", "bs": "512", "numjobs": 256, "iodepth": 64, "queue_size": 256, "path": "request,bio"},
        "256 jobs x 64 deep and a ring of 256 are inferred, the posting names none of them",
    ),
    "posting-fusion-io": Preset(
        FUSION_IO,
        "kvm tool",
        "Fusion-io card",
        {
            "disk": "sim:fusion-io",
            "bs": "512",
            "numjobs": 256,
            "iodepth": 64,
            "queue_size": 256,
            "size": "64m",
            "runtime": 15.0,
            "slice": 1.0,
            "path": "request,bio",
        },
        "256 jobs x 64 deep, a ring of 256 and the range are inferred, the posting names none of them",
    ),
    "posting-sata": Preset(
        SATA,
        "kvm tool",
        "SATA image",
        {
            "disk": "sim:sata",
            "bs": "4k",
            "numjobs": 8,
            "iodepth": 32,
            "iodepth_batch_submit": 16,
            "queue_size": 256,
            "size": "251m",
            "runtime": 60.0,
            "slice": 5.0,
            "path": "request,bio",
        },
        "8 jobs x 32 deep, batches of 16, a ring of 256 and the range are inferred, the posting names none of them",
    ),
}
#: Whose figures stand beside those of a run without a preset.
DEFAULT_PRESET: Final = PRESETS["posting-ramdisk"]


@dataclass(frozen=True)
class Posted:
    """One cell of the posting: a workload on a path."""

    iops: float
    clat_mean_us: float
    cpu_pct: float  # of one CPU of the guest's
    bw_bytes: float  # per second

    @property
    def block_size(self) -> float:
        """Bytes per I/O, as far as the figures are exact."""
        return self.bw_bytes / self.iops

    @property
    def iops_per_cpu(self) -> float:
        """I/Os per second of guest CPU."""
        return self.iops / (self.cpu_pct / 100)


@cache
def posted(disk: str = RAMDISK, vmm: str = "kvm tool") -> dict[tuple[str, str], Posted]:
    """By (path, workload), the latter under fio's name."""
    text = resources.files("virtblk.bench").joinpath("evaluation_2012.json").read_text()
    cells = {}
    for found in json.loads(text)["sets"]:
        if (found["disk"], found["vmm"]) != (disk, vmm):
            continue
        for workload, figures in found["results"].items():
            cpu = figures["cpu"]["usr_pct"] + figures["cpu"]["sys_pct"]
            cell = Posted(figures["iops"], figures["clat_usec"]["avg"], cpu, figures["bw_kb_s"] * 1024)
            cells[found["path"], ALIASES[workload]] = cell
    return cells


@dataclass(frozen=True)
class PostedChange:
    """What the bio path changed against the request path, in per cent."""

    iops: float
    latency: float
    latency_posted: float
    iops_per_cpu: float


def posted_change(workload: str, disk: str = RAMDISK, vmm: str = "kvm tool") -> PostedChange:
    """The posting's change on one workload, computed from its figures."""
    cells = posted(disk, vmm)
    base, bio = cells["request", workload], cells["bio", workload]
    return PostedChange(
        iops=_pct(bio.iops, base.iops),
        latency=_pct(bio.clat_mean_us, base.clat_mean_us),
        latency_posted=_pct(base.clat_mean_us, bio.clat_mean_us),
        iops_per_cpu=_pct(bio.iops_per_cpu, base.iops_per_cpu),
    )


def _pct(value: float, base: float) -> float:
    return (value / base - 1) * 100
