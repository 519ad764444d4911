"""The mq path's block layer the slow and obvious way: a plug is a list whose last request alone may grow."""

from __future__ import annotations

from dataclasses import dataclass

from naive.block_layer import Bio, NaiveBlockLayer, Rq


@dataclass
class NaiveBlkMq(NaiveBlockLayer):
    """`deadline` False: no scheduler, and the driver has what a plug held. `plug_size` requests fill a plug."""

    plug_size: int = 32

    @property
    def in_use(self) -> int:
        return len(self.fifo) + len(self.dispatch) + sum(not rq.tagged for rq in self.driver)

    def submit(self, sub: int, bio: Bio, now: int, *, plain: bool = True) -> str:
        """What became of the bio: plug, new, or full where the plug has to be emptied first."""
        plugged = self.plugs[sub]
        if plain and self.nomerges < 2 and plugged and (way := self.way(plugged[-1], bio)):
            self.take(plugged[-1], bio, way)
            return "plug"
        if len(plugged) == self.plug_size:
            return "full"
        plugged.append(Rq([bio], now, plain))
        return "new"

    def flush_plug(self, sub: int) -> None:
        """With a scheduler the plug keeps what finds the pool empty."""
        plugged = self.plugs[sub]
        if not self.deadline:
            for rq in plugged:
                rq.tagged = True
            self.driver += plugged
            plugged.clear()
            return
        while plugged:
            rq = plugged[0]
            if not (len(rq.bios) == 1 and rq.plain and self.elevator_takes(rq.bios[0])):
                if self.in_use >= self.nr_requests:
                    return
                self.insert(rq)
            plugged.pop(0)
