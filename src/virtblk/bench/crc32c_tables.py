"""The tables of `bench.crc32c`, computed at import. Compiled code takes them as a constant."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

POLYNOMIAL = 0x82F63B78  # Castagnoli's, bit-reversed


def _tables() -> npt.NDArray[np.int64]:
    """Eight tables of 256: the effect of a byte that is followed by 0 to 7 others."""
    tables = np.zeros((8, 256), np.int64)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (POLYNOMIAL if crc & 1 else 0)
        tables[0, byte] = crc
    for step in range(1, 8):
        previous = tables[step - 1]
        tables[step] = (previous >> 8) ^ tables[0][previous & 0xFF]
    return tables


TABLES = _tables()
