"""SQuAD's scores by hand, from the definitions of the authors' scripts."""

from __future__ import annotations

import pytest

from lm_research.metrics import MetricInputs, answers

WORDS = {  # lower case, then no punctuation, then no articles, then split at white space
    "The Cat, an  animal!": ["cat", "animal"],
    "a.b": ["ab"],  # the period is removed first, so "a" is not an article
    "Theatre": ["theatre"],
    "a\u2013b": ["\u2013b"],  # a dash that is not ASCII stays, and is a word boundary
    "U.S.\tdollars": ["us", "dollars"],
    "the": [],
}


@pytest.mark.parametrize("text", WORDS)
def test_words(text: str) -> None:
    assert answers.words(text) == WORDS[text]


def test_best_of_several_answers() -> None:
    """Compare "big red dog" with "red dog": 2 words in common of 3 and 2, F1 = 2 x 2 / (3 + 2)."""
    for null in (False, True):
        assert answers.exact_match("the Red Dog.", ["a cat", "red dog"], null) == 1
        assert answers.exact_match("dog red", ["red dog"], null) == 0
        assert answers.f1("big red dog", ["a cat", "red dog"], null) == pytest.approx(4 / 5)
        assert answers.f1("red red", ["red"], null) == pytest.approx(2 / 3)  # bags: one in common of 2 and 1
        assert answers.f1("bird", ["a cat", "red dog"], null) == 0


def test_answers_without_words() -> None:
    """1.1 finds no words in common; 2.0 ignores such answers, and an empty answer is right where none exists."""
    assert answers.f1("an", ["the"], null=False) == 0 and answers.exact_match("an", ["the"], null=False) == 1
    assert answers.f1("", [], null=True) == answers.exact_match("", [], null=True) == 1
    assert answers.f1("x", [], null=True) == answers.exact_match("x", [], null=True) == 0
    assert answers.f1("", ["the", "cat"], null=True) == 0
    assert answers.f1("cat", ["the", "cat"], null=True) == 1


def test_means() -> None:
    """Two with an answer (F1 1 and 2/3), two without (one is left unanswered)."""
    scored = MetricInputs(
        "answers", predictions=["cat", "red", "", "x"], references=[["cat"], ["red dog"], [], []], null=True
    )
    found = scored.score(scored.names())
    assert found == pytest.approx(
        {
            "exact_match": 2 / 4,
            "f1": (1 + 2 / 3 + 1) / 4,
            "has_answer_exact_match": 1 / 2,
            "has_answer_f1": (1 + 2 / 3) / 2,
            "no_answer_exact_match": 1 / 2,
            "no_answer_f1": 1 / 2,
        }
    )


def test_best_threshold() -> None:
    """By margin: right (-2), unanswerable (0), right (1), unanswerable (3).

    Answering 3 of 4 gets 3 right, which is the best but for answering the first alone: 1 + 2 unanswerable = 3 too. The first of equals counts, the lower threshold.
    """
    margins, best, golds = [1.0, -2.0, 3.0, 0.0], ["cat", "dog", "x", "y"], [["cat"], ["dog"], [], []]
    assert answers.best_threshold(margins, best, golds) == (3 / 4, -2.0)
    assert answers.best_threshold([1.0, 1.0], ["cat", "x"], [["cat"], []]) == (
        1 / 2,
        pytest.approx(1.0),
    )  # none: 1/2 as well
