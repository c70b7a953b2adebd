"""SQuAD's files and scores: nested records made flat, and exact match and F1 as the authors' evaluation scripts define them.

SQuAD 1.1 (Rajpurkar et al. 2016) has several answers to every question, 2.0 (Rajpurkar et al. 2018) none to some. Both scripts
compare words after lower-casing, without punctuation and articles, and take the best of a question's answers. They differ in
what an answer counts that has no words left: in 2.0 it is no answer, and two of those agree.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm_research.errors import DataError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def is_nested(fields: Mapping[str, Any]) -> bool:
    """Whether an object is a SQuAD document, or an article of one, and no record that has a field "data" or "paragraphs"."""
    inner = {"data": "paragraphs", "paragraphs": "qas"}
    return any(
        isinstance(one, dict) and below in one
        for name, below in inner.items()
        for one in (fields[name] if isinstance(fields.get(name), list) else ())
    )


def flatten(document: Mapping[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each question of data -> paragraphs -> qas; a question's fields are its own and its context.

    Args:
      document: a whole one, or an article of its data.
      where: of it.

    Raises:
      DataError: a level is missing, or of another type.
    """
    whole = "paragraphs" not in document
    for a, article in enumerate(_level(document, "data", where) if whole else [document]):
        at = f"{where}, data {a}" if whole else where
        for p, paragraph in enumerate(_level(article, "paragraphs", at)):
            below = f"{at}, paragraph {p}"
            for q, question in enumerate(_level(paragraph, "qas", below)):
                if not isinstance(question, dict):
                    raise DataError(f"{below}, question {q} is {question!r}, not an object with named fields. Mend it.")
                name = f"id {question['id']!r}" if "id" in question else f"question {q}"
                context = {"context": paragraph["context"]} if "context" in paragraph else {}
                yield f"{below}, {name}", {"title": article.get("title", "")} | question | context


def _level(parent: Any, name: str, where: str) -> list[Any]:
    if not isinstance(parent, dict) or not isinstance(parent.get(name), list):
        raise DataError(f"{where} has no list {name!r}: a SQuAD file is data -> paragraphs -> qas. Mend it.")
    return parent[name]


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


def scores(answers: Sequence[str], golds: Sequence[Sequence[str]], null: bool) -> dict[str, float]:
    """exact_match and f1, means over questions; of SQuAD 2.0 (null) also over those that have an answer, and those that have none.

    Those are `has_answer_exact_match`, `has_answer_f1`, `no_answer_exact_match` and `no_answer_f1`, 0 where there are no such
    questions. All are shares of 1; the scripts give percents.
    """
    each = {
        "exact_match": np.array([exact_match(own, gold, null) for own, gold in zip(answers, golds, strict=True)]),
        "f1": np.array([f1(own, gold, null) for own, gold in zip(answers, golds, strict=True)]),
    }
    found = {name: float(values.mean()) for name, values in each.items()}
    if null:
        answered = np.array([len(one) > 0 for one in golds])
        for kind, some in (("has_answer", answered), ("no_answer", ~answered)):
            found |= {
                f"{kind}_{name}": float(values[some].mean()) if some.any() else 0.0 for name, values in each.items()
            }
    return found


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
