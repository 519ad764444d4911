"""The kernel decorator: what the cache depends on, where it lives, and that nothing of it can fail at import."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from numba.core import config

import virtblk
from conftest import INTERPRETED
from virtblk.jit import kernel as kernel_module
from virtblk.jit.kernel import cache_root, inline_kernel, kernel, registry, source_digest
from virtblk.jit.table import Table

SOURCE = Path(virtblk.__file__).parent

#: Calls two kernels, one of which calls a kernel of another file; prints the result and what the cache had.
SCRIPT = """
from virtblk.jit.arith import u16, vring_need_event
from virtblk.jit.kernel import cache_directory, kernel
from virtblk.jit.lock import mutex_trylock
from virtblk.mem.shm import Words

words = Words(1)
assert mutex_trylock(words.address(0))
result = vring_need_event(5, 6, 5), u16(65537)
hits = misses = 0
for compiled in (vring_need_event, u16, mutex_trylock):
    hits += sum(compiled.stats.cache_hits.values())
    misses += sum(compiled.stats.cache_misses.values())
print(*result, hits, misses, cache_directory is not None)
"""


def run(cache: Path | str, code: str = SCRIPT, path: Path | None = None, **environment: str) -> list[str]:
    """Words that `code` prints in a fresh process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "VIRTBLK_"))}
    env |= {"VIRTBLK_CACHE_DIR": str(cache), "PYTHONPATH": str(path or SOURCE.parent)} | environment
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, whose digest `source_digest` computes."""
    copy = tmp_path / "src" / "virtblk"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(kernel_module, "__file__", str(copy / "jit" / "kernel.py"))
    return copy


# The digest.


def kernel_files() -> list[str]:
    """Every file that defines kernels, or whose constants reach them."""
    users = [
        path for path in SOURCE.rglob("*.py") if re.search(r"^@(cold_|inline_)?kernel$", path.read_text(), re.MULTILINE)
    ]
    uapi = list((SOURCE / "uapi").glob("*.py"))
    return sorted(str(path.relative_to(SOURCE)) for path in {*users, *uapi, SOURCE / "status.py"})


def test_every_source_of_kernels_counts(copied: Path) -> None:
    seen = {source_digest()}
    for name in kernel_files():
        path = copied / name
        text = path.read_text()
        path.write_text(text + "\nX = 1\n")
        assert source_digest() not in seen, name
        seen.add(source_digest())
        path.write_text(text)
    assert source_digest() in seen
    assert len(seen) == len(kernel_files()) + 1


def test_a_new_or_renamed_file_counts(copied: Path) -> None:
    before = source_digest()
    (copied / "virtio" / "packed.py").write_text("")
    after = source_digest()
    (copied / "virtio" / "packed.py").rename(copied / "virtio" / "packed2.py")
    assert len({before, after, source_digest()}) == 3


def test_the_place_counts(copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Numba looks for its index by path: two checkouts do not take turns."""
    before = source_digest()
    shutil.move(copied.parent, tmp_path / "other")
    monkeypatch.setattr(kernel_module, "__file__", str(tmp_path / "other" / "virtblk" / "jit" / "kernel.py"))
    assert source_digest() != before


@pytest.mark.parametrize("value", ["0", "1"])
@pytest.mark.parametrize("name", ["NUMBA_BOUNDSCHECK", "NUMBA_OPT", "NUMBA_CPU_NAME", "NUMBA_ANYTHING_NEW"])
def test_numba_flags_count(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.delenv(name, raising=False)
    before = source_digest()
    monkeypatch.setenv(name, value)
    assert source_digest() != before
    monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHON_ANYTHING", value)
    assert source_digest() == before


def test_checking_and_the_version_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {source_digest()}
    monkeypatch.setattr(kernel_module, "CHECKING", not kernel_module.CHECKING)
    seen.add(source_digest())
    monkeypatch.setattr(kernel_module.numba, "__version__", "0.0")
    seen.add(source_digest())
    assert len(seen) == 3


# Where the cache lives.


def test_the_root_is_chosen_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("VIRTBLK_CACHE_DIR", raising=False)
    assert cache_root() == Path("/home/somebody/.cache/virtblk")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_root() == Path("/home/somebody/.cache/virtblk")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/xdg")
    assert cache_root() == Path("/var/xdg/virtblk")
    monkeypatch.setenv("VIRTBLK_CACHE_DIR", "/var/own")
    assert cache_root() == Path("/var/own")


def aged(path: Path, hours: float) -> Path:
    path.mkdir()
    (path / "file").write_text("x")
    then = time.time() - hours * 3600
    os.utime(path, (then, then))
    return path


def test_old_caches_go_and_young_ones_stay(tmp_path: Path) -> None:
    old = [aged(tmp_path / f"{index:016x}", 10 + index) for index in range(12)]
    young = [aged(tmp_path / f"{index:016x}", 0.5) for index in range(100, 104)]
    assert kernel_module._prepare(tmp_path) == tmp_path / source_digest()
    assert [path for path in (*young, *old) if path.exists()] == [*young, *old[:3]]  # eight with today's
    assert (old[0] / "file").exists()


def test_regression_only_our_own_caches_go(tmp_path: Path) -> None:
    """VIRTBLK_CACHE_DIR may name a directory that holds other things: they were deleted once they were old."""
    for index in range(10):
        aged(tmp_path / f"{index:016x}", 2)
    others = [aged(tmp_path / name, 100) for name in ("photographs", "0123456789abcdef0", "0123456789ABCDEF", ".ssh")]
    (tmp_path / "fedcba9876543210").write_text("a file")
    os.utime(tmp_path / "fedcba9876543210", (0, 0))
    assert kernel_module._prepare(tmp_path)
    assert all((path / "file").exists() for path in others)
    assert (tmp_path / "fedcba9876543210").exists()


def test_regression_a_cache_that_vanishes_meanwhile_is_no_reason_to_go_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes tidy up at once: the one that came second compiled everything, every time."""
    for index in range(10):
        aged(tmp_path / f"{index:016x}", 2)
    stat = Path.stat

    def gone(path: Path, **options: bool) -> os.stat_result:
        if path.name == f"{3:016x}":
            shutil.rmtree(path, ignore_errors=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", gone)
    assert kernel_module._prepare(tmp_path) == tmp_path / source_digest()


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/virtblk"])
def test_nowhere_to_write_is_no_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    assert kernel_module._prepare(tmp_path / where) is None


@pytest.mark.once
@pytest.mark.covers
def test_without_a_place_for_the_cache_kernels_compile_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert run(tmp_path / "file") == ["True", "1", "0", "3", "False"]
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.once
def test_a_second_process_compiles_nothing_until_a_callee_changes(tmp_path: Path) -> None:
    """Numba's own cache would not notice: the kernel that is called lies in another file, or it is a constant."""
    package = tmp_path / "src"
    shutil.copytree(SOURCE, package / "virtblk", ignore=shutil.ignore_patterns("__pycache__"))
    cache = tmp_path / "cache"
    first = run(cache, path=package)
    assert first[:2] == ["True", "1"]
    assert int(first[3]) == 3
    assert run(cache, path=package) == ["True", "1", "3", "0", "True"]
    assert run(cache, path=package, NUMBA_BOUNDSCHECK="1")[2:4] == first[2:4]
    assert run(cache, path=package, VIRTBLK_CHECKING="1")[2:4] == first[2:4]
    arith = package / "virtblk" / "jit" / "arith.py"
    arith.write_text(arith.read_text().replace("return value & 0xFFFF", "return value & 0xFFFE"))
    assert run(cache, path=package) == ["True", "0", *first[2:]]
    assert len(list(cache.iterdir())) == 4
    assert not list(package.rglob("__pycache__/*.nb*"))


# The decorator.


def test_numbas_own_cache_stays_where_the_program_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", "/of/the/program")

    @kernel
    def one():
        return 1

    assert config.CACHE_DIR == "/of/the/program"
    assert one() == 1
    assert any(value is one for value in registry.values())


def test_every_module_imports_and_registers(tmp_path: Path) -> None:
    """No kernel raises at import, compiled or not; the registry knows them all by their full names."""
    for info in pkgutil.walk_packages(virtblk.__path__, "virtblk."):
        if not info.name.endswith("__main__"):
            importlib.import_module(info.name)
    ours = {name: function for name, function in registry.items() if name.startswith("virtblk.")}
    assert len(ours) > 60
    for name, function in ours.items():
        plain = function if INTERPRETED else function.py_func
        assert name == f"{plain.__module__}.{plain.__qualname__}"
        assert INTERPRETED or (function.targetoptions["nogil"], function.targetoptions["error_model"]) == (
            True,
            "numpy",
        )


@inline_kernel
def twice_the_first(table, number):
    table[0] += number
    return 2 * table[0]


@kernel
def calls_inlined(table, number):
    return twice_the_first(table, number + 1) + twice_the_first(table, 0)


def test_an_inlined_kernel_is_part_of_its_callers_and_nothing_by_itself() -> None:
    table = Table(1)
    assert calls_inlined(table, 4) == 20
    assert table[0] == 5
    assert registry[f"{twice_the_first.__module__}.twice_the_first"] is twice_the_first
    if not INTERPRETED:
        assert calls_inlined.signatures
        assert twice_the_first.signatures == []
    assert twice_the_first(table, 1) == 12  # Python may call it all the same


@kernel
def divide(a, b):
    return a // b


@pytest.mark.compiled
def test_kernels_do_not_raise_on_division_by_zero() -> None:
    """error_model="numpy": nothing is thrown inside a loop without the GIL."""
    divide(1, 0)
