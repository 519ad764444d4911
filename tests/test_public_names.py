"""What programs may hold on to: the names of `import virtblk`."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest

import virtblk

ERRORS = {"VirtblkError", "UsageError", "OpenError", "DeviceError"}
PUBLIC = {"__version__", "open", "Disk", "serve", "Server"} | ERRORS


def test_all_is_the_documented_list() -> None:
    assert set(virtblk.__all__) == PUBLIC
    assert len(virtblk.__all__) == len(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_name_resolves_and_is_listed(name: str) -> None:
    assert getattr(virtblk, name) is not None
    assert name in dir(virtblk)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = virtblk.no_such_name


def test_the_installed_version_is_the_sources() -> None:
    assert version("virtblk") == virtblk.__version__


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_is_a_virtblk_error_with_a_docstring(name: str) -> None:
    error = getattr(virtblk, name)
    assert issubclass(error, virtblk.VirtblkError)
    assert error.__doc__


@pytest.mark.parametrize("name", ["Disk", "Server"])
def test_every_public_member_has_a_docstring(name: str) -> None:
    members = {name: value for name, value in vars(getattr(virtblk, name)).items() if not name.startswith("_")}
    assert members
    assert [name for name, value in members.items() if not inspect.getdoc(value)] == []


@pytest.mark.parametrize("name", ["open", "serve"])
def test_every_verb_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(virtblk, name))
