"""Programs of benchmarks/, imported as the modules that they are not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, Final

BENCHMARKS: Final = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> Any:
    """The module of benchmarks/NAME.py; known by that name, by which its dataclasses and what is cached find it."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
