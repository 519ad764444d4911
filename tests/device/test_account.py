"""What is counted of a request: `account` by itself against plain Python, and what each loop leaves in the counters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numba
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.guest import Guest, header, segment
from jit.test_ir import check, ir_of
from naive.virtio_blk import DISCARD, FLUSH, GET_ID, IN, IOERR, OK, OUT, UNSUPP, WRITE_ZEROES
from virtblk.device import account as place
from virtblk.device.account import account, latency_bucket
from virtblk.jit.io_uring import unavailable
from virtblk.jit.table import Table
from virtblk.names import parse_name
from virtblk.storage.filters import apply_filters
from virtblk.storage.open import open_storage
from virtblk.storage.request import REQUEST_DTYPE
from virtblk.storage.storage import Storage

#: As `OP_*` says, once more.
READ, WRITE, FLUSHED, REFUSED, IDENTIFIED, DISCARDED, ZEROED = range(7)


def naive_bucket(nanoseconds: int) -> int:
    """The first bound that is not below the latency."""
    bounds = [1024 << n for n in range(25)]
    return next((at for at, bound in enumerate(bounds) if nanoseconds <= bound), len(bounds))


def naive_counters(answers: list[tuple[int, int, int]]) -> dict[str, int]:
    """Of (op, length, status)."""
    done = [(op, length) for op, length, status in answers if status == OK]
    return {
        **{f"op {op}": sum(answer[0] == op for answer in answers) for op in range(7)},
        "read": sum(length for op, length in done if op == READ),
        "written": sum(length for op, length in done if op == WRITE),
        "ioerr": sum(status == IOERR for _, _, status in answers),
        "unsupp": sum(status == UNSUPP for _, _, status in answers),
    }


def counted(counters: Table) -> dict[str, int]:
    return {
        **{f"op {op}": int(counters[op]) for op in range(7)},
        "read": int(counters[place.READ_BYTES]),
        "written": int(counters[place.WRITTEN_BYTES]),
        "ioerr": int(counters[place.IOERR]),
        "unsupp": int(counters[place.UNSUPP]),
    }


@given(
    st.one_of(st.integers(0, 1 << 40), st.integers(9, 40).flatmap(lambda n: st.integers(-2, 2).map(lambda d: 2**n + d)))
)
def test_a_latency_counts_below_the_bound_that_it_reaches(nanoseconds: int) -> None:
    assert latency_bucket(nanoseconds) == naive_bucket(nanoseconds)


ANSWERS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 1 << 40), st.sampled_from([OK, OK, IOERR, UNSUPP])), max_size=20
)


@given(ANSWERS, st.integers(0, 1 << 40), st.booleans())
def test_answers_are_counted_once_each(answers: list[tuple[int, int, int]], took: int, timed: bool) -> None:
    counters, requests = Table(place.COUNTERS), Table(1, REQUEST_DTYPE)
    for op, length, status in answers:
        requests[0]["op"], requests[0]["length"], requests[0]["status"] = op, length, status
        requests[0]["taken_ns"] = 1000
        account(counters, requests, 0, 1000 + took if timed else 0)
    assert counted(counters) == naive_counters(answers)
    expected = [0] * 26
    expected[naive_bucket(took)] = len(answers) if timed else 0
    assert counters[place.FIRST_BUCKET :].tolist() == expected
    assert counters[place.LATENCY_NS] == (took * len(answers) if timed else 0)


#: What is sent, room for the answer, and what it counts as: (op, length, status).
REQUESTS: list[tuple[bytes, int, tuple[int, int, int]]] = [
    (header(IN, 0), 513, (READ, 512, OK)),
    (header(IN, 9), 4097, (READ, 4096, OK)),
    (header(OUT, 3) + bytes(1024), 1, (WRITE, 1024, OK)),
    (header(FLUSH), 1, (FLUSHED, 0, OK)),
    (header(GET_ID), 21, (IDENTIFIED, 20, OK)),
    (header(DISCARD) + segment(8, 8), 1, (DISCARDED, 4096, OK)),
    (header(WRITE_ZEROES) + segment(16, 8), 1, (ZEROED, 4096, OK)),
    (header(OUT, 1 << 40) + bytes(512), 1, (REFUSED, 0, IOERR)),
    (header(IN, 0), 100, (REFUSED, 0, IOERR)),
    (header(77), 1, (REFUSED, 0, UNSUPP)),
    (header(IN)[:10], 1, (REFUSED, 0, IOERR)),
    (header(DISCARD) + segment(0, 0), 1, (REFUSED, 0, OK)),
]


def under_filter(path: Path) -> Storage:
    """Reads fail, so that not all errors are refusals."""
    return apply_filters(open_storage(parse_name("ram:1m")), ["error?op=read&rate=100%"])


def on_file(path: Path) -> Storage:
    if unavailable():
        pytest.skip(f"no io_uring here: {unavailable()}")
    (path / "disk.img").write_bytes(bytes(1 << 20))
    return open_storage(parse_name(f"file:{path}/disk.img"))


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize(
    "make", [lambda path: open_storage(parse_name("ram:1m")), on_file, under_filter], ids=["ram", "file", "requests"]
)
def test_a_ring_counts_all_that_it_answers(tmp_path: Path, make: Callable[[Path], Storage], timed: bool) -> None:
    fails = make is under_filter
    storage = make(tmp_path)
    storage.start()
    with Guest(storage, start=False) as guest:
        guest.device._timed = timed
        guest.queue.start()
        expected = []
        for sent, room, (op, length, status) in REQUESTS:
            status = IOERR if fails and op == READ else status
            assert guest.queue.request(sent, room).status == status
            expected.append((op, length, status))
        queue = guest.device.queues[0]
        assert counted(queue.counters) == naive_counters(expected)
        assert queue.counters[place.FIRST_BUCKET :].sum() == (len(expected) if timed else 0)
        assert bool(queue.counters[place.LATENCY_NS]) == timed
        assert queue.taken_ns() == []


@pytest.mark.compiled
def test_accounting_counts_no_references() -> None:
    numbers, requests = numba.typeof(Table(1)), numba.typeof(Table(1, REQUEST_DTYPE))
    check(ir_of(account, numbers, requests, numba.int64, numba.int64))
