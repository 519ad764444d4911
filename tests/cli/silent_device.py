"""`silent_device.py SOCKET FILE`: listens, writes its process id to FILE once somebody is there, and says nothing."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
client, _ = listening.accept()
Path(f"{sys.argv[2]}.new").write_text(str(os.getpid()))
os.rename(f"{sys.argv[2]}.new", sys.argv[2])
time.sleep(600)
