"""Devices, guests and a browser that we did not write, and what to do where they are missing: see scripts/peers."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Final, NoReturn

import pytest

#: Where scripts/peers unpacks a kernel for guests.
KERNEL: Final = Path(__file__).parent.parent / ".venv" / "peers"


def qemu_storage_daemon() -> str:
    """The path of qemu-storage-daemon; without it the test skips, or fails in CI."""
    return _find("qemu-storage-daemon", "qemu-system-common")


def qemu_img() -> str:
    """The path of qemu-img; without it the test skips, or fails in CI."""
    return _find("qemu-img", "qemu-utils")


def nbdkit() -> str:
    """The path of nbdkit; without it the test skips, or fails in CI."""
    return _find("nbdkit", "nbdkit")


def qemu_nbd() -> str:
    """The path of qemu-nbd; without it the test skips, or fails in CI."""
    return _find("qemu-nbd", "qemu-utils")


def fio() -> str:
    """The path of fio; without it the test skips, or fails in CI."""
    return _find("fio", "fio")


def fio_jsonplus_clat2csv() -> list[str]:
    """The command of fio's converter, with the system's Python; without it the test skips, or fails in CI."""
    program = _find("fio_jsonplus_clat2csv", "fio")
    python = "/usr/bin/python3"
    if subprocess.run([python, "-c", "import six"], check=False, capture_output=True).returncode:
        _missing("python3-six", "python3-six")
    return [python, program]


def chromium() -> str:
    """The path of chromium; without it the test skips, or fails in CI."""
    return _find("chromium", "chromium")


def libnbd() -> None:
    """libnbd can be loaded; without it the test skips, or fails in CI."""
    try:
        ctypes.CDLL("libnbd.so.0")
    except OSError:
        _missing("libnbd.so.0", "libnbd0")


def user_mode_linux() -> str:
    """The path of linux.uml, whose tests have its guest run what is here: busybox, fio and e2fsprogs."""
    _only_on_x86_64()
    _find("busybox", "busybox-static")
    _find("fio", "fio")
    _find("mkfs.ext4", "e2fsprogs")
    _find("fstrim", "util-linux")
    return _find("linux.uml", "user-mode-linux")


def uml_module(name: str) -> Path:
    """A module of User-Mode Linux's kernel."""
    return _one(Path("/usr/lib/uml/modules"), name, "user-mode-linux")


def qemu_system() -> str:
    """The path of qemu-system-x86_64."""
    _only_on_x86_64()
    return _find("qemu-system-x86_64", "qemu-system-x86")


def static_busybox() -> Path:
    """busybox that needs no libraries: all that is in a guest's initramfs."""
    path = Path(_find("busybox", "busybox-static"))
    if b"ld-linux" in path.read_bytes()[:4096]:
        _missing("a static busybox", "busybox-static")
    return path


def cloud_kernel() -> tuple[Path, Path]:
    """Debian's kernel for virtual machines, and the directory of its modules. scripts/peers unpacks it; it is not
    installed, for the sake of the machine's own boot loader."""
    for root in (KERNEL, Path("/")):
        for image in sorted((root / "boot").glob("vmlinuz-*-cloud-amd64"), reverse=True):
            modules = root / "lib/modules" / image.name.removeprefix("vmlinuz-")
            if modules.is_dir():
                return image, modules
    _missing("Debian's cloud kernel", "linux-image-cloud-amd64")


def cloud_module(name: str) -> Path:
    """A module of that kernel."""
    return _one(cloud_kernel()[1], name, "linux-image-cloud-amd64")


def _find(program: str, package: str) -> str:
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        _missing(program, package)
    return path


def _one(directory: Path, module: str, package: str) -> Path:
    for path in sorted(directory.rglob(f"{module}.ko")):
        return path
    _missing(f"{module}.ko", package)


def _missing(what: str, package: str) -> NoReturn:
    missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    missing(f"{what} is missing: on Debian, apt-get install {package}, or run scripts/peers")


def _only_on_x86_64() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the guests are made for x86-64 only")
