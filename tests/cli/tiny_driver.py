"""The smallest front end there is, for tests of `virtblk check --driver`: asks for features, and says what it was told.

Usage: tiny_driver.py SOCKET STATUS, where STATUS is what it ends with when it got an answer.
"""

from __future__ import annotations

import socket
import struct
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as device:
    device.connect(sys.argv[1])
    device.sendall(struct.pack("<III", 1, 1, 0))
    answer = device.recv(20)
    print(f"got {len(answer)} bytes")
    sys.exit(int(sys.argv[2]) if len(answer) == 20 else 2)
