"""Where the defaults of `sim:` come from: parameters that make the posting's rows of the request path come true.

    .venv/bin/python benchmarks/calibrate_sim.py

Prints, per profile, the parameters that follow from the posted rows, those that are the defaults, and what the model
says with these for all rows of both paths, beside what was posted. Nothing waits: it is the model's time.
"""

from __future__ import annotations

from virtblk.bench.calibration import CALIBRATIONS, Calibration, calibrate, modelled_iops
from virtblk.bench.job import WORKLOADS
from virtblk.bench.posting import posted
from virtblk.names import DiskName
from virtblk.storage.sim.profiles import PROFILES, parse_profile


def show(of: Calibration) -> None:
    """One profile."""
    values = parse_profile(DiskName(f"sim:{of.profile}", "sim", of.profile))
    print(f"sim:{of.profile}, from the request path on {of.disk} under {of.vmm}")
    for key, value in calibrate(of).items():
        row = next(fit.workload for fit in of.fits if fit.key == key)
        written = f"{value >> 20}m" if PROFILES[of.profile][key].kind == "size" else f"{value / 1000:g}us"
        print(f"  {key} = {written}, from {row} (the default is {PROFILES[of.profile][key].default})")
    cells = posted(of.disk, of.vmm)
    print("  workload    path      model IOPS   posted      off")
    for workload in WORKLOADS:
        for path in ("request", "bio"):
            found, wanted = modelled_iops(of, values, workload, path), cells[path, workload].iops
            used = " used" if path == "request" and workload in {fit.workload for fit in of.fits} else ""
            off = (found / wanted - 1) * 100
            print(f"  {workload:<10}  {path:<8}  {found:>10.0f}  {wanted:>7.0f}  {off:>+6.1f}%{used}")
    print(flush=True)


if __name__ == "__main__":
    for one in CALIBRATIONS:
        show(one)
