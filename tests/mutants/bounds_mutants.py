"""Defects in what a device makes of requests that break a rule of the driver's (virtio 1.2, 5.2.6.1)."""

from __future__ import annotations

from typing import Final

from .mutant import Edit, Mutant, mutant

DEVICE: Final = "device/virtio_blk.py"
REQUEST: Final = "device/request.py"
WORKER: Final = "device/worker.py"
MEMORY: Final = "storage/memory.py"
_RANGE: Final = "if length & (SECTOR_SIZE - 1) or sector < 0 or sector > capacity or sectors > capacity - sector:"
_SEGMENT: Final = "if sector < 0 or sector > capacity or sectors > capacity - sector or sectors > max_sectors:"
_VALIDATE: Final = "        validate(disk, requests, count, kind, sector)\n"
_DATA_OUT: Final = """        requests[i]["count"] = readable
        for p in range(first, first + readable):
            requests[i]["length"] += piece_len[p]
"""


def _dropped(name: str, checks: str, text: str, condition: str) -> Mutant:
    """Such a request is taken from the ring and forgotten; `record` is what was made of it."""
    forget = f"        record = requests[count]\n        if {condition}:\n            continue\n"
    return mutant(name, checks, f"{text} is never answered.", WORKER, _VALIDATE, _VALIDATE + forget)


MUTANTS: Final[tuple[Mutant, ...]] = (
    # The disk's end.
    mutant(
        "end_unchecked",
        "blk.read-beyond-end blk.write-beyond-end",
        "Only the first sector of a request must lie on the disk: what lies beyond reads as nothing, and is OK.",
        REQUEST,
        _RANGE,
        'if sector > 0 and sector <= capacity and sectors > capacity - sector:\n            requests[i]["length"] = 0\n'
        f'            requests[i]["count"] = 0\n        el{_RANGE}',
    ),
    mutant(
        "start_unchecked",
        "blk.read-beyond-start blk.read-sector-2-55",
        "A request that begins at the capacity or later is OK, and does nothing.",
        REQUEST,
        _RANGE,
        f"if sector >= capacity and length % SECTOR_SIZE == 0:\n            pass\n        el{_RANGE}",
    ),
    mutant(
        "sector_wraps",
        "blk.read-sector-2-55 blk.write-wraps",
        "Sectors past 2**55 wrap: the byte offset is computed in 64 bits before it is checked.",
        REQUEST,
        "        sectors = length >> SECTOR_SHIFT\n",
        "        sectors = length >> SECTOR_SHIFT\n        sector &= (1 << 55) - 1\n",
    ),
    mutant(
        "negative_sector_is_first",
        "blk.read-sector-2-63 blk.read-sector-top",
        "A sector of 2**63 and more is negative, and taken for 0.",
        REQUEST,
        "        sectors = length >> SECTOR_SHIFT\n",
        "        sectors = length >> SECTOR_SHIFT\n        sector = max(sector, 0)\n",
    ),
    # Lengths, and the direction of data.
    mutant(
        "odd_length_rounded",
        "blk.read-511 blk.read-513 blk.write-511",
        "A length that is no multiple of 512 is rounded down.",
        REQUEST,
        _RANGE,
        _RANGE.replace("length & (SECTOR_SIZE - 1) or ", ""),
    ),
    _dropped("empty_read_dropped", "blk.read-nothing", "A read of no bytes", "kind == 0 and record['length'] == 0"),
    mutant(
        "read_into_readable",
        "blk.read-with-readable-data",
        "A read writes into device-readable buffers behind the header.",
        REQUEST,
        '        requests[i]["first"] = first + readable\n',
        '        requests[i]["first"] = first + 1\n',
        Edit(REQUEST, "    for p in range(first + readable, end):\n", "    for p in range(first + 1, end):\n"),
        Edit(
            REQUEST,
            '        requests[i]["count"] = pieces - readable\n',
            '        requests[i]["count"] = pieces - 1\n',
        ),
    ),
    mutant(
        "write_from_writable",
        "blk.write-with-writable-data",
        "A write takes the contents of device-writable buffers too.",
        REQUEST,
        _DATA_OUT,
        _DATA_OUT.replace("= readable", "= pieces").replace("first + readable", "end"),
    ),
    # Flush, identity.
    _dropped("flush_sector_dropped", "blk.flush-sector", "A flush whose sector is not 0", "kind == 4 and sector"),
    _dropped("flush_data_dropped", "blk.flush-data", "A flush with data", "kind == 4 and record['writable']"),
    _dropped(
        "flush_unnegotiated_dropped",
        "blk.flush-unnegotiated",
        "A flush of a driver that did not accept FLUSH",
        "kind == 4 and not disk.state[0]['flush']",
    ),
    mutant(
        "id_always_20",
        "blk.get-id-19",
        "GET_ID writes 20 bytes into a shorter buffer.",
        REQUEST,
        "        take = min(left, piece_len[p])\n        guest_write",
        "        take = left\n        guest_write",
    ),
    mutant(
        "id_tells_more",
        "blk.get-id-4096",
        "GET_ID fills 64 bytes, from the device's own memory.",
        REQUEST,
        "    left = VIRTIO_BLK_ID_BYTES\n",
        "    left = VIRTIO_BLK_ID_BYTES + 44\n",
    ),
    _dropped(
        "id_without_room_dropped",
        "blk.get-id-nothing",
        "GET_ID without a buffer",
        "kind == 8 and record['length'] == 0",
    ),
    # Segments.
    mutant(
        "segments_unchecked",
        "blk.discard-beyond-end blk.discard-wraps blk.write-zeroes-beyond-end blk.write-zeroes-wraps "
        "blk.write-zeroes-count-wraps blk.write-zeroes-too-long",
        "A discard or write zeroes past the end of the disk is OK, and does nothing.",
        REQUEST,
        f"        {_SEGMENT}\n            status = VIRTIO_BLK_S_IOERR\n",
        "        if sector < 0 or sector > capacity or sectors > capacity - sector or sectors > max_sectors:\n"
        "            sectors = 0\n",
    ),
    mutant(
        "max_sectors_unchecked",
        "blk.write-zeroes-too-long",
        "A segment may be longer than max_write_zeroes_sectors.",
        REQUEST,
        " or sectors > max_sectors:",
        ":",
    ),
    mutant(
        "odd_segments_rounded",
        "blk.write-zeroes-odd-payload blk.discard-odd-payload",
        "A payload that is no multiple of 16 is rounded up, with zeroes.",
        REQUEST,
        "    if length % RANGE_BYTES or length > MAX_RANGES * RANGE_BYTES:",
        "    if length > MAX_RANGES * RANGE_BYTES:",
        Edit(REQUEST, "= length // RANGE_BYTES\n", "= -(-length // RANGE_BYTES)\n"),
    ),
    _dropped(
        "no_segment_dropped",
        "blk.write-zeroes-no-segment",
        "Write zeroes without a segment",
        "kind == 13 and record['ranges'] == 0",
    ),
    mutant(
        "too_many_segments_cut",
        "blk.write-zeroes-too-many",
        "Of more segments than max_write_zeroes_seg, the first are done.",
        REQUEST,
        "    if length % RANGE_BYTES or length > MAX_RANGES * RANGE_BYTES:\n        return\n",
        "    if length % RANGE_BYTES:\n        return\n    length = min(length, MAX_RANGES * RANGE_BYTES)\n",
        Edit(
            REQUEST,
            "        copy(at, piece_addr[p], piece_len[p])\n",
            "        copy(at, piece_addr[p], min(length, piece_len[p]))\n",
        ),
    ),
    mutant(
        "one_segment_only",
        "blk.write-zeroes-segments",
        "Only the first segment of a discard or write zeroes is done.",
        MEMORY,
        'for r in range(requests[i]["ranges"]):',
        'for r in range(min(1, requests[i]["ranges"])):',
    ),
    _dropped(
        "discard_unnegotiated_dropped",
        "blk.discard-unnegotiated blk.write-zeroes-unnegotiated",
        "A discard or write zeroes that was not negotiated",
        "kind == 11 and not disk.state[0]['discard'] or kind == 13 and not disk.state[0]['write_zeroes']",
    ),
)
