"""Devices that we did not write, and what to do where they are not installed."""

from __future__ import annotations

import os
import shutil

import pytest


def qemu_storage_daemon() -> str:
    """The path of qemu-storage-daemon; without it the test skips, or fails in CI."""
    return _find("qemu-storage-daemon", "qemu-system-common")


def qemu_img() -> str:
    """The path of qemu-img; without it the test skips, or fails in CI."""
    return _find("qemu-img", "qemu-utils")


def _find(program: str, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing(f"{program} is missing: on Debian, apt-get install {package}")
    return path
