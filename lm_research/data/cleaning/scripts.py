"""In which scripts a text is written: a filter on languages that needs no model and errs only between languages of one
script."""

from __future__ import annotations

import functools

import numpy as np

from lm_research.errors import ConfigError, suggest

# Blocks of the Unicode standard (Blocks.txt) in which a script's letters lie, first and last code point.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x41, 0x24F), (0x250, 0x2AF), (0x1E00, 0x1EFF), (0x2C60, 0x2C7F), (0xA720, 0xA7FF), (0xFF21, 0xFF5A)),
    "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "armenian": ((0x530, 0x58F),),
    "hebrew": ((0x590, 0x5FF), (0xFB1D, 0xFB4F)),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)),
    "devanagari": ((0x900, 0x97F), (0xA8E0, 0xA8FF)),
    "bengali": ((0x980, 0x9FF),),
    "gurmukhi": ((0xA00, 0xA7F),),
    "gujarati": ((0xA80, 0xAFF),),
    "tamil": ((0xB80, 0xBFF),),
    "telugu": ((0xC00, 0xC7F),),
    "kannada": ((0xC80, 0xCFF),),
    "malayalam": ((0xD00, 0xD7F),),
    "sinhala": ((0xD80, 0xDFF),),
    "thai": ((0xE00, 0xE7F),),
    "lao": ((0xE80, 0xEFF),),
    "tibetan": ((0xF00, 0xFFF),),
    "myanmar": ((0x1000, 0x109F), (0xAA60, 0xAA7F)),
    "georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)),
    "ethiopic": ((0x1200, 0x139F), (0x2D80, 0x2DDF)),
    "khmer": ((0x1780, 0x17FF),),
    "mongolian": ((0x1800, 0x18AF),),
    "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "hiragana": ((0x3040, 0x309F),),
    "katakana": ((0x30A0, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "han": ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
}


def parse(names: str) -> tuple[str, ...]:
    """The scripts that a comma-separated list names.

    Raises:
      ConfigError: one is not known.
    """
    scripts = tuple(name.strip().lower() for name in names.split(",") if name.strip())
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
    """bool [code points]: alphabetic, as Python knows them."""
    known = np.zeros(0x110000, dtype=bool)
    known[:0x32400] = [chr(point).isalpha() for point in range(0x32400)]  # none lies higher
    return known


@functools.cache
def _members(scripts: tuple[str, ...]) -> np.ndarray:
    """bool [code points]: in a block of one of the scripts."""
    members = np.zeros(0x110000, dtype=bool)
    for name in scripts:
        for first, last in SCRIPTS[name]:
            members[first : last + 1] = True
    return members
