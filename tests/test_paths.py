"""Texts that are no paths are refused before a file system is asked. Limits: NAME_MAX and PATH_MAX of Linux's limits.h, 255 and 4096."""

from __future__ import annotations

import pathlib

import pytest

from lm_research.errors import ConfigError, DataError
from lm_research.paths import path_of


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("a\0b", "NUL"),
        ("a\udcffb", "UTF-8"),
        ("a" * 256, "255 bytes"),
        ("ä" * 128, "255 bytes"),  # two bytes each
        ("x/" * 2047 + "xy", "4095"),  # 4096 bytes, of which the last must be the NUL
        ("~nobody_of_this_name/x", "no home directory for ~nobody_of_this_name"),
    ],
)
def test_a_text_that_is_no_path(text: str, said: str) -> None:
    with pytest.raises(DataError, match="--input") as caught:
        path_of(text, "--input", error=DataError)
    assert said in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("text", ["a", "a" * 255, "ä" * 127, "x/" * 2047 + "x", "/tmp/b c", "größe.txt"])
def test_a_path_stays_as_it_is(text: str) -> None:
    assert path_of(text, "--input") == pathlib.Path(text)


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert path_of("~/runs", "--workdir") == pathlib.Path("/somewhere/runs")
    with pytest.raises(ConfigError):
        path_of("", "--workdir")
