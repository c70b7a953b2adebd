"""Answers to questions, texts, as the evaluation scripts of SQuAD 1.1 and 2.0 compare them with the right ones.

SQuAD 1.1 (Rajpurkar et al. 2016) has several answers to every question, 2.0 (Rajpurkar et al. 2018) none to some. Both scripts
compare words after lower-casing, without punctuation and articles, and take the best of a question's answers. They differ in
what an answer counts that has no words left: in 2.0 (null) it is no answer, and two of those agree.

All are fractions of 1; the scripts give percents. Legend: N questions.
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
    """Words of an answer as they are compared: lower case, no punctuation (ASCII), no articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(answer: str, golds: Sequence[str], null: bool) -> float:
    """1 if the words are those of one of the answers, in order, else 0."""
    return float(any(words(answer) == words(gold) for gold in _golds(golds, null)))


def f1(answer: str, golds: Sequence[str], null: bool) -> float:
    """The best F1 of the words as bags against an answer's."""
    return max(_f1(words(answer), words(gold), null) for gold in _golds(golds, null))


def _golds(golds: Sequence[str], null: bool) -> Sequence[str]:
    return ([gold for gold in golds if words(gold)] or [""]) if null else golds


def _f1(own: list[str], gold: list[str], null: bool) -> float:
    if null and not (own and gold):
        return float(own == gold)
    same = sum((collections.Counter(own) & collections.Counter(gold)).values())
    return 2.0 * same / (len(own) + len(gold)) if same else 0.0


def matches(predictions: Sequence[str], references: Sequence[Sequence[str]], null: bool) -> np.ndarray:
    """Of each question [N, 3] exact match and F1 of its answer, and whether it has one."""
    pairs = list(zip(predictions, references, strict=True))
    found = [(exact_match(own, gold, null), f1(own, gold, null), len(gold) > 0) for own, gold in pairs]
    return np.array(found, float).reshape(-1, 3)


@metric("exact_match", higher_is_better=True, kind="answers", prepare=matches, is_mean=True)
def mean_exact_match(matches_N3: np.ndarray) -> np.ndarray:
    return matches_N3[:, 0]


@metric("f1", higher_is_better=True, kind="answers", prepare=matches, is_mean=True)
def mean_f1(matches_N3: np.ndarray) -> np.ndarray:
    return matches_N3[:, 1]


@metric("has_answer_exact_match", higher_is_better=True, kind="answers", prepare=matches)
def has_answer_exact_match(matches_N3: np.ndarray) -> float:
    """Over the questions that have an answer, 0 where there are none; the others likewise."""
    return _mean(matches_N3[:, 0], matches_N3[:, 2] > 0)


@metric("has_answer_f1", higher_is_better=True, kind="answers", prepare=matches)
def has_answer_f1(matches_N3: np.ndarray) -> float:
    return _mean(matches_N3[:, 1], matches_N3[:, 2] > 0)


@metric("no_answer_exact_match", higher_is_better=True, kind="answers", prepare=matches)
def no_answer_exact_match(matches_N3: np.ndarray) -> float:
    """Over the questions that have none."""
    return _mean(matches_N3[:, 0], matches_N3[:, 2] == 0)


@metric("no_answer_f1", higher_is_better=True, kind="answers", prepare=matches)
def no_answer_f1(matches_N3: np.ndarray) -> float:
    return _mean(matches_N3[:, 1], matches_N3[:, 2] == 0)


def _mean(values_N: np.ndarray, some_N: np.ndarray) -> float:
    return values_N[some_N].mean() if some_N.any() else 0.0


@metric("best_f1", higher_is_better=True, kind="answers")
def best_f1(margins: Sequence[float], best_answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """F1 with the null threshold that gives the highest on these very questions."""
    return best_threshold(margins, best_answers, references)[0]


@metric("best_null_threshold", higher_is_better=True, kind="answers")
def best_null_threshold(
    margins: Sequence[float], best_answers: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """That threshold."""
    return best_threshold(margins, best_answers, references)[1]


def best_threshold(
    margins: Sequence[float], answers: Sequence[str], golds: Sequence[Sequence[str]]
) -> tuple[float, float]:
    """(F1, threshold) of the null threshold that gives the highest F1 on these very questions.

    Args:
      margins: of each question, the score of no answer minus that of its best answer; above the threshold there is no answer.
      answers: the best answers, never "".
      golds: answers of each question, () where there is none.
    """
    order = np.argsort(margins, kind="stable")
    without = np.array([f1("", gold, True) for gold in golds])
    gain = np.array([f1(own, gold, True) for own, gold in zip(answers, golds, strict=True)]) - without
    totals = without.sum() + np.concatenate([[0.0], np.cumsum(gain[order])])
    sorted_margins = np.asarray(margins, np.float64)[order]
    possible = np.concatenate([[True], np.diff(sorted_margins) > 0, [True]])  # equal margins go together
    best = int(np.where(possible, totals, -np.inf).argmax())
    threshold = sorted_margins[best - 1] if best else np.nextafter(sorted_margins[0], -np.inf)
    return float(totals[best] / len(golds)), float(threshold)
