"""--sweep: what a list of values comes to, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.bench.job import JobOptions
from virtblk.bench.sweep import MAX_VALUES, OPTIONS, Sweep, parse_sweep
from virtblk.errors import UsageError


@pytest.mark.parametrize(
    ("text", "option", "values"),
    [
        ("iodepth=1,2,4,...,128", "iodepth", (1, 2, 4, 8, 16, 32, 64, 128)),
        ("iodepth=1,2,3,...,6", "iodepth", (1, 2, 3, 4, 5, 6)),
        ("iodepth=16,32,48,...,80", "iodepth", (16, 32, 48, 64, 80)),
        ("iodepth=1,2,4,...,8", "iodepth", (1, 2, 4, 8)),
        ("iodepth=7,1,2,4,...,16", "iodepth", (7, 1, 2, 4, 8, 16)),
        ("iodepth=128", "iodepth", (128,)),
        ("iodepth=32,1", "iodepth", (32, 1)),
        ("bs=512,1k,2k,...,8k", "bs", (512, 1024, 2048, 4096, 8192)),
        ("numjobs=1, 3, 9, ..., 81", "numjobs", (1, 3, 9, 27, 81)),
        ("iodepth-batch-submit=1,8", "iodepth_batch_submit", (1, 8)),
        ("--queue-size=64,128", "queue_size", (64, 128)),
    ],
)
def test_the_values(text: str, option: str, values: tuple[int, ...]) -> None:
    assert parse_sweep(text) == Sweep(option, values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("iodepth", "give OPTION=VALUES"),
        ("iodepth=", "give OPTION=VALUES"),
        ("runtime=1,2", "'runtime' cannot be swept; give one of iodepth, bs"),
        ("iodepth=1,x", "value 'x': give a whole number such as 32"),
        ("bs=4k,x", "value 'x': give bytes or a size"),
        ("iodepth=1,,2", "value '': give"),
        ("iodepth=1,2,...,128", "give three values before ..."),
        ("iodepth=...,128", "give three values before ..."),
        ("iodepth=1,2,4,...", "... stands before the last value"),
        ("iodepth=1,2,4,...,8,16", "... stands before the last value"),
        ("iodepth=1,2,4,...,100", "100 is not in the series that 1,2,4 begin"),
        ("iodepth=1,2,4,...,4", "4 is not in the series"),
        ("iodepth=1,2,5,...,9", "1,2,5 grow neither by equal steps"),
        ("iodepth=4,2,1,...,0", "4,2,1 grow neither"),
        ("iodepth=0,0,0,...,9", "0,0,0 grow neither"),
        ("iodepth=1,2,1", "1 is there twice"),
        ("iodepth=1,2,3,...,1000", f"give at most {MAX_VALUES} values"),
        ("iodepth=" + ",".join(str(n) for n in range(1, 80)), f"give at most {MAX_VALUES} values"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_sweep(text)
    assert says in str(caught.value)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(4, 20))
def test_a_series_by_steps_is_a_range(first: int, step: int, count: int) -> None:
    values = range(first, first + step * count, step)
    text = f"iodepth={values[0]},{values[1]},{values[2]},...,{values[-1]}"
    assert parse_sweep(text).values == tuple(values)


def test_each_option_changes_what_it_names() -> None:
    job = JobOptions(iodepth=64)
    for option, name in OPTIONS.items():
        value = 1024 if option == "bs" else 8
        changed = Sweep(option, (value,)).job(job, value)
        assert getattr(changed, name) == value
        different = [field for field in vars(job) if getattr(job, field) != getattr(changed, field)]
        assert different == [name]


def test_a_value_that_does_not_go_with_the_rest_is_refused() -> None:
    with pytest.raises(UsageError, match="--iodepth-batch-submit 32"):
        parse_sweep("iodepth=32,16").job(JobOptions(batch_submit=32), 16)


def test_how_a_value_is_called() -> None:
    assert parse_sweep("bs=4k").label(4096) == "bs=4k"
    assert parse_sweep("iodepth=1024").label(1024) == "iodepth=1024"
    assert parse_sweep("iodepth=1,2").as_json() == {"option": "iodepth", "values": [1, 2]}
