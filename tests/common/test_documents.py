"""Reading JSON and YAML: which values are accepted, and the messages for those that are not."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest

from lm_research.common import documents
from lm_research.errors import ConfigError, DataError

ALIASES = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else 'x'] * 10)}]\n" for n in range(9))
MERGES = "k0: &k0 {a: 1}\n" + "".join(f"k{n}: &k{n} {{<<: [{', '.join([f'*k{n - 1}'] * 10)}]}}\n" for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 100 deep"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested more than 100 deep"),
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ('{"a": 1,\n "b": }', "line 2, column 7"),
        ("1" * 5000, "is not JSON"),
        (b'"\xff"', "is not JSON"),
        ("[1]", "expected object, got array"),
        ("null", "expected object, got null"),
    ],
)
def test_json_that_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        documents.parse_json(text, "some.json", error=ConfigError, fix="Copy it again.")
    assert str(caught.value).startswith("some.json is ") and str(caught.value).endswith(" Copy it again.")


def test_json_of_the_maximum_depth() -> None:
    value = documents.json_value("[" * 100 + "]" * 100)
    for _ in range(99):
        (value,) = value
    assert value == []


def test_halves_of_surrogate_pairs_become_question_marks() -> None:
    assert documents.json_value(r'{"\udc00": "a\ud800b\ud83d\ude00"}') == {"?": "a?b😀"}
    assert documents.parse_yaml(r'"\ud800": ["a\udfffb"]', "x") == {"?": ["a?b"]}
    halves: list[str] = []
    for text in (r'"\ud83d\ude00"', r'"a"', r'["\ud83d"]', r'"\\ud83d"'):
        documents.json_value(text, on_surrogates=lambda text=text: halves.append(text))
    assert halves == [r'["\ud83d"]']  # only the third text has a half; the last has a backslash


def test_values_in_messages_are_short() -> None:
    """Two levels, three items of each, 60 characters of a text and 40 digits, the middle omitted."""
    assert documents.short({"a": {"b": {"c": 1}}}) == "{'a': {'b': {...}}}"
    assert documents.short([1, 2, 3, 4]) == "[1, 2, 3, ...]" and documents.short([1, 2, 3]) == "[1, 2, 3]"
    assert documents.short(dict.fromkeys("abcd")) == "{'a': None, 'b': None, 'c': None, ...}"
    assert [len(documents.short("x" * size)) for size in (58, 59)] == [60, 60]  # quotes are two of them
    assert [len(documents.short(10**digits)) for digits in (39, 40, 500)] == [40, 40, 40]
    assert documents.short(10**5000) == "an integer of 16610 bits"  # 5000 log2 10 = 16609.6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, "it has more than 1,000,000 values with its aliases expanded"),
        (MERGES, "it has more than 1,000,000 values with its aliases expanded"),
        ("&a [*a]", "an alias is inside its own anchor"),
        ("&a {b: *a}", "an alias is inside its own anchor"),
        ("[" * 100_000, "nested more than 100 deep"),
        ("- " * 100_000, "nested more than 100 deep"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: !!int ''", "is not YAML"),
        ("a: !!timestamp x", "is not YAML"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: [", "is not YAML"),
        ("a: 1\n---\na: 2", "single document"),
        ("\x00", "is not YAML"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        documents.parse_yaml(text, "some.yaml")
    assert str(caught.value).startswith("some.yaml is not YAML: ")


def test_yaml_with_anchors_in_moderation() -> None:
    assert documents.parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]", "x") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1}],
    }
    assert documents.parse_yaml("", "x") is None


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (2**31, documents.Size, "expected int <= 2147483647"),
        (0, documents.Size, "expected int >= 1"),
        (True, documents.Size, "expected int, got bool"),
        (8.5, documents.Size, "expected int, got float"),
        (float("nan"), documents.Finite, "expected float"),
        (float("inf"), documents.Finite, "expected float"),
        (float("nan"), documents.Rate, "expected float"),
        (-0.1, documents.Rate, "expected float >= 0"),
        ("0.1", documents.Rate, "expected float, got str"),
    ],
)
def test_fields_of_a_wrong_type_are_named(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^some.json: width is .*: {message}.*. Fix it.$"):
        documents.check_fields({"width": value, "unknown": []}, {"width": kind}, "some.json")


def test_fields_that_are_valid_or_missing() -> None:
    documents.check_fields({"width": None, "rate": 1}, {"width": documents.Size, "rate": documents.Rate}, "x")


def test_only_regular_files_of_bounded_size_are_read(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 2**20 + b"x")
    (tmp_path / "link").symlink_to("nowhere")
    for name, limit, message in (
        ("pipe", 1, "cannot be read: it is a named pipe"),
        (".", 1, "cannot be read: it is a folder"),
        ("large", 2**20, "has more than 1 MiB"),
        ("link", 1, "cannot be read: it is a link to nothing"),
        ("none", 1, "There is no file"),
        ("n" * 300, 1, "cannot be read: it is a name that is too long"),
        ("nul\0", 1, "cannot be read: it is a name that a file cannot have"),
    ):
        with pytest.raises(DataError, match=message):
            documents.read_bytes(tmp_path / name, limit=limit)
    assert documents.read_bytes(tmp_path / "large") == b"x" * (2**20 + 1)


def test_messages_are_of_bounded_length_and_printable() -> None:
    """A quoted value could fill the terminal, or overwrite its text in color."""
    message = str(DataError(f"a.json: there is no key {'x' * 10**6}\x1b[31m\x00. Fix it."))
    assert message.startswith("a.json: there is no key xxx") and message.endswith("x?[31m?. Fix it.")
    assert " [...] " in message and len(message) < 4100
