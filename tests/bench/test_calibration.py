"""The defaults of `sim:` against the posted rows that they follow from, in the model's time; and the search itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from virtblk.bench.calibration import (
    CALIBRATIONS,
    Calibration,
    ClosedLoop,
    Fit,
    Load,
    calibrate,
    modelled_iops,
    posted_load,
)
from virtblk.bench.posting import SATA, posted
from virtblk.names import DiskName
from virtblk.storage.sim.profiles import parse_profile


def defaults(profile: str, **keys: str) -> dict[str, int]:
    return parse_profile(DiskName(f"sim:{profile}", "sim", profile, keys))


FITS = [pytest.param(of, fit, id=fit.key) for of in CALIBRATIONS for fit in of.fits]


@pytest.mark.compiled  # a minute interpreted
@pytest.mark.parametrize(("of", "fit"), FITS)
def test_a_default_gives_the_row_that_it_comes_from(of: Calibration, fit: Fit) -> None:
    wanted = posted(of.disk, of.vmm)["request", fit.workload].iops
    assert modelled_iops(of, defaults(of.profile), fit.workload) == pytest.approx(wanted, rel=0.03)


@pytest.mark.compiled
@pytest.mark.parametrize("workload", ["read", "write"])
def test_sequential_work_loses_without_merging(workload: str) -> None:
    """Which is what the posting's SATA rows say, too."""
    sata = CALIBRATIONS[0]
    values = defaults("sata")
    assert modelled_iops(sata, values, workload, "bio") < 0.9 * modelled_iops(sata, values, workload)


def test_the_search_finds_what_it_looks_for() -> None:
    """One channel, one job and I/O: as many page reads a second as were posted."""
    of = replace(CALIBRATIONS[1], fits=(Fit("read", "randread", False, 1000, 200_000, 1000),), warm=50, count=200)
    found = calibrate(of, rounds=1)["read"]
    wanted = posted(of.disk, of.vmm)["request", "randread"].iops
    values = defaults("fusion-io")
    below, above = (modelled_iops(of, values | {"read": read}, "randread") for read in (found, found + 1000))
    assert above <= wanted <= below


def test_a_closed_loop_keeps_its_depth() -> None:
    """With one channel and no overhead, a page read after the other: depth makes no difference, size does."""
    values = defaults("fusion-io", channels="1", read="100us", overhead="0us")
    for iodepth in (1, 4):
        load = Load("randread", 4096, 2, iodepth, 1, 1 << 20, 8, False)
        assert ClosedLoop("fusion-io", values, load).run(50, 200) == pytest.approx(10_000, rel=0.01)
    load = Load("read", 4096, 2, 4, 4, 1 << 20, 8, True)  # batches that merge: four pages each
    assert ClosedLoop("fusion-io", values, load).run(50, 200) == pytest.approx(10_000, rel=0.05)


def test_what_reaches_the_disk() -> None:
    """The request path has 128 requests, the bio path a ring of 256; only the first merges."""
    one, other = (posted_load(SATA, "read", path) for path in ("request", "bio"))
    assert (one.commands, one.merges) == (128, True)
    assert (other.commands, other.merges) == (256, False)
    assert one.numjobs * one.iodepth == 256
