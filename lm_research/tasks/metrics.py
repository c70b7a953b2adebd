"""Metrics of labelled tasks, by scikit-learn and SciPy; of entities as the conlleval script of CoNLL-2000 counts them.

Legend: N records, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BINS = 15  # of the calibration error (Guo et al. 2017)


def classification(logits_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """accuracy; precision, recall and f1 (of class 1 where there are two classes, else means over classes); f1_macro,
    f1_micro; matthews (Matthews' correlation); calibration_error (expected, Guo et al. 2017). 0 where one is undefined."""
    from sklearn import metrics

    chosen_N, two = logits_NC.argmax(-1), logits_NC.shape[1] == 2
    means = "binary" if two else "macro"
    options = dict(average=means, zero_division=0.0) | ({} if two else {"labels": np.unique(labels_N)})
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(labels_N, chosen_N, **options)
    return {
        "accuracy": float((chosen_N == labels_N).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "f1_macro": float(metrics.f1_score(labels_N, chosen_N, average="macro", zero_division=0.0)),
        "f1_micro": float(metrics.f1_score(labels_N, chosen_N, average="micro", zero_division=0.0)),
        "matthews": float(metrics.matthews_corrcoef(labels_N, chosen_N)),
        "calibration_error": calibration_error(logits_NC, labels_N),
    }


def calibration_error(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Expected calibration error: mean over records of |accuracy - confidence| of their bin of 15 equal ones."""
    shares_NC = np.exp(logits_NC - logits_NC.max(-1, keepdims=True))
    confidence_N = (shares_NC / shares_NC.sum(-1, keepdims=True)).max(-1)
    correct_N = logits_NC.argmax(-1) == labels_N
    bin_N = np.minimum((confidence_N * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bin_N, correct_N - confidence_N, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(labels_N))


def multi_label(chosen_NC: np.ndarray, labels_NC: np.ndarray) -> dict[str, float]:
    """exact_match (all labels of a record right), and precision, recall, f1_micro over all decisions, f1_macro over labels."""
    from sklearn import metrics

    micro = metrics.precision_recall_fscore_support(labels_NC, chosen_NC, average="micro", zero_division=0.0)
    return {
        "exact_match": float((chosen_NC == labels_NC).all(-1).mean()),
        "precision": float(micro[0]),
        "recall": float(micro[1]),
        "f1_micro": float(micro[2]),
        "f1_macro": float(metrics.f1_score(labels_NC, chosen_NC, average="macro", zero_division=0.0)),
    }


def regression(values_N: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """pearson and spearman correlation (0 where one side is constant), and squared_error."""
    from scipy import stats

    constant = len(labels_N) < 2 or np.ptp(values_N) == 0 or np.ptp(labels_N) == 0
    return {
        "pearson": 0.0 if constant else float(stats.pearsonr(values_N, labels_N).statistic),
        "spearman": 0.0 if constant else float(stats.spearmanr(values_N, labels_N).statistic),
        "squared_error": float(np.square(values_N.astype(np.float64) - labels_N).mean()),
    }


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first word, word after the last) of the entities that BIO, IOB1, BIOES or BILOU tags mark.

    As conlleval does, an I- or E- tag that nothing precedes begins an entity of its own.
    """
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = prefix in ("I", "E", "L") and name == kind
        if kind and not goes_on:
            found.add((kind, start, place))
            kind = ""
        if not goes_on and prefix in ("B", "I", "E", "L", "S", "U"):
            start, kind = place, name
        if kind and prefix in ("E", "L", "S", "U"):
            found.add((kind, start, place + 1))
            kind = ""
    return found


def tagging(chosen: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """accuracy over words; precision, recall and f1 over entities that match in type and both ends (micro-averaged).

    Tags without a prefix (parts of speech) mark no entities: there only the accuracy says something.
    """
    counts = [tag_counts(own, true) for own, true in zip(chosen, labels, strict=True)]
    return of_tag_counts(np.sum(counts, axis=0) if counts else np.zeros(5, int))


def tag_counts(chosen: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Of one sentence [5]: words tagged right, words; entities found that are true, entities found, true entities."""
    right = sum(a == b for a, b in zip(chosen, labels, strict=True))
    ours, theirs = entities(chosen), entities(labels)
    return np.array([right, len(labels), len(ours & theirs), len(ours), len(theirs)])


def of_tag_counts(counts_5: np.ndarray) -> dict[str, float]:
    """The metrics of `tagging`, of the sum of the counts of sentences."""
    right, words, hits, guesses, truths = map(int, counts_5)
    precision, recall = hits / max(1, guesses), hits / max(1, truths)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"accuracy": right / max(1, words), "precision": precision, "recall": recall, "f1": f1}
