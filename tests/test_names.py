"""Disk names and sizes: what is understood, and in which words the rest is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtblk.errors import UsageError
from virtblk.names import (
    KNOWN,
    SCHEMES,
    DiskName,
    FilterName,
    format_size,
    parse_filter,
    parse_fraction,
    parse_name,
    parse_size,
    parse_time,
)

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


@given(
    st.integers(0, 1 << 12),
    st.sampled_from(list(UNITS)),
    st.sampled_from(["", "b", "B", "ib", "iB", "IB"]),
    st.booleans(),
    st.sampled_from(["", " ", "\t "]),
)
def test_sizes_as_fio_writes_them(number: int, unit: str, suffix: str, upper: bool, space: str) -> None:
    if not unit and suffix[:1] in "iI" and suffix:
        return
    text = f"{space}{number}{space}{unit.upper() if upper else unit}{suffix}{space}"
    assert parse_size(text) == number * UNITS[unit]


@given(st.integers(0, 1 << 62))
def test_format_size_is_the_inverse(value: int) -> None:
    text = format_size(value)
    assert parse_size(text) == value
    assert len(text) <= len(str(value))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (513, "513"), (4096, "4k"), (512 << 20, "512m"), (1 << 50, "1p"), (3 << 29, "1536m")]
)
def test_format_size(value: int, text: str) -> None:
    assert format_size(value) == text


@pytest.mark.parametrize("text", ["", " ", "k", "-1", "1.5g", "0x10", "1 000", "1kk", "4q", "1e3", "1k\n2", "ib", "²"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text, "--bs")
    assert str(caught.value) == f"--bs {text!r}: give bytes or a size such as 4k, 512m, 1g"


@pytest.mark.parametrize("text", ["5ib", "1\u212a", "\u0663k"])
def test_regression_an_i_without_a_unit_and_letters_and_digits_of_other_scripts(text: str) -> None:
    with pytest.raises(UsageError, match="give bytes"):
        parse_size(text)


@pytest.mark.parametrize("text", [str((1 << 62) + 1), "4097p", "99999999999999999999"])
def test_sizes_that_are_too_large(text: str) -> None:
    with pytest.raises(UsageError, match=f"size '{text}' is too large"):
        parse_size(text)
    assert parse_size("4096p") == 1 << 62


def test_regression_a_size_of_thousands_of_digits_is_a_usage_error() -> None:
    """int() refuses more than 4300 digits, with a ValueError of its own."""
    with pytest.raises(UsageError, match="give bytes"):
        parse_size("9" * 5000)


@pytest.mark.parametrize(
    ("text", "scheme", "rest", "keys"),
    [
        ("ram:512m", "ram", "512m", {}),
        ("null:1g?block_size=4k", "null", "1g", {"block_size": "4k"}),
        ("ram:1m?a=1&b=2,c=", "ram", "1m", {"a": "1", "b": "2", "c": ""}),
        ("ram:1m?a=b=c", "ram", "1m", {"a": "b=c"}),
        ("vhost-user:/run/a:b.sock", "vhost-user", "/run/a:b.sock", {}),
        ("file:/a b:c.img?cache=none&block_size=4k", "file", "/a b:c.img", {"cache": "none", "block_size": "4k"}),
        ("vhost-user:relative path", "vhost-user", "relative path", {}),
        ("nbd:nbd://localhost:10809/export", "nbd", "nbd://localhost:10809/export", {}),
        ("nbd:nbd+unix:///?socket=/run/x.sock", "nbd", "nbd+unix:///?socket=/run/x.sock", {}),
        ("nbd:nbds://h/e?a=1&a=2,?tls", "nbd", "nbds://h/e?a=1&a=2,?tls", {}),
    ],
)
def test_names(text: str, scheme: str, rest: str, keys: dict[str, str]) -> None:
    assert parse_name(text) == DiskName(text, scheme, rest, keys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' has no scheme"),
        ("/dev/sda", "'/dev/sda' has no scheme: write ram:512m"),
        ("RAM:1m", "scheme 'RAM' is unknown"),
        ("disk:1m", "scheme 'disk' is unknown (this version knows ram, null, file, sim, nbd, vhost-user)"),
        (":1m", "scheme '' is unknown"),
        ("ram:", "'ram:': give a size such as 512m after the colon"),
        ("ram:?block_size=4k", "give a size"),
        ("file:?cache=none", "give a path after the colon"),
        ("vhost-user:", "give a socket's path after the colon"),
        ("nbd:", "give a URI such as nbd://localhost or nbd+unix:///?socket=/run/nbd.sock after the colon"),
        ("ram:1m?", "'' is not key=value"),
        ("ram:1m?block_size", "'block_size' is not key=value"),
        ("ram:1m?=4k", "'=4k' is not key=value"),
        ("ram:1m?a=1&a=2", "key 'a' is given twice"),
        ("two\nlines", "'two\\nlines' has no scheme"),
    ],
)
def test_names_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_name(text)
    assert words in str(caught.value)
    assert str(caught.value).startswith("disk ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - set(KNOWN)))
def test_schemes_of_later_versions(scheme: str) -> None:
    with pytest.raises(UsageError, match=f"scheme '{scheme}' is for a later version"):
        parse_name(f"{scheme}:x")


def test_the_size_of_a_name_and_of_its_keys() -> None:
    name = parse_name("ram:2m?block_size=4k")
    assert name.size == 2 << 20
    assert name.size_key("block_size", 512) == 4096
    assert name.size_key("other", 7) == 7
    name.refuse_other_keys("block_size", "other")
    with pytest.raises(UsageError) as caught:
        name.refuse_other_keys("other")
    assert str(caught.value) == "disk 'ram:2m?block_size=4k': unknown key 'block_size' (known: other)"
    with pytest.raises(UsageError, match=r"\(known: none\)"):
        name.refuse_other_keys()
    with pytest.raises(UsageError) as caught:
        _ = parse_name("ram:much").size
    assert str(caught.value) == "disk 'ram:much': size 'much': give bytes or a size such as 4k, 512m, 1g"
    with pytest.raises(UsageError, match=r"disk 'ram:1m\?a=b': a 'b': give bytes"):
        parse_name("ram:1m?a=b").size_key("a", 0)


@pytest.mark.once
def test_names_cost_no_numba_and_no_numpy() -> None:
    code = "import sys, virtblk.names; print([m for m in ('numba', 'numpy', 'llvmlite') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10ms", 0.01), ("200us", 0.0002), ("1.5s", 1.5), (" 7 ns ", 7e-9), ("2m", 120), ("0s", 0), ("1440m", 86400)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "ms", "-1s", "1e3s", "1.s", ".5s", "1h", "1 m s", "1MS", "\u0661s", "inf s"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_time(text, "delay")
    assert str(caught.value) == f"delay {text!r}: give a time with its unit, such as 200us, 10ms, 1.5s"


def test_a_time_that_is_too_long() -> None:
    with pytest.raises(UsageError, match="time '86401s' is longer than a day"):
        parse_time("86401s")


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("1", 1), ("0.25", 0.25), ("10%", 0.1), ("100 %", 1), ("0.5%", 0.005)]
)
def test_fractions(text: str, value: float) -> None:
    assert parse_fraction(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "1.1", "101%", "-0.1", "1e-1", "nan", "inf", "half", "9" * 400, "\u0661"])
def test_fractions_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_fraction(text, "keep")
    assert str(caught.value) == f"keep {text!r}: give a number from 0 to 1, or a percentage such as 10%"


@pytest.mark.parametrize(
    ("text", "name", "keys"),
    [
        ("cow", "cow", {}),
        ("cow?file=/a=b?c", "cow", {"file": "/a=b?c"}),
        ("delay?read=1ms&write=2ms,all=", "delay", {"read": "1ms", "write": "2ms", "all": ""}),
    ],
)
def test_filter_names(text: str, name: str, keys: dict[str, str]) -> None:
    assert parse_filter(text, ("cow", "delay")) == FilterName(text, name, keys)


def test_keys_of_a_filter() -> None:
    name = FilterName("f", "f", {"size": "4k", "time": "1ms", "part": "5%", "number": "007", "path": "/x"})
    assert (name.size_key("size"), name.size_key("none")) == (4096, None)
    assert (name.time_key("time", 7), name.time_key("none", 7)) == (0.001, 7)
    assert (name.fraction_key("part", 1), name.fraction_key("none", 1)) == (0.05, 1)
    assert (name.integer_key("number"), name.integer_key("none")) == (7, None)
    assert (name.path_key("path"), name.path_key("none")) == ("/x", None)
