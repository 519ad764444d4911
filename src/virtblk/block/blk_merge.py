"""Map a bio's segments to scatter lists within the disk's limits (Linux: blk_map_sg, bio_split_to_limits).

Adjacent segments coalesce while the whole fits one descriptor; a bio that needs more entries than a request may have,
or more bytes, is cut at a sector boundary. Called by submitters, without any lock: the scatter list is the request's
own.
"""

from __future__ import annotations

import numpy as np

from virtblk.jit.kernel import kernel

SECTOR_MASK = 511

#: Where a bio is cut: the next byte to map, as (segment, offset in it). One per submitter.
CURSOR_DTYPE = np.dtype([("vec", "i8"), ("offset", "i8")])


@kernel
def blk_map_sg(vec_addr, vec_len, end, cursor, c, sg_addr, sg_len, first, max_segs, max_seg_len, max_bytes):
    """Map segments from cursor `c` up to segment `end` into the scatter list at `first`: (entries, bytes).

    Entries are at most `max_segs` of `max_seg_len` bytes, bytes at most `max_bytes` (a multiple of 512); the
    cursor moves behind what was mapped. Bytes come in sectors: a list that is full in mid-sector gives the rest back.
    """
    count = 0
    total = 0
    vec = cursor[c]["vec"]
    offset = cursor[c]["offset"]
    while vec < end and total < max_bytes:
        addr = vec_addr[vec] + offset
        length = min(vec_len[vec] - offset, max_bytes - total)
        if length == 0:
            vec += 1
            offset = 0
            continue
        take = 0
        if count and sg_addr[first + count - 1] + sg_len[first + count - 1] == addr:
            take = min(length, max_seg_len - sg_len[first + count - 1])
        if take > 0:
            sg_len[first + count - 1] += take
        elif count < max_segs:
            take = min(length, max_seg_len)
            sg_addr[first + count] = addr
            sg_len[first + count] = take
            count += 1
        else:
            break
        total += take
        offset += take
        if offset == vec_len[vec]:
            vec += 1
            offset = 0
    excess = total & SECTOR_MASK
    if excess:  # only where the limits cut a sector in two: give its first part back
        total -= excess
        while excess > 0:
            back = min(excess, sg_len[first + count - 1])
            sg_len[first + count - 1] -= back
            excess -= back
            if sg_len[first + count - 1] == 0:
                count -= 1
        vec = cursor[c]["vec"]
        offset = cursor[c]["offset"] + total
        while vec < end and offset >= vec_len[vec]:
            offset -= vec_len[vec]
            vec += 1
    cursor[c]["vec"] = vec
    cursor[c]["offset"] = offset
    return count, total
