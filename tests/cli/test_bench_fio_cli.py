"""`virtblk bench --job`: which disk, what goes together, what is printed, and every mistake in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cli.harness import Command, complaint, virtblk
from virtblk.bench.fio_options import parse_jobs
from virtblk.cli import main
from virtblk.cli.bench_fio import disk_of
from virtblk.errors import UsageError


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "a.fio"
    path.write_text("[a]\nbs=4k\nsize=64k\n")
    return path


# The disk.


@pytest.mark.parametrize(
    ("text", "given", "disk"),
    [
        ("[a]\n", None, "ram:512m"),
        ("[a]\nfilename=ram\\:1m\n", None, "ram:1m"),
        ("[global]\nfilename=/tmp/x:y\n[a]\n[b]\n", None, "file:/tmp/x:y"),
        ("[a]\nfilename=x.img\n", None, "file:x.img"),
        ("[a]\nfilename=floppy:x\n[b]\n", "null:1g", "null:1g"),
    ],
)
def test_the_disk_is_given_or_the_file_s(text: str, given: str | None, disk: str) -> None:
    assert disk_of(parse_jobs(text, "a.fio"), given, "ram:512m") == disk


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a]\nfilename=ram:1m\n[b]\nfilename=ram:2m\n", "a.fio:4: filename=ram:2m: [a] has ram:1m; all jobs"),
        ("[a]\nfilename=ram:1m\n[b]\n", "a.fio:3: [b]: filename: [a] has ram:1m; all jobs of a file use one disk"),
        ("[a]\nfilename=floppy:x\n", "a.fio:2: filename=floppy:x: disk 'floppy:x': scheme 'floppy' is unknown"),
    ],
)
def test_a_disk_that_is_none_or_several(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(says)}"):
        disk_of(parse_jobs(text, "a.fio"), None, "ram:512m")


# Mistakes.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--bs", "4k"), "--bs: not with --job; the job file says what to do"),
        (("--rw", "read"), "--rw: not with --job; the job file says what to do"),
        (("--runtime", "1"), "--runtime: not with --job; the job file says what to do"),
        (("--json", "-"), "--json: not with --job; the job file says what to do"),
        (("--compare", "a", "b"), "--compare: not with --job; the job file says what to do"),
        (("--path", "request,bio"), "--path request,bio: a job file runs on one path; give one of them"),
        (("--path", "fast"), "--path 'fast' is no path; give request, bio, mq, auto"),
        (("--output-format", "terse"), "argument --output-format: invalid choice: 'terse'"),
    ],
)
def test_what_does_not_go_with_a_job_file(
    job: Path, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint(capsys, "bench", "ram:1m", "--job", str(job), *words).startswith(says)


def test_an_output_format_goes_only_with_a_job_file(capsys: pytest.CaptureFixture[str]) -> None:
    says = "--output-format json: is for --job; --json writes a bench's own figures"
    assert complaint(capsys, "bench", "ram:1m", "--output-format", "json") == says


def test_a_mistake_in_the_file_is_one_line(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job.write_text("[a]\nbs=4k\n\nzonemode=zbd\n")
    says = f"{job}:4: zonemode=zbd: fio has this option, virtblk has not; leave it out"
    assert complaint(capsys, "bench", "ram:1m", "--job", str(job)) == says
    assert complaint(capsys, "bench", "--job", f"{job}x") == f"--job '{job}x': No such file or directory"


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        ("size=2m", (), "{job}:2: size=2m: more than ram:1m has (1m)"),
        ("bs=2m", (), "{job}:2: bs=2m: more than the range of 1m"),
        (
            "bs=16m\niodepth=65536\nnumjobs=64",
            (),
            "--job: 64.0t of buffers for the jobs that run at the same time, and ",
        ),
        ("rw=read", ("--queue", "foo=1"), "--queue foo=1: ram:1m has no foo; it has "),
        ("rw=read\nrate_iops=5\nnumjobs=500", ("--poll",), "--rate-iops with --numjobs 500 polling on "),
    ],
)
def test_what_needs_no_device_is_refused_before_one_starts(
    text: str,
    words: tuple[str, ...],
    says: str,
    job: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And so before anything compiles."""
    monkeypatch.setattr("virtblk.bench.session.Session", None)
    job.write_text(f"[a]\n{text}\n")
    assert complaint(capsys, "bench", "ram:1m", "--job", str(job), *words).startswith(says.format(job=job))


def test_a_job_file_without_a_name_is_no_way_to_leave_it_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "bench", "ram:1m", "--job", "") == "--job '': give the path of a job file"


# Runs.


@pytest.mark.once
@pytest.mark.covers
@pytest.mark.parametrize("path", ["bio", "request"])
def test_a_table_of_a_run(job: Path, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    job.write_text("[global]\ndirect=1\nsize=64k\n[one]\nrw=write\nfsync=4\n[two]\nstonewall\n")
    assert main(["bench", "ram:1m", "--job", str(job), "--path", path]) == 0
    out, err = capsys.readouterr()
    told = f"{job}:2: direct=1 has no effect: no page cache lies between virtblk and its device\n"
    assert [line for line in err.splitlines(True) if "compil" not in line] == [told]
    first, table, groups = out.split("\n\n")
    assert first.startswith(f"ram:1m (1m): {job}, 2 jobs in 2 groups, {path} path, ring of 128, interrupts; ")
    assert first.splitlines()[1] == "this writes to the disk, as the job file says"
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [
        ["one", "write"],
        ["one", "flush"],
        ["two", "read"],
    ]
    assert [line.split()[:3] for line in groups.splitlines()[1:]] == [["0", "1", "19"], ["1", "1", "16"]]


@pytest.mark.once
@pytest.mark.covers
def test_json_is_alone_on_standard_output(job: Path) -> None:
    status, out, err = virtblk("bench", "ram:1m", "--job", str(job), "--output-format", "json")
    value = json.loads(out)
    assert status == 0
    assert err.startswith("ram:1m (1m): ")
    assert value["fio version"].startswith("virtblk-")
    assert value["virtblk"]["path"] == "bio"
    assert value["virtblk"]["device"]["size"] == 1 << 20
    (group,) = value["virtblk"]["groups"]
    assert group["device_cpu"] is not None
    assert [job["read"]["io_bytes"] for job in value["jobs"]] == [65536]


@pytest.mark.once
@pytest.mark.covers
def test_errors_are_told_and_are_the_exit_status(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job.write_text("[a]\nsize=64k\nverify=crc32c\n")
    assert main(["bench", "ram:1m", "--job", str(job)]) == 1
    assert capsys.readouterr().out.endswith(f"{job}:1: [a]: verify failed at offset 0: no header\n")
    assert main(["bench", "ram:1m", "--job", str(job), "--output-format", "json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["jobs"][0]["error"] == 84
    assert captured.err.endswith(f"{job}:1: [a]: verify failed at offset 0: no header\n")


@pytest.mark.once
@pytest.mark.covers
def test_an_interrupt_ends_the_run_and_tells_what_was_done(job: Path) -> None:
    job.write_text("[a]\nbs=4k\nruntime=600s\ntime_based\n[b]\nstonewall\n")
    with Command("bench", "ram:1m", "--job", str(job)) as command:
        command.wait_for("ram:1m (1m): ")
        command.interrupt()
        status, out, err = command.wait()
    assert status == 130
    assert err.splitlines()[-1] == "virtblk: interrupted"
    assert "[b]" not in out
