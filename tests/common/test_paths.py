"""Texts that are not paths are rejected before any file is accessed. Limits: Linux's NAME_MAX and PATH_MAX (limits.h), 255 and 4096.

Anything other than a regular file is named, without blocking.
"""

from __future__ import annotations

import os
import pathlib
import socket

import pytest

from lm_research.common.paths import FILE, FOLDER, NOTHING, kind, open_file, path_of, stays_inside
from lm_research.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("text", "reason"),
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
def test_a_text_that_is_not_a_path(text: str, reason: str) -> None:
    with pytest.raises(DataError, match="--input") as caught:
        path_of(text, "--input", error=DataError)
    assert reason in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("text", ["a", "a" * 255, "ä" * 127, "x/" * 2047 + "x", "/tmp/b c", "größe.txt"])
def test_a_path_is_unchanged(text: str) -> None:
    assert path_of(text, "--input") == pathlib.Path(text)


@pytest.mark.parametrize(
    ("name", "inside"),
    [("a", True), ("a/b.txt", True), ("..a/b..", True), ("", False), ("/a", False), ("a//b", False), ("a/", False)]
    + [("..", False), ("a/../b", False), ("./a", False), ("a\\..\\b", False), ("a\0b", False)],
)
def test_names_that_stay_inside_a_folder(name: str, inside: bool) -> None:
    assert stays_inside(name) == inside


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert path_of("~/runs", "--workdir") == pathlib.Path("/somewhere/runs")
    with pytest.raises(ConfigError):
        path_of("", "--workdir")


@pytest.fixture
def odd(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with an entry of each file type."""
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    for name, target in {"good": "file", "lost": "nowhere", "loop": "loop", "null": os.devnull}.items():
        (tmp_path / name).symlink_to(target)
    return tmp_path


KINDS = {
    "file": FILE,
    "good": FILE,
    "folder": FOLDER,
    "none": NOTHING,
    "file/below": NOTHING,
    "pipe": "a named pipe",
    "socket": "a socket",
    "null": "a device",
    "lost": "a link to nothing",
    "loop": "a link that leads back to itself",
    "n" * 300: "a name that is too long for a file",
    "nul\0": "a name that a file cannot have",
    "\ud800": "a name that a file cannot have",
}


@pytest.mark.parametrize("name", KINDS, ids=repr)
def test_kinds(name: str, odd: pathlib.Path) -> None:
    assert kind(odd / name) == KINDS[name]
    if KINDS[name] == FILE:
        with open_file(odd / name) as file:
            assert file.read() == b"content"
    else:
        with pytest.raises(OSError) as error:
            open_file(odd / name)
        assert KINDS[name] in error.value.strerror
