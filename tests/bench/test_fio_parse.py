"""The text of a job file: what its lines are, and that every complaint names file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.bench.fio_parse import MAX_BYTES, Section, parse_sections, read_job_file
from virtblk.errors import UsageError


def pairs(section: Section) -> list[tuple[str, str | None]]:
    return [(one.name, one.value) for one in section.inherited + section.own]


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_sections(text, "a.fio")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sections_inherit_from_the_globals_above_them() -> None:
    text = "[global]\nbs=4k\n[a]\nrw=read\n[global]\nbs=8k\nstonewall\n[b]\n[b]\nrw=write\n"
    a, b, c = parse_sections(text, "a.fio")
    assert pairs(a) == [("bs", "4k"), ("rw", "read")]
    assert pairs(b) == [("bs", "4k"), ("bs", "8k"), ("stonewall", None)]
    assert (c.name, c.where, [str(one) for one in c.own]) == ("b", "a.fio:9", ["rw=write"])


def test_comments_and_blanks_are_nothing() -> None:
    text = "; one\n# two\n\n  [ a job ] # three\r\n\t bs = 4k ; four\n time_based# five\n"
    (section,) = parse_sections(text, "a.fio")
    assert section.name == "a job"
    assert pairs(section) == [("bs", "4k"), ("time_based", None)]
    assert [one.where for one in section.own] == ["a.fio:5", "a.fio:6"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a.fio: no job in it: give a section such as [a-name]"),
        ("[global]\nbs=4k\n", "a.fio: no job in it: give a section such as [a-name]"),
        ("\nbs=4k\n[a]", "a.fio:2: bs=4k: comes before any section; begin with [global] or [a-name]"),
        ("[a]\n[b", "a.fio:2: [b: give a section as [a-name]"),
        ("[ ]", "a.fio:1: [ ]: give a section as [a-name]"),
        ("[a] b", "a.fio:1: [a] b: give a section as [a-name]"),
        ("[a]\nbs=", "a.fio:2: bs=: give a value"),
        ("[a]\nbs=;4k", "a.fio:2: bs=: give a value"),
        ("[a]\n=4k", "a.fio:2: =4k: give name=value"),
        ("[a]\nblock size=4k", "a.fio:2: block size=4k: give name=value"),
        ("[a]\nsize=${SIZE}", "a.fio:2: size=${SIZE}: variables are not expanded; give the value itself"),
    ],
)
def test_what_is_no_job_file(text: str, says: str) -> None:
    assert refusal(text) == says


NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8)
VALUES = st.none() | st.text("abc0129:,.%-= ", min_size=1, max_size=8).map(str.strip).filter(bool)
SECTIONS = st.lists(st.tuples(NAMES, st.lists(st.tuples(NAMES, VALUES), max_size=4)), min_size=1, max_size=6)
NOISE = st.sampled_from(["", "\n", "# x\n", " ; [a]\n", "\t\n"])


@given(SECTIONS, st.data())
def test_what_was_written_is_read(
    sections: list[tuple[str, list[tuple[str, str | None]]]], data: st.DataObject
) -> None:
    """Whatever lies between the lines; sections named global are defaults of those below."""
    text, lines = "", []
    for name, given_ in sections:
        text += data.draw(NOISE)
        text += f" [{name}]  # here\n"
        for key, value in given_:
            text += data.draw(NOISE)
            lines.append(text.count("\n") + 1)
            text += f"{key}\n" if value is None else f"  {key} = {value}\n"
    wanted, defaults = [], []
    for name, given_ in sections:
        if name == "global":
            defaults += given_
        else:
            wanted.append((name, defaults + given_))
    if not wanted:
        assert "no job in it" in refusal(text)
        return
    found = parse_sections(text, "a.fio")
    assert [(section.name, pairs(section)) for section in found] == wanted
    own = [one.where for section in found for one in section.own]
    assert set(own) <= {f"a.fio:{line}" for line in lines}


# The file.


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.fio"
    path.write_text("[ä]\n")
    assert read_job_file(str(path)) == "[ä]\n"


def test_a_file_that_is_none(tmp_path: Path) -> None:
    missing, text, long = tmp_path / "missing", tmp_path / "text", tmp_path / "long"
    text.write_bytes(b"[a]\nname=\xff\n")
    long.write_bytes(b"\n" * (MAX_BYTES + 1))
    for path, says in (
        (missing, f"--job '{missing}': No such file or directory"),
        (tmp_path, f"--job '{tmp_path}': Is a directory"),
        (text, f"{text}:2: no text: byte 0xff is not UTF-8"),
        (long, f"--job '{long}': more than 1 MiB: no job file"),
        ("a\0b", "--job 'a\\x00b': embedded null byte"),
    ):
        with pytest.raises(UsageError) as caught:
            read_job_file(str(path))
        assert str(caught.value) == says
    text.write_bytes(b"[a]\n\nbs=\x00\n")
    with pytest.raises(UsageError, match=f"{text}:3: no text: a NUL byte"):
        read_job_file(str(text))
