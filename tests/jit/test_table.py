"""Tables: arrays to Python, addresses to kernels; the same elements to both."""

from __future__ import annotations

import numpy as np
import pytest
from numba import typeof
from numba.core import config
from numba.core.errors import TypingError

from conftest import INTERPRETED
from virtblk.jit.kernel import kernel
from virtblk.jit.table import Table, table_at

PAIR = np.dtype([("a", "i8"), ("b", "i8")])


@kernel
def swap(numbers, pairs, i, j):
    """Swap elements of both tables; returns all that was read."""
    x = numbers[i]
    numbers[i] = numbers[j]
    numbers[j] = x
    a = pairs[i]["a"]
    pairs[i]["a"] = pairs[j]["a"]
    pairs[j]["a"] = a
    pairs[i]["b"] += 100
    return x, a


@kernel
def sum_of(numbers, count):
    total = 0
    for i in range(count):
        total += numbers[i]
    return total


@kernel
def sum_at(address, count):
    numbers = table_at(address, count, INT64)
    return sum_of(numbers, count)


INT64 = np.dtype(np.int64)


def test_elements_and_fields() -> None:
    numbers, pairs = Table(4), Table(4, PAIR)
    numbers[:] = [10, 11, 12, 13]
    pairs["a"], pairs["b"] = [20, 21, 22, 23], [30, 31, 32, 33]
    assert tuple(map(int, swap(numbers, pairs, 1, 3))) == (11, 21)
    assert numbers.tolist() == [10, 13, 12, 11]
    assert pairs["a"].tolist() == [20, 23, 22, 21]
    assert pairs["b"].tolist() == [30, 131, 32, 33]


def test_a_table_knows_its_memory() -> None:
    table = Table(8)
    assert (table.address, table.length) == (table.ctypes.data, 8)
    assert not table.any()
    part = table[3:5]
    assert (part.address, part.length) == (table.address + 24, 2)
    part[:] = [3, 4]
    assert table.tolist() == [0, 0, 0, 3, 4, 0, 0, 0]
    assert sum_of(part, 2) == 7
    copied = table.copy()
    assert copied.address == copied.ctypes.data != table.address


def test_a_table_of_an_array_is_that_array() -> None:
    array = np.arange(5)
    table = Table.of(array)
    table[0] = 9
    assert array[0] == 9
    assert sum_of(table, 5) == 19
    for other in (np.zeros((2, 2), np.int64), np.arange(6)[::2], np.zeros(3, PAIR)["b"]):
        with pytest.raises(ValueError, match="contiguous"):
            Table.of(other)


def test_a_table_at_an_address() -> None:
    array = np.arange(100, 110)
    address = int(array.ctypes.data)
    assert sum_at(address + 8, 3) == 101 + 102 + 103
    assert table_at(address, 10, INT64).tolist() == array.tolist()


def test_a_kernel_tells_tables_by_their_elements() -> None:
    """And by nothing else: a kernel is not compiled anew for another length."""
    assert typeof(Table(4)) == typeof(Table(8)[2:4])
    assert typeof(Table(4)) != typeof(Table(4, PAIR))
    assert typeof(Table(4, PAIR)) == typeof(Table(1, PAIR))


@pytest.mark.compiled
def test_regression_a_kernel_takes_no_table_with_gaps() -> None:
    """Slices with a step and fields of records are views: a kernel, which has no strides, read what lies between."""
    pairs, numbers = Table(4, PAIR), Table(8)
    sum_of(numbers, 8)
    for gaps in (numbers[::2], pairs["b"], numbers.reshape(2, 4)):
        with pytest.raises(TypingError):
            sum_of(gaps, 1)


if config.BOUNDSCHECK and not INTERPRETED:

    @pytest.mark.parametrize("index", [-1, 4, 1 << 62])
    def test_bounds_are_checked_where_numba_checks_them(index: int) -> None:
        numbers, pairs = Table(4), Table(4, PAIR)
        for i, j in ((0, index), (index, 0)):
            with pytest.raises(IndexError, match="table index is out of bounds"):
                swap(numbers, pairs, i, j)
