"""`virtblk info DISK`: connect and say what the disk is; nothing is written to it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from virtblk import __version__
from virtblk.cli.option_values import seconds
from virtblk.errors import UsageError
from virtblk.names import format_size
from virtblk.result_file import check_json, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `virtblk info`."""
    parser.description = "Connect to a disk and say what it is. Nothing is written to it."
    parser.add_argument("disk", metavar="DISK", help="vhost-user:SOCKET, or any other (see virtblk --help)")
    parser.add_argument(
        "--timeout", type=seconds, default=30.0, metavar="S", help="seconds to wait for the device (default 30)"
    )
    parser.add_argument("--json", metavar="PATH", help="write it as JSON; - for standard output")


def run(options: argparse.Namespace) -> int:
    """Print it; returns the exit status."""
    if not 0 < options.timeout <= 86400:
        raise UsageError(f"--timeout {options.timeout:g}: give seconds, more than 0 and at most 86400")
    from virtblk.disk import connect, feature_names
    from virtblk.driver.map_queues import MQ_PATHS
    from virtblk.driver.virtio_blk import DriverOptions
    from virtblk.uapi.vhost_user import PROTOCOL_FEATURE_NAMES

    if options.json is not None:
        check_json(options.json)
    device, local = connect(options.disk, DriverOptions(timeout=options.timeout, poll_us=0))
    try:
        topology = device.topology
        offered, accepted = device.device_features, device.features
        protocol = device.protocol_features_offered
        facts: dict[str, Any] = {
            "name": options.disk,
            "disk": device.name,
            "serial": device.serial,
            "size": device.size,
            "capacity": device.capacity,
            "block_size": topology.block_size,
            "physical_block_size": topology.physical_block_size,
            "alignment_offset": topology.alignment_offset,
            "min_io_size": topology.min_io_size,
            "opt_io_size": topology.opt_io_size,
            "read_only": device.device_read_only,
            "cache_type": "write back" if device.writeback else "write through",
            "seg_max": device.seg_max,
            "size_max": device.size_max,
            "num_queues": device.num_queues,
            "hint": "sort" if device.hinted else "none",
            "pid": device.peer_pid(),
            "queue_path": "mq" if device.path in MQ_PATHS else "request",  # whose scheduler and limits these are
            "queue": {
                name.removeprefix("queue/"): device.sysfs.read(name)
                for name in device.sysfs.names()
                if name.startswith("queue/")
            },
            "features": feature_names(accepted),
            "features_refused": feature_names(offered & ~accepted),
            "protocol_features": [
                name for bit, name in PROTOCOL_FEATURE_NAMES.items() if device.protocol_features >> bit & 1
            ],
            "protocol_features_refused": [
                name
                for bit, name in PROTOCOL_FEATURE_NAMES.items()
                if (protocol & ~device.protocol_features) >> bit & 1
            ],
        }
    finally:
        device.close()
        if local is not None:
            local.close()
    out = sys.stderr if options.json == "-" else sys.stdout
    for key, value in facts.items():
        if isinstance(value, list):
            print(f"{key}:" + ("" if value else " none"), file=out)
            for item in value:
                print(f"  {item}", file=out)
        elif isinstance(value, dict):
            for name, text in value.items():
                print(f"{key}/{name}: {text}", file=out)
        else:
            extra = f" ({format_size(value)})" if key == "size" else ""
            print(f"{key}: {_text(value)}{extra}", file=out)
    if options.json is not None:
        write_json(options.json, {"virtblk": __version__, "device": facts})
    return 0


def _text(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else value
