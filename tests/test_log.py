"""Structured logs: one line per event, whatever is in it, and only so many of them."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from serving import parse_logfmt
from virtblk.log import BURST, INTERVAL, JsonFormatter, LogfmtFormatter, RateLimit, configure


def record(text: str = "text", *arguments: object, level: int = logging.WARNING, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("virtblk.test", level, "file.py", 1, text, arguments, None)
    vars(made).update(extra)
    return made


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("/run/disk.sock", "/run/disk.sock"),
        (-7, "-7"),
        (True, "true"),
        (None, "None"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a"b', r'"a\"b"'),
        ("a=b", '"a=b"'),
        ("line\nevent=forged", r'"line\nevent=forged"'),
        ("tab\tesc\x1b", r'"tab\tesc\u001b"'),
        ("back\\slash", r'"back\\slash"'),
        ("é", r'"\u00e9"'),
    ],
)
def test_values_are_quoted_where_they_must_be(value: object, written: str) -> None:
    line = LogfmtFormatter().format(record(event="tried", value=value))
    assert f" value={written} " in line
    assert "\n" not in line
    assert parse_logfmt(line)["event"] == "tried"


def test_a_line_begins_with_time_level_and_event_and_ends_with_the_text() -> None:
    made = record("ring %d is broken", 3, event="queue_broken", queue=3)
    made.created = 1.5
    expected = 'time=1970-01-01T00:00:01.500Z level=warning event=queue_broken queue=3 msg="ring 3 is broken"'
    assert LogfmtFormatter().format(made) == expected
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "warning",
        "event": "queue_broken",
        "queue": 3,
        "msg": "ring 3 is broken",
    }


def test_a_record_without_an_event_is_a_message() -> None:
    assert parse_logfmt(LogfmtFormatter().format(record()))["event"] == "message"


@pytest.mark.parametrize("formatter", [LogfmtFormatter(), JsonFormatter()])
def test_a_traceback_stays_on_the_line(formatter: logging.Formatter) -> None:
    made = record()
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = formatter.format(made)
    assert "ValueError: why" in line
    assert "\n" not in line


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.parametrize(("form", "begin"), [("logfmt", "time="), ("json", "{")])
def test_configure_replaces_what_was_there(root: logging.Logger, form: str, begin: str) -> None:
    logging.basicConfig(force=True, stream=io.StringIO())
    stream = io.StringIO()
    configure(form, "warning", stream)
    logging.getLogger("virtblk.other").info("unheard")
    logging.getLogger("virtblk.other").warning("heard")
    (line,) = stream.getvalue().splitlines()
    assert line.startswith(begin)
    assert "heard" in line


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_the_rest_is_counted_and_the_count_is_said() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    assert [limit.filter(record(event="refused")) for _ in range(BURST + 7)] == [True] * BURST + [False] * 7
    assert limit.filter(record(event="other")), "each event has a limit of its own"
    clock.now += INTERVAL - 0.01
    assert not limit.filter(record(event="refused"))
    clock.now += 0.01
    first, second = record(event="refused"), record(event="refused")
    assert limit.filter(first)
    assert limit.filter(second)
    assert first.suppressed == 8  # type: ignore[attr-defined]
    assert "suppressed=8" in LogfmtFormatter().format(first)
    assert not hasattr(second, "suppressed")


def test_records_without_an_event_are_told_apart_by_their_text_not_by_its_values() -> None:
    limit = RateLimit(Clock())
    assert sum(limit.filter(record("value %d", value)) for value in range(3 * BURST)) == BURST
    assert len(limit._windows) == 1, "a peer's values must not fill memory"


def test_what_a_process_logs_is_limited(root: logging.Logger) -> None:
    stream = io.StringIO()
    configure("logfmt", "info", stream)
    for value in range(3 * BURST):
        logging.getLogger("virtblk.other").info("value %d", value, extra={"event": "flood"})
    assert BURST <= len(stream.getvalue().splitlines()) < 2 * BURST + 2  # a window may end meanwhile
