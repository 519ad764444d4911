"""The one decorator of compiled code, and the cache that knows when a callee changed.

Every compiled function of virtblk is `@kernel`; nothing else calls numba. Kernels take tables of records, NamedTuples
of tables and integers; **every integer inside a kernel is int64** (loads return int64, state fields are int64), so that
none of Numba's mixed-width promotions can happen; index wrap-around is spelled out through `jit.arith`. They release
the GIL, allocate nothing, raise nothing: a failure is a negative errno, which the Python caller turns into an
exception.

Numba's own cache does not notice an edited callee or constant in another file, nor NUMBA_* flags. Ours lives in a
directory named by a digest over all of that (`cache_directory`). Called at import, on any thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import numba
from numba.core import config

F = TypeVar("F", bound=Callable[..., Any])

#: With NUMBA_DISABLE_JIT=1 kernels are plain Python: the run that gives coverage and pdb.
INTERPRETED: Final = bool(config.DISABLE_JIT)

#: With VIRTBLK_CHECKING=1 the kernels are built to verify every access to guest memory (`mem.guest_memory`).
CHECKING: Final = os.environ.get("VIRTBLK_CHECKING", "0") not in ("", "0")

#: Packages whose source can reach compiled code.
_KERNEL_PACKAGES: Final = (
    "uapi",
    "jit",
    "mem",
    "virtio",
    "block",
    "driver",
    "storage",
    "device",
    "bench",
    "fuzz/guest",
)
_KEEP_DIRECTORIES: Final = 8
_DIGEST_DIGITS: Final = 16

#: Every kernel by its qualified name, in order of definition; `warmup` and the tests walk it.
registry: Final[dict[str, Any]] = {}


def source_digest() -> str:
    """Digest of all that a compiled kernel depends on: sources, versions, flags. 16 hexadecimal digits."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in _KERNEL_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path).encode() + b"\0" + path.read_bytes())
    digest.update((root / "status.py").read_bytes())
    digest.update(f"{numba.__version__} checking={CHECKING}".encode())
    for name in sorted(os.environ):
        if name.startswith("NUMBA_"):
            digest.update(f"{name}={os.environ[name]}".encode())
    return digest.hexdigest()[:_DIGEST_DIGITS]


def cache_root() -> Path:
    """$VIRTBLK_CACHE_DIR, else $XDG_CACHE_HOME/virtblk, else ~/.cache/virtblk."""
    if chosen := os.environ.get("VIRTBLK_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "virtblk"


def _prepare(root: Path) -> Path | None:
    """Make today's cache directory and drop the oldest ones. None where nothing can be written: go on uncached."""
    directory = root / source_digest()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)
        if not os.access(directory, os.W_OK):
            return None
    except OSError:
        return None
    with contextlib.suppress(OSError):  # what is not tidied up now will be the next time
        _drop_oldest(root)
    return directory


def _drop_oldest(root: Path) -> None:
    """Keep the latest caches in `root`, and whatever else it holds: it may be a directory with other things in it."""
    caches = []
    for path in root.iterdir():
        with contextlib.suppress(OSError):  # another process tidies up too
            name = path.name
            if len(name) == _DIGEST_DIGITS and not name.strip("0123456789abcdef") and path.is_dir():
                caches.append((path.stat().st_mtime, path))
    for used, path in sorted(caches, reverse=True)[_KEEP_DIRECTORIES:]:
        if time.time() - used > 3600:  # younger ones may belong to a running process
            shutil.rmtree(path, ignore_errors=True)


#: Where compiled kernels are kept, or None.
cache_directory: Final = None if INTERPRETED else _prepare(cache_root())


def kernel(function: F) -> F:
    """Compile `function` without the GIL, cached on disk, with C-like arithmetic errors; register it for warmup.

    Kernels are inlined into the kernels that call them: passing a dozen tables by value costs more than most of them do
    (a bio's submission takes 70 ns in calls, 32 ns inlined).
    """
    return _compile(function, inline=True)


def cold_kernel(function: F) -> F:
    """A kernel off the hot path, called and not inlined: it keeps the loops around it small, and quick to compile."""
    return _compile(function, inline=False)


def inline_kernel(function: F) -> F:
    """A kernel that becomes part of the kernels that call it before they are typed: it is not compiled by itself.

    For thin layers above much code: whatever is compiled by itself is linked with all that it reaches, and optimised
    with it, so each such layer costs as much time as all below it (two to six seconds at the top of the driver).
    """
    return _compile(function, inline=True, early=True)


def _compile(function: F, *, inline: bool, early: bool = False) -> F:
    name = f"{function.__module__}.{function.__qualname__}"
    if INTERPRETED:
        registry[name] = function
        return function
    cached = cache_directory is not None
    flags: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": inline}
    if early:
        flags["inline"] = "always"
    previous = config.CACHE_DIR
    if cached:
        config.CACHE_DIR = str(cache_directory)  # ours only while decorating: a program's own numba cache stays put
    try:
        try:
            compiled = numba.njit(cache=cached, **flags)(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            compiled = numba.njit(**flags)(function)
    finally:
        config.CACHE_DIR = previous
    registry[name] = compiled
    return compiled
