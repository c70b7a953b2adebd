"""Halves of surrogate pairs become question marks, one each, so that places in a text stay."""

from __future__ import annotations

from lm_research.common.texts import is_text, replace_surrogates


def test_halves_become_question_marks() -> None:
    assert replace_surrogates("a\ud800b\udfff\udc80c") == "a?b??c"  # as Python's own errors="replace" has them
    given = ["\ud800", {"\udc00": ("x\ud83d", 1, None)}, 2.5, b"\xff"]
    assert replace_surrogates(given) == ["?", {"?": ("x?", 1, None)}, 2.5, b"\xff"]
    assert given[0] == "\ud800"


def test_other_texts_are_unchanged() -> None:
    for text in ("", "plain", "é", "\U0001f600", "\0", "\ufffd"):
        assert is_text(text) and replace_surrogates(text) is text
    assert not is_text("a\ud800")
