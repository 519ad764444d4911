"""A guest of QEMU's with four queues writes, reads and verifies, on every kind of disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from guests import qemu
from guests.disks import DISKS, SIZE, Disk, served
from serving import Serving

pytestmark = [pytest.mark.peer, pytest.mark.once]

QUEUES = 4
#: Bytes that each CPU writes.
PART = 2 << 20

#: One writer on each CPU, hence on each queue, each to a part of its own; then all of it is read back.
SCRIPT = """
say queues "$(ls /sys/block/vda/mq | wc -l)"
say sectors "$(cat /sys/block/vda/size)"
say serial "$(cat /sys/block/vda/serial)"
for cpu in 0 1 2 3; do
    dd if=/dev/urandom of=/tmp/part$cpu bs=1M count=2 2>/dev/null
    on="taskset $((1 << cpu))"
    $on dd if=/tmp/part$cpu of=/dev/vda bs=64k seek=$((cpu * 32)) oflag=direct conv=fsync 2>/dev/null &
done
wait
step reread blockdev --flushbufs /dev/vda
for cpu in 0 1 2 3; do
    taskset $((1 << cpu)) dd if=/dev/vda of=/tmp/back$cpu bs=64k skip=$((cpu * 32)) count=32 iflag=direct 2>/dev/null
    step same$cpu cmp /tmp/part$cpu /tmp/back$cpu
done
say sha256 "$(cat /tmp/part? | sha256sum | cut -d ' ' -f 1)"
step last dd if=/dev/zero of=/dev/vda bs=512 count=1 seek=$(($(cat /sys/block/vda/size) - 1))
"""


@pytest.mark.parametrize("disk", DISKS, ids=lambda disk: disk.kind)
def test_a_guest_with_four_queues_verifies(disk: Disk, tmp_path: Path) -> None:
    with served(disk, tmp_path, "--queues", str(QUEUES), "--serial", "quad") as (serving, sock):
        guest = qemu.run(SCRIPT, sock, tmp_path, queues=QUEUES)
        check(guest, serving)
        assert disk.sha256(tmp_path, QUEUES * PART) in (None, guest["sha256"]), guest


def check(guest: qemu.Guest, serving: Serving) -> None:
    assert guest["queues"] == str(QUEUES), guest
    assert guest["serial"] == "quad", guest
    assert guest["sectors"] == str(SIZE // 512), guest
    assert guest["last"] == "0", guest
    assert [guest[f"same{cpu}"] for cpu in range(QUEUES)] == ["0"] * QUEUES, guest
    serving.wait_for("session_end")
    assert " is broken: " not in serving.log, serving.log
    assert not serving.events("message_refused"), serving.log
