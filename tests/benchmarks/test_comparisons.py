"""benchmarks/aa.py, two_devices.py, headline.py, glance.py and reorder.py: they run, end, and say what they found."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from bench.harness import options
from benchmarks.harness import BENCHMARKS, load
from cli.harness import PATIENCE
from virtblk.bench.runner import Runner
from virtblk.bench.session import Session
from virtblk.errors import UsageError
from virtblk.server import ChildDevice

pytestmark = [pytest.mark.once, pytest.mark.compiled]

CHANGE = r"(-|[+-][\d.]+% \[(\?|[+-][\d.]+, [+-][\d.]+)\]( ~)?)"


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_an_aa_counts_the_cells_that_differ() -> None:
    words = ("--rw", "read,randwrite", "--repetitions", "2", "--runtime", "0.1", "--paths", "bio")
    result = run("aa", "null:1m", *words)
    lines = result.stdout.splitlines()
    pattern = rf"bio,bio +[12] +(read|randwrite)   iops {CHANGE} +latency {CHANGE} +iops_per_driver_cpu {CHANGE} *"
    assert [line for line in lines[:-1] if not re.fullmatch(pattern, line)] == []
    assert len(lines) == 5
    found = re.fullmatch(r"(\d+) of 12 cells differ at 99 %: ([\d.]+)%", lines[-1])
    assert found, lines[-1]
    differ = int(found[1])
    assert differ == sum(3 - line.count("~") for line in lines[:-1])
    assert result.returncode == (1 if differ > 0.05 * 12 else 0)


def test_two_devices_one_slow_are_alternated_and_compared() -> None:
    """Slowed to an eleventh, it may well be found; the last line and the status agree on whether it was."""
    words = ("--slower", "1000", "--rounds", "8", "--slice", "0.02", "--repetitions", "2")
    result = run("two_devices", "null:1m", *words)
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"null:1m: \d+ ns per I/O; the slow one takes \d+ ns longer", lines[0]), result
    pattern = rf" randread IOPS, slow over plain: {CHANGE}  (found|NOT found)"
    assert [line for line in lines[1:-1] if not re.fullmatch(pattern, line)] == []
    assert len(lines) == 4
    found = sum("NOT" not in line for line in lines[1:-1])
    assert lines[-1] == f"the slow one was found {found} of 2 times at 99 %"
    assert result.returncode == (0 if found == 2 else 1)


def test_a_slow_device_takes_as_much_longer() -> None:
    """Each of 64 requests, 4 at most at a time, a millisecond more; the last batch is answered before its delay."""
    with ChildDevice("null:32k", delay_ns=1_000_000) as child:
        child.wait_ready()
        job = options()
        with Session(f"vhost-user:{child.path}", job) as session:
            (result,) = Runner(session, job).run()
    assert result.ios == 64
    assert result.runtime_s >= 0.060


def test_the_headline_has_two_tables_and_a_verdict() -> None:
    result = run("headline", "ram:1m", "--runtime", "0.1", "--rw", "read,randwrite")
    assert result.returncode == 0, result.stderr
    text = result.stdout
    for batch in (1, 32):
        assert f"8 x 32 in flight, batches of {batch}, blocks of 512, ring of 256, nr_requests=256" in text
    assert text.count("posted, ramdisk") == 2
    verdicts = text.splitlines()[-5:]
    names = [(batch, workload) for batch in (1, 32) for workload in ("read", "randwrite")]
    for line, (batch, workload) in zip(verdicts[:-1], names, strict=True):
        pattern = rf"batches of +{batch} +{workload}: driver ns/IO, bio/request - 1 {CHANGE}"
        assert re.fullmatch(pattern, line), line
    pattern = r"one at a time, the bio path's driver CPU per I/O is lower in [0-2] of 2 workloads"
    assert re.fullmatch(pattern, verdicts[-1])


def test_glance_compares_iops_and_cpu_with_and_without() -> None:
    words = ("--disks", "null:1m,ram:1m", "--rw", "randread,randwrite", "--pairs", "6", "--slice", "0.02")
    result = run("glance", *words, "--iodepth", "1,4")
    lines = result.stdout.splitlines()
    pattern = rf"(.*\S) +IOPS [\d.e+]+ -> [\d.e+]+ {CHANGE} +us of CPU per I/O [\d.]+ -> [\d.]+ {CHANGE}"
    found = [match[1] for line in lines if (match := re.fullmatch(pattern, line.rstrip()))]
    disks, workloads = ("null:1m", "ram:1m"), ("randread", "randwrite")
    assert found == [f"{disk} {work} QD {depth}" for disk in disks for depth in (1, 4) for work in workloads], result
    assert [line for line in lines if "writes to" in line] == [
        f"randwrite writes to {disk}" for disk in disks for _ in (1, 4)
    ]
    assert result.returncode == 0, result.stderr


def test_the_arms_of_glance_differ_in_the_glance_alone() -> None:
    module = load("glance")
    job = options(workloads=("randread",), runtime=0.02)
    with Session("null:1m", job) as session:
        arms = module.Arms(session, job, 7_000)
        try:
            for which, expected in ((0, 0), (1, 7_000), (0, 0)):
                before = arms.views[0].queue[0].copy()
                assert arms.slice(which).ios > 0
                after = arms.views[0].queue[0].copy()
                assert after["glance_ns"] == expected
                fixed = ("poll_ns", "crowded", "timeout_ns", "path")
                assert [before[name] for name in fixed] == [after[name] for name in fixed]
        finally:
            arms.runner.close()


def test_reorder_has_four_cases_and_two_verdicts() -> None:
    """So short that anything may come out; the status is what the verdicts say."""
    result = run("reorder", "--speed", "100", "--rounds", "8", "--slice", "0.02")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("randread on sim:sata?depth=1&speed=100, 250 in flight; scheduler=deadline"), result
    assert lines[0].endswith("nr_requests=256, read_expire=5")
    pattern = rf"reorder=(off|on) +(32|128)( +[\d.]+k? \[[\d.]+k?, [\d.]+k?\]){{2}} +{CHANGE}"
    cases = [re.fullmatch(pattern, line.rstrip()) for line in lines[3:7]]
    assert [case and case.group(1, 2) for case in cases] == [("off", "32"), ("off", "128"), ("on", "32"), ("on", "128")]
    assert lines[8].startswith("reorder=off ring=32: request is faster than bio: ")
    assert lines[9].startswith("reorder=on ring=128: within 3% of each other: ")
    assert len(lines) == 10
    assert result.returncode == (1 if any(line.endswith("NO") for line in lines[8:]) else 0)


def test_what_reorder_concludes() -> None:
    module = load("reorder")

    def cases(alone: float, by_host: float) -> list[object]:
        made = []
        for reorder, ring, bio in (("off", 32, alone), ("off", 128, 1.0), ("on", 32, 1.0), ("on", 128, by_host)):
            case = module.Case(reorder, ring, None)
            case.iops = {"request": [100.0] * 8, "bio": [bio * 100.0] * 8}.__getitem__
            made.append(case)
        return made

    def holds(alone: float, by_host: float) -> list[bool]:
        return [found for _, found in module.verdicts(cases(alone, by_host), 95.0)]

    assert holds(0.5, 0.98) == [True, True]
    assert holds(1.0, 1.02) == [False, True]
    assert holds(0.9, 0.96) == [True, False]
    assert holds(0.9, 1.04) == [True, False]


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("aa", ["--repetitions", "0"], "--repetitions 0"),
        ("aa", ["--repetitions", "x"], "--repetitions 'x'"),
        ("aa", ["--paths", "cfq"], "--path 'cfq' is no path"),
        ("aa", ["--rw", "reed"], "--rw 'reed'"),
        ("aa", ["--bs", "5"], "--bs 5"),
        ("aa", ["--confidence", "100"], "--confidence 100"),
        ("aa", ["null:1m", "--runtime", "0", "--rw", "read"], "--runtime 0: too few slices"),
        ("two_devices", ["--slower", "0"], "--slower 0"),
        ("two_devices", ["--rounds", "7"], "--rounds 7"),
        ("two_devices", ["--repetitions", "0"], "--repetitions 0"),
        ("two_devices", ["--slice", "0"], "--slice 0"),
        ("two_devices", ["--rw", "read,write"], "--rw read,write: give one workload"),
        ("two_devices", ["floppy:1"], "disk 'floppy:1'"),
        ("glance", ["--pairs", "5"], "--pairs 5"),
        ("glance", ["--slice", "0"], "--slice 0"),
        ("glance", ["--glance-us", "0"], "--glance-us 0"),
        ("glance", ["--rw", "reed"], "--rw 'reed'"),
        ("glance", ["--disks", "floppy:1"], "'floppy:1' is no disk"),
        ("reorder", ["--rounds", "7"], "--rounds 7"),
        ("reorder", ["--slice", "0"], "--slice 0"),
        ("reorder", ["--speed", "0"], "--speed 0"),
        ("reorder", ["--depth", "0"], "depth '0'"),
        ("headline", ["--rw", "reed"], "--rw 'reed'"),
        ("headline", ["--runtime", "-1"], "--runtime -1"),
        ("headline", ["vhost-user:/nowhere"], "vhost-user:/nowhere: cannot connect"),
    ],
)
def test_wrong_usage_is_one_line(name: str, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    with pytest.raises((UsageError, module.VirtblkError)) as caught:
        module.main()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_are_a_line_and_status_2() -> None:
    result = run("two_devices", "ram:0")
    assert result.returncode == 2
    assert result.stderr.startswith("two_devices.py: disk 'ram:0': size 0")
    assert len(result.stderr.splitlines()) == 1
