"""The path `auto`: whether the mq path merges in its plugs and sorts in an elevator, decided from what was seen.

Time is cut into windows of some milliseconds and some dozen requests. What a window did (bios, requests, how many of
the bios met another, how often the ring was full, how long it took) is all that `blk_auto_window` looks at: it is a
function of these counters and of its own record, and knows no clock. It begins with merging on and without an elevator.
Where something could be gained it tries: one window with the setting turned over, one without, one with it again; the
new setting stays if both windows with it were faster than the ones before them by GAIN. What was tried in vain waits
twice as long for its next trial. docs/auto.md has the rule in words, and its evidence.

Called under the queue lock by whoever reaps (driver.auto); block.request_queue sets the record up.
"""

from __future__ import annotations

import numpy as np

from virtblk.jit.kernel import cold_kernel, kernel

#: A window is over when it has lasted so long, and so many requests have ended in it.
WINDOW_NS = 20_000_000
WINDOW_REQUESTS = 64

#: In percent of the speed before: what a setting must reach to be taken over.
GAIN = 105
#: An elevator is tried where a request takes the device so long, on average, and the ring was full: what fits into the
#: ring is the device's to sort. It is dropped below half of that, and when the ring is never full.
SORT_NS = 20_000
#: Not to merge is tried where a bio takes so long and one in MERGEABLE_PART meets another: on faster disks it is the
#: work per request that limits, and merging saves it.
SPLIT_NS = 4_000
MERGEABLE_PART = 8

#: Windows before the first trial, and between trials that were in vain: from the least to the most.
FIRST_SORT = 2
FIRST_SPLIT = 32
PAUSE_LEAST = 64
PAUSE_MOST = 1024

TRIAL_NONE = 0
TRIAL_MERGING = 1
TRIAL_ELEVATOR = 2
#: The windows of a trial: with the other setting, with the one that stands, with the other again.
TRIAL_FIRST = 0
TRIAL_BACK = 1
TRIAL_SECOND = 2

AUTO_DTYPE = np.dtype(
    [
        ("hinted", "i8"),  # 1: the device asked for both settings, and nothing is tried
        ("merging", "i8"),  # the settings that stand: 1 on, 0 off
        ("elevator", "i8"),
        ("trial", "i8"),  # TRIAL_*: which of them is being tried turned over
        ("step", "i8"),  # and in which window of the trial we are
        ("base_ios", "i8"),  # the last window with the settings that stand
        ("base_ns", "i8"),
        ("merging_in", "i8"),  # windows until the next trial of each
        ("elevator_in", "i8"),
        ("merging_pause", "i8"),  # and until the one after that, if that one is in vain
        ("elevator_pause", "i8"),
        # counters
        ("windows", "i8"),
        ("trials", "i8"),
        ("changes", "i8"),  # of the settings that stand
        # the window that is open (driver.auto)
        ("start_ns", "i8"),  # 0: it opens with the next look
        ("spent_ns", "i8"),  # while bios take another path: what of it has passed
        ("requests", "i8"),  # the counters when it was opened
        ("merges", "i8"),
        ("mergeable", "i8"),
        ("full", "i8"),
    ]
)


@kernel
def blk_auto_merges(auto):
    """Whether plugs merge in this window: 0 or 1."""
    tried = auto[0]["trial"] == TRIAL_MERGING and auto[0]["step"] != TRIAL_BACK
    return 1 - auto[0]["merging"] if tried else auto[0]["merging"]


@kernel
def blk_auto_sorts(auto):
    """Whether there is an elevator in this window: 0 or 1."""
    tried = auto[0]["trial"] == TRIAL_ELEVATOR and auto[0]["step"] != TRIAL_BACK
    return 1 - auto[0]["elevator"] if tried else auto[0]["elevator"]


@kernel
def blk_auto_end_trial(auto, better):
    """Take the other setting over, or not; when the next trial is due."""
    pause = PAUSE_LEAST
    if auto[0]["trial"] == TRIAL_MERGING:
        if better:
            auto[0]["merging"] = 1 - auto[0]["merging"]
        else:
            pause = auto[0]["merging_pause"]
        auto[0]["merging_in"] = pause
        auto[0]["merging_pause"] = min(2 * pause, PAUSE_MOST)
    else:
        if better:
            auto[0]["elevator"] = 1 - auto[0]["elevator"]
        else:
            pause = auto[0]["elevator_pause"]
        auto[0]["elevator_in"] = pause
        auto[0]["elevator_pause"] = min(2 * pause, PAUSE_MOST)
    auto[0]["changes"] += 1 if better else 0
    auto[0]["trial"] = TRIAL_NONE


@kernel
def blk_auto_drop(auto, requests, ios, mergeable, full, elapsed_ns):
    """Go back to the defaults where what spoke for the settings is gone, without a trial."""
    if auto[0]["elevator"] and (full == 0 or elapsed_ns < requests * (SORT_NS // 2)):
        auto[0]["elevator"] = 0
        auto[0]["elevator_in"] = FIRST_SORT
        auto[0]["changes"] += 1
    if auto[0]["merging"] == 0 and (elapsed_ns < ios * (SPLIT_NS // 2) or mergeable * MERGEABLE_PART * 2 < ios):
        auto[0]["merging"] = 1
        auto[0]["merging_in"] = FIRST_SPLIT
        auto[0]["changes"] += 1


@cold_kernel
def blk_auto_window(auto, requests, ios, mergeable, full, elapsed_ns):
    """A window is over: what it did becomes the settings of the next (blk_auto_merges, blk_auto_sorts).

    `ios` bios ended in `requests` requests within `elapsed_ns`; `mergeable` of them merged in a plug, or would have if
    that had been on; `full` times somebody found the ring full.
    """
    auto[0]["windows"] += 1
    if auto[0]["trial"] != TRIAL_NONE and auto[0]["step"] != TRIAL_BACK:
        better = ios * auto[0]["base_ns"] * 100 >= auto[0]["base_ios"] * elapsed_ns * GAIN
        if better and auto[0]["step"] == TRIAL_FIRST:
            auto[0]["step"] = TRIAL_BACK
        else:
            blk_auto_end_trial(auto, better)
        return
    auto[0]["base_ios"] = ios
    auto[0]["base_ns"] = elapsed_ns
    if auto[0]["trial"] != TRIAL_NONE:
        auto[0]["step"] = TRIAL_SECOND
        return
    blk_auto_drop(auto, requests, ios, mergeable, full, elapsed_ns)
    auto[0]["merging_in"] = max(0, auto[0]["merging_in"] - 1)
    auto[0]["elevator_in"] = max(0, auto[0]["elevator_in"] - 1)
    if auto[0]["elevator_in"] == 0 and full > 0 and elapsed_ns >= requests * SORT_NS:
        auto[0]["trial"] = TRIAL_ELEVATOR
    elif auto[0]["merging_in"] == 0 and mergeable * MERGEABLE_PART >= ios and elapsed_ns >= ios * SPLIT_NS:
        auto[0]["trial"] = TRIAL_MERGING
    if auto[0]["trial"] != TRIAL_NONE:
        auto[0]["step"] = TRIAL_FIRST
        auto[0]["trials"] += 1
