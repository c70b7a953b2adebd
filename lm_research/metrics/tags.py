"""Tagging of words; entities are counted as in the conlleval script of CoNLL-2000.

Tags without a prefix (parts of speech) mark no entities; only the accuracy is meaningful for them.

Legend: N sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lm_research.metrics.base import metric

# Begin, inside (or middle), end (or last) and single (or unit) words of an entity, followed by its type unless there is only one.
_ENTITY_TAG = re.compile("([BIMELSU])(?:[-_](.*))?", re.DOTALL)


def mark_entities(names: Sequence[str]) -> bool:
    """Whether these tags mark entities: some have a prefix and a type, or all except O are bare prefixes."""
    matches = [_ENTITY_TAG.fullmatch(name) for name in names if name != "O"]
    return any(match and match[2] is not None for match in matches) or (bool(matches) and all(matches))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return (type, first word, word after the last) of each entity in BIO, IOB1, BIOES, BILOU or BMES tags.

    As in conlleval and seqeval, an I- or E- tag without a preceding tag of its entity begins a new one, and tags without a type
    ("B", "I-") have the type "_".
    """
    found, start, kind = set(), 0, ""
    for index, tag in enumerate([*tags, "O"]):
        match = _ENTITY_TAG.fullmatch(tag)
        prefix, name = (match[1], match[2] or "_") if match else ("O", "")
        continues = prefix in ("I", "M", "E", "L") and name == kind
        if kind and not continues:
            found.add((kind, start, index))
            kind = ""
        if not continues and prefix != "O":
            start, kind = index, name
        if kind and prefix in ("E", "L", "S", "U"):
            found.add((kind, start, index + 1))
            kind = ""
    return found


def _sentence_counts(predicted: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Count in one sentence: correct tags, words, correctly predicted entities, predicted entities, true entities."""
    right = sum(a == b for a, b in zip(predicted, labels, strict=True))
    found, true = entities(predicted), entities(labels)
    return np.array([right, len(labels), len(found & true), len(found), len(true)])


def tag_counts(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return `_sentence_counts` of each sentence [N, 5]; the counts of any sample are their sums."""
    counts = [_sentence_counts(predicted, true) for predicted, true in zip(predictions, references, strict=True)]
    return np.array(counts).reshape(-1, 5)


@metric("accuracy", higher_is_better=True, kind="tags", prepare=tag_counts)
def accuracy(counts_N5: np.ndarray) -> float:
    """Fraction of words whose tag is correct."""
    right, words, *_ = map(int, counts_N5.sum(0))
    return right / max(1, words)


@metric("precision", higher_is_better=True, kind="tags", prepare=tag_counts)
def precision(counts_N5: np.ndarray) -> float:
    """Fraction of predicted entities that are correct in type and both ends (micro-averaged)."""
    _, _, hits, guesses, _ = map(int, counts_N5.sum(0))
    return hits / max(1, guesses)


@metric("recall", higher_is_better=True, kind="tags", prepare=tag_counts)
def recall(counts_N5: np.ndarray) -> float:
    """Fraction of true entities that are predicted with the correct type and ends (micro-averaged)."""
    _, _, hits, _, truths = map(int, counts_N5.sum(0))
    return hits / max(1, truths)


@metric("f1", higher_is_better=True, kind="tags", prepare=tag_counts)
def f1(counts_N5: np.ndarray) -> float:
    """Harmonic mean of the entities' precision and recall."""
    both = precision(counts_N5) + recall(counts_N5)
    return 2 * precision(counts_N5) * recall(counts_N5) / both if both else 0.0
