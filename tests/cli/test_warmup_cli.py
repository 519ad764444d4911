"""`virtblk warmup`: whatever a bench or a Disk runs is in the cache afterwards."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.harness import virtblk
from virtblk.bench.runner import Runner
from virtblk.cli import main
from virtblk.jit import kernel

pytestmark = [pytest.mark.once, pytest.mark.covers]

DISK = """
import virtblk
for poll_us in (0, 20, None):
    with virtblk.open("ram:1m", poll_us=poll_us) as disk:
        disk.pwrite(b"x" * 4096, 512, fua=True)
        assert disk.pread(4096, 512) == b"x" * 4096
        disk.flush()
"""


def compiled(cache: Path) -> set[str]:
    """Numba's index and code files. Their number says how many kernels, and for how many signatures."""
    return {str(path.relative_to(cache)) for path in cache.rglob("*.nb?")}


def use_the_rest() -> None:
    """All that a user may run next."""
    for words in (("bench", "ram:1m", "--poll"), ("bench", "ram:1m", "--verify", "crc32c"), ("info", "null:1m")):
        quick = ("--runtime", "0.05") if words[0] == "bench" else ()
        assert virtblk(*words, *quick)[0] == 0
    subprocess.run([sys.executable, "-c", DISK], check=True)


@pytest.mark.compiled
def test_it_leaves_nothing_to_compile() -> None:
    status, out, _ = virtblk("warmup")
    assert status == 0
    match = re.fullmatch(r"\d+ kernels ready in \d+\.\d s, kept in (.+)\n", out)
    assert match, out
    before = compiled(Path(match[1]))
    assert len(before) > 50
    use_the_rest()
    assert compiled(Path(match[1])) == before


@pytest.mark.compiled
@pytest.mark.slow
def test_it_leaves_nothing_to_compile_on_a_new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTBLK_CACHE_DIR", str(tmp_path))
    assert virtblk("warmup")[0] == 0
    before = compiled(tmp_path)
    use_the_rest()
    assert compiled(tmp_path) == before


def test_errors_are_status_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "run", lambda self: iter((SimpleNamespace(errors=1), SimpleNamespace(errors=2))))
    assert main(["warmup"]) == 1
    assert capsys.readouterr().err.endswith("virtblk: 3 errors while running them\n")


def test_without_a_cache_directory_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "cache_directory", None)
    monkeypatch.setattr(Runner, "run", lambda self: iter(()))
    assert main(["warmup"]) == 0
    assert capsys.readouterr().out.endswith(" s, not kept: no cache directory can be written\n")
