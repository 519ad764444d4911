"""`virtblk bench --matrix` and `--sweep` as a program: what they print, and how Ctrl-C ends them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.harness import Command, complaint, is_running, virtblk

pytestmark = pytest.mark.once

QUICK = ("--runtime", "0.1", "--size", "256k", "--rw", "read,randwrite")


def test_a_matrix_ends_with_a_recommendation_per_disk(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    words = ("--matrix", "--disks", "ram:1m,null:1m", "--path", "request,bio", *QUICK, "--json", str(target))
    status, out, err = virtblk("bench", *words)
    assert status == 0, err
    assert out.startswith(
        "2 disks x 2 workloads x 2 paths, 0.1 s each: 0.8 s and the starts\nthis writes to ram:1m, null:1m"
    )
    assert "1 of 2: ram:1m: blocks of 4k, 1 x 32 in flight" in out
    assert "2 of 2: null:1m: blocks of 4k, 1 x 32 in flight" in out
    advice = out[out.index("changes against request") :]
    assert advice.index("\nram:1m: ") < advice.index("\nnull:1m: ")
    assert advice.count("echo ") >= 2
    value = json.loads(target.read_text())
    assert [point["disk"] for point in value["points"]] == ["ram:1m", "null:1m"]
    for point in value["points"]:
        assert [(run["workload"], run["path"]) for run in point["runs"]] == [
            (workload, path) for workload in ("read", "randwrite") for path in ("request", "bio")
        ]
    assert [one["disk"] for one in value["recommendations"]] == ["ram:1m", "null:1m"]


@pytest.mark.covers
def test_a_sweep_has_a_run_per_value() -> None:
    words = ("--sweep", "iodepth=1,2,4,...,8", "--path", "bio", *QUICK, "--json", "-")
    status, out, err = virtblk("bench", "null:1m", *words)
    assert status == 0
    value = json.loads(out)
    assert value["sweep"] == {"option": "iodepth", "values": [1, 2, 4, 8]}
    assert [point["runs"][0]["iodepth"] for point in value["points"]] == [1, 2, 4, 8]
    assert "null:1m: IOPS\nworkload   path  iodepth=1  iodepth=2  iodepth=4  iodepth=8\n" in err


@pytest.mark.covers
def test_ctrl_c_ends_a_matrix_with_what_was_measured(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    words = ("--matrix", "--disks", "null:1m,null:2m", "--runtime", "120", "--json", str(target))
    with Command("bench", *words, tmp=tmp_path) as command:
        command.wait_for("1 of 2: null:1m")
        child = command.child()
        command.interrupt()
        status, out, err = command.wait()
    assert status == 130
    assert err.splitlines()[-1] == "virtblk: interrupted"
    assert "Traceback" not in err
    assert "2 of 2" not in out
    assert not is_running(child)
    assert json.loads(target.read_text())["interrupted"] is True
    assert list(tmp_path.iterdir()) == [target], "no file is left behind"


def test_a_disk_that_is_not_there_is_said_and_the_others_measured() -> None:
    status, out, _ = virtblk("bench", "--matrix", "--disks", "vhost-user:/nowhere,null:1m", *QUICK)
    assert status == 1
    assert "\nvhost-user:/nowhere: cannot connect" in out
    assert "vhost-user:/nowhere: vhost-user:" not in out
    assert "2 of 2: null:1m: " in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--matrix", "--disks", "null:1m,ram:4k", "--size", "64k"), "--size 64k is more than ram:4k has (4k)"),
        (("--matrix", "--disks", "file:", "--size", "1g"), "--size 1g is more than file:512m has (512m)"),
        (("--matrix", "--disks", "null:1m,ram:1m?block_size=4k", "--bs", "512"), "--bs 512 is no multiple of"),
        (("--matrix", "--queue", "foo=1"), "--queue foo=1: ram:512m has no foo"),
        (("ram:1m", "--sweep", "bs=4k,2m"), "--bs 2m is more than the range of 1m"),
        (("ram:1m", "--sweep", "iodepth=1,65536", "--numjobs", "4096", "--bs", "1m"), "of buffers, and"),
        (("ram:1m", "--sweep", "numjobs=1,500", "--rate-iops", "5", "--poll"), "--numjobs 500 polling on"),
    ],
)
def test_what_needs_no_device_is_refused_before_one_starts(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every disk and value, and before a file is written: the values before it were measured, or the other disks."""
    monkeypatch.setattr("virtblk.bench.point.Session", None)
    monkeypatch.setattr("virtblk.bench.matrix.disks_of", None)
    assert says in complaint(capsys, "bench", *words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ram:1m", "--matrix"), "--matrix has disks of its own; give --disks ram:1m"),
        (("--disks", "ram:1m"), "--disks 'ram:1m' is for --matrix"),
        (("--matrix", "--preset", "posting-ramdisk"), "--preset posting-ramdisk is one run"),
        (("--matrix", "--device-pid", "1"), "--device-pid 1: --matrix has a device per disk"),
        (("--matrix", "--disks", "floppy:"), "--disks: 'floppy:' is no disk"),
        (("--matrix", "--disks", ""), "--disks: '' is no disk"),
        (("--disks", ""), "--disks '' is for --matrix"),
        (("--sweep", "iodepth"), "--sweep 'iodepth': give OPTION=VALUES"),
        (("--sweep", "iodepth=0,1"), "--sweep 'iodepth=0,1': --iodepth 0: give 1 to"),
        (("--sweep", ""), "--sweep '': give OPTION=VALUES"),
        (("--sweep", "bs=4k", "--sweep", "iodepth=1"), "--sweep is given twice ('bs=4k' and 'iodepth=1'); give one"),
        (("--sweep", "iodepth=8,4", "--iodepth-batch-submit", "8"), "--iodepth-batch-submit 8: give 1 to 4"),
        (("floppy:1", "--sweep", "iodepth=1"), "disk 'floppy:1'"),
        (("--matrix", "--compare", "a", "b"), "--compare runs nothing; leave out --matrix"),
        (("--matrix", "--json", "/nowhere/x"), "--json '/nowhere/x'"),
        (("--matrix", "--job", "load.fio"), "--matrix: not with --job"),
        (("--sweep", "iodepth=1,2", "--job", "load.fio"), "--sweep: not with --job"),
    ],
)
def test_wrong_usage_is_one_line(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in complaint(capsys, "bench", *words)
