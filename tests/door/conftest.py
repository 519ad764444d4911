"""One device for all tests of a file: each leaves it as it found it, or fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from door.harness import Door


@pytest.fixture(scope="module")
def shared_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    directory: Path = tmp_path_factory.mktemp("door")
    with Door(directory) as made:
        yield made


@pytest.fixture
def door(shared_door: Door) -> Iterator[Door]:
    yield shared_door
    shared_door.check()
    shared_door.settle()
