"""The figures of the posting this project starts from, to be printed beside ours. Control context.

`evaluation_2012.json` holds them as posted: fio in an eight-CPU guest, on a ramdisk and others, request path and bio
path. What is derived from them is computed here. The guest's CPU is what our driver's process is; the posting has no
figure of the host's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from virtblk.bench.job import ALIASES

RAMDISK: Final = "ramdisk"
FUSION_IO: Final = "fusion-io"
SATA: Final = "sata-image"

#: `--preset posting-ramdisk`. Block size, from bandwidth and IOPS, and the paths are the posting's; jobs and depth are
#: inferred: IOPS times mean latency gives some 13700 I/Os in flight. Nor does it name its ring: kvm tool's has 256.
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "posting-ramdisk": {"bs": "512", "numjobs": 256, "iodepth": 64, "queue_size": 256, "path": "request,bio"}
}


@dataclass(frozen=True)
class Posted:
    """One cell of the posting: a workload on a path."""

    iops: float
    clat_mean_us: float
    cpu_pct: float  # of one CPU of the guest's

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
            cell = Posted(figures["iops"], figures["clat_usec"]["avg"], cpu)
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
