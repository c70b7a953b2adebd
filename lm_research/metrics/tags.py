"""A tag for each word; entities as the conlleval script of CoNLL-2000 counts them.

Tags without a prefix (parts of speech) mark no entities: there only the accuracy says something.

Legend: N sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lm_research.metrics.base import metric

# Begin, inside (or middle), end (or last) and single (or unit) words of an entity; its type follows, or there is but one type.
_ENTITY_TAG = re.compile("([BIMELSU])(?:[-_](.*))?", re.DOTALL)


def mark_entities(names: Sequence[str]) -> bool:
    """Whether these are tags of entities: some have a prefix and a type, or all but O are prefixes alone."""
    found = [_ENTITY_TAG.fullmatch(name) for name in names if name != "O"]
    return any(match and match[2] is not None for match in found) or (bool(found) and all(found))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first word, word after the last) of the entities that BIO, IOB1, BIOES, BILOU or BMES tags mark.

    As conlleval and seqeval have it, an I- or E- tag that nothing precedes begins an entity of its own, and tags without a type
    ("B", "I-") are of one type, "_".
    """
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        match = _ENTITY_TAG.fullmatch(tag)
        prefix, name = (match[1], match[2] or "_") if match else ("O", "")
        goes_on = prefix in ("I", "M", "E", "L") and name == kind
        if kind and not goes_on:
            found.add((kind, start, place))
            kind = ""
        if not goes_on and prefix != "O":
            start, kind = place, name
        if kind and prefix in ("E", "L", "S", "U"):
            found.add((kind, start, place + 1))
            kind = ""
    return found


def _sentence_counts(chosen: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Of one sentence: words tagged right, words; entities found that are true, entities found, true entities."""
    right = sum(a == b for a, b in zip(chosen, labels, strict=True))
    ours, theirs = entities(chosen), entities(labels)
    return np.array([right, len(labels), len(ours & theirs), len(ours), len(theirs)])


def tag_counts(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """`_sentence_counts` of each [N, 5], which add up to those of any sample, so that entities are looked for once."""
    found = [_sentence_counts(own, true) for own, true in zip(predictions, references, strict=True)]
    return np.array(found).reshape(-1, 5)


@metric("accuracy", higher_is_better=True, kind="tags", prepare=tag_counts)
def accuracy(counts_N5: np.ndarray) -> float:
    """Over words."""
    right, words, *_ = map(int, counts_N5.sum(0))
    return right / max(1, words)


@metric("precision", higher_is_better=True, kind="tags", prepare=tag_counts)
def precision(counts_N5: np.ndarray) -> float:
    """Over entities that match in type and both ends (micro-averaged); so are recall and f1."""
    _, _, hits, guesses, _ = map(int, counts_N5.sum(0))
    return hits / max(1, guesses)


@metric("recall", higher_is_better=True, kind="tags", prepare=tag_counts)
def recall(counts_N5: np.ndarray) -> float:
    _, _, hits, _, truths = map(int, counts_N5.sum(0))
    return hits / max(1, truths)


@metric("f1", higher_is_better=True, kind="tags", prepare=tag_counts)
def f1(counts_N5: np.ndarray) -> float:
    both = precision(counts_N5) + recall(counts_N5)
    return 2 * precision(counts_N5) * recall(counts_N5) / both if both else 0.0
