"""In which scripts a text is written.

A filter on languages that needs no model and errs only between languages of one script.
"""

from __future__ import annotations

import functools

import numpy as np

from lm_research.common.scripts import SCRIPTS
from lm_research.errors import ConfigError, suggest


def parse(names: tuple[str, ...]) -> tuple[str, ...]:
    """The scripts of these names.

    Raises:
      ConfigError: one is not known.
    """
    scripts = tuple(name.strip().lower() for name in names)
    for name in scripts:
        if name not in SCRIPTS:
            raise ConfigError(f"clean.scripts names {name!r}. {suggest(name, SCRIPTS)}")
    return scripts


def ratio(text: str, scripts: tuple[str, ...]) -> float:
    """Share of the letters of a text that belong to the scripts; 0 for a text without letters."""
    points = np.frombuffer(text.encode("utf-32-le", "replace"), dtype="<u4")
    letters = points[_letters()[points]]
    return float(_members(scripts)[letters].mean()) if len(letters) else 0.0


@functools.cache
def _letters() -> np.ndarray:
    """Array of bool [code points]: alphabetic, as Python knows them."""
    known = np.zeros(0x110000, dtype=bool)
    known[:0x32400] = [chr(point).isalpha() for point in range(0x32400)]  # none lies higher
    return known


@functools.cache
def _members(scripts: tuple[str, ...]) -> np.ndarray:
    """Array of bool [code points]: in a block of one of the scripts."""
    members = np.zeros(0x110000, dtype=bool)
    for name in scripts:
        for first, last in SCRIPTS[name]:
            members[first : last + 1] = True
    return members
