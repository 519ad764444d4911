"""fio itself, and its tools: the same job file does the same I/O under fio and under virtblk, and is told alike."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.fio_harness import job_json
from peers import fio, fio_jsonplus_clat2csv
from serving import Serving

pytestmark = [pytest.mark.peer, pytest.mark.once]

SIZE = 1 << 20
#: What was asked for can be told from the offsets alone.
SEQUENTIAL = """
[global]
bs=4k
size=256k
[read]
rw=read
offset=64k
[write]
stonewall
rw=write
fsync=8
loops=2
[verified]
stonewall
rw=write
bs=8k
verify=crc32c
[mixed]
stonewall
rw=rw
rwmixread=70
"""
#: And here from counts.
DEEP = """
[global]
bs=4k
iodepth=8
percentile_list=50:99:99.9
[random]
rw=randread
loops=2
[batches]
stonewall
rw=randwrite
bs=16k
iodepth_batch_submit=4
iodepth_batch_complete_min=4
fsync=16
[half]
stonewall
rw=randread
size=50%
numjobs=2
group_reporting
[quarter]
rw=write
size=64k
offset=512k
iodepth=1
[thinking]
stonewall
rw=randrw
size=64k
thinktime=50
runtime=30s
[paced]
stonewall
size=128k
rate_iops=1000
"""


def job_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "job.fio"
    path.write_text(text)
    return str(path)


def image(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def run_fio(tmp_path: Path, *words: str) -> None:
    """fio, on a file of its own; its state files stay in the test's directory."""
    target = image(tmp_path, "fio.img")
    command = [fio(), "--ioengine=libaio", f"--filename={target}", *words]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)


def keys_of(value: Any) -> Any:
    """The keys of an object, of those in it, and of all jobs; in their order."""
    if isinstance(value, dict):
        return [(key, keys_of(one)) for key, one in value.items()]
    if isinstance(value, list):
        return [keys_of(one) for one in value]
    return None


def counts_of(job: dict[str, Any]) -> list[int]:
    """I/Os and bytes of a job: of each direction, or of both together where chance decides between them."""
    names = ("read", "write", "trim")
    found = [job[name][key] for key in ("total_ios", "io_bytes") for name in names]
    if job["job options"].get("rw") in ("rw", "randrw"):
        found = [sum(found[:3]), sum(found[3:])]
    return [*found, job["sync"]["total_ios"], job["error"], job["groupid"]]


def run_both(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fio's JSON, ours) for one job file, each on a file of a mebibyte."""
    path = job_file(tmp_path, text)
    run_fio(tmp_path, "--output-format=json", "--output=fio.json", path)
    ours = job_json(capsys, f"file:{image(tmp_path, 'virtblk.img')}", path)
    return json.loads((tmp_path / "fio.json").read_text()), ours


@pytest.mark.parametrize("text", [SEQUENTIAL, DEEP], ids=["sequential", "deep"])
def test_the_same_file_does_as_many_ios_and_has_the_same_keys(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = run_both(tmp_path, capsys, text)
    assert [job["jobname"] for job in ours["jobs"]] == [job["jobname"] for job in theirs["jobs"]]
    assert [counts_of(job) for job in ours["jobs"]] == [counts_of(job) for job in theirs["jobs"]]
    for mine, other in zip(ours["jobs"], theirs["jobs"], strict=True):
        assert mine["job options"] == other["job options"]
        assert keys_of(mine) == keys_of(other)
    ours.pop("virtblk")
    assert list(ours) == list(theirs)
    wanted = {"ioengine": "libaio", "filename": str(tmp_path / "fio.img")}
    assert ours["global options"] | wanted == theirs["global options"]


def offsets_of(log: str) -> list[tuple[str, int, int]]:
    """What `--write_iolog` wrote: operation, offset and bytes of each I/O, a flush having neither."""
    found = re.findall(r"^\d+ \S+ (read|write|sync) (\d+) (\d+)$", log, re.MULTILINE)
    return [(op, 0, 0) if op == "sync" else (op, int(offset), int(length)) for op, offset, length in found]


def recorded(log: str) -> list[tuple[str, int, int]]:
    """What the filter `log` wrote."""
    found = re.findall(r"op=(read|write|flush)(?: offset=(\d+) length=(\d+))?", log)
    return [("sync", 0, 0) if op == "flush" else (op, int(offset), int(length)) for op, offset, length in found]


def test_sequential_jobs_have_the_same_offsets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = job_file(tmp_path, SEQUENTIAL)
    theirs: list[tuple[str, int, int]] = []
    for section in ("read", "write", "verified", "mixed"):
        run_fio(tmp_path, f"--section={section}", f"--write_iolog={tmp_path / section}", path)
        theirs += offsets_of((tmp_path / section).read_text())
    log, socket = tmp_path / "log", tmp_path / "socket"
    served = f"file:{image(tmp_path, 'virtblk.img')}"
    words = (served, "--socket", str(socket), "--filter", f"log?file={log}")
    with Serving(*words, log=tmp_path / "server"):
        job_json(capsys, f"vhost-user:{socket}", path)
    ours = recorded(log.read_text())
    certain = 64 + 2 * 64 + 15 + 2 * 32  # all but those of the mixed job, whose order is a matter of chance
    assert len(theirs) > certain
    assert ours[:certain] == theirs[:certain]
    for run in (ours, theirs):
        for op in ("read", "write"):
            found = [offset for one, offset, _ in run[certain:] if one == op]
            assert found == [number * 4096 for number in range(len(found))]
    assert len(ours) == len(theirs)


def test_trims_are_counted_as_fio_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a file fio cannot trim: it counts on its null engine."""
    text = "[global]\nbs=8k\nsize=512k\n[trim]\nrw=trim\n[random]\nstonewall\nrw=randtrim\nloops=2\niodepth=4\n"
    path = job_file(tmp_path, text)
    run_fio(tmp_path, "--output-format=json", "--output=fio.json", "--ioengine=null", path)
    theirs, ours = json.loads((tmp_path / "fio.json").read_text()), job_json(capsys, "ram:1m", path)
    assert [counts_of(job) for job in ours["jobs"]] == [counts_of(job) for job in theirs["jobs"]]
    assert [keys_of(job) for job in ours["jobs"]] == [keys_of(job) for job in theirs["jobs"]]


def test_fio_s_converter_reads_json_plus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = job_file(tmp_path, DEEP)
    ours = job_json(capsys, "ram:1m", path, "--output-format", "json+")
    (tmp_path / "plus.json").write_text(json.dumps(ours))
    words = [*fio_jsonplus_clat2csv(), "plus.json", "plus.csv"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    told = subprocess.run([*words, "--validate"], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    assert told.stdout.count("validated") == len(ours["jobs"])
    assert "mismatch" not in told.stdout
