"""A model of `storage.sim` without a disk round it: operations in, operations and times out."""

from __future__ import annotations

from virtblk.names import DiskName
from virtblk.storage.sim.profiles import make_model, parse_profile
from virtblk.storage.sim.sata import sata_advance, sata_submit
from virtblk.storage.sim.state import IDLE, SimModel


def model(profile: str, **keys: object) -> SimModel:
    values = parse_profile(DiskName("sim:test", "sim", profile, {key: str(value) for key, value in keys.items()}))
    return make_model(profile, values)


class Sata:
    """A drive, driven by hand."""

    def __init__(self, **keys: object) -> None:
        self.m = model("sata", **keys)
        self.ended: list[tuple[int, int]] = []  # operation, time

    def submit(self, i: int, op: int, sector: int, sectors: int, now: int, *, fua: bool = False) -> None:
        self.advance(now)
        record = self.m.ops[i]
        record["op"], record["sector"], record["sectors"], record["fua"] = op, sector, sectors, fua
        sata_submit(self.m, i, now)

    def advance(self, now: int) -> None:
        """Event by event, so that each has its time."""
        state = self.m.sata[0]
        while state["current"] != IDLE and state["due"] <= now:
            due = int(state["due"])
            sata_advance(self.m, due)
            self.ended += [(int(i), due) for i in self.m.done[: self.m.state[0]["done"]]]
            self.m.state[0]["done"] = 0

    def run(self) -> None:
        """Until nothing is left to do."""
        while self.m.sata[0]["current"] != IDLE:
            self.advance(int(self.m.sata[0]["due"]))
