"""The part of libnbd's C interface that `nbd:` uses (libnbd(3), <libnbd.h>), bound by ctypes with its exact types.

Loaded when the first `nbd:` disk is opened. ctypes gives up the GIL for the length of a call, save for calls that only
look at the handle: getting it back takes longer than they do. A handle belongs to one thread at a time: the error of a
failed call lies in that thread. No completion callbacks are given: the caller asks which commands have ended. Called by
`storage.nbd_connection`.
"""

from __future__ import annotations

import ctypes
import errno
import threading
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from types import SimpleNamespace
from typing import Any, Final

from virtblk.errors import OpenError

#: What the dynamic linker is asked for, and where it comes from.
SONAME: Final = "libnbd.so.0"
PACKAGE: Final = "libnbd0"

SIZE_MINIMUM: Final = 0
SIZE_PREFERRED: Final = 1
SIZE_MAXIMUM: Final = 2

CMD_FLAG_FUA: Final = 1
CMD_FLAG_NO_HOLE: Final = 2

DIRECTION_READ: Final = 1
DIRECTION_WRITE: Final = 2


class Handle(ctypes.Structure):
    """struct nbd_handle, opaque."""


class CompletionCallback(ctypes.Structure):
    """nbd_completion_callback, passed by value. All null: no callback."""

    _fields_ = (("callback", c_void_p), ("user_data", c_void_p), ("free", c_void_p))


_HANDLE = POINTER(Handle)

#: Function: (what it returns, what it takes).
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "nbd_create": (_HANDLE, ()),
    "nbd_close": (None, (_HANDLE,)),
    "nbd_get_error": (c_char_p, ()),
    "nbd_get_errno": (c_int, ()),
    "nbd_set_uri_allow_local_file": (c_int, (_HANDLE, c_bool)),
    "nbd_aio_connect_uri": (c_int, (_HANDLE, c_char_p)),
    "nbd_aio_get_fd": (c_int, (_HANDLE,)),
    "nbd_aio_get_direction": (c_uint, (_HANDLE,)),
    "nbd_aio_notify_read": (c_int, (_HANDLE,)),
    "nbd_aio_notify_write": (c_int, (_HANDLE,)),
    "nbd_aio_is_ready": (c_int, (_HANDLE,)),
    "nbd_aio_is_processing": (c_int, (_HANDLE,)),
    "nbd_aio_is_dead": (c_int, (_HANDLE,)),
    "nbd_aio_is_closed": (c_int, (_HANDLE,)),
    "nbd_aio_pread": (c_int64, (_HANDLE, c_void_p, c_size_t, c_uint64, CompletionCallback, c_uint32)),
    "nbd_aio_pwrite": (c_int64, (_HANDLE, c_void_p, c_size_t, c_uint64, CompletionCallback, c_uint32)),
    "nbd_aio_flush": (c_int64, (_HANDLE, CompletionCallback, c_uint32)),
    "nbd_aio_trim": (c_int64, (_HANDLE, c_uint64, c_uint64, CompletionCallback, c_uint32)),
    "nbd_aio_zero": (c_int64, (_HANDLE, c_uint64, c_uint64, CompletionCallback, c_uint32)),
    "nbd_aio_disconnect": (c_int, (_HANDLE, c_uint32)),
    "nbd_aio_peek_command_completed": (c_int64, (_HANDLE,)),
    "nbd_aio_command_completed": (c_int, (_HANDLE, c_uint64)),
    "nbd_get_size": (c_int64, (_HANDLE,)),
    "nbd_get_block_size": (c_int64, (_HANDLE, c_int)),
    "nbd_is_read_only": (c_int, (_HANDLE,)),
    "nbd_can_flush": (c_int, (_HANDLE,)),
    "nbd_can_fua": (c_int, (_HANDLE,)),
    "nbd_can_trim": (c_int, (_HANDLE,)),
    "nbd_can_zero": (c_int, (_HANDLE,)),
}

#: Those that only look, and keep the GIL.
_LOOKS: Final = frozenset(
    {
        "nbd_get_error",
        "nbd_get_errno",
        "nbd_aio_get_fd",
        "nbd_aio_get_direction",
        "nbd_aio_is_ready",
        "nbd_aio_is_processing",
        "nbd_aio_is_dead",
        "nbd_aio_is_closed",
        "nbd_aio_peek_command_completed",
        "nbd_aio_command_completed",
    }
)

_lock = threading.Lock()
_loaded: dict[str, SimpleNamespace] = {}


def load(disk: str) -> SimpleNamespace:
    """The library, every function declared. Raises OpenError naming `disk` and what to install where it is missing."""
    with _lock:
        if SONAME not in _loaded:
            try:
                releasing, keeping = ctypes.CDLL(SONAME), ctypes.PyDLL(SONAME)
            except OSError as error:
                text = f"disk {disk!r}: {SONAME} is missing: on Debian, apt-get install {PACKAGE}"
                raise OpenError(errno.ENOENT, text) from error
            library = SimpleNamespace()
            for name, (result, arguments) in _FUNCTIONS.items():
                try:
                    function = getattr(keeping if name in _LOOKS else releasing, name)
                except AttributeError as error:
                    text = f"disk {disk!r}: {SONAME} has no {name}: install a newer {PACKAGE} (1.4 or later)"
                    raise OpenError(errno.ENOSYS, text) from error
                function.restype, function.argtypes = result, list(arguments)
                setattr(library, name, function)
            _loaded[SONAME] = library
        return _loaded[SONAME]


__all__ = [
    "CMD_FLAG_FUA",
    "CMD_FLAG_NO_HOLE",
    "DIRECTION_READ",
    "DIRECTION_WRITE",
    "PACKAGE",
    "SIZE_MAXIMUM",
    "SIZE_MINIMUM",
    "SIZE_PREFERRED",
    "SONAME",
    "CompletionCallback",
    "Handle",
    "load",
]
