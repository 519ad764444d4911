"""What a served disk's metrics say: sums over rings and sessions, and the requests that are out."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from device.test_async_worker import HeldStorage
from virtblk.device.account import COUNTERS, FIRST_BUCKET, LATENCY_NS
from virtblk.device.worker import WORKER_DTYPE
from virtblk.jit.table import Table
from virtblk.server_metrics import BOUNDS, Accounts


def samples(accounts: Accounts) -> dict[str, float]:
    """By name and labels."""
    lines = [line.rpartition(" ") for line in accounts.render().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def ring(counters: dict[int, int], taken: list[int] | None = None) -> Any:
    """Ring 1, with these counters."""
    table = Table(COUNTERS)
    for index, value in counters.items():
        table[index] = value
    return SimpleNamespace(
        index=1, worker=Table(1, WORKER_DTYPE), counters=table, broken=None, taken_ns=lambda: taken or []
    )


def test_bounds_are_powers_of_two_from_a_microsecond_to_more_than_ten_seconds() -> None:
    assert np.allclose(BOUNDS[0], 1.024e-6)
    assert BOUNDS[-2] < 10 < BOUNDS[-1]
    assert len(BOUNDS) == COUNTERS - FIRST_BUCKET - 1


def test_what_rings_counted_is_kept_and_added_up() -> None:
    accounts = Accounts(HeldStorage(), 2, timed=True)
    for base in (10, 100):
        accounts.queue_starts(ring({index: base * (index + 1) for index in range(FIRST_BUCKET)}))
        assert accounts.queue_stops(1, lambda: 7) == 7
    accounts.queue_starts(ring({index: index + 1 for index in range(FIRST_BUCKET)}))
    seen = samples(accounts)
    ops = ["read", "write", "flush", "refused", "get_id", "discard", "write_zeroes"]
    for index, op in enumerate(ops):
        assert seen[f'virtblk_requests_total{{queue="1",op="{op}"}}'] == 111 * (index + 1)
        assert seen[f'virtblk_requests_total{{queue="0",op="{op}"}}'] == 0
    assert seen['virtblk_bytes_total{queue="1",op="read"}'] == 888
    assert seen['virtblk_bytes_total{queue="1",op="write"}'] == 999
    assert seen['virtblk_errors_total{queue="1",status="ioerr"}'] == 1110
    assert seen['virtblk_errors_total{queue="1",status="unsupp"}'] == 1221
    assert seen['virtblk_request_seconds_sum{queue="1"}'] == 1332 / 1e9


def test_latencies_come_as_a_cumulative_histogram() -> None:
    accounts = Accounts(HeldStorage(), 2, timed=True)
    accounts.queue_starts(ring({FIRST_BUCKET: 3, FIRST_BUCKET + 2: 4, COUNTERS - 1: 1, LATENCY_NS: 20_000_000_000}))
    seen = samples(accounts)
    name = 'virtblk_request_seconds_bucket{queue="1",le="%s"}'
    bounds = ["1.024e-06", "2.048e-06", "4.096e-06", "17.179869184", "+Inf"]
    assert [seen[name % bound] for bound in bounds] == [3, 3, 7, 7, 8]
    assert seen['virtblk_request_seconds_count{queue="1"}'] == 8
    assert seen['virtblk_request_seconds_sum{queue="1"}'] == 20


def test_requests_that_are_out_show_with_the_age_of_the_oldest() -> None:
    accounts = Accounts(HeldStorage(), 2, timed=True)
    now = time.monotonic_ns()
    accounts.queue_starts(ring({}, [now - 1_000_000_000, now - 5_000_000_000, now]))
    seen = samples(accounts)
    assert seen['virtblk_in_flight{queue="1"}'] == 3
    assert 5 <= seen['virtblk_oldest_in_flight_seconds{queue="1"}'] <= 5 + (time.monotonic_ns() - now) / 1e9
    assert seen['virtblk_in_flight{queue="0"}'] == seen['virtblk_oldest_in_flight_seconds{queue="0"}'] == 0


def test_without_a_clock_nothing_is_said_about_time() -> None:
    accounts = Accounts(HeldStorage(), 2)
    accounts.queue_starts(ring({}, [1]))
    assert not [name for name in samples(accounts) if "seconds" in name or "in_flight" in name]
