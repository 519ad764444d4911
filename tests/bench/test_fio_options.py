"""What a job file's assignments mean: fio's units, defaults and ranges, and a refusal for everything else."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers import fio
from virtblk.bench.fio_job import WORKLOADS, Amount, FioJob
from virtblk.bench.fio_names import FIO_OPTIONS
from virtblk.bench.fio_options import ALIASES, IRRELEVANT, KNOWN, parse_job_file, parse_jobs
from virtblk.bench.job import PERCENTILES
from virtblk.errors import UsageError

SECOND = 1_000_000_000


def one_job(*lines: str) -> FioJob:
    (job,) = parse_jobs("\n".join(["[a]", *lines]), "a.fio").jobs
    return job


def refusal(*lines: str) -> str:
    with pytest.raises(UsageError) as caught:
        one_job(*lines)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_section_is_fio_s_default() -> None:
    job = one_job()
    assert (job.name, job.where, job.rw, job.bs, job.iodepth, job.numjobs) == ("a", "a.fio:1", "read", 4096, 1, 1)
    assert (job.size, job.offset, job.runtime, job.loops) == (None, Amount(0), 0, 1)
    assert (job.iodepth_batch_submit, job.iodepth_batch_complete_min, job.rwmixread) == (1, 1, 50)
    assert job.percentile_list == PERCENTILES
    assert not any((job.time_based, job.norandommap, job.group_reporting, job.fsync, job.thinktime))


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("rw=randrw", "randrw"),
        ("rw=readwrite", "rw"),
        ("readwrite=trim", "trim"),
        ("rwmixread=70", 70),
        ("bs=8k", 8192),
        ("blocksize=0x1000", 4096),
        ("size=1g", Amount(1 << 30)),
        ("size=2MB", Amount(2 << 20)),
        ("size=50%", Amount(50, True)),
        ("offset=1m", Amount(1 << 20)),
        ("offset=0", Amount(0)),
        ("iodepth=64", 64),
        ("numjobs=4", 4),
        ("runtime=10", 10 * SECOND),
        ("runtime=1500ms", 3 * SECOND // 2),
        ("timeout=2m", 120 * SECOND),
        ("runtime=0", 0),
        ("ramp_time=1s", SECOND),
        ("loops=3", 3),
        ("rate_iops=1000", 1000),
        ("thinktime=50", 50),
        ("thinktime=2ms", 2000),
        ("randseed=7", 7),
        ("norandommap", True),
        ("norandommap=0", False),
        ("norandommap=1", True),
        ("verify=crc32c", "crc32c"),
        ("verify=0", "none"),
        ("fsync=16", 16),
        ("group_reporting", True),
        ("percentile_list=50:99.9:1", (1.0, 50.0, 99.9)),
        (r"filename=ram\:64m", "ram:64m"),
        ("filename=/dev/x", "/dev/x"),
    ],
)
def test_a_value_is_what_fio_takes_it_for(line: str, value: Any) -> None:
    name = line.partition("=")[0]
    assert getattr(one_job(line), ALIASES.get(name, name)) == value


def test_the_later_of_two_counts() -> None:
    assert one_job("bs=4k", "blocksize=8k").bs == 8192


def test_batches_are_cut_to_the_depth() -> None:
    job = one_job("iodepth=8", "iodepth_batch=16", "iodepth_batch_complete=99")
    assert (job.iodepth_batch_submit, job.iodepth_batch_complete_min) == (8, 8)
    job = one_job("iodepth=8", "iodepth_batch_submit=0", "iodepth_batch_complete_min=0")
    assert (job.iodepth_batch_submit, job.iodepth_batch_complete_min) == (8, 1)


def test_waves_begin_at_stone_walls() -> None:
    text = "[a]\nstonewall\n[b]\n[c]\nstonewall\n[d]\nwait_for_previous=0\n[e]\nwait_for_previous\n"
    file = parse_jobs(text, "a.fio")
    assert [[job.name for job in wave] for wave in file.waves] == [["a", "b"], ["c", "d"], ["e"]]


def test_what_has_no_meaning_here_is_said_once() -> None:
    file = parse_jobs("[global]\nioengine=libaio\n[a]\ndirect\n[b]\n", "a.fio")
    assert [note.partition(" has no effect: ")[0] for note in file.notes] == [
        "a.fio:2: ioengine=libaio",
        "a.fio:4: direct",
    ]
    assert file.global_options == {"ioengine": "libaio"}
    assert [job.given for job in file.jobs] == [{}, {}]


GIVE_SIZE = "give bytes or a size such as 4k, 512m, 1g"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("rw=reed", f"give one of {', '.join(WORKLOADS)}"),
        ("rw=trimwrite", f"give one of {', '.join(WORKLOADS)}"),
        ("rw=read:8", f"give one of {', '.join(WORKLOADS)}"),
        ("rw", "give a value, as name=value"),
        ("rwmixread=101", "give a whole number from 0 to 100"),
        ("bs=4x", GIVE_SIZE),
        ("bs=1.5k", GIVE_SIZE),
        ("bs=-4k", GIVE_SIZE),
        ("bs=(2*4k)", GIVE_SIZE),
        ("bs=4k,8k", "give one value; different ones for reads and writes are not in this version"),
        ("bs=4KiB", "for fio these are powers of 1000, unless kb_base says otherwise; give k, m, g"),
        ("bs=0", "give 512 to 64m, a multiple of 512"),
        ("bs=1000", "give 512 to 64m, a multiple of 512"),
        ("bs=128m", "give 512 to 64m, a multiple of 512"),
        ("size=0", "give a block or more, or leave it out for all of the disk"),
        ("size=0%", "give a block or more, or leave it out for all of the disk"),
        ("size=101%", "give at most 100%"),
        ("size=99999p", "too large"),
        ("offset=100", "give a multiple of 512"),
        ("offset=100%", "there the disk ends; give less"),
        ("iodepth=0", "give a whole number from 1 to 65536"),
        ("iodepth=4k", "give a whole number from 1 to 65536"),
        ("iodepth=٣", "give a whole number from 1 to 65536"),
        ("numjobs=5000", "give a whole number from 1 to 4096"),
        ("runtime=1.5", "give a whole number, with d, h, m, s, ms or us where it is no number of seconds"),
        ("thinktime=3x", "give a whole number, with d, h, m, s, ms or us where it is no number of microseconds"),
        ("runtime=12d", "give at most 1000000 seconds"),
        ("loops=0", "give a whole number from 1 to 1000000000"),
        ("rate_iops=100,200", "give one value; different ones for reads and writes are not in this version"),
        ("rate_iops=99999999", "give a whole number from 0 to 10000000"),
        ("norandommap=2", "give a whole number from 0 to 1"),
        ("verify=md5", "give crc32c, or 0 for none"),
        ("percentile_list=0:50", "give per cent, more than 0 and at most 100, such as 50:99:99.9"),
        ("percentile_list=50,99", "give per cent, more than 0 and at most 100, such as 50:99:99.9"),
        (f"percentile_list={':'.join('50' * 21)}", "give at most 20"),
        ("time_based", "give a runtime besides"),
        ("bssplit=4k/50", "fio has this option, virtblk has not; leave it out"),
        ("include", "fio has this option, virtblk has not; leave it out"),
        ("blocksiz=4k", "no option of fio's or virtblk's"),
        ("iodpeth=4", "no option of fio's or virtblk's; did you mean iodepth?"),
    ],
)
def test_a_refusal_names_file_line_and_option(line: str, says: str) -> None:
    assert refusal("randseed=1", line) == f"a.fio:3: {line}: {says}"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("rw=rw", "rate_iops=5"), "a.fio:3: rate_iops=5: with rw=rw fio paces reads and writes apart"),
        (("thinktime=5", "rate_iops=5"), "a.fio:2: thinktime=5: with rate_iops each I/O has its own time"),
        (("iodepth=4", "rate_iops=5", "iodepth_batch=2"), "a.fio:4: iodepth_batch=2: with rate_iops each I/O has"),
        (("rw=randtrim", "verify=crc32c"), "a.fio:3: verify=crc32c: nothing can be known of blocks after rw=randtrim"),
    ],
)
def test_options_that_exclude_each_other(lines: tuple[str, ...], says: str) -> None:
    assert refusal(*lines).startswith(says)


def test_a_default_is_refused_where_the_section_begins() -> None:
    (job,) = parse_jobs("\n[a]\n", "a.fio").jobs
    assert str(job.refuse("bs", "no")) == "a.fio:2: [a]: bs: no"


def test_too_many_jobs_at_a_time() -> None:
    text = "[a]\nnumjobs=4000\n[b]\nnumjobs=97\n"
    with pytest.raises(UsageError, match=r"a.fio:4: numjobs=97: with it 4097 jobs would run at a time"):
        parse_jobs(text, "a.fio")
    parse_jobs(text + "stonewall", "a.fio")


# Ranges, on a disk of 1 MiB with blocks of 512 bytes.


@pytest.mark.parametrize(
    ("lines", "start", "blocks"),
    [
        ((), 0, 256),
        (("size=64k",), 0, 16),
        (("offset=64k",), 65536, 240),
        (("offset=50%", "size=25%"), 1 << 19, 64),
        (("offset=1%",), 8192, 254),
        (("size=1%",), 0, 2),
        (("offset=512", "bs=512"), 512, 2047),
    ],
)
def test_the_range_on_a_disk(lines: tuple[str, ...], start: int, blocks: int) -> None:
    assert one_job(*lines).range_on(1 << 20, 512, "ram:1m") == (start, blocks)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("size=2m",), "a.fio:2: size=2m: more than ram:1m has (1m)"),
        (("offset=512k", "size=600k"), "a.fio:3: size=600k: more than ram:1m has at offset 512k (1m)"),
        (("offset=1m",), "a.fio:2: offset=1m: ram:1m ends at 1m"),
        (("size=1k",), "a.fio:1: [a]: bs: more than the range of 1k"),
        (("size=5000",), "a.fio:2: size=5000: no multiple of bs=4k"),
        (("bs=512",), "a.fio:2: bs=512: no multiple of the block size 4096 of ram:1m"),
        (("offset=512",), "a.fio:2: offset=512: no multiple of the block size 4096 of ram:1m"),
    ],
)
def test_a_range_that_is_not_on_the_disk(lines: tuple[str, ...], says: str) -> None:
    block_size = 4096 if "block size" in says else 512
    with pytest.raises(UsageError, match=f"^{re.escape(says)}$"):
        one_job(*lines).range_on(1 << 20, block_size, "ram:1m")


@given(
    st.integers(1, 1 << 40),
    st.integers(9, 16),
    st.integers(0, 100) | st.none(),
    st.integers(1, 100) | st.none(),
)
def test_a_range_lies_on_the_disk(sectors: int, shift: int, offset: int | None, size: int | None) -> None:
    disk = sectors * 512
    lines = [f"bs={1 << shift}"]
    lines += [f"offset={offset}%"] if offset is not None and offset < 100 else []
    lines += [f"size={size}%"] if size is not None else []
    try:
        start, blocks = one_job(*lines).range_on(disk, 512, "x")
    except UsageError:
        return
    assert 0 <= start < disk
    assert start % 512 == 0
    assert blocks >= 1
    assert start + (blocks << shift) <= disk


# fio's own word.


def test_the_names_are_consistent() -> None:
    assert set(KNOWN) | set(ALIASES) <= FIO_OPTIONS
    assert not set(ALIASES) & set(KNOWN)
    assert set(ALIASES.values()) <= set(KNOWN)


@pytest.mark.peer
@pytest.mark.once
def test_every_option_of_fio_is_known_by_name() -> None:
    told = subprocess.run([fio(), "--cmdhelp"], capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"^ *([a-z][\w-]*) *:", told, re.MULTILINE))
    assert len(names) > 200
    assert names <= FIO_OPTIONS


@pytest.mark.peer
@pytest.mark.once
@pytest.mark.parametrize("value", ["512", "4k", "4K", "4kb", "4kB", "0x1000", "1m"])
def test_sizes_are_fio_s(value: str, tmp_path: Path) -> None:
    path = tmp_path / "a.fio"
    path.write_text(f"[a]\nioengine=null\nsize=4m\nbs={value}\n")
    run = subprocess.run([fio(), "--output-format=json", str(path)], capture_output=True, check=True)
    read = json.loads(run.stdout)["jobs"][0]["read"]
    (job,) = parse_job_file(str(path)).jobs
    assert read["io_bytes"] == read["total_ios"] * job.bs == 4 << 20


@pytest.mark.peer
@pytest.mark.once
def test_all_that_is_accepted_fio_accepts(tmp_path: Path) -> None:
    given = {
        "rwmixread": "30", "offset": "0", "iodepth_batch_submit": "2", "iodepth_batch_complete_min": "2",
        "ramp_time": "1s", "loops": "2", "rate_iops": "100", "thinktime": "0", "randseed": "1", "verify": "crc32c",
        "fsync": "4", "percentile_list": "50:99", "filename": "x", "ioengine": "null", "direct": "1", "rw": "write",
        "bs": "4k", "size": "1m", "iodepth": "4", "numjobs": "2", "runtime": "1s",
    }  # fmt: skip
    lines = [f"{name}={given[name]}" if name in given else name for name in KNOWN if name != "iodepth_batch_submit"]
    lines += [f"{alias}={given[name]}" if name in given else alias for alias, name in ALIASES.items()]
    path = tmp_path / "a.fio"
    path.write_text("\n".join(["[a]", *lines, "iodepth_batch=1"]))
    (job,) = parse_job_file(str(path)).jobs
    assert set(job.set_at) | set(IRRELEVANT) == set(KNOWN)
    subprocess.run([fio(), "--parse-only", str(path)], check=True, timeout=60)
