"""Choices by type: the same answer interpreted and compiled, and no trace of what was not chosen."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from numba import int64, typeof

from conftest import INTERPRETED
from jit.test_ir import ir_of
from virtblk.driver.completion import virtblk_reap_locked
from virtblk.driver.queue import example_queue
from virtblk.driver.virtblk_req import BothPaths, RequestPathOnly, has_bio_path
from virtblk.jit.by_type import by_type
from virtblk.jit.kernel import kernel

#: A number that turns up in compiled code only where it was written.
TRACE = 0x1234_5678_1234_5678


class Left(NamedTuple):
    unused: int = 0


class Right(NamedTuple):
    unused: int = 0


class Third(NamedTuple):
    unused: int = 0


side = by_type({Left: 7, Right: 0})


@kernel
def chosen(marker, number):
    if side(marker):
        return number + TRACE
    return number


def test_each_type_has_its_own_choice() -> None:
    assert chosen(Left(), 1) == 1 + TRACE
    assert chosen(Right(), 1) == 1
    assert (side(Left()), side(Right())) == (7, 0)


def test_the_value_does_not_matter() -> None:
    assert chosen(Right(5), 1) == 1


def test_a_type_without_a_choice_is_an_error() -> None:
    with pytest.raises(KeyError if INTERPRETED else Exception):
        chosen(Third(), 1)


@pytest.mark.compiled
def test_what_is_not_chosen_is_not_there() -> None:
    assert str(TRACE) in ir_of(chosen, typeof(Left()), int64)
    assert str(TRACE) not in ir_of(chosen, typeof(Right()), int64)


def test_which_queues_have_a_bio_path() -> None:
    assert has_bio_path(BothPaths())
    assert not has_bio_path(RequestPathOnly())


@pytest.mark.compiled
def test_a_queue_without_the_bio_path_reaps_without_a_branch_for_it() -> None:
    """Whether a request is a bio's or the block layer's is looked at in one build only."""
    branches = {}
    for paths in (BothPaths(), RequestPathOnly()):
        ir = ir_of(virtblk_reap_locked, typeof(example_queue()._replace(paths=paths)), int64, int64)
        branches[type(paths)] = ir.count("br i1")
    assert branches[RequestPathOnly] < branches[BothPaths]
