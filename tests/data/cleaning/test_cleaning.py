"""Cleaning of single documents: normal forms, lengths, scripts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lm_research.common.scripts import SCRIPTS
from lm_research.config import CleanConfig
from lm_research.data.cleaning import REASONS, Cleaner, normalize, scripts
from lm_research.data.cleaning.scripts import parse, ratio
from lm_research.errors import ConfigError


def reason(text: str, **keys: Any) -> str:
    return REASONS[Cleaner(CleanConfig(**keys))(text).reason]


def test_defaults_keep_text_as_it_is() -> None:
    text = "e\u0301 \u200b\r\n[a@example.org]\x07"
    cleaned = Cleaner(CleanConfig())(text)
    assert cleaned.text == text and REASONS[cleaned.reason] == "kept" and not any(cleaned.scrubbed)
    assert Cleaner(CleanConfig())("half \ud83d pair").text == "half ? pair"
    assert reason(" \n\t ") == "empty"


def test_normal_forms() -> None:
    """NFC composes; NFKC also folds compatibility forms (UAX 15: ﬁ, ², ｱ)."""
    assert normalize("e\u0301ﬁ²", "NFC") == "éﬁ²" and normalize("e\u0301ﬁ²ｱ", "NFKC") == "éfi2ア"
    assert normalize("a\r\nb\rc\u2028d\x85e", "NFC") == "a\nb\nc\nd\ne"
    assert normalize("so\u00adft\u200b \ufeffx\x00\x07\x0cy", "NFC") == "soft x y"
    assert normalize("می\u200cخواهم 👨\u200d👩", "NFC") == "می\u200cخواهم 👨\u200d👩"  # joiners mean something


def test_lengths() -> None:
    assert reason("abc", min_characters=4) == "short" and reason("abcd", min_characters=4) == "kept"
    assert reason("abcd", max_characters=4) == "kept" and reason("abcde", max_characters=4) == "long"
    with pytest.raises(ConfigError, match="max_characters=3 is below clean.min_characters=5"):
        Cleaner(CleanConfig(min_characters=5, max_characters=3))


def test_scripts() -> None:
    assert ratio("Hello, Wörld! 123", ("latin",)) == 1.0
    assert ratio("abc где", ("latin",)) == 0.5 and ratio("abc где", ("latin", "cyrillic")) == 1.0
    assert ratio("今日は晴れ", ("han",)) == 3 / 5 and ratio("今日は晴れ", parse(("han", "hiragana", "katakana"))) == 1.0
    assert ratio("12 %", ("latin",)) == 0.0
    assert reason("Привет, мир", scripts="latin") == "script"
    assert reason("OK, мир и труд", scripts="latin,cyrillic") == "kept"
    assert reason("abcd абвг", scripts="latin", min_script_ratio=0.5) == "kept"
    with pytest.raises(ConfigError, match="names 'cyrilic'. Did you mean 'cyrillic'"):
        Cleaner(CleanConfig(scripts="cyrilic"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_blocks_of_a_script_include_both_ends(name: str) -> None:
    members, places = (
        scripts._members((name,)),
        {place for first, last in SCRIPTS[name] for place in range(first, last + 1)},
    )
    assert set(np.flatnonzero(members).tolist()) == places


def test_every_script_has_its_letters() -> None:
    """A letter of each, and no letter in two scripts."""
    samples = dict(
        latin="é",
        greek="ω",
        cyrillic="я",
        armenian="ա",
        hebrew="א",
        arabic="ب",
        devanagari="क",
        bengali="ক",
        gurmukhi="ਕ",
        gujarati="ક",
        tamil="க",
        telugu="క",
        kannada="ಕ",
        malayalam="ക",
        sinhala="ක",
        thai="ก",
        lao="ກ",
        tibetan="ཀ",
        myanmar="က",
        georgian="ა",
        ethiopic="ሀ",
        khmer="ក",
        mongolian="ᠠ",
        hangul="가",
        hiragana="あ",
        katakana="ア",
        han="字",
    )
    assert samples.keys() == SCRIPTS.keys()
    for name, letter in samples.items():
        assert [other for other in SCRIPTS if ratio(letter, (other,))] == [name]


def test_scrubbing_is_counted_and_comes_before_lengths() -> None:
    cleaned = Cleaner(CleanConfig(redact_pii="all", max_characters=10))("a.very.long.name@example.org")
    assert cleaned.text == "[EMAIL]" and REASONS[cleaned.reason] == "kept" and sum(cleaned.scrubbed) == 1
