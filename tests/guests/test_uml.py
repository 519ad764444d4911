"""A Linux kernel as client: what its block layer, its ext4 and its tools do with our disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guests import files, uml
from guests.boot import Guest
from serving import Serving

pytestmark = [pytest.mark.peer, pytest.mark.once]

MIB = 1 << 20

USE = """
step mkfs mkfs.ext4 -q /dev/vda
step mount mount /dev/vda /run/disk
{python} -S {files} write /run/disk {count}
sync
echo 3 > /proc/sys/vm/drop_caches
{python} -S {files} check /run/disk {count}
step fio fio --directory=/run/disk --name=verify --numjobs=4 --size={size} --bs=4k --rw=randwrite --verify=crc32c \\
    --verify_state_save=0 --verify_fatal=1 --ioengine=libaio --iodepth=8 --direct=1 --thread --group_reporting \\
    --output=fio.json --output-format=json --eta=never
rm /run/disk/verify.*
sync
step umount umount /run/disk
step fsck fsck.ext4 -fn /dev/vda
"""


@contextmanager
def served(directory: Path, *words: str) -> Iterator[tuple[Serving, Path]]:
    """A disk behind a socket."""
    sock = directory / "disk.sock"
    with Serving("--socket-path", str(sock), *words, log=directory / "serve.log") as serving:
        yield serving, sock


def check_log(serving: Serving) -> None:
    """Nothing that the kernel did was wrong in our eyes."""
    serving.wait_for("session_end")
    assert not serving.events("queue_broken"), serving.log
    assert not serving.events("message_refused"), serving.log


def use(tmp_path: Path, count: int, size: str) -> Guest:
    """Make a file system, write files and check them, load it with fio, and look for damage."""
    with served(tmp_path, f"ram:{1024 * MIB}") as (serving, sock):
        script = USE.format(python=sys.executable, files=files.__file__, count=count, size=size)
        guest = uml.run(script, sock, tmp_path)
        check_log(serving)
    for step in ("mkfs", "mount", "fio", "umount", "fsck"):
        assert guest[step] == "0", f"{step}: {guest}"
    assert (guest["files_write"], guest["files_check"]) == (str(count), str(count)), guest
    (job,) = json.loads((tmp_path / "fio.json").read_text())["jobs"]
    assert job["error"] == 0, job
    assert job["write"]["io_kbytes"] == job["read"]["io_kbytes"] == 4 * int(size[:-1]) << 10, job
    return guest


@pytest.mark.parametrize(("count", "size"), [(2000, "8m"), pytest.param(20_000, "64m", marks=pytest.mark.slow)])
def test_a_file_system_is_made_used_and_found_clean(tmp_path: Path, count: int, size: str) -> None:
    use(tmp_path, count, size)


def test_a_read_only_disk_is_read_and_not_written(tmp_path: Path) -> None:
    script = """
    say ro "$(cat /sys/block/vda/ro)"
    say serial "$(cat /sys/block/vda/serial)"
    step read dd if=/dev/vda of=/dev/null bs=64k iflag=direct
    step write dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct
    """
    words = ("--read-only", "--serial", "no. 7")
    with served(tmp_path, "ram:4m", *words) as (serving, sock):
        guest = uml.run(script, sock, tmp_path)
        check_log(serving)
    assert (guest["ro"], guest["serial"], guest["read"]) == ("1", "no. 7", "0"), guest
    assert guest["write"] != "0", guest
