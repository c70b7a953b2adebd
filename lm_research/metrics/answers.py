"""Exact match and F1 of answers to questions, as in the evaluation scripts of SQuAD 1.1 and 2.0.

SQuAD 1.1 (Rajpurkar et al. 2016) has several answers to every question; in 2.0 (Rajpurkar et al. 2018) some questions have none. Both
scripts compare lower-cased words without punctuation and articles, and take the best score over a question's answers. They differ for an
answer without remaining words: in 2.0 (`null`) it counts as no answer, and two of these match.

All values are fractions of 1; the scripts give percentages. Legend: N questions.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

from lm_research.metrics.base import metric

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Return the words of an answer for comparison: lower case, without (ASCII) punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(answer: str, golds: Sequence[str], null: bool) -> float:
    """Return 1 if the words equal those of one of the correct answers, in order, else 0."""
    return float(any(words(answer) == words(gold) for gold in _golds(golds, null)))


def f1(answer: str, golds: Sequence[str], null: bool) -> float:
    """Return the highest F1 of the bag of words against that of a correct answer."""
    return max(_f1(words(answer), words(gold), null) for gold in _golds(golds, null))


def _golds(golds: Sequence[str], null: bool) -> Sequence[str]:
    return ([gold for gold in golds if words(gold)] or [""]) if null else golds


def _f1(predicted: list[str], gold: list[str], null: bool) -> float:
    if null and not (predicted and gold):
        return float(predicted == gold)
    same = sum((collections.Counter(predicted) & collections.Counter(gold)).values())
    return 2.0 * same / (len(predicted) + len(gold)) if same else 0.0


def matches(predictions: Sequence[str], references: Sequence[Sequence[str]], null: bool) -> np.ndarray:
    """Return [N, 3]: exact match and F1 of each prediction, and whether the question has an answer."""
    pairs = zip(predictions, references, strict=True)
    rows = [(exact_match(answer, gold, null), f1(answer, gold, null), len(gold) > 0) for answer, gold in pairs]
    return np.array(rows, float).reshape(-1, 3)


@metric("exact_match", higher_is_better=True, kind="answers", prepare=matches, is_mean=True)
def mean_exact_match(matches_N3: np.ndarray) -> np.ndarray:
    """Exact match of each question [N]."""
    return matches_N3[:, 0]


@metric("f1", higher_is_better=True, kind="answers", prepare=matches, is_mean=True)
def mean_f1(matches_N3: np.ndarray) -> np.ndarray:
    """F1 of each question [N]."""
    return matches_N3[:, 1]


@metric("has_answer_exact_match", higher_is_better=True, kind="answers", prepare=matches)
def has_answer_exact_match(matches_N3: np.ndarray) -> float:
    """Mean exact match over the questions that have an answer; 0 if there are none."""
    return _mean(matches_N3[:, 0], matches_N3[:, 2] > 0)


@metric("has_answer_f1", higher_is_better=True, kind="answers", prepare=matches)
def has_answer_f1(matches_N3: np.ndarray) -> float:
    """Mean F1 over the questions that have an answer; 0 if there are none."""
    return _mean(matches_N3[:, 1], matches_N3[:, 2] > 0)


@metric("no_answer_exact_match", higher_is_better=True, kind="answers", prepare=matches)
def no_answer_exact_match(matches_N3: np.ndarray) -> float:
    """Mean exact match over the questions without an answer; 0 if there are none."""
    return _mean(matches_N3[:, 0], matches_N3[:, 2] == 0)


@metric("no_answer_f1", higher_is_better=True, kind="answers", prepare=matches)
def no_answer_f1(matches_N3: np.ndarray) -> float:
    """Mean F1 over the questions without an answer; 0 if there are none."""
    return _mean(matches_N3[:, 1], matches_N3[:, 2] == 0)


def _mean(values_N: np.ndarray, selected_N: np.ndarray) -> float:
    return values_N[selected_N].mean() if selected_N.any() else 0.0


@metric("best_f1", higher_is_better=True, kind="answers")
def best_f1(margins: Sequence[float], best_answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """F1 at the null threshold that maximizes it on these same questions."""
    return best_threshold(margins, best_answers, references)[0]


@metric("best_null_threshold", higher_is_better=True, kind="answers")
def best_null_threshold(
    margins: Sequence[float], best_answers: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """The null threshold that maximizes F1 on these questions."""
    return best_threshold(margins, best_answers, references)[1]


def best_threshold(
    margins: Sequence[float], answers: Sequence[str], golds: Sequence[Sequence[str]]
) -> tuple[float, float]:
    """Return (F1, threshold) for the null threshold that maximizes F1 on these questions.

    Args:
      margins: score of no answer minus that of the best answer, for each question; above the threshold the prediction is "".
      answers: best answer to each question, never "".
      golds: correct answers to each question, () if there are none.
    """
    order = np.argsort(margins, kind="stable")
    without = np.array([f1("", gold, True) for gold in golds])
    gain = np.array([f1(answer, gold, True) for answer, gold in zip(answers, golds, strict=True)]) - without
    totals = without.sum() + np.concatenate([[0.0], np.cumsum(gain[order])])
    sorted_margins = np.asarray(margins, np.float64)[order]
    possible = np.concatenate([[True], np.diff(sorted_margins) > 0, [True]])  # equal margins cannot be separated
    best = int(np.where(possible, totals, -np.inf).argmax())
    threshold = sorted_margins[best - 1] if best else np.nextafter(sorted_margins[0], -np.inf)
    return float(totals[best] / len(golds)), float(threshold)
