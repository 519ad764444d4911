"""What the kernels of the lying guest share: the ring, the slots of a batch, what was sent, and what is allowed.

Guest memory is an arena of ours that the device maps. Each request of a batch has a slot: `SLOT_BYTES` of that memory
and `SLOT_DESCS` descriptors. Everything else is private. Made by `fuzz.guest_attack`, one thread at a time uses it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virtblk.jit.table import Table

#: Bytes of guest memory of one request, and where its parts begin; what lies between are canaries.
SLOT_BYTES = 4096
HEADER_AT = 64
TABLE_AT = 128
DATA_AT = 768
DATA_BYTES = 2048
STATUS_AT = 2880
SPARE_AT = 3008
SPARE_BYTES = 1024

#: Descriptors of a slot, and entries of its indirect table.
SLOT_DESCS = 16
#: Ranges that the device may write, of one request.
RANGES = 32
#: Words that change while the device looks, of one request.
FLIPS = 2
#: What guest memory holds where nothing was put, and what no device writes as a status.
CANARY = 0xC5

STATE_DTYPE = np.dtype(
    [
        # the ring, at addresses that are ours, the guest's and the front end's alike
        ("desc", "i8"),
        ("avail", "i8"),
        ("used", "i8"),
        ("num", "i8"),
        ("idx", "i8"),  # of the available ring, as published
        ("used_idx", "i8"),  # of the used ring, as seen
        ("event_idx", "i8"),
        ("indirect", "i8"),
        ("kick_fd", "i8"),
        ("err_fd", "i8"),
        # memory
        ("slots", "i8"),  # how many
        ("slot_at", "i8"),  # address of the first
        ("start", "i8"),  # of the region that is shared
        ("end", "i8"),
        ("shadow_at", "i8"),  # addresses of the tables `shadow` and `descs`
        ("descs_at", "i8"),
        ("scratch", "i8"),  # a page that anybody may write
        # the disk
        ("capacity", "i8"),  # in sectors, as all of these
        ("guard_first", "i8"),  # sectors that no request may change, with a known content
        ("guard_count", "i8"),
        ("flush", "i8"),  # features negotiated
        ("discard", "i8"),
        ("write_zeroes", "i8"),
        ("read_only", "i8"),
        ("strict", "i8"),  # 1: sound requests of any number of sectors have to succeed
        # what to do
        ("seed", "i8"),
        ("batch", "i8"),  # number of the last one
        ("mutate", "i8"),  # 0: sound requests only
        ("breaking_every", "i8"),  # one request in so many may break the ring
        ("stop", "i8"),  # address of the word that ends it
        ("timeout_ns", "i8"),
        ("stall_ns", "i8"),  # without an answer, before a ring that should break is taken to be broken
        ("mutated_ns", "i8"),  # and a ring that should not, but has broken requests
        # of the request that is being made
        ("request_seed", "i8"),
        ("draw", "i8"),
        # of the batch
        ("count", "i8"),
        ("breaking", "i8"),  # it may break the ring
        ("mutated", "i8"),
        ("wild", "i8"),  # nothing in guest memory can be relied on
        ("jump", "i8"),  # available index beyond what was offered
        ("flips", "i8"),  # words in use
        ("outstanding", "i8"),
        # what happened
        ("finding", "i8"),
        ("finding_slot", "i8"),
        ("finding_at", "i8"),
        ("finding_value", "i8"),
        ("requests", "i8"),
        ("mutations", "i8"),
        ("batches", "i8"),
        ("answered", "i8"),
    ]
)

SLOT_DTYPE = np.dtype(
    [
        ("seed", "i8"),
        ("kind", "i8"),
        ("sector", "i8"),
        ("sectors", "i8"),
        ("pieces", "i8"),
        ("in_table", "i8"),  # described by an indirect table
        ("head", "i8"),
        ("pushes", "i8"),  # how often the head is offered
        ("expect", "i8"),  # EXPECT_*
        ("guard", "i8"),  # it reads guarded sectors
        ("writable", "i8"),  # bytes that the device may write; -1: not known
        ("ranges", "i8"),
        ("flip", "i8"),  # FLIP_*
        ("breaking", "i8"),
        ("mutations", "i8"),
    ]
)
PIECE_DTYPE = np.dtype([("addr", "i8"), ("len", "i8"), ("flags", "i8")])
RANGE_DTYPE = np.dtype([("start", "i8"), ("end", "i8")])
FLIP_DTYPE = np.dtype([("addr", "i8"), ("width", "i8"), ("first", "i8"), ("second", "i8")])

EXPECT_ANY = 0
EXPECT_OK = 1
EXPECT_REFUSAL = 2

FLIP_NONE = 0
FLIP_TYPE = 1
FLIP_SECTOR = 2
FLIP_ADDR = 3
FLIP_LEN = 4
FLIP_FLAGS = 5
FLIP_TABLE_LEN = 6
FLIP_USED_IDX = 7

#: How a batch ended.
DONE = 0
RECREATE = 1  # the ring is, or may be, broken as it should be
STALLED = 2  # no more answers come
FOUND = 3

#: What was found.
USED_ID = 1
USED_LEN = 2
BAD_STATUS = 3
MEMORY_CHANGED = 4
DESC_CHANGED = 5
DISK_CHANGED = 6
USED_AHEAD = 7
FINDING_TEXT = {
    USED_ID: "used id {value}, which was not offered",
    USED_LEN: "used length {value}, more than the request's writable bytes",
    BAD_STATUS: "status {value}, which cannot be",
    MEMORY_CHANGED: "guest memory changed outside of writable buffers, at offset {at:#x} of the request's memory",
    DESC_CHANGED: "the device wrote to the descriptor table, at offset {at:#x}",
    DISK_CHANGED: "a guarded sector changed: wrong data at byte {at} of a read from sector {value}",
    USED_AHEAD: "the used index ran {value} ahead of what was offered",
}


class Guest(NamedTuple):
    """All that the kernels use."""

    state: Table  # [1] STATE_DTYPE
    slots: Table  # [slots] SLOT_DTYPE
    pieces: Table  # [slots * SLOT_DESCS] PIECE_DTYPE
    ranges: Table  # [slots * RANGES] RANGE_DTYPE
    flips: Table  # [slots * FLIPS] FLIP_DTYPE
    seeds: Table  # [slots] of the batch's requests
    out: Table  # [num] how often each head is with the device
    shadow: Table  # [slots * SLOT_BYTES / 8] what slots held when they were offered
    descs: Table  # [num * 2] the same of the descriptor table
    hits: Table  # [ITEMS] how often each item was sent
