"""Structured logs: one line per event, `level=warning event=session_refused pid=7 msg="..."`, or the same as JSON.

Code logs as ever, `log.warning("text %s", value, extra={"event": "name", "key": value})`: the text is for people, event
and keys for programs, and a record without them is `event=message`. `virtblk serve` installs a formatter with
`configure`; a program that uses virtblk as a library keeps its own, and still gets the text.

A peer can cause lines as fast as it can connect. So the handler lets 10 lines of one event through in 5 seconds, as the
kernel's printk_ratelimit() does, and says with the next one how many it kept back. Any thread.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TextIO

FORMATS: Final = ("logfmt", "json")
LEVELS: Final = ("debug", "info", "warning", "error")

#: What one event may say: this many lines in this many seconds.
BURST: Final = 10
INTERVAL: Final = 5.0

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "event"}


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a line says, in order: time (UTC), level, event, the record's own keys, the text; a traceback last."""
    moment = datetime.fromtimestamp(record.created, UTC)
    found: dict[str, Any] = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "event": getattr(record, "event", "message"),
    }
    found |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
    found["msg"] = record.getMessage()
    if record.exc_info:
        found["traceback"] = logging.Formatter().formatException(record.exc_info)
    return found


class LogfmtFormatter(logging.Formatter):
    """`key=value` pairs; a value that is not one plain word is quoted as JSON does, so that a line is one line."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_word(value)}" for key, value in fields(record).items())


class JsonFormatter(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields(record), default=str)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    plain = text != "" and text.isascii() and text.isprintable() and not set(text) & set(' "=\\')
    return text if plain else json.dumps(text)


def configure(form: str = "logfmt", level: str = "info", stream: TextIO | None = None) -> None:
    """Have everything that this process logs from `level` on written to `stream` (standard error) as `form`."""
    formatter = {"logfmt": LogfmtFormatter, "json": JsonFormatter}[form]()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.addFilter(RateLimit())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


class RateLimit(logging.Filter):
    """Lets BURST lines of one event through in INTERVAL seconds; `suppressed` with the next one counts the others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[str, list[float]] = {}  # event: start of its window, lines let through, lines kept back

    def filter(self, record: logging.LogRecord) -> bool:
        event = str(getattr(record, "event", record.msg))  # the events of the source, not of a peer: they are few
        now = self._clock()
        with self._lock:
            window = self._windows.setdefault(event, [now, 0, 0])
            if now - window[0] >= INTERVAL:
                window[0], window[1] = now, 0
            if window[1] >= BURST:
                window[2] += 1
                return False
            window[1] += 1
            if window[2]:
                record.suppressed = int(window[2])
                window[2] = 0
        return True
