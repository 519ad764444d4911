"""Text, tables and boxes of a page."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.bench.html_page import READABLE, Cell, card, pairs, table, text

pytestmark = [pytest.mark.once, pytest.mark.covers]


@given(st.text(st.characters(), max_size=50))
def test_text_is_read_as_it_was_written(value: str) -> None:
    escaped = text(value)
    assert not set(escaped) & set("<>\"'")
    escaped.encode()
    read = html.unescape(escaped)
    assert len(read) == len(value)
    for was, is_now in zip(value, read, strict=True):
        control = ord(was) < 0x20 or 0x7F <= ord(was) < 0xA0 or 0xD800 <= ord(was) < 0xE000
        assert is_now == was if not control else is_now in "\ufffd "


def test_a_table_has_heads_of_columns_and_of_rows() -> None:
    made = table(["a", "<b>"], [["x", Cell("1", "lose")], ["y", "2"]], "what & why")
    assert '<th scope="col" class=name>a</th><th scope="col">&lt;b&gt;</th>' in made
    assert '<tr><th scope="row">x</th><td class="lose">1</td></tr>' in made
    assert "<caption>what &amp; why</caption>" in made
    assert "<thead>" not in pairs({"a": "b"})


def test_long_reasons_are_folded() -> None:
    assert "<details>" not in card("use bio", ["short"])
    assert "<details>" in card("use bio", ["x" * (READABLE + 1)])
