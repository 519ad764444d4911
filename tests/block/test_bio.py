"""The steps of a bio against the table of the merged patch, and how its requests end it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.block.bio import (
    BIO_DTYPE,
    REQ_FUA,
    REQ_OP_FLUSH,
    REQ_OP_GET_ID,
    REQ_OP_READ,
    REQ_OP_WRITE,
    REQ_PREFLUSH,
    STEP_DATA,
    STEP_DONE,
    STEP_POSTFLUSH,
    STEP_PREFLUSH,
    bio_endio,
    bio_first_step,
    bio_init,
    bio_next_step,
)
from virtblk.jit.table import Table

PRE, DATA, POST = STEP_PREFLUSH, STEP_DATA, STEP_POSTFLUSH
OPS = (REQ_OP_READ, REQ_OP_WRITE, REQ_OP_FLUSH, REQ_OP_GET_ID)
FLAGS = (0, REQ_PREFLUSH, REQ_FUA, REQ_PREFLUSH | REQ_FUA)

#: The table of the patch, for writes on a device with FLUSH: (flags, has data) -> virtio requests, in order.
TABLE = {
    (0, True): [DATA],
    (REQ_PREFLUSH, False): [PRE],
    (REQ_PREFLUSH, True): [PRE, DATA],
    (REQ_FUA, True): [DATA, POST],
    (REQ_PREFLUSH | REQ_FUA, True): [PRE, DATA, POST],
    # Not in the table, and what Linux's blk_flush_policy makes of them:
    (0, False): [],
    (REQ_FUA, False): [POST],
    (REQ_PREFLUSH | REQ_FUA, False): [PRE],  # a second flush would have nothing between it and the first
}


def new_bio(op: int, flags: int, length: int) -> Table:
    """A bio at index 1 of three; its neighbours must not matter."""
    bios = Table.of(np.full(3, -1, np.int64).astype(BIO_DTYPE))
    bio_init(bios, 1, op, flags, 7, 0, 1 if length else 0, length, 0)
    return bios


def steps(op: int, flags: int, length: int, can_flush: bool, failing: int = -1) -> list[int]:
    """The steps that a bio takes; step number `failing` ends with an error."""
    bios = new_bio(op, flags, length)
    taken = []
    step = bio_first_step(bios, 1, can_flush)
    while step != STEP_DONE:
        if len(taken) == failing:
            bios[1]["error"] = 5
        taken.append(step)
        assert len(taken) < 5
        bios[1]["step"] = step
        step = bio_next_step(bios, 1, can_flush)
    return taken


def requests(taken: list[int], length: int) -> list[int]:
    """The virtio requests of steps: a bio without data sends none for its data."""
    return [step for step in taken if step != DATA or length]


@pytest.mark.parametrize(("flags", "has_data"), TABLE)
def test_a_write_follows_the_table(flags: int, has_data: bool) -> None:
    length = 4096 if has_data else 0
    assert requests(steps(REQ_OP_WRITE, flags, length, True), length) == TABLE[flags, has_data]


@pytest.mark.parametrize("flags", FLAGS)
def test_without_the_flush_feature_only_data_is_left(flags: int) -> None:
    assert steps(REQ_OP_WRITE, flags, 4096, False) == [DATA]
    assert steps(REQ_OP_READ, flags, 4096, False) == [DATA]
    assert steps(REQ_OP_FLUSH, flags, 0, False) == []


@pytest.mark.parametrize("flags", FLAGS)
def test_a_flush_is_one_request_whatever_its_flags(flags: int) -> None:
    assert steps(REQ_OP_FLUSH, flags, 0, True) == [PRE]


@pytest.mark.parametrize("op", [REQ_OP_READ, REQ_OP_GET_ID])
def test_what_does_not_write_has_nothing_to_make_durable(op: int) -> None:
    assert steps(op, REQ_FUA, 512, True) == [DATA]
    assert steps(op, REQ_FUA | REQ_PREFLUSH, 512, True) == [PRE, DATA]


@pytest.mark.parametrize(("op", "flags", "length"), list(itertools.product(OPS, FLAGS, (0, 512))))
def test_an_error_ends_a_bio_at_its_step(op: int, flags: int, length: int) -> None:
    """Defects 1 and 2 of the merged patch: a failed pre-flush sent the data, and a final flush hid a failed write."""
    whole = steps(op, flags, length, True)
    for failing in range(len(whole)):
        assert steps(op, flags, length, True, failing) == whole[: failing + 1]


@given(st.lists(st.sampled_from([0, 0, 5, 25, 28]), min_size=1, max_size=8))
def test_the_first_error_stays_and_the_last_request_ends_the_step(errors: list[int]) -> None:
    bios = new_bio(REQ_OP_WRITE, 0, 4096)
    bios[1]["remaining"] = len(errors)
    before = bios[[0, 2]].copy()
    ended = [bool(bio_endio(bios, 1, error)) for error in errors]
    assert ended == [False] * (len(errors) - 1) + [True]
    assert bios[1]["error"] == next((error for error in errors if error), 0)
    assert (bios[[0, 2]] == before).all()


def test_bio_init_clears_what_an_earlier_use_left() -> None:
    bios = Table.of(np.full(2, 99, np.int64).astype(BIO_DTYPE))
    bio_init(bios, 0, REQ_OP_WRITE, REQ_FUA, 8, 2, 3, 1536, 4)
    bio = bios[0]
    assert (bio["error"], bio["remaining"], bio["waited"], bio["step"]) == (0, 0, 0, STEP_DONE)
    assert (bio["op"], bio["flags"], bio["sector"], bio["vec"]) == (REQ_OP_WRITE, REQ_FUA, 8, 2)
    assert (bio["vcnt"], bio["length"], bio["owner"]) == (3, 1536, 4)
    assert bios[1]["error"] == 99
