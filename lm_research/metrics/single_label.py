"""One label of several, as scikit-learn has the metrics of it.

Legend: N records, C classes, G groups.
"""

from __future__ import annotations

import numpy as np

from lm_research.metrics.base import metric

_BINS = 15  # of the calibration error


@metric("accuracy", higher_is_better=True, kind="single_label", is_mean=True)
@metric("accuracy", higher_is_better=True, kind="choices", is_mean=True)
def accuracy(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    return predictions == references


class _Confusion:
    """How often each class [C, C] (rows: true) was taken for each (columns: chosen), and what follows; 0 where something is undefined.

    In NumPy, because resampling asks for it thousands of times; the tests compare with scikit-learn.
    """

    def __init__(self, predictions: np.ndarray, references: np.ndarray, num_labels: int) -> None:
        counts = np.bincount(references * num_labels + predictions, minlength=num_labels * num_labels)
        counts_CC = counts.reshape(num_labels, num_labels).astype(float)
        self.hits_C, self.true_C, self.chosen_C = counts_CC.diagonal(), counts_CC.sum(1), counts_CC.sum(0)
        self.total = counts_CC.sum()

    def mean(self, of_class_C: np.ndarray) -> float:
        """Of class 1 where there are two classes, else over the classes that occur as labels."""
        means_C = np.array([False, True]) if len(of_class_C) == 2 else self.true_C > 0
        return of_class_C[means_C].mean()

    @property
    def f1_C(self) -> np.ndarray:
        return ratio(2 * self.hits_C, self.true_C + self.chosen_C)


@metric("precision", higher_is_better=True, kind="single_label")
def precision(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> float:
    """Of class 1 where there are two classes, else the mean over the classes that occur as labels; so are recall and f1."""
    counts = _Confusion(predictions, references, num_labels)
    return counts.mean(ratio(counts.hits_C, counts.chosen_C))


@metric("recall", higher_is_better=True, kind="single_label")
def recall(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> float:
    counts = _Confusion(predictions, references, num_labels)
    return counts.mean(ratio(counts.hits_C, counts.true_C))


@metric("f1", higher_is_better=True, kind="single_label")
def f1(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> float:
    counts = _Confusion(predictions, references, num_labels)
    return counts.mean(counts.f1_C)


@metric("f1_macro", higher_is_better=True, kind="single_label")
def f1_macro(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> float:
    """Mean over the classes that occur at all."""
    counts = _Confusion(predictions, references, num_labels)
    return counts.f1_C[counts.true_C + counts.chosen_C > 0].mean()


@metric("f1_micro", higher_is_better=True, kind="single_label", is_mean=True)
def f1_micro(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Over all decisions, which of one label of several is the accuracy."""
    return predictions == references


@metric("matthews", higher_is_better=True, kind="single_label")
def matthews(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> float:
    """Matthews' correlation (1975), for several classes as Gorodkin (2004)."""
    counts = _Confusion(predictions, references, num_labels)
    true_C, chosen_C, total = counts.true_C, counts.chosen_C, counts.total
    spread = (total**2 - true_C @ true_C) * (total**2 - chosen_C @ chosen_C)
    return (counts.hits_C.sum() * total - true_C @ chosen_C) / np.sqrt(spread) if spread > 0 else 0.0


def calibration_gaps(logits: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Of each record [N, 2] its bin of confidence, and 1 or 0 (right or wrong) less its confidence."""
    probs_NC = np.exp(logits - logits.max(-1, keepdims=True))
    confidence_N = (probs_NC / probs_NC.sum(-1, keepdims=True)).max(-1)
    bin_N = np.minimum((confidence_N * _BINS).astype(int), _BINS - 1)
    return np.stack([bin_N, (logits.argmax(-1) == references) - confidence_N], axis=1)


@metric("calibration_error", higher_is_better=False, kind="single_label", prepare=calibration_gaps)
@metric("calibration_error", higher_is_better=False, kind="choices", prepare=calibration_gaps)
def calibration_error(gaps_N2: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017): mean over records of |accuracy - confidence| of their bin of 15 equal ones."""
    return np.abs(np.bincount(gaps_N2[:, 0].astype(int), gaps_N2[:, 1], minlength=_BINS)).sum() / len(gaps_N2)


@metric("group_accuracy", higher_is_better=True, kind="single_label")
def group_accuracy(predictions: np.ndarray, references: np.ndarray, groups: np.ndarray) -> float:
    """The fraction of groups whose records are all right."""
    wrong = np.unique(groups[predictions != references])
    return 1 - len(wrong) / len(np.unique(groups))


def choose(logits: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The record [G] of each group, in order of their numbers, with the highest probability of the last class; of equals the first."""
    gaps_NC = logits.astype(np.float64) - logits[:, -1:]  # so that equal ones stay equal
    score_N = -np.logaddexp.reduce(gaps_NC, axis=1)
    order_N = np.lexsort((-score_N, groups))  # stable: by group, best first
    return order_N[np.unique(groups[order_N], return_index=True)[1]]


@metric("choice_accuracy", higher_is_better=True, kind="single_label")
def choice_accuracy(logits: np.ndarray, references: np.ndarray, groups: np.ndarray, credits: np.ndarray) -> float:
    """The fraction of groups whose record with the highest probability of the last class is of that class."""
    return (references[choose(logits, groups)] == logits.shape[1] - 1).mean()


@metric("choice_credit", higher_is_better=True, kind="single_label")
def choice_credit(logits: np.ndarray, groups: np.ndarray, credits: np.ndarray) -> float:
    """The mean credit of those records."""
    return credits[choose(logits, groups)].mean()


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The ratio part / whole, 0 where there is nothing."""
    return part / np.where(whole > 0, whole, 1)
