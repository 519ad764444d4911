"""QEMU's front end with Debian's cloud kernel in it: PCI, several queues, and an initramfs made here.

It is emulated (TCG), so that it runs where there is no KVM, in 10 to 20 seconds.
"""

from __future__ import annotations

import re
from pathlib import Path

from guests.boot import SHELL, Guest, boot
from peers import cloud_kernel, cloud_module, qemu_system, static_busybox

CPUS = 4
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
{shell}
for module in {modules}; do insmod /$module.ko; done
{script}
say done 1
poweroff -f
"""


def run(script: str, sock: Path, directory: Path, *, queues: int) -> Guest:
    """Boot with the disk behind `sock` as /dev/vda, run `script` in busybox' shell, and power off."""
    qemu, (kernel, _) = qemu_system(), cloud_kernel()
    modules = with_dependencies("virtio_pci", "virtio_blk")
    initramfs = directory / "initramfs"
    init = INIT.format(shell=SHELL, modules=" ".join(modules), script=script)
    initramfs.write_bytes(
        cpio(
            {
                "bin": None,
                "dev": None,
                "proc": None,
                "sys": None,
                "tmp": None,
                "bin/busybox": static_busybox().read_bytes(),
                "init": init.encode(),
                **{f"{name}.ko": path.read_bytes() for name, path in modules.items()},
            }
        )
    )
    command = [qemu, "-M", "pc", "-cpu", "max", "-accel", "tcg", "-m", "512M", "-smp", str(CPUS)]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-object", "memory-backend-memfd,id=m,size=512M,share=on", "-numa", "node,memdev=m"]
    command += ["-chardev", f"socket,id=c,path={sock}"]
    command += ["-device", f"vhost-user-blk-pci,chardev=c,num-queues={queues}"]
    command += ["-kernel", str(kernel), "-initrd", str(initramfs), "-append", "console=ttyS0 quiet panic=-1"]
    return boot(command, directory)


def with_dependencies(*names: str) -> dict[str, Path]:
    """The modules, and before each of them those that it needs: what modprobe would do, with files of our choice."""
    found: dict[str, Path] = {}
    for name in names:
        path = cloud_module(name)
        depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        assert depends is not None, f"{path} does not say what it depends on"
        needed = [other for other in depends[1].decode().split(",") if other]
        found |= {other: file for other, file in with_dependencies(*needed).items() if other not in found}
        found[name] = path
    return found


def cpio(files: dict[str, bytes | None]) -> bytes:
    """An initramfs (cpio, "newc") of these files, all executable; None makes a directory. With /dev/console."""
    entries = [(name, 0o040755 if data is None else 0o100755, data or b"", (0, 0)) for name, data in files.items()]
    entries += [("dev/console", 0o020600, b"", (5, 1)), ("TRAILER!!!", 0, b"", (0, 0))]
    archive = bytearray()
    for number, (name, mode, data, device) in enumerate(entries, 1):
        path = name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        for part in (b"070701" + b"".join(b"%08X" % field for field in fields) + path, data):
            archive += part + bytes(-len(part) % 4)
    return bytes(archive)
