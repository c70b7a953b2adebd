"""Borderline documents: lengths, fractions of letters and of equal entries that are just enough, and one too few."""

from __future__ import annotations

import numpy as np
import pytest

from lm_research.config import CleanConfig
from lm_research.data.cleaning import REASONS, Cleaner
from lm_research.data.cleaning.near_duplicates import BANDS, SHINGLE, SIZE, find_near_duplicates, signature


@pytest.mark.parametrize(
    ("keys", "text", "reason"),
    [
        ({"min_characters": 3}, "abc", "kept"),
        ({"min_characters": 3}, "ab", "short"),
        ({"max_characters": 3}, "abc", "kept"),
        ({"max_characters": 3}, "abcd", "long"),
        ({"min_characters": 3, "max_characters": 3}, "abc", "kept"),
        ({"scripts": ("latin",), "min_script_ratio": 0.5}, "ab\u0436\u0436 12.", "kept"),  # two of four letters
        ({"scripts": ("latin",), "min_script_ratio": 0.51}, "ab\u0436\u0436 12.", "script"),
        ({"scripts": ("latin", "cyrillic"), "min_script_ratio": 1.0}, "ab\u0436\u0436 12.", "kept"),
        ({"scripts": ("latin",), "min_script_ratio": 0.01}, "12.", "script"),  # no letter at all
        ({"scripts": ("latin",), "min_script_ratio": 1.0}, "Az\u024f", "kept"),  # the last of Extended-B
        ({"min_characters": 3}, " \n\u00a0", "empty"),
    ],
)
def test_reasons(keys: dict, text: str, reason: str) -> None:
    assert REASONS[Cleaner(CleanConfig(**keys))(text).reason] == reason


def agreeing(entries: int, first: int = 0) -> np.ndarray:
    """Two signatures that agree in that many entries from `first` on."""
    pair = np.stack([np.arange(SIZE), np.arange(SIZE) + 1000]).astype(np.uint32)
    pair[1, first : first + entries] = pair[0, first : first + entries]
    return pair


@pytest.mark.parametrize("first", [0, SIZE - SIZE // BANDS])
def test_agreement_that_is_just_enough(first: int) -> None:
    """128 entries in 32 bands of four: four that agree are a band if they begin one, and a fraction of 1/32."""
    assert (SIZE, BANDS, SHINGLE) == (128, 32, 5)
    assert find_near_duplicates(agreeing(4, first), 1 / 32).tolist() == [False, True]
    assert find_near_duplicates(agreeing(4, first), 1 / 32 + 1e-9).tolist() == [False, False]
    assert find_near_duplicates(agreeing(3, first), 1 / 64).tolist() == [False, False]  # not a band
    assert find_near_duplicates(agreeing(4, 2), 1 / 64).tolist() == [False, False]  # halves of two bands


def test_documents_of_fewer_words_than_a_shingle() -> None:
    """Up to five words are one shingle; a sixth makes a second, and the first stays among the smallest for some hashes."""
    five, other, six = (signature(text) for text in ("a b c d e", "a b c d f", "a b c d e f"))
    assert (five != other).all() and 0 < (five == six).sum() < SIZE
    assert (signature("a b") != signature("b a")).all()  # in order
