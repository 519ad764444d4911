"""The exceptions that virtblk raises, and the exit status each one means for the command line.

::

    Exception
    ├── VirtblkError                 everything that is ours
    │   ├── UsageError (ValueError)  a wrong option, size or disk name              exit status 2
    │   ├── OpenError (OSError)      no session came about: socket missing, refused,
    │   │                            not vhost-user, no blk config, ...             exit status 2
    │   └── DeviceError (OSError)    a session ended badly: the device died, stopped
    │                                answering, or broke a ring                     exit status 1
    └── OSError                      one I/O failed: EIO, EOPNOTSUPP, EROFS, EINVAL; the disk goes on

OpenError and DeviceError carry an ``errno`` as every OSError does. Called by all packages, on any thread.
"""

from __future__ import annotations


class VirtblkError(Exception):
    """Base of what virtblk itself raises."""


class UsageError(VirtblkError, ValueError):
    """A value that can never work: the text holds the value, and after a colon what to give instead.

    `field` is the one of an options object that holds the value, where it is one: a command has another name for it.
    """

    def __init__(self, text: str, field: str | None = None) -> None:
        super().__init__(text)
        self.field = field


class OpenError(VirtblkError, OSError):
    """The disk could not be opened; nothing of it is left behind."""


class DeviceError(VirtblkError, OSError):
    """The session is over: its device is gone, silent or wrong. Open the disk again to go on."""
