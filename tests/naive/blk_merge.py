"""The slow, obvious twin of `block.blk_merge`: it looks at a bio one byte at a time."""

from __future__ import annotations

Entry = tuple[int, int]  # address, bytes


def blk_map(segments: list[Entry], skip: int, max_segs: int, max_seg_len: int, max_bytes: int) -> list[Entry]:
    """The scatter list of one request: the bio's bytes from the `skip`-th on, as far as the limits and sectors go."""
    addresses = [address + i for address, length in segments for i in range(length)][skip:]
    taken: list[list[int]] = []  # one list of byte addresses for each entry
    count = 0
    for address in addresses:
        if count == max_bytes:
            break
        if taken and taken[-1][-1] + 1 == address and len(taken[-1]) < max_seg_len:
            taken[-1].append(address)
        elif len(taken) < max_segs:
            taken.append([address])
        else:
            break
        count += 1
    for _ in range(count % 512):
        taken[-1].pop()
        if not taken[-1]:
            taken.pop()
    return [(entry[0], len(entry)) for entry in taken]


def blk_split(segments: list[Entry], max_segs: int, max_seg_len: int, max_bytes: int) -> list[list[Entry]]:
    """All requests of a bio, until its bytes are used up or the limits let no sector through."""
    total = sum(length for _, length in segments)
    requests: list[list[Entry]] = []
    done = 0
    while done < total:
        entries = blk_map(segments, done, max_segs, max_seg_len, max_bytes)
        if not entries:
            break
        requests.append(entries)
        done += sum(length for _, length in entries)
    return requests
