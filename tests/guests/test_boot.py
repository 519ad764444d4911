"""What is heard of a guest, and what becomes of one that does not come to an end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guests import boot as boot_module
from guests.boot import Guest, boot
from guests.qemu import cpio
from waiting import wait_until

pytestmark = pytest.mark.once


def test_what_the_guest_says_is_told_apart_from_what_its_kernel_says() -> None:
    guest = Guest("[1.0] Linux\r\nguest: a=1\r\n\nguest: b=\r\nx guest: c=3\nguest: a=2\n", 0)
    assert guest.said == {"a": "2", "b": ""}
    with pytest.raises(AssertionError, match=r"(?s)did not say 'c'.*Linux"):
        _ = guest["c"]


def read_or_none(fd: int) -> bytes | None:
    """None: it is empty, and some process holds the other end."""
    try:
        return os.read(fd, 1)
    except BlockingIOError:
        return None


def test_a_guest_that_hangs_is_given_up_with_all_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_module, "PATIENCE", 1.0)
    command = f"exec 9> {tmp_path / 'fifo'}; echo 'guest: begun=1'; sleep 1000 & sleep 1000"
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(AssertionError, match=r"(?s)was given up.*guest: begun=1"):
        boot(["sh", "-c", command], tmp_path)
    wait_until(lambda: read_or_none(fifo) == b"")
    os.close(fifo)


def test_a_guest_that_ends_before_its_script_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"(?s)ended with status 3.*panic"):
        boot(["sh", "-c", "echo panic; exit 3"], tmp_path)


def test_the_archive_of_an_initramfs() -> None:
    made = cpio({"a": None, "a/b": b"data!"})
    names = [made[at + 110 :].split(b"\0")[0] for at in range(len(made)) if made[at : at + 6] == b"070701"]
    assert names == [b"a", b"a/b", b"dev/console", b"TRAILER!!!"]
    assert b"data!" + bytes(3) + b"070701" in made
    assert len(made) % 4 == 0
