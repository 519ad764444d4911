"""Imports only point down. The house of docs/architecture.md as a table, and who may import Numba."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "virtblk"

_GROUND = "uapi errors"
_LEAF = f"{_GROUND} status jit mem"
_MESSAGES = "vhost_user vhost_user.message vhost_user.connection"
_DRIVER = f"{_LEAF} virtio block {_MESSAGES} vhost_user.frontend"
_DEVICE = f"{_LEAF} virtio storage {_MESSAGES} vhost_user.backend vhost_user.listener"

#: What each part may import besides itself. The longest name counts: `vhost_user.frontend` before `vhost_user`.
MAY_IMPORT = {
    "uapi": "",
    "errors": "",
    "status": _GROUND,
    "names": _GROUND,
    "progress": "",
    "result_file": _GROUND,
    "socket_command": _GROUND,
    "figures": "",
    "log": _GROUND,
    "metrics": _GROUND,
    "exporter": f"{_LEAF} metrics",
    "jit": _GROUND,
    "mem": f"{_GROUND} status jit",
    "virtio": _LEAF,
    "block": _LEAF,
    "storage": f"{_LEAF} names",
    "vhost_user": "",
    "vhost_user.message": f"{_LEAF} virtio",
    "vhost_user.connection": f"{_LEAF} virtio vhost_user vhost_user.message",
    "vhost_user.frontend": f"{_LEAF} virtio {_MESSAGES}",
    "vhost_user.backend": f"{_LEAF} virtio {_MESSAGES}",
    "vhost_user.listener": f"{_LEAF} virtio {_MESSAGES} vhost_user.backend",
    "driver": _DRIVER,
    "device": _DEVICE,
    "server": f"{_DEVICE} device names log metrics exporter server_metrics",
    "server_metrics": f"{_DEVICE} device metrics virtblk",
    "disk": f"{_DRIVER} driver names server",
    "bench": f"{_DRIVER} {_DEVICE} driver device names server disk progress figures virtblk",
    "check": f"{_GROUND} {_MESSAGES} names result_file socket_command virtblk",
    "cli": f"{_DRIVER} {_DEVICE} driver device names server disk bench check fuzz log metrics exporter"
    " server_metrics result_file virtblk",
    "fuzz": f"{_LEAF} virtio {_MESSAGES} vhost_user.frontend names progress socket_command figures",
    "__main__": "cli",
    "virtblk": "errors disk server",
}

#: The only importers of Numba, and what the façade must not load.
NUMBA = {"numba", "llvmlite"}


def module_name(path: Path) -> str:
    """`virtblk.jit.kernel`; `virtblk.jit` for a package's __init__."""
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str | None:
    """The row of MAY_IMPORT that a module belongs to."""
    name = module.removeprefix("virtblk.")
    while name not in MAY_IMPORT and "." in name:
        name = name.rpartition(".")[0]
    return name if name in MAY_IMPORT else None


def imports(tree: ast.AST, package: str, modules: set[str]) -> set[str]:
    """Absolute names of all modules imported anywhere in a file of `package`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            submodules = {f"{base}.{alias.name}" for alias in node.names}
            found |= submodules & modules
            if not submodules <= modules:  # a name defined in `base` itself
                found.add(base)
    return found


def upward(module: str, imported: set[str]) -> list[str]:
    """The imports of `module` that its row does not allow."""
    part = part_of(module)
    if part is None:
        return [f"{module} has no row in MAY_IMPORT"]
    allowed = {part, *MAY_IMPORT[part].split()}
    ours = sorted(name for name in imported if name.partition(".")[0] == "virtblk")
    return [f"{module} imports {name}" for name in ours if part_of(name) not in allowed]


def _sources() -> dict[str, tuple[Path, ast.Module]]:
    return {module_name(path): (path, ast.parse(path.read_text(), str(path))) for path in sorted(SRC.rglob("*.py"))}


SOURCES = _sources()
IMPORTS = {
    name: imports(tree, name if path.name == "__init__.py" else name.rpartition(".")[0], set(SOURCES))
    for name, (path, tree) in SOURCES.items()
}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module: str) -> None:
    assert not upward(module, IMPORTS[module])


@pytest.mark.parametrize("module", SOURCES)
def test_only_jit_imports_numba(module: str) -> None:
    numba = {name for name in IMPORTS[module] if name.partition(".")[0] in NUMBA}
    assert not numba or part_of(module) == "jit"


def test_the_table_is_a_hierarchy() -> None:
    """No two parts may import each other, driver and device least of all."""
    for part, row in MAY_IMPORT.items():
        for below in row.split():
            assert part not in MAY_IMPORT[below].split(), f"{part} and {below} import each other"
    assert "device" not in MAY_IMPORT["driver"]
    assert "driver" not in MAY_IMPORT["device"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("driver.virtio_blk", "import virtblk.device.worker"),
        ("driver.virtio_blk", "from virtblk.device import worker"),
        ("driver.virtio_blk", "from ..device.worker import run"),
        ("driver.virtio_blk", "from virtblk.vhost_user import backend"),
        ("block.bio", "def f():\n    from virtblk.virtio.vringh_split import vringh_getdesc"),
        ("storage.memory", "from virtblk import virtio"),
        ("mem.shm", "from ..disk import Disk"),
        ("names", "from .jit.kernel import kernel"),
        ("orphan", "import os"),
    ],
)
def test_an_upward_import_is_seen(module: str, source: str) -> None:
    modules = {"virtblk.virtio", "virtblk.device.worker", "virtblk.vhost_user.backend"}
    package = f"virtblk.{module}".rpartition(".")[0]
    assert upward(f"virtblk.{module}", imports(ast.parse(source), package, modules))


def _is_definition(node: ast.stmt) -> bool:
    """An import, a number or dtype, a size assert, a class without methods, a function that is one expression."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assign() | ast.AnnAssign() | ast.Assert():
            return True
        case ast.Expr(value=ast.Constant(value=str())):  # a docstring
            return True
        case ast.For(body=body) | ast.ClassDef(body=body):
            return all(_is_definition(inner) for inner in body)
        case ast.FunctionDef(body=[ast.Return()] | [ast.Expr(value=ast.Constant()), ast.Return()]):
            return True  # as vring_size() in the kernel's uapi
    return False


@pytest.mark.parametrize("module", [name for name in SOURCES if part_of(name) == "uapi"])
def test_uapi_is_definitions_only(module: str) -> None:
    path, tree = SOURCES[module]
    logic = [f"{path.name}:{node.lineno}" for node in tree.body if not _is_definition(node)]
    assert not logic


@pytest.mark.once
def test_facade_and_command_line_load_no_numba() -> None:
    code = "import sys, virtblk, virtblk.cli; print(*({'numba', 'llvmlite'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "", "")
