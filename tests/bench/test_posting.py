"""The posting's figures, and what is derived from them."""

from __future__ import annotations

import pytest

from virtblk.bench.job import WORKLOADS
from virtblk.bench.posting import PRESETS, posted, posted_change
from virtblk.names import parse_size


def rounded(name: str, **where: str) -> list[int]:
    return [round(getattr(posted_change(workload, **where), name)) for workload in WORKLOADS]


def test_the_headlines_of_the_ramdisk() -> None:
    assert rounded("iops") == [28, 25, 22, 16]
    assert rounded("latency") == [-25, -15, -17, -14]
    assert rounded("latency_posted") == [33, 17, 21, 17]
    assert rounded("iops_per_cpu") == [28, 10, 23, 20]


def test_the_headlines_of_the_flash_card() -> None:
    where = {"disk": "fusion-io"}
    assert rounded("iops", **where) == [11, 11, 14, 10]
    assert rounded("latency", **where) == [-10, -10, -11, -9]
    assert rounded("iops_per_cpu", **where) == [48, 42, 38, 38]


def test_where_it_lost() -> None:
    assert rounded("iops", disk="sata-image", vmm="qemu") == [-2, -43, 0, 9]
    assert rounded("iops", disk="sata-image", vmm="kvm tool") == [-10, -10, 4, 1]


def test_cells_have_the_names_of_the_bench() -> None:
    cells = posted()
    assert set(cells) == {(path, workload) for path in ("request", "bio") for workload in WORKLOADS}
    cell = cells["bio", "read"]
    assert (cell.iops, cell.clat_mean_us) == (233991, 58716.99)
    assert cell.cpu_pct == pytest.approx(74.08 + 703.84)
    assert cell.iops_per_cpu == pytest.approx(233991 / 7.7792)


@pytest.mark.parametrize("name", PRESETS)
def test_the_load_is_what_the_figures_say(name: str) -> None:
    """Little's law: IOPS times latency is what is in flight. Bandwidth by IOPS is the block size."""
    preset = PRESETS[name]
    options = preset.options
    in_flight = [cell.iops * cell.clat_mean_us / 1e6 for cell in posted(preset.disk, preset.vmm).values()]
    assert options["numjobs"] * options["iodepth"] == pytest.approx(sum(in_flight) / len(in_flight), rel=0.25)
    sizes = [cell.block_size for cell in posted(preset.disk, preset.vmm).values()]
    assert sizes == pytest.approx([parse_size(options["bs"])] * 8, rel=0.01)
