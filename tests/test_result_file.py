"""Results in files: written where asked, refused before the run where they could not be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from virtblk.errors import UsageError
from virtblk.result_file import check_json, write_json, write_text


def test_json_goes_to_a_file_or_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.json"
    write_json(str(target), {"a": 1})
    write_json("-", {"a": 1})
    assert json.loads(target.read_text()) == json.loads(capsys.readouterr().out) == {"a": 1}


@pytest.mark.parametrize(("name", "says"), [("missing/out.json", "there is no directory '"), (".", "Is a directory")])
def test_a_file_that_cannot_be_written(tmp_path: Path, name: str, says: str) -> None:
    target = str(tmp_path / name)
    for attempt in (check_json, lambda target: write_json(target, {})):
        with pytest.raises(UsageError, match=re.escape(f"--json {target!r}: {says}")):
            attempt(target)


def test_checking_leaves_the_file_system_as_it_is(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("kept")
    for target in (str(old), str(new), "-"):
        check_json(target)
    assert old.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [old]


def test_text_goes_to_a_file_whatever_is_in_it(tmp_path: Path) -> None:
    target = tmp_path / "out.html"
    write_text("--report", str(target), "ä\udcff")
    assert target.read_bytes() == "ä".encode() + b"\\udcff"
    with pytest.raises(UsageError, match=re.escape(f"--report {str(tmp_path)!r}: Is a directory")):
        write_text("--report", str(tmp_path), "")
