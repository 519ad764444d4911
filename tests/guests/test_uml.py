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
from serving import Serving, scrape

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
step trim fstrim /run/disk
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
    for step in ("mkfs", "mount", "fio", "trim", "umount", "fsck"):
        assert guest[step] == "0", f"{step}: {guest}"
    assert (guest["files_write"], guest["files_check"]) == (str(count), str(count)), guest
    (job,) = json.loads((tmp_path / "fio.json").read_text())["jobs"]
    assert job["error"] == 0, job
    assert job["write"]["io_kbytes"] == job["read"]["io_kbytes"] == 4 * int(size[:-1]) << 10, job
    return guest


@pytest.mark.parametrize(("count", "size"), [(2000, "8m"), pytest.param(20_000, "64m", marks=pytest.mark.slow)])
def test_a_file_system_is_made_used_and_found_clean(tmp_path: Path, count: int, size: str) -> None:
    use(tmp_path, count, size)


CACHE = """
say serial "$(cat /sys/block/vda/serial)"
say ro "$(cat /sys/block/vda/ro)"
cat_type() { say "$1" "$(cat /sys/block/vda/cache_type)"; }
cat_type at_first
for type in "write through" "write back" "write through"; do
    echo "$type" > /sys/block/vda/cache_type
    cat_type "${type#write }"
    step "write_${type#write }" dd if=/dev/zero of=/dev/vda bs=4k count=16 conv=fsync
done
say queue "$(cat /sys/block/vda/queue/write_cache)"
"""


def test_the_cache_switches_and_the_serial_shows(tmp_path: Path) -> None:
    with served(tmp_path, "ram:4m", "--serial", "no. 7") as (serving, sock):
        guest = uml.run(CACHE, sock, tmp_path)
        check_log(serving)
    assert (guest["serial"], guest["ro"], guest["at_first"]) == ("no. 7", "0", "write back"), guest
    assert (guest["back"], guest["through"], guest["queue"]) == ("write back", "write through", "write through"), guest
    assert (guest["write_back"], guest["write_through"]) == ("0", "0"), guest


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


ERRORS = """
echo 2 > /sys/block/vda/queue/nomerges
touch arm
fio --name=errors --filename=/dev/vda --direct=1 --rw=randrw --bs=4k --size=16m --ioengine=libaio --iodepth=8 \\
    --continue_on_error=io --output=fio.json --output-format=json --eta=never
rm arm
step calm dd if=/dev/vda of=/dev/null bs=64k iflag=direct
"""


def test_the_guest_counts_the_errors_that_a_filter_made(tmp_path: Path) -> None:
    """Armed after the boot, and with requests that are not merged: one error of the disk is one of fio's."""
    words = ("--filter", f"error?rate=10%&file={tmp_path / 'arm'}", "--metrics", "0")
    with served(tmp_path, "ram:16m", *words) as (serving, sock):
        address = serving.wait_for("metrics")["address"]
        guest = uml.run(ERRORS, sock, tmp_path)
        check_log(serving)
        injected = scrape(address)["virtblk_storage_error_injected"]
    (job,) = json.loads((tmp_path / "fio.json").read_text())["jobs"]
    assert job["total_err"] == injected > 0, guest
    assert guest["calm"] == "0", guest
