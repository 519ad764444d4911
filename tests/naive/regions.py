"""Guest address translation, slow and obvious: a region is three numbers, an address is in it or not."""

from __future__ import annotations

from typing import NamedTuple


class NaiveRegion(NamedTuple):
    guest: int
    size: int
    host: int


def locate(regions: list[NaiveRegion], address: int) -> tuple[NaiveRegion, int] | None:
    """The region that holds the byte at guest `address`, and the byte's place in it."""
    for region in regions:
        if address in range(region.guest, region.guest + region.size):
            return region, address - region.guest
    return None


def translate(regions: list[NaiveRegion], address: int, length: int) -> tuple[int, int]:
    """(host address, bytes in one piece), at most `length`; (0, 0) where there is none."""
    found = locate(regions, address)
    if found is None:
        return 0, 0
    region, place = found
    return region.host + place, min(length, region.size - place)


def pieces(regions: list[NaiveRegion], address: int, length: int) -> list[tuple[int, int]] | None:
    """The host ranges of a buffer, region by region; None if a byte of it is nowhere."""
    parts = []
    while length > 0:
        host, count = translate(regions, address, length)
        if count == 0:
            return None
        parts.append((host, count))
        address += count
        length -= count
    return parts
