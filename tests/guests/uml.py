"""Debian's User-Mode Linux: a kernel as a process, whose root is the host's, and whose programs are the host's too.

Its driver (arch/um/drivers/virtio_uml.c) is a vhost-user front end of its own making: one queue, no event index, call
fds that are ends of socketpairs, a memory table in a structure of fixed size.
"""

from __future__ import annotations

from pathlib import Path

from guests.boot import SHELL, Guest, boot
from peers import uml_module, user_mode_linux

#: The root is read-only; /run is the guest's own, and /run/host is `directory`, where both sides write.
INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run
mkdir /run/host /run/disk
mount -t hostfs -o {directory} none /run/host
cd /run/host
{shell}
busybox insmod {module}
{script}
say done 1
busybox poweroff -f
"""


def run(script: str, sock: Path, directory: Path, *, memory: str = "512M") -> Guest:
    """Boot with the disk behind `sock` as /dev/vda, run `script` in a shell, and power off."""
    linux = user_mode_linux()
    init = directory / "init"
    module = uml_module("virtio_blk")
    init.write_text(INIT.format(directory=directory, shell=SHELL, module=module, script=script))
    init.chmod(0o755)
    command = [linux, f"mem={memory}", f"uml_dir={directory}/", "con=null", "con0=null,fd:1", "quiet", "loglevel=5"]
    command += ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}"]
    return boot([*command, f"virtio_uml.device={sock}:2"], directory)
