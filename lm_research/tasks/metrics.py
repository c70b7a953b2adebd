"""Metrics of labelled tasks, as scikit-learn and SciPy have them; of entities as the conlleval script of CoNLL-2000 counts them.

Legend: N records, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

_BINS = 15  # of the calibration error (Guo et al. 2017)


def classification(logits_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """The metrics of `of_confusion`, and calibration_error (expected, Guo et al. 2017)."""
    counts_CC = confusion(labels_N, logits_NC.argmax(-1), logits_NC.shape[1])
    return of_confusion(counts_CC) | {"calibration_error": calibration_error(logits_NC, labels_N)}


def confusion(labels_N: np.ndarray, chosen_N: np.ndarray, classes: int) -> np.ndarray:
    """How often each class [C, C] (rows: true) was taken for each (columns: chosen)."""
    return np.bincount(labels_N * classes + chosen_N, minlength=classes * classes).reshape(classes, classes)


def of_confusion(counts_CC: np.ndarray) -> dict[str, float]:
    """accuracy; precision, recall and f1 (of class 1 where there are two classes, else means over the classes that occur as
    labels); f1_macro (mean over classes that occur at all), f1_micro; matthews (Matthews' correlation). 0 where one is undefined.

    In NumPy, because resampling asks for them thousands of times; the tests compare with scikit-learn.
    """
    counts_CC = counts_CC.astype(float)
    hits_C, true_C, chosen_C, total = counts_CC.diagonal(), counts_CC.sum(1), counts_CC.sum(0), counts_CC.sum()
    precision_C, recall_C, f1_C = (
        _share(hits_C, chosen_C),
        _share(hits_C, true_C),
        _share(2 * hits_C, true_C + chosen_C),
    )
    means = np.array([False, True]) if len(counts_CC) == 2 else true_C > 0
    spread = (total**2 - true_C @ true_C) * (total**2 - chosen_C @ chosen_C)
    return {
        "accuracy": float(hits_C.sum() / total),
        "precision": float(precision_C[means].mean()),
        "recall": float(recall_C[means].mean()),
        "f1": float(f1_C[means].mean()),
        "f1_macro": float(f1_C[true_C + chosen_C > 0].mean()),
        "f1_micro": float(hits_C.sum() / total),
        "matthews": float((hits_C.sum() * total - true_C @ chosen_C) / np.sqrt(spread)) if spread > 0 else 0.0,
    }


def group_accuracy(right_N: np.ndarray, groups_N: np.ndarray) -> float:
    """The share of groups (numbers, equal where records belong together) whose records are all right."""
    wrong = np.unique(groups_N[~right_N.astype(bool)])
    return float(1 - len(wrong) / len(np.unique(groups_N)))


def chosen(logits_NC: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """The record [G] of each group, in order of their numbers, with the highest probability of the last class; of equals the first."""
    gaps_NC = logits_NC.astype(np.float64) - logits_NC[:, -1:]  # so that equal ones stay equal
    score_N = -np.logaddexp.reduce(gaps_NC, axis=1)
    order_N = np.lexsort((-score_N, groups_N))  # stable: by group, best first
    return order_N[np.unique(groups_N[order_N], return_index=True)[1]]


def choices(
    logits_NC: np.ndarray, labels_N: np.ndarray, groups_N: np.ndarray, credits_N: np.ndarray
) -> dict[str, float]:
    """choice_accuracy and choice_credit of taking from each group the record with the highest probability of the last class.

    The first is the share of groups where that is the record's class, the other the mean of its credit.
    """
    chosen_G = chosen(logits_NC, groups_N)
    right_G = labels_N[chosen_G] == logits_NC.shape[1] - 1
    return {"choice_accuracy": float(right_G.mean()), "choice_credit": float(credits_N[chosen_G].mean())}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where there is nothing."""
    return part / np.where(whole > 0, whole, 1)


def calibration_error(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Expected calibration error: mean over records of |accuracy - confidence| of their bin of 15 equal ones."""
    return of_gaps(*calibration_gaps(logits_NC, labels_N))


def calibration_gaps(logits_NC: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each record its bin of confidence, and 1 or 0 (right or wrong) less its confidence."""
    shares_NC = np.exp(logits_NC - logits_NC.max(-1, keepdims=True))
    confidence_N = (shares_NC / shares_NC.sum(-1, keepdims=True)).max(-1)
    correct_N = logits_NC.argmax(-1) == labels_N
    return np.minimum((confidence_N * _BINS).astype(int), _BINS - 1), correct_N - confidence_N


def of_gaps(bin_N: np.ndarray, gap_N: np.ndarray) -> float:
    """The expected calibration error of what `calibration_gaps` gives."""
    return float(np.abs(np.bincount(bin_N, gap_N, minlength=_BINS)).sum() / len(bin_N))


def multi_label(chosen_NC: np.ndarray, labels_NC: np.ndarray) -> dict[str, float]:
    """exact_match (all labels of a record right), and precision, recall, f1_micro over all decisions, f1_macro over labels."""
    chosen_NC, labels_NC = chosen_NC.astype(bool), labels_NC.astype(bool)
    hits_C, chosen_C, true_C = ((chosen_NC & labels_NC).sum(0), chosen_NC.sum(0), labels_NC.sum(0))
    return {
        "exact_match": float((chosen_NC == labels_NC).all(-1).mean()),
        "precision": float(_share(hits_C.sum(), chosen_C.sum())),
        "recall": float(_share(hits_C.sum(), true_C.sum())),
        "f1_micro": float(_share(2 * hits_C.sum(), chosen_C.sum() + true_C.sum())),
        "f1_macro": float(_share(2 * hits_C, chosen_C + true_C).mean()),
    }


def regression(values_N: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """pearson and spearman correlation (0 where one side is constant), and squared_error; of several values [N, C] means over these."""
    from scipy import stats

    values_N, labels_N = values_N.astype(np.float64), labels_N.astype(np.float64)
    if values_N.ndim == 2:
        each = [regression(*pair) for pair in zip(values_N.T, labels_N.T, strict=True)]
        return {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    return {
        "pearson": _correlation(values_N, labels_N),
        "spearman": _correlation(stats.rankdata(values_N), stats.rankdata(labels_N)),
        "squared_error": float(np.square(values_N - labels_N).mean()),
    }


def _correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    if len(a_N) < 2 or np.ptp(a_N) == 0 or np.ptp(b_N) == 0:
        return 0.0
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    return float(a_N @ b_N / np.sqrt(a_N @ a_N) / np.sqrt(b_N @ b_N))


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


def first_ranks(
    queries_QD: np.ndarray,
    candidates_KD: np.ndarray,
    right_Q: Sequence[np.ndarray],
    chunk: int = 512,
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda a_QD, b_KD: a_QD @ b_KD.T,
) -> np.ndarray:
    """Of each query the rank [Q], from 1, of the best of its right candidates (numbers from 0) by product, or as `compare` says.

    A wrong candidate that is as near as the right one counts as nearer: a model that makes all texts equal finds nothing.
    """
    ranks_Q = np.empty(len(queries_QD), np.int64)
    for start in range(0, len(queries_QD), chunk):
        scores_QK = compare(queries_QD[start : start + chunk], candidates_KD)
        for scores_K, (number, right) in zip(scores_QK, enumerate(right_Q[start : start + chunk], start), strict=True):
            best = scores_K[right].max()
            ranks_Q[number] = 1 + (scores_K >= best).sum() - (scores_K[right] >= best).sum()
    return ranks_Q


def retrieval(ranks_Q: np.ndarray) -> dict[str, float]:
    """recall_at_1, _5 and _10: shares of queries with a right candidate among so many; mrr_at_10: mean of 1 / rank, 0 from the
    eleventh on (as MS MARCO has it, Bajaj et al. 2016)."""
    recalls = {f"recall_at_{count}": float((ranks_Q <= count).mean()) for count in (1, 5, 10)}
    return recalls | {"mrr_at_10": float(np.where(ranks_Q <= 10, 1.0 / ranks_Q, 0.0).mean())}
