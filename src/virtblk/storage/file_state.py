"""What the workers know of an open file: one record, whose address is the storage's `address`.

Filled by `storage.file` before any worker runs; of it only the word `failed` changes after that.
"""

from __future__ import annotations

import numpy as np

FILE_DTYPE = np.dtype(
    [
        ("fd", "i8"),
        ("memory_align", "i8"),  # direct I/O: of which pieces' addresses are multiples; 0: page cache
        ("unsafe", "i8"),  # 1: a flush does nothing, and FUA neither
        ("punch", "i8"),  # 1: FALLOC_FL_PUNCH_HOLE works
        ("zero", "i8"),  # 1: FALLOC_FL_ZERO_RANGE may work
        ("failed", "i8"),  # 1: a flush failed, and with it all later ones. Written by any worker: atomics only
    ]
)
