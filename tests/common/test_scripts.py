"""Scripts against the blocks of the Unicode standard."""

from __future__ import annotations

import pytest

from lm_research.common.scripts import SCRIPTS

# Blocks.txt of Unicode 15.1; "to" joins neighbors. Latin begins with the letter A; of the fullwidth and halfwidth forms only letters
# count; Arabic's presentation forms leave out U+FEFF, the byte order mark; Han has the iteration marks of CJK Symbols, and extensions B to H.
BLOCKS = {
    "latin": "0041..024F 0250..02AF 1E00..1EFF 2C60..2C7F A720..A7FF FF21..FF5A",  # to Extended-B, IPA, Additional, C, D
    "greek": "0370..03FF 1F00..1FFF",
    "cyrillic": "0400..052F 1C80..1C8F 2DE0..2DFF A640..A69F",
    "armenian": "0530..058F",
    "hebrew": "0590..05FF FB1D..FB4F",
    "arabic": "0600..06FF 0750..077F 08A0..08FF FB50..FDFF FE70..FEFE",
    "devanagari": "0900..097F A8E0..A8FF",
    "bengali": "0980..09FF",
    "gurmukhi": "0A00..0A7F",
    "gujarati": "0A80..0AFF",
    "tamil": "0B80..0BFF",
    "telugu": "0C00..0C7F",
    "kannada": "0C80..0CFF",
    "malayalam": "0D00..0D7F",
    "sinhala": "0D80..0DFF",
    "thai": "0E00..0E7F",
    "lao": "0E80..0EFF",
    "tibetan": "0F00..0FFF",
    "myanmar": "1000..109F AA60..AA7F",
    "georgian": "10A0..10FF 1C90..1CBF 2D00..2D2F",
    "ethiopic": "1200..139F 2D80..2DDF",
    "khmer": "1780..17FF",
    "mongolian": "1800..18AF",
    "hangul": "1100..11FF 3130..318F A960..A97F AC00..D7FF",
    "hiragana": "3040..309F",
    "katakana": "30A0..30FF 31F0..31FF FF66..FF9D",
    "han": "3005..3007 3400..4DBF 4E00..9FFF F900..FAFF 20000..323AF",
}


@pytest.mark.parametrize("name", [*SCRIPTS, *BLOCKS])
def test_blocks(name: str) -> None:
    assert "".join(f"{first:04X}..{last:04X} " for first, last in SCRIPTS[name]).rstrip() == BLOCKS[name]
