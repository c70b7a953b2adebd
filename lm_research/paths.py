"""Paths that people give, in flags and in files of settings: what no file system takes is refused before anything looks for it."""

from __future__ import annotations

import pathlib

from lm_research.errors import ConfigError, UserError

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes that Linux takes: NAME_MAX, and PATH_MAX without the byte that ends it


def path_of(text: str, where: str, *, error: type[UserError] = ConfigError) -> pathlib.Path:
    """The path that a text stands for, `~` expanded; whether anything is there is not looked at.

    Args:
      text: as it was given.
      where: the flag or key that gave it, for the message: "--input", "config.data.source".

    Raises:
      error: it is empty, too long, no text in UTF-8, has a NUL, or starts with the `~` of nobody.
    """
    if not text.strip():
        raise error(f"{where} is empty. Give a path.")
    if "\0" in text:
        raise error(f"{where}={text[:80]!r} has a NUL, which no path has. Leave it out.")
    try:
        names = [name.encode() for name in text.split("/")]
    except UnicodeEncodeError as mistake:
        raise error(
            f"{where}={ascii(text[:80])} is not UTF-8 (character {mistake.start + 1}). Give it a name in UTF-8, for example by a link."
        ) from mistake
    if max(map(len, names)) > LONGEST_NAME or len(text.encode()) > LONGEST_PATH:
        raise error(
            f"{where}={text[:40]}... is longer than a path can be (names of {LONGEST_NAME} bytes, {LONGEST_PATH} in all). Shorten it."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as mistake:
        raise error(f"{where}={text}: there is no home directory for {names[0].decode()}. Write it out.") from mistake
