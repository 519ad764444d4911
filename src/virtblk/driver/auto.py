"""The path `auto` at work: the mq path, whose settings follow what block.blk_auto makes of the queue's counters.

Reapers count requests, and look here when as many have ended as were asked for: some times per window, so that the
clock is read some times per window. What was changed takes hold with the next plug; the window after a change opens
when what was in the ring then has ended. Under the queue lock; `virtio_blk.VirtioBlk.set_path` begins and ends it.
"""

from __future__ import annotations

from virtblk.block.blk_auto import (
    WINDOW_NS,
    WINDOW_REQUESTS,
    blk_auto_merges,
    blk_auto_sorts,
    blk_auto_window,
)
from virtblk.block.elevator import elevator_switch
from virtblk.block.request import ELEVATOR_DEADLINE, ELEVATOR_NOOP
from virtblk.driver.handle import queue_of
from virtblk.jit.kernel import cold_kernel, kernel
from virtblk.jit.libc import clock_ns

#: Where nobody is to look: more requests than will ever end.
NEVER = 1 << 62


@kernel
def blk_auto_totals(d):
    """Bios that merged, those that did or could have in a plug, and how often somebody found the ring full."""
    merges = d.q.state[0]["merges"] + d.q.state[0]["rq_merges"]
    mergeable = 0
    full = 0
    for sub in range(d.queue[0]["submitters"] + 1):
        merges += d.submitters[sub]["merges"]
        mergeable += d.submitters[sub]["merges"] + d.submitters[sub]["mergeable"]
        full += d.submitters[sub]["ring_full_waits"]
    return merges, mergeable, full


@kernel
def blk_auto_open_window(d, now):
    """A window begins: note where the counters stand."""
    merges, mergeable, full = blk_auto_totals(d)
    d.auto[0]["start_ns"] = now
    d.auto[0]["requests"] = d.queue[0]["ended"]
    d.auto[0]["merges"] = merges
    d.auto[0]["mergeable"] = mergeable
    d.auto[0]["full"] = full
    d.queue[0]["look_at"] = d.queue[0]["ended"] + WINDOW_REQUESTS


@kernel
def blk_auto_apply(d, now):
    """Let the settings of the window to come take hold; True where that changed something."""
    merges = blk_auto_merges(d.auto)
    elevator = ELEVATOR_DEADLINE if blk_auto_sorts(d.auto) else ELEVATOR_NOOP
    changed = d.q.state[0]["plug_merges"] != merges or d.q.state[0]["elevator"] != elevator
    d.q.state[0]["plug_merges"] = merges
    if d.q.state[0]["elevator"] != elevator:
        elevator_switch(d.q, elevator, now)
    return changed


@cold_kernel
def blk_auto_look(handle, paths):
    """As many requests have ended as somebody wanted to know of: close the window if it is over."""
    d = queue_of(handle, paths)
    now = clock_ns()
    if d.auto[0]["start_ns"] == 0:
        blk_auto_open_window(d, now)
        return
    elapsed = max(1, now - d.auto[0]["start_ns"])
    requests = d.queue[0]["ended"] - d.auto[0]["requests"]
    if elapsed < WINDOW_NS:  # look again when it should be over, at this speed
        d.queue[0]["look_at"] = d.queue[0]["ended"] + 1 + requests * (WINDOW_NS - elapsed) // elapsed
        return
    merges, mergeable, full = blk_auto_totals(d)
    ios = requests + merges - d.auto[0]["merges"]
    blk_auto_window(d.auto, requests, ios, mergeable - d.auto[0]["mergeable"], full - d.auto[0]["full"], elapsed)
    if blk_auto_apply(d, now):
        d.auto[0]["start_ns"] = 0
        d.queue[0]["look_at"] = d.queue[0]["ended"] + 1 + d.vq.state[0]["num"] - d.vq.state[0]["num_free"]
    else:
        blk_auto_open_window(d, now)


@cold_kernel
def blk_auto_begin(d):
    """Bios take the path from now on: with the settings that were found the last time, on the window that was open.

    A window that had hardly begun begins anew.
    """
    now = clock_ns()
    blk_auto_apply(d, now)
    spent = d.auto[0]["spent_ns"]
    d.auto[0]["start_ns"] = now - spent if spent >= WINDOW_NS else 0
    d.queue[0]["look_at"] = NEVER if d.auto[0]["hinted"] else d.queue[0]["ended"] + 1


@cold_kernel
def blk_auto_end(d):
    """Bios take another path from now on, which merges in plugs; nothing is in flight."""
    d.auto[0]["spent_ns"] = clock_ns() - d.auto[0]["start_ns"] if d.auto[0]["start_ns"] else 0
    d.q.state[0]["plug_merges"] = 1
    d.queue[0]["look_at"] = NEVER
