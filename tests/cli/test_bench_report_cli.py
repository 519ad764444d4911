"""`virtblk bench --report`: the file is there after the run, also after Ctrl-C; what cannot work is said before it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.harness import PATIENCE, Command, complaint, virtblk

pytestmark = pytest.mark.once

QUICK = ("--runtime", "0.1", "--size", "256k", "--rw", "read")


def test_a_run_writes_its_page(tmp_path: Path) -> None:
    target = tmp_path / "out.html"
    status, out, err = virtblk("bench", "null:1m", *QUICK, "--report", str(target))
    assert status == 0, err
    assert err.splitlines()[-1] == f"drawing {target}"
    assert "I/Os" in out
    page = target.read_text()
    assert "<h1>virtblk bench: null:1m</h1>" in page
    assert page.count("</svg>") == 3
    assert "scheduler=" in page, "the queue of each path"
    assert page.endswith("</html>\n")


def test_a_sweep_writes_its_page_and_its_json(tmp_path: Path) -> None:
    target = tmp_path / "out.html"
    words = ("--sweep", "iodepth=1,2", "--path", "bio", "--json", "-", "--report", str(target))
    status, out, err = virtblk("bench", "null:1m", *QUICK, *words)
    assert status == 0, err
    assert out.startswith("{")
    page = target.read_text()
    assert "<h1>virtblk bench: null:1m over iodepth</h1>" in page
    assert page.count("</svg>") == 1 + 2 * 3


@pytest.mark.parametrize("words", [("null:1m",), ("--matrix", "--disks", "null:1m,null:2m")])
def test_ctrl_c_leaves_the_page_of_what_was_measured(tmp_path: Path, words: tuple[str, ...]) -> None:
    target = tmp_path / "out.html"
    with Command("bench", *words, "--runtime", "120", "--report", str(target), tmp=tmp_path) as command:
        command.wait_for("null:1m: blocks of" if "--matrix" in words else "null:1m (1m): ")
        command.interrupt()
        status, _, err = command.wait()
    assert status == 130
    assert err.splitlines()[-1] == "virtblk: interrupted"
    assert "Traceback" not in err
    assert "The run was interrupted" in target.read_text()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--report", "/nowhere/x.html"), "--report '/nowhere/x.html': there is no directory '/nowhere'"),
        (("--report", "/"), "--report '/': Is a directory"),
        (("--report", "-"), "--report -: give a file, such as report.html"),
        (("--matrix", "--report", "/nowhere/x.html"), "--report '/nowhere/x.html'"),
        (("--sweep", "iodepth=1", "--report", "/nowhere/x.html"), "--report '/nowhere/x.html'"),
        (("--compare", "a", "b", "--report", "x.html"), "--compare runs nothing; leave out --report"),
        (("--job", "load.fio", "--report", "x.html"), "--report: not with --job"),
    ],
)
def test_wrong_usage_is_one_line(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in complaint(capsys, "bench", *words)


def test_json_and_report_are_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--json", "out", "--report", str(tmp_path / "out"))
    assert "--json writes to the same file; give another" in complaint(capsys, "bench", *words)
    assert list(tmp_path.iterdir()) == []


def without_the_library(*words: str) -> subprocess.CompletedProcess[str]:
    """`virtblk bench` where matplotlib is not installed."""
    code = "import sys; sys.modules['matplotlib'] = None; from virtblk.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "bench", "null:1m", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_without_the_library_one_line_says_what_to_install(tmp_path: Path) -> None:
    run = without_the_library("--report", str(tmp_path / "out.html"))
    assert run.returncode == 2
    said = "--report draws with matplotlib: matplotlib is missing; pip install 'virtblk[report]'"
    assert run.stderr == f"virtblk: {said}\n"
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_needs_the_library() -> None:
    run = without_the_library(*QUICK, "--path", "bio")
    assert run.returncode == 0, run.stderr
