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
{trim}
step umount umount /run/disk
step fsck fsck.ext4 -fn /dev/vda
"""


TRIM = """
say full $(stat -c %b disk.img)
step trim fstrim /run/disk
say trimmed $(stat -c %b disk.img)
"""


@contextmanager
def served(directory: Path, *words: str, kind: str = "file", size: int = 512 * MIB) -> Iterator[tuple[Serving, Path]]:
    """A disk behind a socket: memory, or the file disk.img, of zeros unless it is there already."""
    sock, image = directory / "disk.sock", directory / "disk.img"
    disk: tuple[str, ...] = (f"ram:{size}",)
    if kind == "file":
        disk = ("--blk-file", str(image))
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(size)
    with Serving(*disk, "--socket-path", str(sock), *words, log=directory / "serve.log") as serving:
        yield serving, sock


def check_log(serving: Serving) -> None:
    """Nothing that the kernel did was wrong in our eyes."""
    serving.wait_for("session_end")
    assert " is broken: " not in serving.log, serving.log
    assert not serving.events("message_refused"), serving.log


def use(tmp_path: Path, kind: str, count: int, size: str) -> Guest:
    """Make a file system, write files and check them, load it with fio, and look for damage."""
    trim = TRIM if kind == "file" else ""
    with served(tmp_path, kind=kind, size=1024 * MIB) as (serving, sock):
        script = USE.format(python=sys.executable, files=files.__file__, count=count, size=size, trim=trim)
        guest = uml.run(script, sock, tmp_path)
        check_log(serving)
    for step in ("mkfs", "mount", "fio", "umount", "fsck"):
        assert guest[step] == "0", f"{step}: {guest}"
    assert (guest["files_write"], guest["files_check"]) == (str(count), str(count)), guest
    (job,) = json.loads((tmp_path / "fio.json").read_text())["jobs"]
    assert job["error"] == 0, job
    assert job["write"]["io_kbytes"] == job["read"]["io_kbytes"] == 4 * int(size[:-1]) << 10, job
    return guest


def test_a_file_system_in_memory_is_used_and_found_clean(tmp_path: Path) -> None:
    use(tmp_path, "ram", 500, "4m")


@pytest.mark.parametrize(("count", "size"), [(2000, "8m"), pytest.param(20_000, "64m", marks=pytest.mark.slow)])
def test_a_file_system_in_a_file_is_used_trimmed_and_found_clean(tmp_path: Path, count: int, size: str) -> None:
    guest = use(tmp_path, "file", count, size)
    freed = (int(guest["full"]) - int(guest["trimmed"])) * 512
    assert guest["trim"] == "0", guest
    assert freed >= 3 * int(size[:-1]) << 20, f"of four files of {size}, fstrim gave back {freed} bytes: {guest}"


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


@pytest.mark.parametrize(("words", "at_first"), [("", "write back"), ("?cache=writethrough", "write through")])
def test_the_cache_switches_and_the_serial_shows(tmp_path: Path, words: str, at_first: str) -> None:
    image, sock = tmp_path / "disk.img", tmp_path / "disk.sock"
    image.write_bytes(bytes(4 * MIB))
    name = f"file:{image}{words}"
    with Serving(name, "--socket-path", str(sock), "--serial", "no. 7", log=tmp_path / "log") as serving:
        guest = uml.run(CACHE, sock, tmp_path)
        check_log(serving)
    assert (guest["serial"], guest["ro"], guest["at_first"]) == ("no. 7", "0", at_first), guest
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
    with served(tmp_path, *words, kind="ram", size=4 * MIB) as (serving, sock):
        guest = uml.run(script, sock, tmp_path)
        check_log(serving)
    assert (guest["ro"], guest["serial"], guest["read"]) == ("1", "no. 7", "0"), guest
    assert guest["write"] != "0", guest


def test_a_read_only_file_is_as_it_was(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    (tmp_path / "disk.img").write_bytes(data)
    script = """
    say ro "$(cat /sys/block/vda/ro)"
    step read cmp /dev/vda disk.img
    step write dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct
    step discard blkdiscard -f /dev/vda
    """
    with served(tmp_path, "--read-only") as (serving, sock):
        guest = uml.run(script, sock, tmp_path)
        check_log(serving)
    assert (guest["ro"], guest["read"]) == ("1", "0"), guest
    assert guest["write"] != "0", guest
    assert guest["discard"] != "0", guest
    assert (tmp_path / "disk.img").read_bytes() == data


REACH = """
step discard blkdiscard -f -o 1MiB -l 1MiB /dev/vda
say after_discard $(stat -c %b disk.img)
step zeroout blkdiscard -f -z -o 3MiB -l 1MiB /dev/vda
step fallocate fallocate -z -o 5MiB -l 1MiB /dev/vda
sync
"""


def test_discard_and_zeroes_reach_the_file(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"\xaa" * 8 * MIB)
    full = image.stat().st_blocks
    with served(tmp_path) as (serving, sock):
        guest = uml.run(REACH, sock, tmp_path)
        check_log(serving)
    assert (guest["discard"], guest["zeroout"], guest["fallocate"]) == ("0", "0", "0"), guest
    assert full - int(guest["after_discard"]) >= 1024 * 1024 // 512, guest
    data = image.read_bytes()
    zeroed = [data[at * MIB : (at + 1) * MIB] == bytes(MIB) for at in range(8)]
    assert zeroed == [False, True, False, True, False, True, False, False]
    assert all(data[at * MIB : (at + 1) * MIB] == b"\xaa" * MIB for at in (0, 2, 4, 6, 7))


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
    with served(tmp_path, *words, size=16 * MIB) as (serving, sock):
        address = serving.wait_for("metrics")["address"]
        guest = uml.run(ERRORS, sock, tmp_path)
        check_log(serving)
        injected = scrape(address)["virtblk_storage_error_injected"]
    (job,) = json.loads((tmp_path / "fio.json").read_text())["jobs"]
    assert job["total_err"] == injected > 0, guest
    assert guest["calm"] == "0", guest
