"""A report in a browser: nothing to complain of, nothing asked for. And the same of a page that does ask, to be sure.

The browser says in its log what its console would show, a blocked request among it; its net log tells who began each
request, the page or the browser itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.html_harness import KINDS, WHEN
from cli.harness import PATIENCE
from peers import chromium
from virtblk.bench.html_report import report_html

pytestmark = [pytest.mark.once, pytest.mark.peer, pytest.mark.usefixtures("fonts")]

PICTURE = '<img src="http://127.0.0.1:9/picture.png" alt="">'
ERROR = "<script>console.error('said by the page')</script>"


@dataclass(frozen=True)
class Seen:
    """What a browser made of a page."""

    document: str
    console: list[str]
    requests: list[str]


def browse(page: Path, tmp_path: Path) -> Seen:
    """Load a page, and say what happened. Leaves no process behind."""
    net_log = tmp_path / "net.json"
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-breakpad",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", f"--log-net-log={net_log}",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    environment = os.environ | {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        document, log = process.communicate(timeout=PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 0, log
    return Seen(document, [line for line in log.splitlines() if "CONSOLE" in line], requests(net_log))


def requests(net_log: Path) -> list[str]:
    """The addresses that the page asked for; what the browser asks for itself has no initiator."""
    found = []
    for event in json.loads(net_log.read_text())["events"]:
        told = event.get("params", {})
        if "url" in told and told.get("initiator", "not an origin") != "not an origin":
            found.append(told["url"])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_opens_without_error_or_request(kind: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report_html(KINDS[kind](), WHEN))
    seen = browse(page, tmp_path)
    assert "<h1>virtblk bench: " in seen.document
    assert seen.document.count("</svg>") == page.read_text().count("</svg>")
    assert seen.console == []
    assert seen.requests == []


def test_a_page_that_asks_and_complains_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "other.html"
    page.write_text(f"<!DOCTYPE html><title>x</title>{PICTURE}{ERROR}")
    seen = browse(page, tmp_path)
    assert any("said by the page" in line for line in seen.console)
    assert any("picture.png" in address for address in seen.requests)


def test_the_pages_policy_blocks_what_it_should_not_ask_for(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report_html(KINDS["plain"](), WHEN).replace("</main>", f"{PICTURE}{ERROR}</main>"))
    seen = browse(page, tmp_path)
    assert len([line for line in seen.console if "Content Security Policy" in line]) >= 2
    assert not any("said by the page" in line for line in seen.console)
    assert seen.requests == []
