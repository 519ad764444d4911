"""What a bench may be asked to do: every refusal is one line with the option, its value and a way out."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.bench import job
from virtblk.bench.job import (
    ALIASES,
    WORKLOADS,
    JobOptions,
    available_memory,
    is_random,
    is_write,
    parse_cpus,
    parse_paths,
    parse_queue,
    parse_workloads,
)
from virtblk.errors import UsageError

OK = {"size": 1 << 20, "block_size": 512, "read_only": False, "title": "ram:1m"}


def refusal(call: Any, *arguments: Any, **keywords: Any) -> str:
    """The one line of the UsageError that the call must raise."""
    with pytest.raises(UsageError) as caught:
        call(*arguments, **keywords)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("--bs", "bs", 0),
        ("--bs", "bs", 511),
        ("--bs", "bs", 1000),
        ("--bs", "bs", 128 << 20),
        ("--iodepth", "iodepth", 0),
        ("--iodepth", "iodepth", 65537),
        ("--numjobs", "numjobs", 0),
        ("--numjobs", "numjobs", 4097),
        ("--iodepth-batch-submit", "batch_submit", 0),
        ("--iodepth-batch-submit", "batch_submit", 33),
        ("--randseed", "randseed", -1),
        ("--randseed", "randseed", 1 << 62),
        ("--runtime", "runtime", -1.0),
        ("--runtime", "runtime", 2e6),
        ("--runtime", "runtime", float("nan")),
        ("--ramp-time", "ramp_time", -1.0),
        ("--ramp-time", "ramp_time", float("inf")),
        ("--queues", "queues", 2),
        ("--queues", "queues", 0),
        ("--queue-size", "queue_size", 0),
        ("--queue-size", "queue_size", 2),
        ("--queue-size", "queue_size", 100),
        ("--queue-size", "queue_size", 65536),
        ("--timeout", "timeout", 0.0),
        ("--timeout", "timeout", float("nan")),
        ("--timeout", "timeout", 1e9),
        ("--verify", "verify", "md5"),
        ("--device-pid", "device_pid", 0),
        ("--device-pid", "device_pid", 1 << 40),
        ("--slice", "slice_s", 0.0),
        ("--slice", "slice_s", 0.009),
        ("--slice", "slice_s", 6.0),
        ("--slice", "slice_s", float("nan")),
        ("--confidence", "confidence", 49.0),
        ("--confidence", "confidence", 100.0),
        ("--confidence", "confidence", float("nan")),
        ("--rate-iops", "rate_iops", -1),
        ("--rate-iops", "rate_iops", 10_000_001),
    ],
)
def test_a_value_that_cannot_be_is_named(option: str, field: str, value: Any) -> None:
    text = refusal(JobOptions, **{field: value})
    assert text.startswith(f"{option} ")
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    assert shown in text.split(":")[0]
    assert "give" in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bs", 512),
        ("bs", 64 << 20),
        ("iodepth", 1),
        ("iodepth", 65536),
        ("numjobs", 4096),
        ("batch_submit", 32),
        ("runtime", 0.0),
        ("queue_size", 4),
        ("queue_size", 32768),
        ("verify", "crc32c"),
        ("device_pid", 1),
    ],
)
def test_the_first_and_last_good_values(field: str, value: Any) -> None:
    assert getattr(JobOptions(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"queues": 257}, "--queues 257: give 1 to 256"),
        ({"queues": 4}, "--queues 4: --path request,bio uses one virtqueue; give mq or auto too"),
        ({"queues": 2, "paths": ("bio",)}, "--queues 2: --path bio uses one virtqueue; give mq or auto too"),
        ({"poll_queues": 1}, "--poll-queues 1: needs --queues 2 or more, and give less; --poll polls all"),
        ({"queues": 2, "paths": ("mq",), "poll_queues": 2}, "--poll-queues 2: give 0 to 1; --poll polls all"),
        ({"queues": 2, "paths": ("mq",), "poll_queues": -1}, "--poll-queues -1: give 0 to 1; --poll polls all"),
        (
            {"queues": 2, "paths": ("mq",), "poll_queues": 1, "poll": True},
            "--poll-queues 1: --poll polls all of them; give one of the two",
        ),
    ],
)
def test_virtqueues_that_cannot_be(given: dict[str, Any], text: str) -> None:
    assert refusal(JobOptions, **given) == text


@pytest.mark.parametrize(
    ("given", "rings", "completion"),
    [
        ({}, "ring of 128", "interrupts"),
        ({"poll": True, "queue_size": 8}, "ring of 8", "polling"),
        ({"queues": 4, "paths": ("mq", "auto")}, "4 rings of 128", "interrupts"),
        ({"queues": 4, "paths": ("mq", "bio")}, "4 rings of 128 (bio uses the first alone)", "interrupts"),
        (
            {"queues": 4, "paths": ("request", "bio", "mq"), "poll_queues": 3},
            "4 rings of 128 (bio and request use the first alone)",
            "interrupts, but polling on the last 3",
        ),
    ],
)
def test_virtqueues_are_told(given: dict[str, Any], rings: str, completion: str) -> None:
    job = JobOptions(**given)
    assert (job.rings, job.completion) == (rings, completion)


def test_defaults_are_those_of_the_issue() -> None:
    options = JobOptions()
    assert options.workloads == ("read", "write", "randread", "randwrite")
    assert (options.bs, options.iodepth, options.numjobs, options.batch_submit) == (4096, 32, 1, 1)
    assert (options.queues, options.queue_size, options.timeout, options.poll) == (1, 128, 30.0, False)
    assert options.paths == ("request", "bio")
    assert options.confidence == 95


# Slices.


@pytest.mark.parametrize(
    ("runtime", "given_slice", "rounds"),
    [
        (0.0, None, 1),
        (5.0, None, 20),
        (2.5, None, 10),
        (1.0, None, 10),
        (0.1, None, 10),
        (0.05, None, 5),
        (0.001, None, 1),
        (250.0, None, 1000),
        (1e6, None, 1000),
        (5.0, 0.5, 10),
        (5.0, 5.0, 1),
        (1.0, 0.3, 3),
        (100.0, 0.01, 10_000),
    ],
)
def test_a_run_is_cut_into_equal_slices(runtime: float, given_slice: float | None, rounds: int) -> None:
    options = JobOptions(runtime=runtime, slice_s=given_slice)
    assert options.rounds == rounds
    assert options.slice_seconds * rounds == pytest.approx(runtime)


@pytest.mark.parametrize(
    ("given_options", "says"),
    [
        ({"runtime": 0.0, "slice_s": 0.1}, "--runtime 0 is one pass"),
        ({"runtime": 1000.0, "slice_s": 0.01}, "more than 10000"),
        ({"rate_iops": 5, "batch_submit": 2}, "--iodepth-batch-submit 2"),
        ({"share_core": True, "device_cpus": (1,)}, "--device-cpus"),
        ({"share_core": True, "driver_cpus": (0, 1)}, "--cpus-allowed"),
        ({"paths": ("bio",) * 9}, "--path bio,bio"),
    ],
)
def test_options_that_do_not_go_together(given_options: dict[str, Any], says: str) -> None:
    assert says in refusal(JobOptions, **given_options)


# --queue.


def test_settings_of_the_queue_are_pairs() -> None:
    words = ["scheduler=noop", "iosched/read_expire=250", "a=b=c"]
    assert parse_queue(words) == (("scheduler", "noop"), ("iosched/read_expire", "250"), ("a", "b=c"))
    assert parse_queue([]) == ()


@pytest.mark.parametrize("word", ["", "scheduler", "=noop", "scheduler=", "="])
def test_what_is_no_setting(word: str) -> None:
    assert refusal(parse_queue, ["a=b", word]).startswith(f"--queue {word!r}: give KEY=VALUE")


# --rw, --path.


def test_both_sets_of_names_mean_the_same() -> None:
    assert parse_workloads("seq-read,seq-write,rand-read,rand-write") == WORKLOADS
    assert parse_workloads("randwrite,read") == ("randwrite", "read")
    assert set(ALIASES.values()) == set(WORKLOADS)


@pytest.mark.parametrize("text", ["", "readd", "read,", "Read", "read;write"])
def test_an_unknown_workload(text: str) -> None:
    word = next(word for word in text.split(",") if word not in WORKLOADS)
    line = refusal(parse_workloads, text)
    assert line.startswith(f"--rw {word!r}")
    assert "randread" in line
    assert "rand-read" in line


def test_paths() -> None:
    assert parse_paths("request") == ("request",)
    assert parse_paths("mq,auto,bio") == ("mq", "auto", "bio")
    assert parse_paths("bio,request,bio") == ("bio", "request", "bio"), "each is an arm"


@pytest.mark.parametrize(("text", "says"), [("MQ", "'MQ'"), ("", "''"), ("x", "'x'")])
def test_an_unknown_path(text: str, says: str) -> None:
    line = refusal(parse_paths, f"bio,{text}")
    assert line.startswith("--path ")
    assert says in line
    assert "give request, bio, mq, auto" in line


def test_what_a_workload_does() -> None:
    assert [is_write(word) for word in WORKLOADS] == [False, True, False, True]
    assert [is_random(word) for word in WORKLOADS] == [False, False, True, True]


def test_whether_a_run_writes() -> None:
    assert JobOptions().writes
    assert not JobOptions(workloads=("read", "randread")).writes
    assert JobOptions(workloads=("read",), verify="crc32c").writes
    assert JobOptions(workloads=("read", "randwrite")).writes


# CPU lists.


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 6})


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize(
    ("text", "parsed"),
    [("0", (0,)), ("3,1", (1, 3)), ("0-2", (0, 1, 2)), ("6,0-1,1", (0, 1, 6)), ("2-2", (2,)), ("0, 2", (0, 2))],
)
def test_cpu_lists(text: str, parsed: tuple[int, ...]) -> None:
    assert parse_cpus("--cpus-allowed", text) == parsed


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize("text", ["x", "", "1,", "1-", "-1", "1-2-3", "0x1", "\u00b2", "\u0663", "9" * 30])
def test_what_is_no_cpu_list(text: str) -> None:
    line = refusal(parse_cpus, "--device-cpus", text)
    assert line.startswith(f"--device-cpus {text!r}: give cpu numbers")


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize(("text", "cpu"), [("4", 4), ("0-5", 4), ("7", 7), ("1-99", 4)])
def test_a_cpu_that_is_not_ours(text: str, cpu: int) -> None:
    line = refusal(parse_cpus, "--cpus-allowed", text)
    assert line == f"--cpus-allowed {text!r}: cpu {cpu} is not available here (available: 0,1,2,3,6)"


@pytest.mark.usefixtures("cpus")
def test_regression_a_range_that_falls_is_no_list_of_no_cpus() -> None:
    """`3-1` was an empty list, which meant that nothing was pinned."""
    assert "give cpu numbers" in refusal(parse_cpus, "--cpus-allowed", "3-1")


@pytest.mark.usefixtures("cpus")
def test_regression_a_huge_range_of_cpus_is_refused_at_its_first_stranger() -> None:
    """It was turned into a set of as many numbers first."""
    assert "cpu 4 is not available" in refusal(parse_cpus, "--cpus-allowed", "0-999999999")


# What fits the disk.


def test_the_range_is_whole_blocks_of_the_disk() -> None:
    assert JobOptions().check_disk(**OK) == 1 << 20
    assert JobOptions(bs=3 * 512).check_disk(**OK) == (1 << 20) // 1536 * 1536
    assert JobOptions(size=10_000).check_disk(**OK) == 8192


@given(st.integers(1, 1 << 16), st.integers(1, 1 << 8), st.integers(0, 1 << 25))
def test_the_range_never_ends_past_the_disk_or_the_size(sectors: int, block: int, size: int) -> None:
    options = JobOptions(bs=block * 512, size=size)
    try:
        found = options.check_disk(sectors * 512, 512, False, "disk")
    except UsageError:
        assert size > sectors * 512 or (size or sectors * 512) < options.bs
    else:
        assert options.bs <= found <= (size or sectors * 512) <= sectors * 512
        assert found % options.bs == 0


@pytest.mark.parametrize(
    ("given_options", "disk", "words"),
    [
        ({"bs": 512}, {"block_size": 4096}, ["--bs 512", "4096", "ram:1m"]),
        ({"bs": 6144}, {"block_size": 4096}, ["--bs 6k", "4096"]),
        ({"bs": 2 << 20}, {}, ["--bs 2m", "1m"]),
        ({"size": 2 << 20}, {}, ["--size 2m", "ram:1m", "1m"]),
        ({"size": 512}, {}, ["--bs 4k", "512"]),
        ({}, {"read_only": True}, ["ram:1m is read-only", "--rw read,randread"]),
        ({"workloads": ("read",), "verify": "crc32c"}, {"read_only": True}, ["read-only", "--verify writes"]),
    ],
)
def test_what_does_not_fit_the_disk(given_options: dict[str, Any], disk: dict[str, Any], words: list[str]) -> None:
    line = refusal(JobOptions(**given_options).check_disk, **OK | disk)
    assert [word for word in words if word not in line] == []


def test_reads_of_a_read_only_disk_are_fine() -> None:
    assert JobOptions(workloads=("read", "randread")).check_disk(**OK | {"read_only": True})


# Memory.


def test_more_buffers_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "available_memory", lambda: 64 << 20)
    JobOptions(numjobs=8, iodepth=32, bs=128 << 10).check_memory()
    line = refusal(JobOptions(numjobs=16, iodepth=32, bs=128 << 10).check_memory)
    assert line.startswith("--numjobs 16 x --iodepth 32 x --bs 128k: 64.0m of buffers, and 64.0m of memory are free")
    assert "4096.0t" in refusal(JobOptions(numjobs=4096, iodepth=65536, bs=16 << 20).check_memory)


def test_regression_the_page_cache_counts_as_free() -> None:
    """SC_AVPHYS_PAGES leaves it out, and a machine that had read much refused a bench that fitted."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory() <= pages
    with open("/proc/meminfo") as file:
        told = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    assert abs(available_memory() - told) < 256 << 20
