"""libnbd where it is missing or too old, and that the binding says what the header says."""

from __future__ import annotations

import ctypes
import errno

import pytest

import peers
from virtblk.errors import OpenError
from virtblk.names import parse_name
from virtblk.storage import libnbd
from virtblk.storage.nbd import open_nbd


def test_a_missing_library_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libnbd, "SONAME", "libnbd-of-no-machine.so.0")
    with pytest.raises(OpenError) as caught:
        open_nbd(parse_name("nbd:nbd://localhost"))
    assert caught.value.errno == errno.ENOENT
    text = "disk 'nbd:nbd://localhost': libnbd-of-no-machine.so.0 is missing: on Debian, apt-get install libnbd0"
    assert caught.value.strerror == text


def test_a_library_that_lacks_a_function_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libnbd, "SONAME", "libc.so.6")
    with pytest.raises(OpenError) as caught:
        open_nbd(parse_name("nbd:nbd://localhost"))
    assert caught.value.errno == errno.ENOSYS
    assert caught.value.strerror is not None
    assert "libc.so.6 has no nbd_create: install a newer libnbd0" in caught.value.strerror


def test_every_function_is_declared_once_and_for_all() -> None:
    peers.libnbd()
    library = libnbd.load("a disk")
    assert libnbd.load("another") is library
    assert library.nbd_aio_pread.restype is ctypes.c_int64  # an int would cut a cookie
    assert library.nbd_aio_pread.argtypes[4] is libnbd.CompletionCallback
    assert ctypes.sizeof(libnbd.CompletionCallback) == 3 * ctypes.sizeof(ctypes.c_void_p)
