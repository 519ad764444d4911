"""What the compiler makes of the loops: no reference counting, and every kernel they call is there to be inlined."""

from __future__ import annotations

import re
from typing import Any

import numba
import pytest

import virtblk
from conftest import INTERPRETED
from virtblk.driver.completion import completion_loop
from virtblk.driver.submit_bio import do_bio, submit_bio_wait
from virtblk.jit.kernel import kernel
from virtblk.jit.table import Table
from virtblk.virtio import virtio_ring_split, vringh_split

if not INTERPRETED:
    from virtblk.device.worker import worker_loop

pytestmark = pytest.mark.compiled


def ir_of(compiled: Any, *types: Any) -> str:
    """The optimised LLVM module of a kernel for arguments of these types; what came from the cache shows none."""
    fresh = numba.njit(nogil=True, error_model="numpy")(compiled.py_func)
    fresh.compile(types)
    return str(fresh.inspect_llvm(types))


def check(ir: str) -> None:
    assert "define " in ir
    assert "NRT_incref" not in ir
    assert "NRT_allocate" not in ir.replace("declare", "")
    declared = re.findall(r"^declare [^\n]*@([^\s(]+)", ir, re.MULTILINE)
    assert [name for name in declared if "virtblk" in name] == []  # a kernel that the optimiser could not see


@pytest.fixture(scope="module")
def used() -> None:
    """A disk was read: all loops are compiled for what they really run on."""
    with virtblk.open("ram:1m") as disk:
        assert disk.pread(512, 0) == bytes(512)


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("name", ["worker_loop", "completion_loop", "do_bio"])
def test_loops_count_no_references(name: str) -> None:
    loop = {"worker_loop": worker_loop, "completion_loop": completion_loop, "do_bio": do_bio}[name]
    assert loop.signatures
    for types in loop.signatures:
        check(ir_of(loop, *types))


@pytest.mark.usefixtures("used")
def test_submitting_a_bio_counts_no_references() -> None:
    queue, _ = completion_loop.signatures[0]
    check(ir_of(submit_bio_wait, queue, numba.int64, numba.int64, numba.int64))


@pytest.mark.usefixtures("used")
def test_ring_functions_count_no_references() -> None:
    """Each of both halves, by itself."""
    queue, _ = completion_loop.signatures[0]
    vringh, mem, *_ = worker_loop.signatures[0]
    one = numba.int64
    numbers = vringh.types[1]
    arguments = {
        "virtqueue_add_direct": (numbers, numbers, one, one, one, one, one),
        "virtqueue_add_indirect": (one, one, one, one),
        "virtqueue_get_buf": (),
        "virtqueue_kick_prepare": (),
        "virtqueue_enable_cb": (),
        "virtqueue_disable_cb": (),
        "vringh_getdesc": (mem, one),
        "vringh_add_used": (one, one),
        "vringh_need_notify": (),
        "vringh_notify_enable": (),
    }
    for name, rest in arguments.items():
        half = virtio_ring_split if name.startswith("virtqueue") else vringh_split
        ring = queue.types[0] if half is virtio_ring_split else vringh
        check(ir_of(getattr(half, name), ring, *rest))


@pytest.mark.usefixtures("used")
def test_fences_are_there() -> None:
    """One full fence in each of the four functions that store, then look (2.7.13.4.1 and its mirrors)."""
    queue, _ = completion_loop.signatures[0]
    vringh = worker_loop.signatures[0][0]
    for function, ring in (
        (virtio_ring_split.virtqueue_kick_prepare, queue.types[0]),
        (virtio_ring_split.virtqueue_enable_cb, queue.types[0]),
        (vringh_split.vringh_need_notify, vringh),
        (vringh_split.vringh_notify_enable, vringh),
    ):
        assert ir_of(function, ring).count("fence seq_cst") == 1


@kernel
def pick(arrays, index):
    """An array that goes out is counted."""
    return arrays[index & 1]


@kernel
def pick_number(tables, index):
    return tables[index & 1][index]


def test_the_check_sees_reference_counting() -> None:
    with pytest.raises(AssertionError, match="NRT_incref"):
        check(ir_of(pick, numba.types.UniTuple(numba.int64[::1], 2), numba.int64))
    check(ir_of(pick_number, numba.types.UniTuple(numba.typeof(Table(1)), 2), numba.int64))
