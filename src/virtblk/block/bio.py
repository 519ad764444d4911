"""The bio: one I/O as its submitter sees it, with several segments (Linux: struct bio, submit_bio, bio_endio).

Records are private to the driver process. A submitter owns its bios from bio_init until it submits them, and again
once they come back on its completion list.
"""

from __future__ import annotations

import numpy as np

from virtblk.jit.kernel import kernel

REQ_OP_READ = 0
REQ_OP_WRITE = 1
REQ_OP_FLUSH = 2  # an empty bio with REQ_PREFLUSH, spelt as an operation
REQ_OP_GET_ID = 3  # driver-private, as Linux's REQ_OP_DRV_IN
#: From here on, and GET_ID: no sectors, one segment that the driver made, never split or merged.
REQ_OP_DISCARD = 4  # the segment holds the ranges (Linux: special_vec)
REQ_OP_WRITE_ZEROES = 5

REQ_PREFLUSH = 1
REQ_FUA = 2

#: The steps of a bio with flush semantics, in order (patch.md, section 2): FLUSH, DATA, FLUSH.
STEP_PREFLUSH = 0
STEP_DATA = 1
STEP_POSTFLUSH = 2
STEP_DONE = 3
STEP_REQUEST = 4  # part of a request of the block layer; block.blk_flush keeps the sequence
STEP_TAG = 5  # on the mq path, in the plug, or in a tag with others

BIO_DTYPE = np.dtype(
    [
        ("op", "i8"),
        ("flags", "i8"),
        ("sector", "i8"),  # in 512 bytes
        ("vec", "i8"),  # first segment in the segment lists
        ("vcnt", "i8"),
        ("step", "i8"),
        ("remaining", "i8"),  # requests of this step that have not ended; changed under the queue lock
        ("error", "i8"),  # 0, or the first errno (positive)
        ("owner", "i8"),  # index of the submitter
        ("submitted_ns", "i8"),  # CLOCK_MONOTONIC at submission
        ("length", "i8"),  # bytes
        ("waited", "i8"),  # 1 once it found the ring full
        ("next", "i8"),  # the next bio of the same request, where they merge (bi_next)
    ]
)


@kernel
def bio_init(bios, bio, op, flags, sector, vec, vcnt, length, owner):
    """Set up record `bio` for one I/O of `length` bytes in `vcnt` segments."""
    bios[bio]["op"] = op
    bios[bio]["flags"] = flags
    bios[bio]["sector"] = sector
    bios[bio]["vec"] = vec
    bios[bio]["vcnt"] = vcnt
    bios[bio]["length"] = length
    bios[bio]["owner"] = owner
    bios[bio]["error"] = 0
    bios[bio]["remaining"] = 0
    bios[bio]["waited"] = 0
    bios[bio]["step"] = STEP_DONE


@kernel
def bio_first_step(bios, bio, can_flush):
    """The step a bio begins with. Without FLUSH the device's writes are stable when they end: only data is left."""
    op = bios[bio]["op"]
    if op == REQ_OP_FLUSH:
        return STEP_PREFLUSH if can_flush else STEP_DONE
    if can_flush and bios[bio]["flags"] & REQ_PREFLUSH:
        return STEP_PREFLUSH
    return STEP_DATA


@kernel
def bio_next_step(bios, bio, can_flush):
    """The step after the one that just ended. An error ends the bio: what follows would hide it or act on it."""
    step = bios[bio]["step"]
    op = bios[bio]["op"]
    if bios[bio]["error"]:
        return STEP_DONE
    if step == STEP_PREFLUSH and op != REQ_OP_FLUSH and bios[bio]["length"] > 0:
        return STEP_DATA
    if step == STEP_DATA and op == REQ_OP_WRITE and can_flush and bios[bio]["flags"] & REQ_FUA:
        return STEP_POSTFLUSH
    return STEP_DONE


@kernel
def bio_endio(bios, bio, error):
    """One request of the bio's step ended, with `error` (0 or a positive errno). True when it was the last one.

    The first error stays. Called under the queue lock.
    """
    if error and bios[bio]["error"] == 0:
        bios[bio]["error"] = error
    bios[bio]["remaining"] -= 1
    return bios[bio]["remaining"] == 0
