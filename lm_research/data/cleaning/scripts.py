"""Script filter: the fraction of a text's letters that belong to given scripts.

It selects languages without a model, but cannot distinguish languages of the same script.
"""

from __future__ import annotations

import functools

import numpy as np

from lm_research.common.scripts import SCRIPTS
from lm_research.errors import ConfigError, suggest


def parse(names: tuple[str, ...]) -> tuple[str, ...]:
    """Normalize names of scripts.

    Raises:
      ConfigError: a name is unknown.
    """
    scripts = tuple(name.strip().lower() for name in names)
    for name in scripts:
        if name not in SCRIPTS:
            raise ConfigError(f"clean.scripts names {name!r}. {suggest(name, SCRIPTS)}")
    return scripts


def ratio(text: str, scripts: tuple[str, ...]) -> float:
    """Compute the fraction of a text's letters that belong to the scripts; 0 for a text without letters."""
    points = np.frombuffer(text.encode("utf-32-le", "replace"), dtype="<u4")
    letters = points[_letters()[points]]
    return float(_members(scripts)[letters].mean()) if len(letters) else 0.0


@functools.cache
def _letters() -> np.ndarray:
    """Mark alphabetic code points (str.isalpha), bool [code points]."""
    letters = np.zeros(0x110000, dtype=bool)
    letters[:0x32400] = [chr(point).isalpha() for point in range(0x32400)]  # there are none above
    return letters


@functools.cache
def _members(scripts: tuple[str, ...]) -> np.ndarray:
    """Mark code points in a block of one of the scripts, bool [code points]."""
    members = np.zeros(0x110000, dtype=bool)
    for name in scripts:
        for first, last in SCRIPTS[name]:
            members[first : last + 1] = True
    return members
